"""Every row-wise op as its family registers it: what is tested of all of them is parametrised with this."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import hypkernels
from hypkernels.rowwise import RowwiseOp

# Of the options by name, those of the public functions and others in which none is without effect.
DEFAULTS = {"min_radius": 0.1, "aperture_scale": 1.0, "margin": 0.0, "leak": 0.0}
OPTIONS = {"min_radius": 0.1, "aperture_scale": 0.8, "margin": 0.1, "leak": 0.2}


FAMILIES = sorted(path.parent.name for path in Path(hypkernels.__file__).parent.glob("*/op.py"))


def _ops():
    for family in FAMILIES:
        module = import_module(f"hypkernels.{family}.op")
        yield from (one for one in vars(module).values() if isinstance(one, RowwiseOp))


OPS: dict[str, RowwiseOp] = {op.name: op for op in _ops()}


def scalars_of(name: str) -> tuple[str, ...]:
    """The names of its scalars, of which the curvature is the last."""
    op = OPS[name]
    return tuple(op.checks)[: op.tensors - op.points]


def keywords_of(name: str, values: dict[str, float] = OPTIONS) -> dict[str, float]:
    """Its options by name, in order."""
    return {option: values[option] for option in list(OPS[name].checks)[len(scalars_of(name)) :]}


def options_of(name: str, values: dict[str, float] = OPTIONS) -> tuple[float, ...]:
    return tuple(keywords_of(name, values).values())
