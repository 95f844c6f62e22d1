"""``python -m benchmarks.demo``: record what the demonstration printed and drew, for the README."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.machine import ROOT, describe_device, describe_software
from benchmarks.results import FOLDER
from hysac.demonstration import printed
from hysac.evaluation.report import EvaluationReport

NAME = "demo.json"
BEGIN, END = "<!-- demo:begin -->", "<!-- demo:end -->"
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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--run", default="runs/demo", metavar="DIR", help="the demonstration's directory")
    run = Path(parser.parse_args(arguments).run)
    path = record(run)
    readme = ROOT / "README.md"
    text = re.sub(f"{BEGIN}.*{END}", lambda _: block(path), readme.read_text(), flags=re.DOTALL)
    readme.write_text(text)
    for source, picture in _PICTURES.items():
        shutil.copyfile(run / "plots" / source, ROOT / "docs/images" / picture)
    print(f"recorded in {path}, README.md and docs/images")


if __name__ == "__main__":
    main()
