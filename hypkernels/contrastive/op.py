"""Registration of the contrastive loss as ``torch.ops.hypkernels`` operators."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from hypkernels.checks import check_curv_value, check_scale_values, check_target_values
from hypkernels.contrastive import dense
from hypkernels.contrastive.similarity import logit_matrices
from hypkernels.rowwise import refuse_double_backward, result_dtype

_INPUTS = "Tensor x, Tensor y, Tensor curv, Tensor logit_scale, Tensor targets"
_STATISTICS = "Tensor positives, Tensor row_negatives, Tensor column_negatives"
_OPTIONS = "str similarity, bool symmetric, str? precision"


@torch.library.custom_op(
    "hypkernels::contrastive_loss",
    mutates_args=(),
    schema=f"({_INPUTS}, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def contrastive_loss(
    x: Tensor,
    y: Tensor,
    curv: Tensor,
    logit_scale: Tensor,
    targets: Tensor,
    similarity: str,
    symmetric: bool,
    precision: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss of each row, then the statistics that the backward operator takes back."""
    check_curv_value(curv)
    check_scale_values(logit_scale)
    check_target_values(targets, y.shape[0])
    with torch.autocast(x.device.type, enabled=False):
        problem = dense.problem(x, y, curv, logit_scale, targets, precision)
        losses, statistics = dense.forward(problem, similarity, symmetric)
    return losses.to(result_dtype(x.dtype)), *statistics


@contrastive_loss.register_fake
def _(
    x: Tensor,
    y: Tensor,
    curv: Tensor,
    logit_scale: Tensor,
    targets: Tensor,
    similarity: str,
    symmetric: bool,
    precision: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = x.shape[0]
    positives = x.new_empty(len(logit_matrices(similarity, symmetric)), rows, dtype=torch.float64)
    row_negatives = x.new_empty(rows, dtype=torch.float64)
    column_negatives = x.new_empty(y.shape[0] if symmetric else 0, dtype=torch.float64)
    return x.new_empty(rows, dtype=result_dtype(x.dtype)), positives, row_negatives, column_negatives


@torch.library.custom_op(
    "hypkernels::contrastive_loss_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_INPUTS}, {_STATISTICS}, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def contrastive_loss_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    curv: Tensor,
    logit_scale: Tensor,
    targets: Tensor,
    positives: Tensor,
    row_negatives: Tensor,
    column_negatives: Tensor,
    similarity: str,
    symmetric: bool,
    precision: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    statistics = dense.Statistics(positives, row_negatives, column_negatives)
    with torch.autocast(x.device.type, enabled=False):
        problem = dense.problem(x, y, curv, logit_scale, targets, precision)
        grads = dense.backward(grad, problem, statistics, similarity, symmetric)
    scale_grad = grads.scale if logit_scale.dim() else grads.scale.sum()
    return grads.x.to(x.dtype), grads.y.to(y.dtype), grads.curv, scale_grad


@contrastive_loss_backward.register_fake
def _(
    grad: Tensor, x: Tensor, y: Tensor, curv: Tensor, logit_scale: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def float64(shape: torch.Size) -> Tensor:
        return grad.new_empty(shape, dtype=torch.float64)

    return x.new_empty(x.shape), y.new_empty(y.shape), float64(torch.Size()), float64(logit_scale.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, ctx.options = inputs[:5], inputs[5:]
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    curv, logit_scale = saved[2], saved[3]
    x_grad, y_grad, curv_grad, scale_grad = contrastive_loss_backward(grad, *saved, *ctx.options)
    # Only scalars that learn are worth moving: their gradients may have to cross to another device.
    _, _, curv_learns, scale_learns, *_ = ctx.needs_input_grad
    return (
        x_grad,
        y_grad,
        curv_grad.to(curv.device, curv.dtype) if curv_learns else None,
        scale_grad.to(logit_scale.device, logit_scale.dtype) if scale_learns else None,
        *(None for _ in range(4)),
    )


contrastive_loss.register_autograd(_backward, setup_context=_setup_context)
contrastive_loss_backward.register_autograd(partial(refuse_double_backward, "contrastive_loss"))
