"""The host side of :mod:`hypkernels.tritonlib.rows`: batches as rows, tile sizes, launches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

# Elements of a row that a thread keeps in registers; with three or four rows, half as many of each.
ELEMENTS_A_THREAD = 32
# Elements and rows of a tile of narrow rows.
NARROW_TILE = 256
MAX_TILE_ROWS = 64
# Rows up to this width are held in registers. Wider rows are read again in each pass, tile by tile; a
# cache has them, since few rows are computed at a time.
MAX_HELD_WIDTH = 4096
# Of a wide row a thread takes half as many elements at a time, since their sums need registers, too; of
# three rows at once half of that.
WIDE_TILE = 2048
WIDE_ROW_WARPS = 8
# Blocks along the second dimension of a grid.
MAX_GRID_Y = 65535


class TileShape(NamedTuple):
    rows: int
    block_d: int
    num_warps: int


def tile_shape(width: int, inputs: int) -> TileShape:
    """A tile with as few warps as hold a row of each input, since each repeats the scalar functions."""
    if width > MAX_HELD_WIDTH:
        return TileShape(1, WIDE_TILE if inputs < 3 else WIDE_TILE // 2, WIDE_ROW_WARPS)
    block_d = triton.next_power_of_2(width)
    rows = min(max(NARROW_TILE // block_d, 1), MAX_TILE_ROWS)
    threads = triton.cdiv(inputs, 2) * block_d // ELEMENTS_A_THREAD
    return TileShape(rows, block_d, max(threads // 32, 1))


def allocate(like: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An output on the device of ``like``, uninitialised: the kernel writes every element."""
    return torch.empty(shape, dtype=dtype, device=like.device)


def launch_rows(
    kernel: Any,
    inputs: Sequence[Tensor],
    others: Sequence[Tensor | int | None],
    scalars: Sequence[Tensor | None] = (),
    **constants: Any,
) -> None:
    """Run a ``rows.row_kernel`` over a batch of rows.

    ``inputs`` are ``(*batch, columns)`` of one batch shape; each becomes three arguments: the pointer and the
    strides of the outer and inner rows. ``others`` follow as they are: dense outputs of that batch, numbers.
    Of ``scalars`` each becomes three arguments like an input, for ``rows.scalar_of_rows``: one of all rows is
    0-d, one for each row ``(*batch)``. Then come the two sizes of the batch and the constants ``D`` (the
    widest input's), ``ROWS``, ``BLOCK_D``.
    """
    if not inputs[0].shape[:-1].numel():
        return
    of_rows = [one.unsqueeze(-1) for one in scalars if one is not None and one.dim()]
    outer_size, inner_size, views = as_outer_and_inner([*inputs, *of_rows])
    views, of_rows = views[: len(inputs)], views[len(inputs) :]
    width = max(view.shape[-1] for view in views)
    shape = tile_shape(width, sum(view.shape[-1] == width for view in views))
    grid = (
        triton.cdiv(inner_size, shape.rows),
        min(outer_size, MAX_GRID_Y),
        triton.cdiv(outer_size, MAX_GRID_Y),
    )
    each = iter(of_rows)
    numbers = (next(each) if one is not None and one.dim() else one for one in scalars)
    with torch.cuda.device_of(inputs[0]):
        kernel[grid](
            *chain.from_iterable((view, view.stride(0), view.stride(1)) for view in views),
            *others,
            *chain.from_iterable(_scalar_arguments(one) for one in numbers),
            outer_size,
            inner_size,
            D=width,
            ROWS=shape.rows,
            BLOCK_D=shape.block_d,
            num_warps=shape.num_warps,
            enable_fp_fusion=True,  # no longer the default of Triton 3.10
            **constants,
        )


def _scalar_arguments(one: Tensor | None) -> tuple[Tensor | int | None, ...]:
    """A pointer and two strides, ``None`` for a 0-d tensor: the kernel is compiled for that."""
    return (one, one.stride(0), one.stride(1)) if one is not None and one.dim() else (one, None, None)


def as_outer_and_inner(tensors: Sequence[Tensor]) -> tuple[int, int, list[Tensor]]:
    """``(*batch, columns)`` tensors as ``(outer, inner, columns)``, and the two sizes.

    Views wherever two row dimensions suffice for all tensors, which broadcast pairs, slices and permutations
    of two do; the last dimension must be dense. Otherwise dense copies.
    """
    tensors = [t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous() for t in tensors]
    dims = _merged_dims(tensors)
    if len(dims) > 2:
        tensors = [t.contiguous() for t in tensors]
        dims = _merged_dims(tensors)
    (outer, outer_strides), (inner, inner_strides) = [(1, [0] * len(tensors))] * (2 - len(dims)) + dims
    views = [
        t.as_strided((outer, inner, t.shape[-1]), (outer_stride, inner_stride, 1))
        for t, outer_stride, inner_stride in zip(tensors, outer_strides, inner_strides, strict=True)
    ]
    return outer, inner, views


def _merged_dims(tensors: Sequence[Tensor]) -> list[tuple[int, list[int]]]:
    """The batch as the fewest dimensions all tensors share, each its size and the tensors' strides."""
    merged: list[tuple[int, list[int]]] = []
    for dim, size in enumerate(tensors[0].shape[:-1]):
        strides = [t.stride(dim) for t in tensors]
        if size == 1:
            continue
        if merged and all(above == size * below for above, below in zip(merged[-1][1], strides, strict=True)):
            size *= merged.pop()[0]
        merged.append((size, strides))
    return merged
