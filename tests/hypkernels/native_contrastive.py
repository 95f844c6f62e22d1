"""The compiled contrastive losses as a differentiable function."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hypkernels.cpu import contrastive as native

NO_TARGETS = torch.empty(0, dtype=torch.int64)


def losses(
    points: Sequence[Tensor],
    pairings: Sequence[tuple[int, int]],
    curv: Tensor,
    scale: Tensor,
    *,
    similarity: str = "dist",
    symmetric: bool = True,
    targets: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Of each row, for each pairing."""
    rows, columns = [row for row, _ in pairings], [column for _, column in pairings]
    options = (
        [NO_TARGETS if targets is None else targets] * len(pairings),
        rows,
        columns,
        similarity,
        [symmetric] * len(pairings),
    )

    class Losses(torch.autograd.Function):
        @staticmethod
        def forward(ctx, curv, scale, *points):
            results, ctx.saved = native.forward(points, curv, scale, *options)
            ctx.save_for_backward(curv, scale, *points)
            return tuple(results)

        @staticmethod
        def backward(ctx, *grads):
            curv, scale, *points = ctx.saved_tensors
            learns = ctx.needs_input_grad[2:]
            *by_points, by_curv, by_scale = native.backward(
                grads, ctx.saved, learns, points, curv, scale, *options
            )
            by_points = [one if learning else None for one, learning in zip(by_points, learns, strict=True)]
            return by_curv.to(curv.dtype), by_scale.to(scale.dtype), *by_points

    return Losses.apply(curv, scale, *points)


def loss(x: Tensor, y: Tensor, curv: Tensor, scale: Tensor, reduction: str = "mean", **options) -> Tensor:
    """:func:`hypkernels.contrastive_loss` by the library."""
    (of_rows,) = losses((x, y), ((0, 1),), curv, scale, **options)
    if reduction == "none":
        return of_rows
    total = of_rows.sum(dtype=torch.float64)
    return (total / len(of_rows) if reduction == "mean" else total).to(of_rows.dtype)
