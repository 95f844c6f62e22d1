"""Rows of a batch in Triton kernels: one program takes ``ROWS`` rows, in tiles of ``BLOCK_D`` columns.

A batch is seen as ``(outer, inner, D)``. Each tensor read has two row strides of its own, 0 where it is
broadcast; tensors written are dense. :mod:`hypkernels.tritonlib.launch` is the host side.

A kernel passes over its rows several times: a loop for each sum that a later loop needs, and one for the
output. It is written as if every pass read the rows again:

    for start in range(0, D, BLOCK_D):
        columns = columns_from(start, tile, D, BLOCK_D)
        total += load(x, columns) * load(y, columns)

If one tile holds a whole row, each loop has one step and all have the same loads: the compiler reads the
rows once and keeps them in registers. Stores come last, since the compiler moves no load across a store.
Wider rows are read in each pass, after the first one from a cache.

Tiles are float64, ``(ROWS, BLOCK_D)``, zero outside the batch and beyond the last column; scalars of the rows
are float64, ``(ROWS,)``. Narrow inputs convert exactly; results are rounded once.

Sums over all rows have two stages in a fixed order: a kernel stores each row's share with ``store_scalars``,
and the launcher sums the shares.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import triton
import triton.language as tl

# The interpreter cuts float32 to bfloat16 instead of rounding, and flushes subnormals.
_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")

# The largest factor: its product with any number of a narrow type is finite, and keeps its sign.
_HUGE = tl.constexpr(1e250)

# The last arguments of every row kernel. They are not specialised: one binary serves all batches. They
# are not fields of a tuple, because Triton specialises fields whatever is named here. Nor is each tensor
# in a tuple with its strides: the arguments of a pair's launch would take 5.0 us on the CPU instead of
# 3.1.
row_kernel = triton.jit(do_not_specialize=["outer_size", "inner_size"])


class RowTile(NamedTuple):
    """The rows of a program, ``number`` counting all rows of the batch; ``live`` are those within it."""

    outer: tl.tensor
    inner: tl.tensor
    number: tl.tensor
    live: tl.tensor


class Columns(NamedTuple):
    index: tl.tensor
    mask: tl.tensor


@triton.jit
def row_tile(outer_size, inner_size, ROWS: tl.constexpr):
    """Programs are ``(tiles, outer, outer)``: the last two together count the outer rows."""
    outer = tl.program_id(1) + tl.program_id(2).to(tl.int64) * tl.num_programs(1)
    inner = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = inner < tl.where(outer < outer_size, inner_size, 0)
    return RowTile(outer, inner, outer * inner_size + inner, live)


@triton.jit
def input_rows(X, outer_stride, inner_stride, tile):
    """Pointers to the first elements of the tile's rows of an input, ``(ROWS, 1)``."""
    return X + (tile.outer * outer_stride + tile.inner * inner_stride)[:, None]


@triton.jit
def output_rows(OUT, tile, D: tl.constexpr):
    return OUT + (tile.number * D)[:, None]


@triton.jit
def columns_from(start, tile, D: tl.constexpr, BLOCK_D: tl.constexpr):
    index = (start + tl.arange(0, BLOCK_D))[None, :]
    return Columns(index, tile.live[:, None] & (index < D))


@triton.jit
def load(rows, columns):
    return tl.load(rows + columns.index, mask=columns.mask, other=0.0).to(tl.float64)


@triton.jit
def store(rows, value, columns):
    tl.store(rows + columns.index, rounded(value, rows.dtype.element_ty), mask=columns.mask)


@triton.jit
def zeros(tile, BLOCK_D: tl.constexpr):
    return tl.zeros((tile.live.shape[0], BLOCK_D), tl.float64)


@triton.jit
def dot(a, b, tile, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The inner product of each row of two inputs."""
    total = zeros(tile, BLOCK_D)
    for start in range(0, D, BLOCK_D):
        columns = columns_from(start, tile, D, BLOCK_D)
        total += load(a, columns) * load(b, columns)
    return tl.sum(total, axis=1)


# The range of formulas with several squares: of norms, and of squared norms times the curvature.
_SMALLEST_NORM, _LARGEST_NORM = tl.constexpr(2.0**-250), tl.constexpr(2.0**160)
_SMALLEST_SQUARE, _LARGEST_SQUARE = tl.constexpr(2.0**-500), tl.constexpr(2.0**320)


@triton.jit
def bounded(square):
    """A square, or NaN if it is out of bounds, where formulas would be wrong."""
    tiny = (square > 0.0) & (square < _SMALLEST_SQUARE)
    return tl.where(tiny | (square > _LARGEST_SQUARE), float("nan"), square)


@triton.jit
def bounded_square(x, tile, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """``|x|^2``; NaN out of bounds, where only float64 rows can be, by their largest component."""
    return out_of_bounds(x, tile, D, BLOCK_D) + dot(x, x, tile, D, BLOCK_D)


@triton.jit
def out_of_bounds(x, tile, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """NaN for rows with a norm out of bounds, 0 for others."""
    if x.dtype.element_ty == tl.float64:
        largest = largest_component(x, tile, D, BLOCK_D)
        tiny = (largest > 0.0) & (largest < _SMALLEST_NORM)
        return tl.where(tiny | (largest > _LARGEST_NORM), float("nan"), 0.0)
    else:
        return 0.0


@triton.jit
def largest_component(x, tile, D: tl.constexpr, BLOCK_D: tl.constexpr):
    largest = zeros(tile, BLOCK_D)
    for start in range(0, D, BLOCK_D):
        columns = columns_from(start, tile, D, BLOCK_D)
        largest = tl.maximum(largest, tl.abs(load(x, columns)))
    return tl.max(largest, axis=1)


@triton.jit
def row_norm(x, tile, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """``(norm, unit)``, whose product is the norm of each row.

    The unit is a power of two that keeps squares of float64 rows in range; for narrower rows it is 1.
    """
    if x.dtype.element_ty == tl.float64:
        unit = unit_of(largest_component(x, tile, D, BLOCK_D))
        total = zeros(tile, BLOCK_D)
        for start in range(0, D, BLOCK_D):
            columns = columns_from(start, tile, D, BLOCK_D)
            part = load(x, columns) * (1.0 / unit)[:, None]
            total += part * part
        return tl.sqrt(tl.sum(total, axis=1)), unit
    else:
        return tl.sqrt(dot(x, x, tile, D, BLOCK_D)), 1.0


@triton.jit
def dot_in_units(x, unit, y, tile, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The inner product of each row of ``x / unit`` and ``y``, with the unit of :func:`row_norm`."""
    total = zeros(tile, BLOCK_D)
    for start in range(0, D, BLOCK_D):
        columns = columns_from(start, tile, D, BLOCK_D)
        total += load_in_units(x, unit, columns) * load(y, columns)
    return tl.sum(total, axis=1)


@triton.jit
def load_in_units(x, unit, columns):
    """A tile of ``x / unit``."""
    if x.dtype.element_ty == tl.float64:
        return load(x, columns) * (1.0 / unit)[:, None]
    else:
        return load(x, columns)


@triton.jit
def unit_of(largest):
    """The largest power of two not above a number, at least the smallest normal number."""
    bits = largest.to(tl.int64, bitcast=True) & 0x7FF0000000000000
    return tl.maximum(bits.to(tl.float64, bitcast=True), 2.0**-1022)


@triton.jit
def largest_number(dtype: tl.constexpr):
    if dtype == tl.float64:
        return 1.7976931348623157e308
    elif dtype == tl.float32:
        return 3.4028234663852886e38
    elif dtype == tl.bfloat16:
        return 3.3895313892515355e38
    else:
        return 65504.0


# Columns at a time in a branch that is hardly ever taken. One column needs few registers and no 128-bit
# loads, which the check of the machine code would count. The interpreter takes 128: it takes as long as
# for one.
RARE_BLOCK = tl.constexpr(128 if _INTERPRETED else 1)


@triton.jit
def overflows(norm, dtype: tl.constexpr):
    """Whether a component of rows with these norms may be beyond the range of ``dtype``."""
    return tl.max((norm > largest_number(dtype)).to(tl.int32), axis=0) > 0


@triton.jit
def fitting(peak, half, dtype: tl.constexpr):
    """``(factor, half)``: rows multiplied with ``factor * half**2`` fit ``dtype``.

    ``peak`` is their largest component before that; the factor is 1 for rows that fit as they are.
    """
    over = peak * half * half > largest_number(dtype)
    # Multiplied are 1 / peak and twice the root of the largest number, since their quotient may
    # overflow. The root is a little less, since its square may round up.
    root = tl.sqrt(peak * 0.0 + largest_number(dtype)) * (1.0 - 2.0**-50)
    return tl.where(over, 1.0 / peak, 1.0), tl.where(over, root, half)


@triton.jit
def saturate(out, bound, scale, half, terms, PART: tl.constexpr, tile, D: tl.constexpr):
    """Store rows of a gradient once more if they do not fit, scaled as :mod:`hypkernels.saturation` says.

    The rows are ``scale half**2 PART(terms, 1, columns)``, and their norm is at most ``bound``;
    ``PART(terms, factor, columns)`` multiplies with ``factor`` before anything can overflow. The kernel
    has stored all rows unscaled before. This branch is hardly ever taken; it takes ``RARE_BLOCK``
    columns at a time.
    """
    dtype = out.dtype.element_ty
    if overflows(bound, dtype):
        tl.debug_barrier()
        peak = zeros(tile, RARE_BLOCK)
        for start in range(0, D, RARE_BLOCK):
            columns = columns_from(start, tile, D, RARE_BLOCK)
            peak = tl.maximum(peak, tl.abs(PART(terms, 1.0, columns)))
        factor, root = fitting(tl.max(peak, axis=1) * tl.abs(scale), half, dtype)
        for start in range(0, D, RARE_BLOCK):
            columns = columns_from(start, tile, D, RARE_BLOCK)
            value = PART(terms, factor * scale, columns)
            store(out, value * root[:, None] * root[:, None], columns)


@triton.jit
def finite(factor):
    """A factor made finite, because rows may contain zeros; NaN stays NaN."""
    clamped = tl.minimum(tl.maximum(factor, -1.0 * _HUGE), 1.0 * _HUGE)
    return tl.where(factor == factor, clamped, factor)


@triton.jit
def load_scalar(SCALAR):
    """A 0-d tensor, such as the curvature."""
    return tl.load(SCALAR).to(tl.float64)


@triton.jit
def load_scalars(X, outer_stride, inner_stride, tile):
    """One value a row."""
    offsets = tile.outer * outer_stride + tile.inner * inner_stride
    return tl.load(X + offsets, mask=tile.live, other=0.0).to(tl.float64)


@triton.jit
def scalar_of_rows(SCALAR, outer_stride, inner_stride, tile):
    """One value for all rows if the strides are ``None``, otherwise one a row."""
    if outer_stride is None:
        return load_scalar(SCALAR)
    else:
        return load_scalars(SCALAR, outer_stride, inner_stride, tile)


@triton.jit
def store_scalars(OUT, value, tile):
    """One value a row."""
    tl.store(OUT + tile.number, rounded(value, OUT.dtype.element_ty), mask=tile.live)


@triton.jit
def combine(a, x, b, y):
    """``a x + b y``, with scalars of the rows."""
    return tl.fma(b[:, None], y, a[:, None] * x)


@triton.jit
def rounded(value, dtype: tl.constexpr):
    """float64 to ``dtype``, as PyTorch converts: to nearest, half precision by way of float32."""
    if dtype == tl.float64:
        return value
    single = value.to(tl.float32)
    if dtype == tl.bfloat16 and _INTERPRETED:
        bits = single.to(tl.int32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        halves = tl.where(single == single, nearest, 0x7FC0)
        return halves.to(tl.int16).to(tl.bfloat16, bitcast=True)
    return single.to(dtype)
