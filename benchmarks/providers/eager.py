"""Eager PyTorch, written from the published formulas as model authors write them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import formulas
from benchmarks.case import BINARY, CONTRASTIVE, HYCOCLIP, HYSAC, UNARY, Inputs, Outputs, Program, program
from benchmarks.providers.provider import Provider
from benchmarks.training_step import formula_step

FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "exp_map0": (formulas.exp_map0, UNARY),
    "log_map0": (formulas.log_map0, UNARY),
    "elementwise_dist": (formulas.elementwise_dist, BINARY),
    "busemann": (formulas.busemann, BINARY),
    "pairwise_dist": (formulas.pairwise_dist, BINARY),
    "pairwise_oxy_angle": (formulas.pairwise_oxy_angle, BINARY),
    "cone": (formulas.cone, BINARY),
    "entailment_loss": (formulas.entailment_loss, BINARY),
    "contrastive_dist": (formulas.contrastive, CONTRASTIVE),
    "contrastive_angle": (partial(formulas.contrastive, logits=formulas.angle_logits), CONTRASTIVE),
    "hysac_block": (formulas.hysac_block, HYSAC),
    "hycoclip_block": (formulas.hycoclip_block, HYCOCLIP),
}

_PROGRAMS: dict[str, Program] = {
    case: program(function, names) for case, (function, names) in FUNCTIONS.items()
} | {"step_toy": formula_step, "step_vit_b_32": formula_step}


def _in_float32(narrow: Program) -> Program:
    """Half-precision points are widened first, as MERU, HyCoCLIP and HySAC do."""

    def run(inputs: Inputs) -> Outputs:
        widened = {
            name: value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in inputs.items()
        }
        return narrow(widened)

    return run


PROVIDERS = (
    Provider(
        name="eager-fp32",
        label="eager PyTorch, fp32",
        note="the published formulas, all logits in memory",
        programs=_PROGRAMS,
        headline=True,
    ),
    Provider(
        name="eager-bf16",
        label="eager PyTorch, bf16",
        note="the published formulas on bfloat16 points, widened to float32 first as the authors do",
        programs={
            case: _in_float32(_PROGRAMS[case])
            for case in ("contrastive_dist", "hysac_block", "hycoclip_block")
        },
        dtype=torch.bfloat16,
        tolerance=1e-2,
        needs_cuda=True,
    ),
)
