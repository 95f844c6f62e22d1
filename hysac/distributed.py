"""Gathering features over the processes of a group so that the averaged gradients are the global batch's."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import forward_ad


class _Gather(torch.autograd.Function):
    """Concatenate every process's rows; ``exchange`` says how the gradient comes back, see gather_rows."""

    @staticmethod
    def forward(rows: Tensor, exchange: bool) -> Tensor:
        gathered = rows.new_empty((dist.get_world_size() * rows.shape[0], *rows.shape[1:]))
        dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, bool], output: Tensor) -> None:
        ctx.exchange = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Return.apply(grad, ctx.exchange), None

    @staticmethod
    def vmap(*args: Any) -> NoReturn:
        _refuse("rule for torch.func.vmap")


class _Return(torch.autograd.Function):
    """The gradient by this process's rows from that by all rows."""

    @staticmethod
    def forward(grad: Tensor, exchange: bool) -> Tensor:
        world_size = dist.get_world_size()
        own_rows = grad.chunk(world_size)[dist.get_rank()]
        if not exchange:
            return own_rows * world_size
        summed = torch.empty_like(own_rows, memory_format=torch.contiguous_format)
        dist.reduce_scatter_tensor(summed, grad.contiguous())
        return summed

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, bool], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> NoReturn:
        _refuse("second derivative")

    vmap = staticmethod(_Gather.vmap)


def _refuse(what: str) -> NoReturn:
    raise NotImplementedError(f"a gather over processes, as in hysac.HySACLoss, has no {what}")


def gather_rows(rows: Tensor, *, exchange: bool) -> Tensor:
    """All processes' ``rows (B, ...)``, concatenated in rank order to ``(world_size * B, ...)``.

    Every process must hold the same number of rows. Gradients are those of the *sum* over processes of what
    each computes from the result, which is what averaging parameter gradients afterwards (as DDP and FSDP do)
    expects.

    ``torch.func.grad``, ``vjp`` and ``jacrev`` work.

    Args:
        rows: this process's rows, ``(B, ...)``.
        exchange: True sums the processes' gradients by a reduce-scatter, right whatever each process
            computes. False takes ``world_size`` times this process's own slice and communicates nothing,
            which is the same number when every process computes the same function of the gathered rows.

    Raises:
        NotImplementedError: a forward-mode or second derivative is asked for, or ``torch.func.vmap``.
    """
    if forward_ad._current_level >= 0:
        _refuse("forward-mode derivative")
    return _Gather.apply(rows, exchange)
