"""geoopt's Lorentz manifold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Inputs, Outputs, Program
from benchmarks.formulas import time_component
from benchmarks.providers.provider import Provider


def _full(x: Tensor, curv: Tensor) -> Tensor:
    """geoopt's points carry their time component, first."""
    return torch.cat([time_component(x, curv).unsqueeze(-1), x], dim=-1)


def _with_math(function: Callable[[Any, Inputs], Tensor]) -> Program:
    def run(inputs: Inputs) -> Outputs:
        from geoopt.manifolds.lorentz import math

        return (function(math, inputs),)

    return run


def _exp_map0(math: Any, inputs: Inputs) -> Tensor:
    tangent = torch.nn.functional.pad(inputs["x"], (1, 0))
    return math.expmap0(tangent, k=1 / inputs["curv"])[..., 1:]


def _log_map0(math: Any, inputs: Inputs) -> Tensor:
    return math.logmap0(_full(inputs["x"], inputs["curv"]), k=1 / inputs["curv"])[..., 1:]


def _dist(math: Any, inputs: Inputs) -> Tensor:
    x, y = (_full(inputs[name], inputs["curv"]) for name in ("x", "y"))
    return math.dist(x, y, k=1 / inputs["curv"])


PROVIDERS = (
    Provider(
        name="geoopt-fp32",
        label="geoopt, fp32",
        note="points with a time component, attached inside the measured time; no cones, no losses, and no "
        "distances of all pairs that fit in memory",
        programs={
            "exp_map0": _with_math(_exp_map0),
            "log_map0": _with_math(_log_map0),
            "elementwise_dist": _with_math(_dist),
        },
        package="geoopt",
    ),
)
