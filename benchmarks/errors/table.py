"""The tables of a file of errors, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from benchmarks.errors.regimes import DTYPES, FUNCTIONS, REGIMES
from benchmarks.style import by_reason

TITLES = {
    "distance": "distance",
    "exp_map0": "exponential map at the origin",
    "log_map0": "logarithmic map at the origin",
    "half_aperture": "half-aperture",
    "exterior_angle": "exterior angle",
    "contrastive_loss": "contrastive loss",
}


def tables(content: Mapping[str, Any]) -> str:
    """One for each dtype, a row for each function and package, and what was left out."""
    by_dtype = [f"{_heading(dtype)}\n\n{_table(content, dtype)}" for dtype in DTYPES]
    return "\n\n".join([*by_dtype, *_told(content["packages"])])


def _heading(dtype: str) -> str:
    return f"`{dtype}`, worst relative error of the value, of the gradient by the points:"


def _table(content: Mapping[str, Any], dtype: str) -> str:
    names = [regime.name for regime in REGIMES]
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    found = {
        (one["function"], one["package"], one["regime"]): one
        for one in content["records"]
        if one["dtype"] == dtype
    }
    for function in FUNCTIONS:
        packages = list(dict.fromkeys(package for of, package, _ in found if of == function))
        if packages:
            lines.append(f"| **{TITLES[function]}** |" + " |" * len(names))
        for package in packages:
            cells = [_cell(found.get((function, package, name))) for name in names]
            lines.append(f"| {package} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return ""
    if "failed" in record:
        return "fails"
    numbers = [record["value"], record["gradient"]]
    return ", ".join(_short(one) for one in numbers if one is not None)


def _short(error: float | str) -> str:
    """One digit: ``6e-8``."""
    if isinstance(error, str) or not math.isfinite(error):
        return "not finite"
    if error == 0:
        return "0"
    digit, _, exponent = f"{error:.0e}".partition("e")
    return f"{digit}e{int(exponent)}" if int(exponent) else digit


def _told(packages: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Versions by what they were given, then what is missing."""
    there = {f"{name} {one['version']}": one for name, one in packages.items() if "version" in one}
    given = by_reason({name: str(one["input"]) for name, one in there.items()})
    without = by_reason({name: str(one["without"]) for name, one in there.items() if one["without"]})
    missing = [f"{name}: {one['missing']}" for name, one in packages.items() if "missing" in one]
    listed = (
        ("What each was given", [f"{what}: {', '.join(names)}" for what, names in given.items()]),
        ("What has no function", [f"{what}: {', '.join(names)}" for what, names in without.items()]),
        ("What was not installed", missing),
    )
    return [f"{title}:\n\n" + "\n".join(f"- {one}" for one in lines) for title, lines in listed if lines]
