"""Sums over pairs: adding up partial sums of tiles, and subtracting own terms from gradients."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypkernels.tritonlib.launch import launch_rows
from hypkernels.tritonlib.pair_geometry import ratio
from hypkernels.tritonlib.rows import (
    columns_from,
    input_rows,
    load,
    load_scalar,
    load_scalars,
    output_rows,
    row_kernel,
    row_tile,
    scalar_of_rows,
    store,
)

# Rows or columns of one program, and tiles whose partial sums it adds up at a time.
_ITEMS, _TILES = 256, 16


@triton.jit(do_not_specialize=["items", "tiles", "out_plane"])
def sum_tiles(PARTS, OUT, items, tiles, out_plane, ITEMS: tl.constexpr, TILES: tl.constexpr):
    """Add the partial sums ``(planes, tiles, items)`` of all tiles to ``(planes, items)``."""
    plane = tl.program_id(1).to(tl.int64)
    item = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)
    total = tl.zeros([ITEMS], tl.float64)
    for start in range(0, tiles, TILES):
        tile = start + tl.arange(0, TILES)
        at = (plane * tiles + tile[:, None]) * items + item[None, :]
        mask = (tile < tiles)[:, None] & (item < items)[None, :]
        total += tl.sum(tl.load(PARTS + at, mask=mask, other=0.0).to(tl.float64), 0)
    at = OUT + plane * out_plane + item
    tl.store(at, tl.load(at, mask=item < items) + total, mask=item < items)


@row_kernel
def subtract_own_terms(
    X,
    x_outer,
    x_inner,
    SQUARE,
    square_outer,
    square_inner,
    GRAD,
    BY_HEIGHT,
    BY_NORM,
    WEIGHT_UNIT,
    CURV,
    curv_outer,
    curv_inner,
    outer_size,
    inner_size,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``grad - own x`` in place, where ``own`` is ``BY_HEIGHT / A + BY_NORM / P^2``.

    With a ``WEIGHT_UNIT`` the result is multiplied with ``c / WEIGHT_UNIT``: the sums lack that factor.
    """
    tile = row_tile(outer_size, inner_size, ROWS)
    x, grad = input_rows(X, x_outer, x_inner, tile), output_rows(GRAD, tile, D)
    c = scalar_of_rows(CURV, curv_outer, curv_inner, tile)
    P2 = c * load_scalars(SQUARE, square_outer, square_inner, tile)
    own = tl.zeros([ROWS], tl.float64)
    if BY_HEIGHT is not None:
        own += tl.load(BY_HEIGHT + tile.number, mask=tile.live, other=0.0) / tl.sqrt(1.0 + P2)
    if BY_NORM is not None:
        own += ratio(tl.load(BY_NORM + tile.number, mask=tile.live, other=0.0), P2)
    factor = tl.full([ROWS], 1.0, tl.float64)
    if WEIGHT_UNIT is not None:
        factor *= c / load_scalar(WEIGHT_UNIT)
    for start in range(0, D, BLOCK_D):
        columns = columns_from(start, tile, D, BLOCK_D)
        store(grad, factor[:, None] * (load(grad, columns) - own[:, None] * load(x, columns)), columns)


def add_tiles(parts: Tensor, out: Tensor) -> None:
    """Add ``parts``, ``(planes, tiles, items)`` in float32, to ``out``, ``(planes, items)`` in float64."""
    planes, tiles, items = parts.shape
    with torch.cuda.device_of(out):
        sum_tiles[(triton.cdiv(items, _ITEMS), planes)](
            parts, out, items, tiles, out.stride(0), ITEMS=_ITEMS, TILES=_TILES, num_warps=4
        )


def subtract_own(
    total: Tensor,
    points: Tensor,
    square: Tensor,
    c: Tensor,
    by_height: Tensor | None = None,
    by_norm: Tensor | None = None,
    weight_unit: Tensor | None = None,
) -> None:
    """``total - own x`` in place, see :func:`subtract_own_terms`; ``c`` is 0-d or one for each row."""
    launch_rows(subtract_own_terms, [points, square], [total, by_height, by_norm, weight_unit], [c])
