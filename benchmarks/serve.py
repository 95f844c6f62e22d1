"""``python -m benchmarks.serve``: requests a second and their latency, beside the bare model's rate."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch

from benchmarks.machine import commit, describe_device, describe_software
from benchmarks.results import FOLDER
from hysac import create_model, save_pretrained
from hysac.scoring import SafetyScorer

NAME = "serve.json"
BATCH = 64
CAPTIONS = [
    f"a {size} {colour} {thing} on the {side} {place}"
    for size, colour, thing, side, place in itertools.product(
        ("small", "large"),
        ("red", "green", "blue", "white"),
        ("car", "house", "tree", "boat"),
        ("left", "right"),
        ("in the desert", "on a meadow", "by the sea", "in a city"),
    )
]


def bare_rates(scorer: SafetyScorer, seconds: float) -> dict[str, float]:
    """Texts a second of the model alone, on full batches of tokens, and of the scorer, which tokenizes."""
    windows = torch.cat([scorer.tokens(text) for text in CAPTIONS]).split(BATCH)
    batches = [CAPTIONS[start : start + BATCH] for start in range(0, len(CAPTIONS), BATCH)]
    return {
        "model": _rate([lambda part=part: scorer.encode_rows("text", part) for part in windows], seconds),
        "scorer": _rate([lambda part=part: scorer(texts=part) for part in batches], seconds),
    }


def _rate(calls: Sequence[Any], seconds: float) -> float:
    calls[0]()
    start, done = time.perf_counter(), 0
    for call in itertools.cycle(calls):
        call()
        done += BATCH
        if (taken := time.perf_counter() - start) > seconds:
            return done / taken
    raise AssertionError("a cycle has no end")


async def load(address: str, clients: int, seconds: float) -> dict[str, float]:
    """What ``clients`` connections get, each asking for one score after another.

    Answers count that come in ``seconds`` after a quarter of that: take enough of them for several batches.
    """
    latencies: list[float] = []
    started = time.perf_counter()
    warm, end = started + seconds / 4, started + seconds * 5 / 4
    await asyncio.gather(*(_client(address, number, warm, end, latencies) for number in range(clients)))
    p50, p99 = np.quantile(latencies, [0.5, 0.99]) * 1000
    return {
        "clients": clients,
        "requests_per_second": len(latencies) / seconds,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
    }


async def _client(address: str, number: int, warm: float, end: float, latencies: list[float]) -> None:
    """Plain sockets: a client library would take a share of the processor that the server needs."""
    parts = urlsplit(address)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    for text in itertools.cycle(CAPTIONS[number:] + CAPTIONS[:number]):
        body = json.dumps({"items": [{"text": text}]}).encode()
        head = f"POST /score HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
        asked = time.perf_counter()
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        (length,) = (
            int(line.split(b":")[1]) for line in answer.split(b"\r\n") if line.startswith(b"content-length")
        )
        await reader.readexactly(length)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"the server answered {answer[:60]!r}")
        done = time.perf_counter()
        if done > end:
            break
        if done > warm:
            latencies.append(done - asked)
    writer.close()


def measure(name: str, clients: Sequence[int], seconds: float) -> dict[str, Any]:
    """The rates of a model with random weights: bare, served, and bare again."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        save_pretrained(create_model(name), folder)
        scorer = SafetyScorer.from_pretrained(folder)
        bare = [bare_rates(scorer, seconds)]
        served = _served(folder, clients, seconds)
        bare.append(bare_rates(scorer, seconds))
    best = {kind: max(one[kind] for one in bare) for kind in bare[0]}
    for one in served:
        one["share_of_model"] = one["requests_per_second"] / best["model"]
        one["share_of_scorer"] = one["requests_per_second"] / best["scorer"]
    return {"model": name, "bare_texts_per_second": best, "served": served, "load_average": os.getloadavg()}


def _served(folder: str, clients: Sequence[int], seconds: float) -> list[dict[str, float]]:
    command = [sys.executable, "-m", "hysac.cli", "serve", "--model-dir", folder, "--device", "cpu"]
    with subprocess.Popen(
        [*command, "--port", "0", "--timeout", "600"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().removeprefix("serving at ").strip()
            return [asyncio.run(load(address, number, seconds)) for number in clients]
        finally:
            process.terminate()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["hysac-toy", "ViT-B-32"], metavar="NAME")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 64], metavar="N")
    parser.add_argument("--seconds", type=float, default=10, metavar="S", help="of each measurement")
    parser.add_argument("--results", type=Path, default=FOLDER, metavar="DIR", help="where the file goes")
    args = parser.parse_args(arguments)
    device = describe_device(torch.device("cpu"))
    measured = [measure(name, args.clients, args.seconds) for name in args.models]
    content = {
        "command": "python -m benchmarks.serve",
        "commit": commit(),
        "device": device,
        "software": describe_software(),
        "measured": measured,
    }
    path = args.results / str(device["slug"]) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    for one in measured:
        _print(one)
    print(f"recorded in {path}")


def _print(one: dict[str, Any]) -> None:
    bare = one["bare_texts_per_second"]
    print(f"{one['model']}: bare {bare['model']:.0f} texts/s, the scorer {bare['scorer']:.0f} texts/s")
    for served in one["served"]:
        print(
            f"  {served['clients']:3} clients: {served['requests_per_second']:.0f} requests/s, p50 "
            f"{served['p50_ms']:.1f} ms, p99 {served['p99_ms']:.1f} ms, {served['share_of_model']:.2f} of "
            f"the model's rate, {served['share_of_scorer']:.2f} of the scorer's"
        )


if __name__ == "__main__":
    main()
