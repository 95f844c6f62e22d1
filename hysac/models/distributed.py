"""Gathering features over the processes of a group so that the averaged gradients are the global batch's."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import pad

from hypkernels.checks import SUPPORTED_DTYPES


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


def count_rows(rows: Tensor) -> list[int]:
    """The number of rows of every process, in rank order.

    The hosts exchange the numbers, so that nothing waits for a device.

    Args:
        rows: this process's rows, ``(B, ..., D)`` with ``B >= 0``, of a floating dtype.

    Raises:
        ValueError: on every process, where their rows differ in width or dtype.
    """
    own = torch.tensor([len(rows), rows.shape[-1], SUPPORTED_DTYPES.index(rows.dtype)])
    all_of_them = own.new_empty(dist.get_world_size() * len(own))
    dist.all_gather_into_tensor(all_of_them, own, group=_group_of_hosts())
    counts, widths, dtypes = all_of_them.view(-1, len(own)).T.tolist()
    for what, values in (("width", widths), ("dtype", [SUPPORTED_DTYPES[index] for index in dtypes])):
        if len(set(values)) > 1:
            raise ValueError(f"the features of all processes must have the same {what}, got {values} by rank")
    return counts


_hosts: tuple[dist.ProcessGroup, dist.ProcessGroup] | None = None


def _group_of_hosts() -> dist.ProcessGroup:
    """The default group if it carries tensors of the CPU, else one beside it that does, made once.

    It waits for a process as long as the default group does.
    """
    global _hosts
    default = dist.group.WORLD
    assert default is not None, "the caller has checked that there are processes"
    if "cpu" in str(dist.get_backend_config(default)):
        return default
    if _hosts is None or _hosts[0] is not default:
        beside: Any = dist.new_group(backend="gloo", timeout=_timeout(default))
        _hosts = default, beside
    return _hosts[1]


def _timeout(group: dist.ProcessGroup) -> timedelta | None:
    """The timeout of a group's calls; None, for PyTorch's own, if the backend does not have it."""
    backend = group._get_backend(group._device_types[0])
    return getattr(getattr(backend, "options", None), "_timeout", None)


def gather_rows(rows: Tensor, *, exchange: bool, counts: Sequence[int] | None = None) -> Tensor:
    """All processes' ``rows (B, ...)``, concatenated in rank order.

    Gradients are those of the *sum* over processes of what each computes from the result, which is what
    averaging parameter gradients afterwards (as DDP and FSDP do) expects.

    ``torch.func.grad``, ``vjp`` and ``jacrev`` work.

    Args:
        rows: this process's rows, ``(B, ...)``.
        exchange: True sums the processes' gradients by a reduce-scatter, right whatever each process
            computes. False takes ``world_size`` times this process's own slice and communicates nothing,
            which is the same number when every process computes the same function of the gathered rows.
        counts: the number of rows of every process, from :func:`count_rows`; None if all have the same.

    Raises:
        NotImplementedError: a forward-mode or second derivative is asked for, or ``torch.func.vmap``.
    """
    if forward_ad._current_level >= 0:
        _refuse("forward-mode derivative")
    if counts is None or min(counts) == max(counts):
        return _Gather.apply(rows, exchange)
    longest = max(counts)
    padded = pad(rows, [0, 0] * (rows.dim() - 1) + [0, longest - len(rows)])
    blocks = _Gather.apply(padded, exchange).split(longest)
    return torch.cat([block[:count] for block, count in zip(blocks, counts, strict=True)])
