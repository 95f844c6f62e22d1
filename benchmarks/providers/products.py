"""The matrix products alone, to see what a loss adds to them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from benchmarks.case import program
from benchmarks.providers.provider import Provider

_MOST_ROWS = 16384  # the correctness gate holds the matrix and its gradient in float64


class _FourProducts(torch.autograd.Function):
    """``x @ y.T``, computed once more in the backward pass, as a loss has to that does not keep it."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return x @ y.T

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors  # type: ignore[attr-defined]
        x @ y.T
        return gradient @ y, gradient.T @ x


def _provider(precision: str, dtype: torch.dtype, tolerance: float, needs_cuda: bool) -> Provider:
    return Provider(
        name=f"products-{precision}",
        label=f"four bare products, {precision}",
        note="no loss: x yᵀ forward and again backward, and the products of both gradients; what a loss "
        "that keeps no logits cannot do without",
        programs={"contrastive_dist": program(_FourProducts.apply, ("x", "y"))},
        dtype=dtype,
        products=str(dtype).removeprefix("torch."),
        computes="products",
        tolerance=tolerance,
        needs_cuda=needs_cuda,
        most_rows={"contrastive_dist": _MOST_ROWS},
        headline=True,
    )


PROVIDERS = (
    _provider("fp32", torch.float32, 2e-4, needs_cuda=False),
    _provider("bf16", torch.bfloat16, 1e-2, needs_cuda=True),
)
