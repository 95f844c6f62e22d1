"""Launchers of the compiled row-wise ops: a tensor in, a C call, a tensor out.

``name(*points, *scalars, *options)`` takes points of one shape ``(*batch, D)`` and scalars that are 0-d
or of the batch's shape; ``name_backward`` takes an upstream gradient before them. Gradients by scalars
are float64, one number for a 0-d scalar, else one for each row. :func:`value_and_splits` and
:func:`gradients_with_splits` do the same for any name; there the forward pass keeps *splits*, numbers of
each row, for the backward pass.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ctypes import c_char_p, c_int64
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hypkernels.cpu.library import load
from hypkernels.rowwise import result_dtype

MAX_DIMS = 6
DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}


_MAPS = ("exp_map0", "scaled_exp_map0", "log_map0", "exp_map", "log_map")
_OPS = {  # RowOp of src/api.h
    "exp_map0": 0,
    "scaled_exp_map0": 0,
    "log_map0": 1,
    "exp_map": 2,
    "log_map": 3,
    "elementwise_inner": 4,
    "elementwise_dist": 5,
    "dist0": 6,
    "half_aperture": 7,
    "oxy_angle": 8,
    "entailment_loss": 9,
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


def value_and_splits(
    name: str, points: Sequence[Tensor], scalars: Sequence[Tensor], options: Sequence[float]
) -> tuple[Tensor, Tensor | None]:
    """The value, and splits if they take at most an eighth of the points' memory; ``c`` comes last."""
    if not _keeps_splits(*points):
        return _forward(name, points, scalars, options), None
    splits = torch.empty(*points[0].shape[:-1], _KEPT_OF_ROW, dtype=torch.float64)
    return _forward(name, points, scalars, options, splits), splits


def _keeps_splits(*points: Tensor) -> bool:
    of_row = sum(one.shape[-1] * one.element_size() for one in points)
    return of_row >= 8 * 8 * _KEPT_OF_ROW


def gradients_with_splits(
    name: str,
    grad: Tensor,
    splits: Tensor,
    points: Sequence[Tensor],
    scalars: Sequence[Tensor],
    options: Sequence[float],
) -> tuple[Tensor, ...]:
    return _backward(name, grad, points, scalars, options, splits)


def exp_map0(v: Tensor, curv: Tensor) -> Tensor:
    return _forward("exp_map0", (v,), (curv,))


def exp_map0_backward(grad: Tensor, v: Tensor, curv: Tensor) -> tuple[Tensor, ...]:
    return _backward("exp_map0", grad, (v,), (curv,))


def scaled_exp_map0(x: Tensor, scale: Tensor, curv: Tensor) -> Tensor:
    return _forward("scaled_exp_map0", (x,), (scale, curv))


def scaled_exp_map0_backward(grad: Tensor, x: Tensor, scale: Tensor, curv: Tensor) -> tuple[Tensor, ...]:
    return _backward("scaled_exp_map0", grad, (x,), (scale, curv))


def log_map0(x: Tensor, curv: Tensor) -> Tensor:
    return _forward("log_map0", (x,), (curv,))


def log_map0_backward(grad: Tensor, x: Tensor, curv: Tensor) -> tuple[Tensor, ...]:
    return _backward("log_map0", grad, (x,), (curv,))


def exp_map(x: Tensor, v: Tensor, curv: Tensor) -> Tensor:
    return _forward("exp_map", (x, v), (curv,))


def exp_map_backward(grad: Tensor, x: Tensor, v: Tensor, curv: Tensor) -> tuple[Tensor, ...]:
    return _backward("exp_map", grad, (x, v), (curv,))


def log_map(x: Tensor, y: Tensor, curv: Tensor) -> Tensor:
    return _forward("log_map", (x, y), (curv,))


def log_map_backward(grad: Tensor, x: Tensor, y: Tensor, curv: Tensor) -> tuple[Tensor, ...]:
    return _backward("log_map", grad, (x, y), (curv,))


def elementwise_inner(x: Tensor, y: Tensor, curv: Tensor) -> Tensor:
    return _forward("elementwise_inner", (x, y), (curv,))


def elementwise_inner_backward(grad: Tensor, x: Tensor, y: Tensor, curv: Tensor) -> tuple[Tensor, ...]:
    return _backward("elementwise_inner", grad, (x, y), (curv,))


def elementwise_dist(x: Tensor, y: Tensor, curv: Tensor) -> Tensor:
    return _forward("elementwise_dist", (x, y), (curv,))


def elementwise_dist_backward(grad: Tensor, x: Tensor, y: Tensor, curv: Tensor) -> tuple[Tensor, ...]:
    return _backward("elementwise_dist", grad, (x, y), (curv,))


def dist0(x: Tensor, curv: Tensor) -> Tensor:
    return _forward("dist0", (x,), (curv,))


def dist0_backward(grad: Tensor, x: Tensor, curv: Tensor) -> tuple[Tensor, ...]:
    return _backward("dist0", grad, (x,), (curv,))


def half_aperture(x: Tensor, curv: Tensor, min_radius: float) -> Tensor:
    return _forward("half_aperture", (x,), (curv,), (min_radius,))


def half_aperture_backward(grad: Tensor, x: Tensor, curv: Tensor, min_radius: float) -> tuple[Tensor, ...]:
    return _backward("half_aperture", grad, (x,), (curv,), (min_radius,))


def oxy_angle(x: Tensor, y: Tensor, curv: Tensor) -> Tensor:
    return _forward("oxy_angle", (x, y), (curv,))


def oxy_angle_backward(grad: Tensor, x: Tensor, y: Tensor, curv: Tensor) -> tuple[Tensor, ...]:
    return _backward("oxy_angle", grad, (x, y), (curv,))


def entailment_loss(apex: Tensor, point: Tensor, curv: Tensor, *options: float) -> Tensor:
    """``options`` are ``aperture_scale, min_radius, margin, leak``."""
    return _forward("entailment_loss", (apex, point), (curv,), options)


def entailment_loss_backward(
    grad: Tensor, apex: Tensor, point: Tensor, curv: Tensor, *options: float
) -> tuple[Tensor, ...]:
    return _backward("entailment_loss", grad, (apex, point), (curv,), options)


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
            _OPS["entailment_loss"],
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
                _OPS["entailment_loss"],
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


def _forward(
    name: str,
    points: Sequence[Tensor],
    scalars: Sequence[Tensor],
    options: Sequence[float] = (),
    splits: Tensor | None = None,
) -> Tensor:
    x = points[0]
    if name in _MAPS:
        out = torch.empty(x.shape, dtype=x.dtype)
    else:
        out = torch.empty(x.shape[:-1], dtype=result_dtype(x.dtype))
    _call(_OPS[name], points, None, scalars, options, [out, None, None, None, None, None, None, splits])
    return out


def _backward(
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
    _call(_OPS[name], points, grad, scalars, options, outputs)
    if scale:
        grads.append(by_scale if scale_total is None else scale_total)
    return (*grads, by_curv if curv_total is None else curv_total)


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
