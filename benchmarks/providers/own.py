"""hypkernels and hysac: every implementation, in every precision it has."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

import hypkernels as hk
from benchmarks import formulas
from benchmarks.case import CONTRASTIVE, HYCOCLIP, HYSAC, Inputs, Outputs, values
from benchmarks.providers.provider import Program, Provider

NOTES = {
    "triton": "fused kernels on a GPU",
    "torch": "closed forms in PyTorch, in bounded memory",
    "reference": "the dense float64 definition, to compare with",
}
PRECISION_NOTES = {
    "fp32": "; float32 points and products",
    "tf32": "; float32 points, TF32 products",
    "tf32x3": "; float32 points, each product three TF32 ones, for nearly the digits of float32",
    "bf16": "; bfloat16 points and products, everything else in float32 or better",
}
PRODUCT_PRECISION = {"fp32": "ieee", "tf32": "tf32", "tf32x3": "tf32x3", "bf16": None}
PRODUCTS = {"fp32": "float32", "tf32": "tf32", "tf32x3": "tf32", "bf16": "bfloat16"}
WITH_PRODUCTS = ("contrastive_dist", "contrastive_angle", "hysac_block", "hycoclip_block")


def _unary(function: Callable[..., Tensor]) -> Program:
    return lambda inputs: (function(inputs["x"], inputs["curv"]),)


def _binary(function: Callable[..., Tensor]) -> Program:
    return lambda inputs: (function(inputs["x"], inputs["y"], inputs["curv"]),)


def _cone(inputs: Inputs) -> Outputs:
    x, y, curv = inputs["x"], inputs["y"], inputs["curv"]
    return hk.half_aperture(x, curv), hk.oxy_angle(x, y, curv)


def _programs(precision: str | None) -> dict[str, Program]:
    def contrastive(*arguments: Tensor, **options: Any) -> Tensor:
        return hk.contrastive_loss(*arguments, **options, precision=precision)

    def contrastive_case(similarity: str) -> Program:
        return lambda inputs: (contrastive(*values(inputs, CONTRASTIVE), similarity=similarity),)

    def block(function: Callable[..., Tensor], names: tuple[str, ...]) -> Program:
        parts = {"contrastive": contrastive, "entailment": hk.entailment_loss}
        return lambda inputs: (function(*values(inputs, names), **parts),)

    return {
        "exp_map0": _unary(hk.exp_map0),
        "log_map0": _unary(hk.log_map0),
        "elementwise_dist": _binary(hk.elementwise_dist),
        "pairwise_dist": _binary(hk.pairwise_dist),
        "cone": _cone,
        "entailment_loss": _binary(hk.entailment_loss),
        "contrastive_dist": contrastive_case("dist"),
        "contrastive_angle": contrastive_case("angle"),
        "hysac_block": block(formulas.hysac_block, HYSAC),
        "hycoclip_block": block(formulas.hycoclip_block, HYCOCLIP),
    }


def _training_step(inputs: Inputs) -> Outputs:
    from hysac import HySACLoss

    return (HySACLoss()(*inputs["model"](inputs["image"], inputs["tokens"])),)


def _with_backend(program: Program, backend: str) -> Program:
    @wraps(program)
    def run(inputs: Inputs) -> Outputs:
        with hk.use_backend(backend):
            return program(inputs)

    return run


def _provider(
    backend: str,
    precision: str,
    dtype: torch.dtype = torch.float32,
    *,
    only: tuple[str, ...] = (),
    tolerance: float = 2e-4,
    most_rows: int | None = None,
    headline: bool = False,
) -> Provider:
    programs = _programs(PRODUCT_PRECISION[precision])
    if dtype == torch.float32 and precision == "fp32":
        programs |= {"step_toy": _training_step, "step_vit_b_32": _training_step}
    return Provider(
        name=f"hypkernels-{backend}-{precision}",
        label=f"hypkernels {backend}, {precision}",
        note=NOTES[backend] + PRECISION_NOTES[precision],
        programs={
            name: _with_backend(program, backend)
            for name, program in programs.items()
            if not only or name in only
        },
        dtype=dtype,
        products=PRODUCTS[precision],
        tolerance=tolerance,
        needs_cuda=backend == "triton",
        most_rows=most_rows,
        headline=headline,
        ours=True,
    )


PROVIDERS = (
    _provider("triton", "fp32"),
    _provider("triton", "tf32", only=WITH_PRODUCTS, tolerance=1e-2),
    _provider("triton", "tf32x3", only=WITH_PRODUCTS),
    _provider("triton", "bf16", torch.bfloat16, tolerance=1e-2),
    _provider("torch", "fp32", headline=True),
    _provider("torch", "bf16", torch.bfloat16, tolerance=1e-2),
    _provider("reference", "fp32", most_rows=256),
)
