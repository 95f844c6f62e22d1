"""``python -m benchmarks.demo``: record what the demonstration printed and drew, for the README."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.request import Request, urlopen

import torch

from benchmarks.machine import ROOT, describe_device, describe_software
from benchmarks.results import FOLDER
from hysac.demonstration import printed
from hysac.evaluation.report import EvaluationReport

NAME, USE_NAME = "demo.json", "demo_use.txt"
BEGIN, END = "<!-- demo:begin -->", "<!-- demo:end -->"
USE_BEGIN, USE_END = "<!-- use:begin -->", "<!-- use:end -->"
_SHOWN = ("Retrieval, %", "Unsafe by distance", "What this shows")
_PICTURES = {"distances.png": "distances.png", "retrieved_texts.png": "redirected.png"}


def record(run: Path, folder: Path = FOLDER) -> Path:
    """Write the report of a finished demonstration, with the machine, as a file of results."""
    device = describe_device(torch.device("cpu"))
    content = {
        "command": "make demo",
        "device": device,
        "software": describe_software(),
        "report": json.loads((run / "evaluation.json").read_text()),
    }
    path = folder / str(device["slug"]) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def block(path: Path) -> str:
    """The part of the README that shows a recorded report."""
    content = json.loads(path.read_text())
    headline, *tables = printed(EvaluationReport(**content["report"])).split("\n\n")
    shown = "\n\n".join([headline, *(table for table in tables if table.startswith(_SHOWN))])
    origin = f"On {content['device']['name']}: [the whole report]({path.relative_to(ROOT)})."
    return f"{BEGIN}\n```\n{shown}\n```\n\n{origin}\n{END}"


_QUERY = "a boat on the sea, in flames"
_COMMANDS = (
    ["calibrate", "--data", "RUN/data/val.jsonl"],
    ["score", "--text", "a boat on the sea", "--text", _QUERY, "--explain"],
    ["search", _QUERY, "-k", "3"],
    ["search", _QUERY, "-k", "3", "--policy", "redirect"],
)
_ASKED = json.dumps({"items": [{"text": _QUERY}]})


def record_use(run: Path, path: Path) -> None:
    """Calibrate, score, search and serve a finished demonstration's model, and write what was printed."""
    model = ["--model-dir", str(run)]
    with tempfile.TemporaryDirectory() as folder:
        index = ["--index", str(Path(folder) / "demo.index")]
        _printed(["index", "build", *model, f"{run}/data/val/", "--out", index[1]])
        lines = []
        for command in _COMMANDS:
            has_model = command[0] in ("calibrate", "score")
            told = _printed(
                [arg.replace("RUN", str(run)) for arg in command] + (model if has_model else index)
            )
            shown = " ".join(f"'{arg}'" if " " in arg else arg for arg in command)
            known = "--model-dir RUN" if has_model else "--index demo.index"
            block = [f"$ hysac {shown} {known}", *told.replace(str(run), "RUN").strip().splitlines(), ""]
            lines += [line.replace("RUN", "runs/demo") for line in block]
        lines += [f"$ curl -s localhost:8000/score --json '{_ASKED}'", _served([*model, *index])]
    path.write_text("\n".join(lines) + "\n")


def _served(arguments: list[str]) -> str:
    """What a server answers to a request for scores."""
    command = [sys.executable, "-m", "hysac.cli", "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            address = server.stdout.readline().split()[-1]
            request = Request(f"{address}/score", _ASKED.encode(), {"content-type": "application/json"})
            with urlopen(request, timeout=60) as answer:
                return str(answer.read().decode())
        finally:
            server.terminate()


def _printed(command: list[str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "hysac.cli", *command], capture_output=True, text=True, check=True
    )
    return done.stdout


def use_block(path: Path) -> str:
    """The part of the README that shows how the demonstration's model is used."""
    return f"{USE_BEGIN}\n```\n{path.read_text()}```\n{USE_END}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--run", default="runs/demo", metavar="DIR", help="the demonstration's directory")
    run = Path(parser.parse_args(arguments).run)
    path = record(run)
    readme = ROOT / "README.md"
    use = path.with_name(USE_NAME)
    record_use(run, use)
    text = re.sub(f"{BEGIN}.*{END}", lambda _: block(path), readme.read_text(), flags=re.DOTALL)
    text = re.sub(f"{USE_BEGIN}.*{USE_END}", lambda _: use_block(use), text, flags=re.DOTALL)
    readme.write_text(text)
    for source, picture in _PICTURES.items():
        shutil.copyfile(run / "plots" / source, ROOT / "docs/images" / picture)
    print(f"recorded in {path}, README.md and docs/images")


if __name__ == "__main__":
    main()
