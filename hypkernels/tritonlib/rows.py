"""Rows of a batch as Triton tiles: one program loads, computes and stores ``ROWS`` rows of ``D`` columns.

A batch is seen as ``(outer, inner, D)``. Each tensor read has two row strides of its own, 0 where it is
broadcast; tensors written are dense. :mod:`hypkernels.tritonlib.launch` is the host side.

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

# Arguments of every row kernel after its tensors. They are not specialised: one binary serves all batches.
row_kernel = triton.jit(do_not_specialize=["inner_size", "tiles"])


class RowTile(NamedTuple):
    outer: tl.tensor
    inner: tl.tensor
    number: tl.tensor
    columns: tl.tensor
    live: tl.tensor
    mask: tl.tensor


@triton.jit
def row_tile(inner_size, tiles, D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """The rows of this program: ``tiles`` programs share the ``inner_size`` rows of one outer index."""
    program = tl.program_id(0)
    outer = (program // tiles).to(tl.int64)
    inner = (program % tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK_D)
    live = inner < inner_size
    return RowTile(
        outer, inner, outer * inner_size + inner, columns, live, live[:, None] & (columns < D)[None, :]
    )


@triton.jit
def load_rows(X, outer_stride, inner_stride, tile):
    offsets = (tile.outer * outer_stride + tile.inner * inner_stride)[:, None] + tile.columns[None, :]
    return tl.load(X + offsets, mask=tile.mask, other=0.0).to(tl.float64)


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
def store_rows(OUT, value, tile, D: tl.constexpr):
    offsets = tile.number[:, None] * D + tile.columns[None, :]
    tl.store(OUT + offsets, rounded(value, OUT.dtype.element_ty), mask=tile.mask)


@triton.jit
def store_scalars(OUT, value, tile):
    """One value a row."""
    tl.store(OUT + tile.number, rounded(value, OUT.dtype.element_ty), mask=tile.live)


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
