"""``torch.compile`` of the eager formulas."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from benchmarks.case import Inputs, Outputs, values
from benchmarks.providers.eager import FUNCTIONS
from benchmarks.providers.provider import Program, Provider

_CASES = (
    "exp_map0",
    "elementwise_dist",
    "entailment_loss",
    "contrastive_dist",
    "contrastive_angle",
    "hysac_block",
    "hycoclip_block",
)


def _compiled(case: str) -> Program:
    function, names = FUNCTIONS[case]

    @cache  # at the first call, so that the listing of providers compiles nothing
    def graph() -> Callable[..., Tensor]:
        return torch.compile(function, fullgraph=True, dynamic=True)

    def run(inputs: Inputs) -> Outputs:
        return (graph()(*values(inputs, names)),)

    return run


def _refusal(device: torch.device) -> str | None:
    if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        return "torch.compile needs a C++ compiler"
    return None


PROVIDERS = (
    Provider(
        name="compile-fp32",
        label="torch.compile, fp32",
        note="the same formulas through torch.compile(dynamic=True); the compile time is not counted",
        programs={case: _compiled(case) for case in _CASES},
        refusal=_refusal,
    ),
)
