"""Launchers of the compiled pairwise functions: one C call for each matrix of pairs.

``name(x, y, curv)`` takes ``(..., M, D)`` and ``(..., N, D)`` with equal leading dimensions, and a curvature
that is 0-d or has those dimensions; ``name_backward`` an upstream gradient before them. Gradients by the
curvature are float64, of its shape. Both return ``None`` where the points or the curvature are out of the
range of this implementation.
"""

from __future__ import annotations

import math
import struct
from ctypes import c_char_p, c_int
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hypkernels.cpu.library import load
from hypkernels.cpu.rows import DTYPES
from hypkernels.rowwise import result_dtype

_INNER, _DIST, _ANGLE = 0, 1, 2
_LAYOUT = struct.Struct("10q d 7q")  # struct Pairs of src/api.h, its x, y before their strides


@cache
def _run() -> Any:
    run = load().hk_pairs
    run.argtypes, run.restype = [c_char_p], c_int
    return run


def pairwise_inner(x: Tensor, y: Tensor, curv: Tensor) -> Tensor | None:
    return _forward(_INNER, x, y, curv)


def pairwise_inner_backward(grad: Tensor, x: Tensor, y: Tensor, curv: Tensor) -> tuple[Tensor, ...] | None:
    return _backward(_INNER, grad, x, y, curv)


def pairwise_dist(x: Tensor, y: Tensor, curv: Tensor) -> Tensor | None:
    return _forward(_DIST, x, y, curv)


def pairwise_dist_backward(grad: Tensor, x: Tensor, y: Tensor, curv: Tensor) -> tuple[Tensor, ...] | None:
    return _backward(_DIST, grad, x, y, curv)


def pairwise_oxy_angle(x: Tensor, y: Tensor, curv: Tensor) -> Tensor | None:
    return _forward(_ANGLE, x, y, curv)


def pairwise_oxy_angle_backward(
    grad: Tensor, x: Tensor, y: Tensor, curv: Tensor
) -> tuple[Tensor, ...] | None:
    return _backward(_ANGLE, grad, x, y, curv)


def _forward(function: int, x: Tensor, y: Tensor, curv: Tensor) -> Tensor | None:
    out = torch.empty(*x.shape[:-1], y.shape[-2], dtype=result_dtype(x.dtype))
    if not out.numel():
        return out
    matrices = _matrices(out)
    for index, (one, other, c) in enumerate(_each(x, y, curv)):
        if not _call(function, one, other, c, matrices[index], None, (0, 0, 0)):
            return None
    return out


def _backward(function: int, grad: Tensor, x: Tensor, y: Tensor, curv: Tensor) -> tuple[Tensor, ...] | None:
    if not grad.numel():
        zeros = (torch.zeros(points.shape, dtype=points.dtype) for points in (x, y))
        return (*zeros, torch.zeros(curv.shape, dtype=torch.float64))
    by_x, by_y = (torch.empty(points.shape, dtype=points.dtype) for points in (x, y))
    upstream, to_x, to_y = _matrices(grad), _matrices(by_x), _matrices(by_y)
    by_curv = torch.zeros(len(upstream), dtype=torch.float64)
    for index, (one, other, c) in enumerate(_each(x, y, curv)):
        outputs = (to_x[index].data_ptr(), to_y[index].data_ptr(), by_curv[index].data_ptr())
        if not _call(function, one, other, c, None, upstream[index], outputs):
            return None
    return by_x, by_y, by_curv.view(curv.shape) if curv.dim() else by_curv.sum()


def _each(x: Tensor, y: Tensor, curv: Tensor) -> Any:
    """Each matrix's points and curvature."""
    batch = math.prod(x.shape[:-2])
    curvatures = curv.reshape(-1).tolist() if curv.dim() else [curv.item()] * batch
    return zip(_matrices(x), _matrices(y), curvatures, strict=True)


def _matrices(tensor: Tensor) -> Tensor:
    """``(..., M, D)`` as ``(batch, M, D)``."""
    return tensor.reshape(math.prod(tensor.shape[:-2]), *tensor.shape[-2:])


def _call(
    function: int,
    x: Tensor,
    y: Tensor,
    c: float,
    out: Tensor | None,
    grad: Tensor | None,
    outputs: tuple[int, int, int],
) -> bool:
    x, y = (one if one.stride(1) == 1 or one.shape[1] == 1 else one.contiguous() for one in (x, y))
    strides = (0, 0) if grad is None else grad.stride()
    call = _LAYOUT.pack(
        *(function, DTYPES[x.dtype], torch.get_num_threads(), x.shape[1], x.shape[0], y.shape[0]),
        *(x.data_ptr(), y.data_ptr(), x.stride(0), y.stride(0)),
        c,
        out.data_ptr() if out is not None else 0,
        grad.data_ptr() if grad is not None else 0,
        *strides,
        *outputs,
    )
    return bool(_run()(call))
