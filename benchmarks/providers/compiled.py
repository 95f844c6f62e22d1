"""``torch.compile`` of the eager formulas."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from benchmarks.case import Inputs, Outputs, Program, program
from benchmarks.providers.eager import FUNCTIONS
from benchmarks.providers.provider import Provider


def _compiled(case: str) -> Program:
    function, names = FUNCTIONS[case]

    @cache  # at the first call, so that the listing of providers compiles nothing
    def graph() -> Callable[..., Any]:
        return torch.compile(function, fullgraph=True, dynamic=True)

    def run(inputs: Inputs) -> Outputs:
        return program(graph(), names)(inputs)

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
        programs={case: _compiled(case) for case in FUNCTIONS},
        headline=True,
        refusal=_refusal,
    ),
)
