"""Launchers of the compiled row-wise ops: a tensor in, a C call, a tensor out.

:func:`forward` and :func:`backward` take an op by its name, points of one shape ``(*batch, D)`` and scalars
that are 0-d or of the batch's shape, the curvature last. Gradients by scalars are float64, one number for a
0-d scalar, else one for each row. *Splits* are numbers of each row that the forward pass keeps for the
backward pass: :func:`value_and_splits`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ctypes import c_char_p, c_int64
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hypkernels.cpu.library import load
from hypkernels.rowwise import result_dtype

MAX_DIMS = 6
DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}


class _Op(NamedTuple):
    number: int  # RowOp of src/api.h
    returns_points: bool


_OPS = {
    "exp_map0": _Op(0, True),
    "scaled_exp_map0": _Op(0, True),
    "log_map0": _Op(1, True),
    "exp_map": _Op(2, True),
    "log_map": _Op(3, True),
    "elementwise_inner": _Op(4, False),
    "elementwise_dist": _Op(5, False),
    "dist0": _Op(6, False),
    "half_aperture": _Op(7, False),
    "oxy_angle": _Op(8, False),
    "entailment_loss": _Op(9, False),
    "busemann": _Op(10, False),
}
_KEPT_OF_ROW = 5
_LAYOUT = struct.Struct("13q 35q 4d 10q")  # struct Rows of src/api.h
_NOWHERE = (0,) * (1 + MAX_DIMS)
_NO_OPTIONS = (0.0,) * 4


@cache
def _run() -> Any:
    run = load().hk_rows
    run.argtypes, run.restype = [c_char_p, c_int64], None
    return run


def forward(
    name: str,
    points: Sequence[Tensor],
    scalars: Sequence[Tensor],
    options: Sequence[float] = (),
    splits: Tensor | None = None,
) -> Tensor:
    x = points[0]
    op = _OPS[name]
    if op.returns_points:
        out = torch.empty(x.shape, dtype=x.dtype)
    else:
        out = torch.empty(x.shape[:-1], dtype=result_dtype(x.dtype))
    _call(op.number, points, None, scalars, options, [out, None, None, None, None, None, None, splits])
    return out


def backward(
    name: str,
    grad: Tensor,
    points: Sequence[Tensor],
    scalars: Sequence[Tensor],
    options: Sequence[float] = (),
    splits: Tensor | None = None,
) -> tuple[Tensor, ...]:
    *scale, curv = scalars
    batch = points[0].shape[:-1]
    grads: list[Any] = [torch.empty(point.shape, dtype=point.dtype) for point in points]
    by_curv, curv_total = _shares_of(curv, batch)
    by_scale, scale_total = _shares_of(scale[0], batch) if scale else (None, None)
    by_y = grads[1] if len(grads) == 2 else None
    outputs = [None, grads[0], by_y, by_scale, by_curv, scale_total, curv_total, splits]
    _call(_OPS[name].number, points, grad, scalars, options, outputs)
    if scale:
        grads.append(by_scale if scale_total is None else scale_total)
    return (*grads, by_curv if curv_total is None else curv_total)


def value_and_splits(
    name: str, points: Sequence[Tensor], scalars: Sequence[Tensor], options: Sequence[float]
) -> tuple[Tensor, Tensor | None]:
    """The value, and splits if they take at most an eighth of the points' memory."""
    if not _keeps_splits(*points):
        return forward(name, points, scalars, options), None
    splits = torch.empty(*points[0].shape[:-1], _KEPT_OF_ROW, dtype=torch.float64)
    return forward(name, points, scalars, options, splits), splits


def _keeps_splits(*points: Tensor) -> bool:
    of_row = sum(one.shape[-1] * one.element_size() for one in points)
    return of_row >= 8 * 8 * _KEPT_OF_ROW


def entailment_losses(
    points: Sequence[Tensor],
    pairs: Sequence[tuple[int, int]],
    options: Sequence[Sequence[float]],
    curv: Tensor,
    *,
    keeps: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Losses ``(pairs, rows)`` of ``points[apex]`` and ``points[point]`` for each pair; their splits."""
    x = points[pairs[0][0]]
    rows = x.shape[0]
    losses = torch.empty(len(pairs), rows, dtype=result_dtype(x.dtype))
    splits = None
    if keeps and _keeps_splits(x, x):
        splits = torch.empty(len(pairs), rows, _KEPT_OF_ROW, dtype=torch.float64)
    calls = [
        _Prepared(
            _OPS["entailment_loss"].number,
            (points[apex], points[point]),
            None,
            (curv,),
            options[n],
            [losses[n], *[None] * 6, None if splits is None else splits[n]],
        )
        for n, (apex, point) in enumerate(pairs)
    ]
    _run()(b"".join(one.layout for one in calls), len(calls))
    return losses, splits


def entailment_losses_backward(
    grad: Tensor,
    splits: Tensor | None,
    points: Sequence[Tensor],
    pairs: Sequence[tuple[int, int]],
    options: Sequence[Sequence[float]],
    curv: Tensor,
) -> list[Tensor]:
    """The gradients by the curvature and by each set, for all pairs. Every set must be in a pair."""
    rows = points[pairs[0][0]].shape[0]
    written: dict[int, Tensor] = {}
    shares = torch.empty(rows, dtype=torch.float64)
    by_curv = torch.empty(len(pairs), dtype=torch.float64)
    calls = []
    for n, pair in enumerate(pairs):
        adds, outputs = [], []
        for index in pair:
            adds.append(index in written)
            if index not in written:
                written[index] = torch.empty(points[index].shape, dtype=points[index].dtype)
            outputs.append(written[index])
        of_scalars = [None, shares, None, by_curv[n], None if splits is None else splits[n]]
        calls.append(
            _Prepared(
                _OPS["entailment_loss"].number,
                [points[index] for index in pair],
                grad[n],
                (curv,),
                options[n],
                [None, *outputs, *of_scalars],
                adds,
            )
        )
    _run()(b"".join(one.layout for one in calls), len(calls))
    return [by_curv.sum(), *(written[index] for index in range(len(points)))]


def _shares_of(scalar: Tensor, batch: torch.Size) -> tuple[Any, Tensor | None]:
    """Memory for the rows' shares of a scalar's gradient, and for their sum if the scalar is 0-d."""
    of_rows = torch.empty(batch, dtype=torch.float64)
    return of_rows, None if scalar.dim() else torch.empty((), dtype=torch.float64)


def _call(*arguments: Any) -> None:
    prepared = _Prepared(*arguments)
    _run()(prepared.layout, 1)


class _Prepared:
    """A call of the library: ``layout`` for it, and the tensors that it points to."""

    def __init__(
        self,
        op: int,
        points: Sequence[Tensor],
        grad: Tensor | None,
        scalars: Sequence[Tensor],
        options: Sequence[float],
        outputs: Sequence[Tensor | None],
        adds: Sequence[bool] = (False, False),
    ) -> None:
        x = points[0]
        batch, width = x.shape[:-1], x.shape[-1]
        of_points = [_adjacent(point) for point in points]
        of_grad = [] if grad is None else [_adjacent(grad) if grad.dim() > len(batch) else grad]
        of_scalars = [one.double() for one in scalars]
        tensors = [*of_points, *of_grad, *of_scalars]
        sizes, strides = merged_dims(batch, tensors)
        if not batch.numel():  # without rows there are no strides to merge dimensions by
            sizes, strides = [0], [[0]] * len(tensors)
        elif len(sizes) > MAX_DIMS:
            tensors = [tensor.contiguous() for tensor in tensors]
            sizes, strides = merged_dims(batch, tensors)
        padding = (0,) * (MAX_DIMS - len(sizes))
        operands = [
            (tensor.data_ptr(), *steps, *padding) for tensor, steps in zip(tensors, strides, strict=True)
        ]
        n = len(points)
        addresses = [0 if output is None else output.data_ptr() for output in outputs]
        self.tensors = tensors, outputs
        self.layout = _LAYOUT.pack(
            *(op, DTYPES[x.dtype], grad is not None, torch.get_num_threads(), width, batch.numel()),
            *(len(sizes), *sizes, *padding),
            *operands[0],
            *(operands[1] if n == 2 else _NOWHERE),
            *(operands[n] if of_grad else _NOWHERE),
            *(operands[-2] if len(scalars) == 2 else _NOWHERE),
            *operands[-1],
            *options,
            *_NO_OPTIONS[len(options) :],
            *(*addresses[:3], *adds, *addresses[3:]),
        )


def _adjacent(rows: Tensor) -> Tensor:
    """The rows, or a copy, with the elements of each row side by side."""
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def merged_dims(batch: torch.Size, tensors: Sequence[Tensor]) -> tuple[list[int], list[list[int]]]:
    """The batch as the fewest dimensions that all tensors share, at least one, and each tensor's strides.

    A 0-d tensor has the same value for all rows.
    """
    all_strides = [tensor.stride() or (0,) * len(batch) for tensor in tensors]
    if len(batch) == 1:
        return [batch[0]], [[strides[0]] for strides in all_strides]
    sizes: list[int] = []
    merged: list[list[int]] = [[] for _ in tensors]
    for dim, size in enumerate(batch):
        if size == 1:
            continue
        if sizes and all(
            above[-1] == size * strides[dim] for above, strides in zip(merged, all_strides, strict=True)
        ):
            sizes[-1] *= size
            for above, strides in zip(merged, all_strides, strict=True):
                above[-1] = strides[dim]
        else:
            sizes.append(size)
            for above, strides in zip(merged, all_strides, strict=True):
                above.append(strides[dim])
    if not sizes:
        return [1], [[0] for _ in tensors]
    return sizes, merged
