"""Launchers of the compiled pairwise functions: one C call for each matrix of pairs.

``name(x, y, curv)`` takes ``(..., M, D)`` and ``(..., N, D)`` with equal leading dimensions, and a
curvature that is 0-d or has those dimensions; ``name_backward`` takes an upstream gradient before them.
Gradients by the curvature are float64, of its shape. Both return ``None`` if the points or the curvature
are beyond the range of this implementation.

The forward pass can keep the pairs' products of a small matrix for the backward pass:
:func:`value_and_products` and :func:`gradients_with_products`.
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

FUNCTIONS = {"pairwise_inner": 0, "pairwise_dist": 1, "pairwise_oxy_angle": 2}
# The most memory for products.
KEPT_BYTES = 8 << 20
_LAYOUT = struct.Struct("10q d 8q")  # struct Pairs of src/api.h, its x, y before their strides
_OUT_OF_RANGE, _DONE, _DONE_AND_KEPT = range(3)


@cache
def _run() -> Any:
    run = load().hk_pairs
    run.argtypes, run.restype = [c_char_p], c_int
    return run


def pairwise_inner(x: Tensor, y: Tensor, curv: Tensor) -> Tensor | None:
    return _forward("pairwise_inner", x, y, curv)


def pairwise_inner_backward(grad: Tensor, x: Tensor, y: Tensor, curv: Tensor) -> tuple[Tensor, ...] | None:
    return _backward("pairwise_inner", grad, x, y, curv)


def pairwise_dist(x: Tensor, y: Tensor, curv: Tensor) -> Tensor | None:
    return _forward("pairwise_dist", x, y, curv)


def pairwise_dist_backward(grad: Tensor, x: Tensor, y: Tensor, curv: Tensor) -> tuple[Tensor, ...] | None:
    return _backward("pairwise_dist", grad, x, y, curv)


def pairwise_oxy_angle(x: Tensor, y: Tensor, curv: Tensor) -> Tensor | None:
    return _forward("pairwise_oxy_angle", x, y, curv)


def pairwise_oxy_angle_backward(
    grad: Tensor, x: Tensor, y: Tensor, curv: Tensor
) -> tuple[Tensor, ...] | None:
    return _backward("pairwise_oxy_angle", grad, x, y, curv)


def value_and_products(name: str, x: Tensor, y: Tensor, curv: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """The function's value, and its pairs' products if they are kept."""
    products = torch.empty(_bytes_of_products(name, x, y), dtype=torch.uint8)
    out, done = _values(name, x, y, curv, products.data_ptr())
    return None if out is None else (out, products if done == _DONE_AND_KEPT else None)


def gradients_with_products(
    name: str, grad: Tensor, products: Tensor, x: Tensor, y: Tensor, curv: Tensor
) -> tuple[Tensor, ...]:
    gradients = _backward(name, grad, x, y, curv, products.data_ptr())
    assert gradients is not None, "what the forward pass took the backward pass takes"
    return gradients


def _bytes_of_products(name: str, x: Tensor, y: Tensor) -> int:
    """The memory for the products; 0 for several matrices and for a large one: nothing is kept."""
    if x.dim() > 2 or not x.shape[0] * y.shape[0]:
        return 0
    item = 4 if name == "pairwise_dist" and x.dtype != torch.float64 else 8
    size = x.shape[0] * -(-y.shape[0] * item // 64) * 64 + 64
    return size if size <= KEPT_BYTES else 0


def _forward(name: str, x: Tensor, y: Tensor, curv: Tensor) -> Tensor | None:
    return _values(name, x, y, curv)[0]


def _values(name: str, x: Tensor, y: Tensor, curv: Tensor, products: int = 0) -> tuple[Tensor | None, int]:
    """The values, and what the library reports to have done."""
    out, done = torch.empty(*x.shape[:-1], y.shape[-2], dtype=result_dtype(x.dtype)), _DONE
    if not out.numel():
        return out, done
    matrices = _matrices(out)
    for index, (one, other, c) in enumerate(_each(x, y, curv)):
        done = _call(name, one, other, c, matrices[index], None, (0, 0, 0), products)
        if done == _OUT_OF_RANGE:
            return None, done
    return out, done


def _backward(
    name: str, grad: Tensor, x: Tensor, y: Tensor, curv: Tensor, products: int = 0
) -> tuple[Tensor, ...] | None:
    if not grad.numel():
        zeros = (torch.zeros(points.shape, dtype=points.dtype) for points in (x, y))
        return (*zeros, torch.zeros(curv.shape, dtype=torch.float64))
    by_x, by_y = (torch.empty(points.shape, dtype=points.dtype) for points in (x, y))
    upstream, to_x, to_y = _matrices(grad), _matrices(by_x), _matrices(by_y)
    by_curv = torch.zeros(len(upstream), dtype=torch.float64)
    for index, (one, other, c) in enumerate(_each(x, y, curv)):
        outputs = (to_x[index].data_ptr(), to_y[index].data_ptr(), by_curv[index].data_ptr())
        if not _call(name, one, other, c, None, upstream[index], outputs, products):
            return None
    return by_x, by_y, by_curv.view(curv.shape) if curv.dim() else by_curv.sum()


def _each(x: Tensor, y: Tensor, curv: Tensor) -> Any:
    """The points and the curvature of each matrix."""
    batch = math.prod(x.shape[:-2])
    curvatures = curv.reshape(-1).tolist() if curv.dim() else [curv.item()] * batch
    return zip(_matrices(x), _matrices(y), curvatures, strict=True)


def _matrices(tensor: Tensor) -> Tensor:
    """``(..., M, D)`` as ``(batch, M, D)``."""
    return tensor.reshape(math.prod(tensor.shape[:-2]), *tensor.shape[-2:])


def _call(
    name: str,
    x: Tensor,
    y: Tensor,
    c: float,
    out: Tensor | None,
    grad: Tensor | None,
    outputs: tuple[int, int, int],
    products: int = 0,
) -> int:
    x, y = (one if one.stride(1) == 1 or one.shape[1] == 1 else one.contiguous() for one in (x, y))
    strides = (0, 0) if grad is None else grad.stride()
    call = _LAYOUT.pack(
        *(FUNCTIONS[name], DTYPES[x.dtype], torch.get_num_threads(), x.shape[1], x.shape[0], y.shape[0]),
        *(x.data_ptr(), y.data_ptr(), x.stride(0), y.stride(0)),
        c,
        out.data_ptr() if out is not None else 0,
        grad.data_ptr() if grad is not None else 0,
        *strides,
        *outputs,
        products,
    )
    return _run()(call)
