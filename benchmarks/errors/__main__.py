"""Errors of hyperbolic packages against 100-digit arithmetic: docs/compat.md's tables.

    python -m benchmarks.errors --meru ../meru/meru/lorentz.py --results benchmarks/results

Packages that are not installed are listed as missing. Each is given numbers in its own coordinates, and is
compared with the truth of exactly these; see docs/compat.md for what that means.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.errors.measure import measure
from benchmarks.errors.packages import PACKAGES, Options, Package
from benchmarks.errors.table import tables

BEGIN, END = "<!-- errors:begin -->", "<!-- errors:end -->"


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything: where it was measured, the packages, and a record for each number."""
    packages: dict[str, dict[str, Any]] = {}
    records = []
    chosen = [one for one in PACKAGES if not options.only or one.name in options.only]
    for package in chosen:
        told, found = measure_package(package, Options(meru=options.meru), options.rows, options.width)
        packages[package.name] = told
        records += [{"package": package.name, **record} for record in found]
    device = machine.describe_device(torch.device("cpu"))
    sizes = {"rows": options.rows, "width": options.width}
    return {
        "device": device,
        "software": machine.describe_software(),
        "commit": machine.commit(),
        "sizes": sizes,
        "packages": packages,
        "records": records,
    }


def measure_package(
    package: Package, options: Options, rows: int, width: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What is told of a package, and its records: none of one that is not there."""
    try:
        version, functions = package.load(options)
    except ImportError as error:
        return {"missing": f"{package.install} ({error})"}, []
    records = list(measure(functions, package.coordinates, rows, width))
    for record in records:
        print(package.name, *record.values(), flush=True)
    return {"version": version, "input": package.input, "without": package.without}, records


def save(content: dict[str, Any], folder: Path) -> Path:
    """One line for each record."""
    place = folder / str(content["device"]["slug"])
    place.mkdir(parents=True, exist_ok=True)
    path = place / "errors.json"
    records = ",\n  ".join(json.dumps(_finite(one)) for one in content["records"])
    head = json.dumps({name: part for name, part in content.items() if name != "records"}, indent=1)[:-2]
    path.write_text(f'{head},\n "records": [\n  {records}\n ]\n}}\n')
    return path


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity."""
    return {
        name: "not finite" if isinstance(part, float) and not math.isfinite(part) else part
        for name, part in record.items()
    }


def embed(document: Path, text: str) -> None:
    """Replace what stands between the markers."""
    before, _, rest = document.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{document} has no markers {BEGIN} and {END}")
    document.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=32, help="points, or pairs of them, in each regime")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--only", nargs="*", metavar="PACKAGE", help="some of the packages, by name")
    parser.add_argument("--meru", type=Path, metavar="FILE", help="a lorentz.py of the MERU family")
    parser.add_argument("--results", type=Path, help="folder for errors.json, beside the other results")
    parser.add_argument("--document", type=Path, help="page whose tables are to be replaced")
    parser.add_argument("--again", type=Path, metavar="JSON", help="the tables of a file, without measuring")
    options = parser.parse_args()
    content = json.loads(options.again.read_text()) if options.again else run(options)
    text = tables(content)
    if options.results is not None and not options.again:
        print(f"\nall of it: {save(content, options.results)}")
    if options.document is not None:
        embed(options.document, text)
    else:
        print(f"\n{text}")


if __name__ == "__main__":
    main()
