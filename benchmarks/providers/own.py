"""hypkernels and hysac: every implementation, in every precision it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, wraps

import torch
from torch import Tensor

import hypkernels as hk
from benchmarks import formulas
from benchmarks.case import BINARY, CONTRASTIVE, HYCOCLIP, HYSAC, UNARY, Inputs, Outputs, Program, program
from benchmarks.providers.provider import Provider
from hypkernels.cpu import library

NOTES = {
    "triton": "fused kernels on a GPU; {points} points, {products}",
    "native": "compiled C++ on a CPU, in bounded memory; {points} points, float32 products",
    "torch": "closed forms in PyTorch, in bounded memory; {points} points, float32 products",
    "reference": "the dense float64 definition, to compare with; {points} points",
}
PRODUCT_NOTES = {
    "fp32": "float32 products",
    "tf32": "TF32 products",
    "tf32x3": "each product three TF32 ones, for nearly the digits of float32",
    "bf16": "bfloat16 products, everything else in float32 or better",
}
PRODUCT_PRECISION = {"fp32": "ieee", "tf32": "tf32", "tf32x3": "tf32x3", "bf16": None}
PRODUCTS = {"fp32": "float32", "tf32": "tf32", "tf32x3": "tf32", "bf16": "bfloat16"}
WITH_PRODUCTS = (
    "pairwise_dist",
    "pairwise_oxy_angle",
    "contrastive_dist",
    "contrastive_angle",
    "hysac_block",
    "hycoclip_block",
)


def _cone(x: Tensor, y: Tensor, curv: Tensor) -> tuple[Tensor, Tensor]:
    return hk.half_aperture(x, curv), hk.oxy_angle(x, y, curv)


def _programs(precision: str | None) -> dict[str, Program]:
    def contrastive(similarity: str) -> Program:
        loss = partial(hk.contrastive_loss, similarity=similarity, precision=precision)
        return program(loss, CONTRASTIVE)

    def block(function: Callable[..., Tensor], names: tuple[str, ...]) -> Program:
        contrastives = partial(hk.contrastive_losses, precision=precision)
        return program(partial(function, contrastives=contrastives, entailments=hk.entailment_losses), names)

    return {
        "exp_map0": program(hk.exp_map0, UNARY),
        "log_map0": program(hk.log_map0, UNARY),
        "elementwise_dist": program(hk.elementwise_dist, BINARY),
        "busemann": program(hk.busemann, BINARY),
        "pairwise_dist": program(partial(hk.pairwise_dist, precision=precision), BINARY),
        "pairwise_oxy_angle": program(partial(hk.pairwise_oxy_angle, precision=precision), BINARY),
        "cone": program(_cone, BINARY),
        "entailment_loss": program(hk.entailment_loss, BINARY),
        "contrastive_dist": contrastive("dist"),
        "contrastive_angle": contrastive("angle"),
        "hysac_block": block(formulas.hysac_block, HYSAC),
        "hycoclip_block": block(formulas.hycoclip_block, HYCOCLIP),
    }


def _training_step(inputs: Inputs) -> Outputs:
    from hysac import HySACLoss

    return (HySACLoss()(*inputs["model"](inputs["image"], inputs["tokens"])),)


def _with_backend(auto: Program, backend: str) -> Program:
    @wraps(auto)
    def run(inputs: Inputs) -> Outputs:
        with hk.use_backend(backend):
            return auto(inputs)

    return run


def _native_refusal(device: torch.device) -> str | None:
    return library.why_not() if device.type == "cpu" else "needs a CPU"


def _provider(
    backend: str,
    precision: str,
    dtype: torch.dtype = torch.float32,
    *,
    only: tuple[str, ...] = (),
    tolerance: float = 2e-4,
    most_rows: Mapping[str, int] | None = None,
    headline: bool = False,
) -> Provider:
    programs = _programs(PRODUCT_PRECISION[precision])
    points = str(dtype).removeprefix("torch.")
    if dtype == torch.float32 and precision == "fp32":
        programs |= {"step_toy": _training_step, "step_vit_b_32": _training_step}
    return Provider(
        name=f"hypkernels-{backend}-{precision}",
        label=f"hypkernels {backend}, {precision}",
        note=NOTES[backend].format(points=points, products=PRODUCT_NOTES[precision]),
        programs={
            name: _with_backend(auto, backend) for name, auto in programs.items() if not only or name in only
        },
        dtype=dtype,
        products=PRODUCTS[precision] if backend == "triton" else "float32",
        tolerance=tolerance,
        needs_cuda=backend == "triton",
        refusal=_native_refusal if backend == "native" else lambda device: None,
        most_rows=most_rows or {},
        headline=headline,
        ours=True,
    )


# All pairs in tiles as large as a CPU's cache: on a GPU some fifty launches each, and a wait. At B = 32768 a
# pass takes seconds, at 131072 most of a minute.
_BY_TILES = dict.fromkeys(WITH_PRODUCTS, 8192)

PROVIDERS = (
    _provider("triton", "fp32"),
    _provider("triton", "tf32", only=WITH_PRODUCTS, tolerance=1e-2),
    _provider("triton", "tf32x3", only=WITH_PRODUCTS),
    _provider("triton", "bf16", torch.bfloat16, tolerance=1e-2),
    _provider("native", "fp32", headline=True),
    _provider("native", "bf16", torch.bfloat16, tolerance=1e-2),
    _provider("torch", "fp32", headline=True, most_rows=_BY_TILES),
    _provider("torch", "bf16", torch.bfloat16, tolerance=1e-2, most_rows=_BY_TILES),
    _provider("reference", "fp32", most_rows=dict.fromkeys(_programs(None), 256)),
)
