"""Gathering features over the processes of a group so that the averaged gradients are the global batch's."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    """Concatenate every process's rows; ``exchange`` says how the gradient comes back, see gather_rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, exchange: bool) -> Tensor:
        ctx.exchange = exchange
        gathered = rows.new_empty((dist.get_world_size() * rows.shape[0], *rows.shape[1:]))
        dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        world_size = dist.get_world_size()
        own_rows = grad.chunk(world_size)[dist.get_rank()]
        if not ctx.exchange:
            return own_rows * world_size, None
        summed = torch.empty_like(own_rows, memory_format=torch.contiguous_format)
        dist.reduce_scatter_tensor(summed, grad.contiguous())
        return summed, None


def gather_rows(rows: Tensor, *, exchange: bool) -> Tensor:
    """All processes' ``rows (B, ...)``, concatenated in rank order to ``(world_size * B, ...)``.

    Every process must hold the same number of rows. Gradients are those of the *sum* over processes of what
    each computes from the result, which is what averaging parameter gradients afterwards (as DDP and FSDP do)
    expects.

    Args:
        rows: this process's rows, ``(B, ...)``.
        exchange: True sums the processes' gradients by a reduce-scatter, right whatever each process
            computes. False takes ``world_size`` times this process's own slice and communicates nothing,
            which is the same number when every process computes the same function of the gathered rows.
    """
    return _Gather.apply(rows, exchange)
