"""Kernels that apply a formula to rows, and their launchers: for pairs of points, and for norms of points.

A formula is a ``@triton.jit`` function of the float64 scalars of each row, passed as a compile-time constant:

- of a pair, ``value(pair, options)`` and ``gradient(grad, pair, options)``, which returns a
  :class:`~hypkernels.tritonlib.pair_geometry.PairGradient`;
- of a norm, ``value(x_norm, c, options)`` and ``gradient(grad, x_norm, c, options)``, which returns the
  gradient by ``x`` as a multiple of ``x``, and each row's share of the gradient by ``c``.

Forward and backward are one launch each, in which every point is read once and every gradient written once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypkernels.rowwise import result_dtype
from hypkernels.tritonlib.launch import MAX_HELD_WIDTH, allocate, launch_rows
from hypkernels.tritonlib.manifest import TARGETS, Variant
from hypkernels.tritonlib.pair_geometry import across, pair_geometry
from hypkernels.tritonlib.recording import DTYPE_NAMES, row_variants
from hypkernels.tritonlib.rows import (
    bounded_square,
    columns_from,
    combine,
    input_rows,
    load,
    load_scalars,
    output_rows,
    row_tile,
    saturate,
    scalar_of_rows,
    store,
    store_scalars,
)

OPTIONS = ("O0", "O1", "O2", "O3")

# Like ``rows.row_kernel``: one binary serves all batches, and all options of a formula.
_formula_kernel = triton.jit(do_not_specialize=[*OPTIONS, "outer_size", "inner_size"])


@_formula_kernel
def pair_forward(
    X,
    x_outer,
    x_inner,
    Y,
    y_outer,
    y_inner,
    OUT,
    O0,
    O1,
    O2,
    O3,
    CURV,
    curv_outer,
    curv_inner,
    outer_size,
    inner_size,
    VALUE: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tile = row_tile(outer_size, inner_size, ROWS)
    x, y = input_rows(X, x_outer, x_inner, tile), input_rows(Y, y_outer, y_inner, tile)
    c = scalar_of_rows(CURV, curv_outer, curv_inner, tile)
    pair = pair_geometry(x, y, c, tile, D, BLOCK_D)
    store_scalars(OUT, VALUE(pair, float64_options(O0, O1, O2, O3)), tile)


@_formula_kernel
def pair_backward(
    X,
    x_outer,
    x_inner,
    Y,
    y_outer,
    y_inner,
    GRAD,
    grad_outer,
    grad_inner,
    GRAD_X,
    GRAD_Y,
    GRAD_CURV,
    O0,
    O1,
    O2,
    O3,
    CURV,
    curv_outer,
    curv_inner,
    outer_size,
    inner_size,
    GRADIENT: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ADD: tl.constexpr = False,
):
    """With ``ADD`` gradients are added to ``GRAD_X`` and ``GRAD_Y``, of which one may be ``None``."""
    tile = row_tile(outer_size, inner_size, ROWS)
    x, y = input_rows(X, x_outer, x_inner, tile), input_rows(Y, y_outer, y_inner, tile)
    c = scalar_of_rows(CURV, curv_outer, curv_inner, tile)
    pair = pair_geometry(x, y, c, tile, D, BLOCK_D)
    grad = load_scalars(GRAD, grad_outer, grad_inner, tile)
    gradient = GRADIENT(grad, pair, float64_options(O0, O1, O2, O3))
    for start in range(0, D, BLOCK_D):
        columns = columns_from(start, tile, D, BLOCK_D)
        x_part = load(x, columns)
        n = across(pair.coarse, pair.fine, x_part, load(y, columns))
        if GRAD_X is not None:
            _put(GRAD_X, combine(gradient.x_by_x, x_part, gradient.x_by_n, n), tile, columns, D, ADD)
        if GRAD_Y is not None:
            _put(GRAD_Y, combine(gradient.y_by_x, x_part, gradient.y_by_n, n), tile, columns, D, ADD)
    store_scalars(GRAD_CURV, gradient.curv, tile)
    if not ADD:
        _saturate(GRAD_X, gradient.x_by_x, gradient.x_by_n, pair, x, y, tile, D)
        _saturate(GRAD_Y, gradient.y_by_x, gradient.y_by_n, pair, x, y, tile, D)


@triton.jit
def _saturate(OUT, by_x, by_n, pair, x, y, tile, D: tl.constexpr):
    bound = tl.abs(by_x) * tl.sqrt(pair.x_sq) + tl.abs(by_n) * tl.sqrt(pair.n_sq)
    terms = (by_x, by_n, pair, x, y)
    saturate(output_rows(OUT, tile, D), bound, 1.0, 1.0, terms, _of_pair, tile, D)


@triton.jit
def _of_pair(terms, factor, columns):
    by_x, by_n, pair, x, y = terms
    x_part = load(x, columns)
    n = across(pair.coarse, pair.fine, x_part, load(y, columns))
    return combine(factor * by_x, x_part, factor * by_n, n)


@triton.jit
def _put(OUT, value, tile, columns, D: tl.constexpr, ADD: tl.constexpr):
    rows = output_rows(OUT, tile, D)
    if ADD:
        value += load(rows, columns)
    store(rows, value, columns)


@_formula_kernel
def norm_forward(
    X,
    x_outer,
    x_inner,
    OUT,
    O0,
    O1,
    O2,
    O3,
    CURV,
    curv_outer,
    curv_inner,
    outer_size,
    inner_size,
    VALUE: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tile = row_tile(outer_size, inner_size, ROWS)
    x = input_rows(X, x_outer, x_inner, tile)
    x_norm = tl.sqrt(bounded_square(x, tile, D, BLOCK_D))
    c = scalar_of_rows(CURV, curv_outer, curv_inner, tile)
    value = VALUE(x_norm, c, float64_options(O0, O1, O2, O3))
    store_scalars(OUT, tl.where(x_norm == x_norm, value, x_norm), tile)


@_formula_kernel
def norm_backward(
    X,
    x_outer,
    x_inner,
    GRAD,
    grad_outer,
    grad_inner,
    GRAD_X,
    GRAD_CURV,
    O0,
    O1,
    O2,
    O3,
    CURV,
    curv_outer,
    curv_inner,
    outer_size,
    inner_size,
    GRADIENT: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tile = row_tile(outer_size, inner_size, ROWS)
    x = input_rows(X, x_outer, x_inner, tile)
    grad = load_scalars(GRAD, grad_outer, grad_inner, tile)
    options = float64_options(O0, O1, O2, O3)
    x_norm = tl.sqrt(bounded_square(x, tile, D, BLOCK_D))
    c = scalar_of_rows(CURV, curv_outer, curv_inner, tile)
    scale, by_curv = GRADIENT(grad, x_norm, c, options)
    by_x = output_rows(GRAD_X, tile, D)
    for start in range(0, D, BLOCK_D):
        columns = columns_from(start, tile, D, BLOCK_D)
        store(by_x, scale[:, None] * load(x, columns), columns)
    store_scalars(GRAD_CURV, by_curv, tile)
    saturate(by_x, tl.abs(scale) * x_norm, 1.0, 1.0, (scale, x), _of_multiple, tile, D)


@triton.jit
def _of_multiple(terms, factor, columns):
    by_x, x = terms
    return (factor * by_x)[:, None] * load(x, columns)


@triton.jit
def float64_options(O0, O1, O2, O3):
    return float64_of(O0), float64_of(O1), float64_of(O2), float64_of(O3)


@triton.jit
def float64_of(bits):
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


def option_bits(options: Sequence[float]) -> tuple[int, ...]:
    """The options' float64 bit patterns, padded to four: Triton would pass a float argument as float32."""
    return struct.unpack("4q", struct.pack("4d", *options, *[0.0] * (len(OPTIONS) - len(options))))


def launch_forward(
    kernel: Any,
    value: Any,
    points: Sequence[Tensor],
    curv: Tensor,
    *options: float,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``value`` of each row of ``points``, each ``(*batch, D)``: ``(*batch)``, by default as results are."""
    x = points[0]
    out = allocate(x, x.shape[:-1], dtype or result_dtype(x.dtype))
    launch_rows(kernel, points, [out, *option_bits(options)], [curv], VALUE=value)
    return out


def launch_backward(
    kernel: Any, gradient: Any, grad: Tensor, points: Sequence[Tensor], curv: Tensor, *options: float
) -> tuple[Tensor, ...]:
    """The gradients of the sum of ``grad * value`` by each of ``points`` and, float64, by ``curv``.

    ``curv`` is 0-d, or ``(*batch)`` for one of each row.
    """
    x = points[0]
    grads = [allocate(p, p.shape, p.dtype) for p in points]
    by_curv = allocate(x, x.shape[:-1], torch.float64)
    others: list[Tensor | int] = [*grads, by_curv, *option_bits(options)]
    launch_rows(kernel, [*points, grad.unsqueeze(-1)], others, [curv], GRADIENT=gradient)
    return (*grads, total_or_each(by_curv, curv))


def total_or_each(shares: Tensor, scalar: Tensor) -> Tensor:
    """The gradient by a scalar from each row's share: their sum, or all of them if each row has its own."""
    return shares if scalar.dim() else shares.sum()


def add_gradients(
    gradient: Any, grad: Tensor, points: Sequence[Tensor], curv: Tensor, sums: Sequence[Tensor | None]
) -> Tensor:
    """:func:`launch_backward` of pairs, added to dense ``sums``; returns the gradient by ``curv``."""
    by_curv = allocate(grad, grad.shape, torch.float64)
    others = [*sums, by_curv, *option_bits(())]
    launch_rows(pair_backward, [*points, grad.unsqueeze(-1)], others, [curv], GRADIENT=gradient, ADD=True)
    return by_curv.sum()


class Configuration(NamedTuple):
    """A type and width of points to compile for ahead of time."""

    dtype: str
    width: int
    targets: tuple[str, ...]


# Every target at one width, where points need the most registers, and where a row takes several tiles.
CONFIGURATIONS = (
    Configuration("fp32", 512, TARGETS),
    Configuration("fp64", 1024, ("sm_90",)),
    Configuration("fp32", 2 * MAX_HELD_WIDTH, TARGETS),
)

# Every type and tile shape: for the op that needs the most registers.
ALL_CONFIGURATIONS = (
    *(Configuration("fp32", 1 << bits, TARGETS) for bits in range(MAX_HELD_WIDTH.bit_length() + 1)),
    *(
        Configuration(dtype, width, TARGETS)
        for dtype in ("fp64", "bf16")
        for width in (1024, MAX_HELD_WIDTH, 2 * MAX_HELD_WIDTH)
    ),
    Configuration("fp32", 768, TARGETS),
)


def op_variants(
    kernels: str,
    name: str,
    *,
    points: int,
    scalars: int = 1,
    options: Sequence[float] = (),
    configurations: Sequence[Configuration] = CONFIGURATIONS,
) -> Iterator[Variant]:
    """The launches of op ``name`` of the module ``kernels``, forward and backward."""
    dtypes = {name: dtype for dtype, name in DTYPE_NAMES.items()}
    for dtype, width, targets in configurations:
        yield from row_variants(
            kernels,
            name,
            points=points,
            scalars=scalars,
            options=options,
            dtype=dtypes[dtype],
            width=width,
            targets=targets,
        )
