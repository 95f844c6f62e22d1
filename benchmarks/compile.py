"""Compile what the benchmarks will run, in several processes: ``python -m benchmarks.compile --device cuda``.

A kernel takes seconds to compile, in one core, and every case, precision and width has its own: one after the
other that is longer than their measurement. Triton and Inductor keep what is compiled on disk.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context

import torch

from benchmarks.case import SIZES
from benchmarks.cases import CASES
from benchmarks.gate import answer
from benchmarks.providers import PROVIDERS
from benchmarks.session import groups


def jobs(size: str, device: torch.device) -> list[tuple[str, str]]:
    """A case and a provider each, in the order in which they are measured."""
    found = [
        (case.name, provider.name) for case, _, providers in groups(size, device) for provider in providers
    ]
    return list(dict.fromkeys(found))


def run(case_name: str, provider_name: str, size: str, device: torch.device) -> str:
    """Forward and backward at the smallest shape that the provider takes; what came of it."""
    case, provider = CASES[case_name], PROVIDERS[provider_name]
    shape = next(shape for shape in case.shapes[size] if provider.supports(case_name, shape))
    began = time.monotonic()
    try:
        drawn = case.draw(shape, torch.Generator(device).manual_seed(1))
        inputs = case.prepare(drawn, provider.dtype)
        answer(case, provider.programs[case_name], inputs, points_dtype=provider.dtype)
    except Exception as raised:  # the benchmarks will say so themselves
        return f"{case_name}, {provider_name}: {type(raised).__name__}: {raised}".splitlines()[0][:200]
    return f"{case_name}, {provider_name}: {time.monotonic() - began:.1f} s"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="large", help="(default: large)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"), help="(default: cuda)")
    parser.add_argument(
        "--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes; 1 is this one"
    )
    options = parser.parse_args(arguments)
    one = partial(run, size=options.size, device=options.device)
    for line in _each(one, jobs(options.size, options.device), options.workers):
        print(line, flush=True)


def _each(one: Callable[..., str], arguments: Sequence[tuple[str, str]], workers: int) -> Iterator[str]:
    if workers == 1:
        yield from (one(*job) for job in arguments)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        pending = [pool.submit(one, *job) for job in arguments]
        for done in as_completed(pending):
            yield done.result()


if __name__ == "__main__":
    main()
