# mypy: allow-untyped-defs, allow-incomplete-defs
"""Tiles of pairs in Triton kernels: products of matrices, scalars of the rows and columns, numbers rounded.

One program computes one tile of the pairs of two sets of points. Scalars of points lie in a table of
float32 numbers, ``(chunks, LINES, CHUNK)``: ``LINES`` scalars of ``CHUNK`` points together. Rows and
columns past the end repeat the last one or are the origin, so that loads need no mask.

After the product the columns of a tile are split into ``PIECES``, which are computed one after the other
to need fewer registers. A *lane* is a thread of a warp, with the numbers of a tile that it holds.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

LINES = tl.constexpr(11)
HEIGHT, ROOT, LEVER, STEEPEST, NORM, GROWTH, SHRINK, TILT, TOTAL, WEIGHT, RATE = (
    tl.constexpr(i) for i in range(LINES.value)
)

# Points of a chunk: all scalars of a tile are then near one address.
CHUNK = tl.constexpr(32)

# Of a row of a product, each of ``SUM_LANES`` lanes has ``_ADJACENT`` adjacent numbers, then the first
# lane again.
SUM_LANES, _ADJACENT = tl.constexpr(4), tl.constexpr(2)


class Points(NamedTuple):
    """Scalars of the rows ``(n, 1)`` or of the columns ``(1, n)`` of a tile, in all kernels of pairs.

    Of a point ``x``, with ``P = sqrt(c)|x|``, ``A = sqrt(1 + P^2)`` and the rapidity ``a = asinh(P)``, which
    is ``sqrt(c)`` times its distance to the origin:

    ========  =====================================================================================
    height    ``h = A - 1``, how far above the hyperboloid's vertex the point lies
    norm      ``P``
    root      ``A^-1/2``
    lever     ``h A^-1/2``: ``(A - B) B^-1/2`` of a pair is ``h_x root_y - lever_y``
    growth    ``e^a - 1 = h + P``
    shrink    ``e^(-a/2)``: of a pair, ``2 sinh((b - a)/2) = (growth_y - growth_x) shrink_x shrink_y``
    tilt      ``t_x = P ((1 + o_x.o_y)/2 - o_y.x/|x|)``, what the product of centred points leaves out
    steepest  ``A`` times the slope of the distance by ``z`` where the product leaves off to tell two
              such points apart. Over the ``A`` of another point it is that of the pair, or larger
              where the two are so far apart that the product tells them apart anyway.
    ========  =====================================================================================

    The table has three lines more. ``TOTAL`` and ``WEIGHT`` make the softmax of a row or column: the gradient
    by a negative's logit is ``WEIGHT 2^(logit - TOTAL)``. ``RATE`` makes the logits: ``-RATE`` times the gap.
    """

    height: tl.tensor
    root: tl.tensor
    lever: tl.tensor
    steepest: tl.tensor
    norm: tl.tensor
    growth: tl.tensor
    shrink: tl.tensor
    tilt: tl.tensor


@triton.jit
def matrix_of_program(M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The program's matrix of pairs in a batch, and its number within the matrix."""
    tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    program = tl.program_id(0)
    return (program // tiles).to(tl.int64), program % tiles


@triton.jit
def tile_of_program(program, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """``(i, j)`` of a tile, down ``GROUP`` rows of tiles, then along: neighbours share operands."""
    rows, columns = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    first = program // (GROUP * columns) * GROUP
    height = tl.minimum(rows - first, GROUP)
    inside = program % (GROUP * columns)
    return first + inside % height, inside // height


@triton.jit
def products_of_tile(
    X,
    Y,
    row,
    column,
    x_stride,
    y_stride,
    D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    k = tl.arange(0, BLOCK_K)
    x_at = X + row[:, None].to(tl.int64) * x_stride + k[None, :]
    y_at = Y + column[None, :].to(tl.int64) * y_stride + k[:, None]
    total = tl.zeros([row.shape[0], column.shape[0]], tl.float32)
    for start in range(0, D, BLOCK_K):
        if D % BLOCK_K == 0:
            x, y = tl.load(x_at), tl.load(y_at)
        else:
            x = tl.load(x_at, mask=(start + k < D)[None, :], other=0.0)
            y = tl.load(y_at, mask=(start + k < D)[:, None], other=0.0)
        if UPCAST:
            x, y = x.to(tl.float32), y.to(tl.float32)
        total = tl.dot(x, y, total, input_precision=PRECISION)
        x_at += BLOCK_K
        y_at += BLOCK_K
    return total


@triton.jit
def split(tile, PIECES: tl.constexpr):
    """A tile as ``PIECES`` tiles of adjacent columns: fewer values are alive at a time."""
    if PIECES == 1:
        pieces = (tile,)
    else:
        left, right = _halves(tile)
        pieces = split(left, PIECES // 2) + split(right, PIECES // 2)
    return pieces


@triton.jit
def _halves(tile):
    rows: tl.constexpr = tile.shape[0]
    width: tl.constexpr = tile.shape[1] // 2
    return tl.reshape(tile, [rows, 2, width]).permute(0, 2, 1).split()


@triton.jit
def side_by_side(pieces):
    """The tile that :func:`split` took apart."""
    COUNT: tl.constexpr = len(pieces)
    if COUNT == 1:
        tile = pieces[0]
    else:
        left, right = side_by_side(pieces[: COUNT // 2]), side_by_side(pieces[COUNT // 2 :])
        pair = tl.join(left, right).permute(0, 2, 1)
        tile = tl.reshape(pair, [left.shape[0], 2 * left.shape[1]])
    return tile


@triton.jit
def halves(tile):
    """The even and the odd columns."""
    return tl.reshape(tile, [tile.shape[0], tile.shape[1] // 2, 2]).split()


@triton.jit
def join(parts):
    """The tile whose even and odd columns these are."""
    pair = tl.join(parts[0], parts[1])
    return tl.reshape(pair, [pair.shape[0], 2 * pair.shape[1]])


@triton.jit
def halves_of_points(points):
    height, root, lever, steepest = (
        halves(points.height),
        halves(points.root),
        halves(points.lever),
        halves(points.steepest),
    )
    norm, growth, shrink, tilt = (
        halves(points.norm),
        halves(points.growth),
        halves(points.shrink),
        halves(points.tilt),
    )
    even = Points(height[0], root[0], lever[0], steepest[0], norm[0], growth[0], shrink[0], tilt[0])
    odd = Points(height[1], root[1], lever[1], steepest[1], norm[1], growth[1], shrink[1], tilt[1])
    return even, odd


@triton.jit
def minus(x):
    """``-x`` within the instruction that uses it; Triton's ``0 - x`` takes one more and a register."""
    return x * -1.0


@triton.jit
def place(index):
    """The place of a point's first scalar in a table."""
    return index + index // CHUNK * ((LINES - 1) * CHUNK)


@triton.jit
def first_place(index):
    """:func:`place` of a point that begins a chunk."""
    return index // CHUNK * (LINES * CHUNK)


@triton.jit
def places(SIZE: tl.constexpr):
    """Places of ``SIZE`` points relative to the first, which begins a chunk unless one chunk has all."""
    index = tl.arange(0, SIZE)
    return index if SIZE <= CHUNK else place(index)


@triton.jit
def store_line(at, LINE: tl.constexpr, value, mask):
    tl.store(at + LINE * CHUNK, value.to(tl.float32), mask=mask)


@triton.jit
def row_scalars(at, INLINE_PTX: tl.constexpr):
    """The scalars of the points whose places are ``at``. Scalars that are not used are not loaded."""
    return Points(
        row_scalar(at, HEIGHT, INLINE_PTX),
        row_scalar(at, ROOT, INLINE_PTX),
        row_scalar(at, LEVER, INLINE_PTX),
        row_scalar(at, STEEPEST, INLINE_PTX),
        row_scalar(at, NORM, INLINE_PTX),
        row_scalar(at, GROWTH, INLINE_PTX),
        row_scalar(at, SHRINK, INLINE_PTX),
        row_scalar(at, TILT, INLINE_PTX),
    )


@triton.jit
def column_scalars(at):
    return Points(
        column_scalar(at, HEIGHT),
        column_scalar(at, ROOT),
        column_scalar(at, LEVER),
        column_scalar(at, STEEPEST),
        column_scalar(at, NORM),
        column_scalar(at, GROWTH),
        column_scalar(at, SHRINK),
        column_scalar(at, TILT),
    )


@triton.jit
def row_scalar(at, LINE: tl.constexpr, INLINE_PTX: tl.constexpr):
    """One scalar of each row, ``(n, 1)``; the inline load has the layout of its user: no exchange."""
    at += LINE * CHUNK
    if INLINE_PTX:
        value = tl.inline_asm_elementwise(
            "ld.global.nc.f32 $0, [$1];", "=f,l", [at.to(tl.int64)], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        value = tl.load(at)
    return value[:, None]


@triton.jit
def column_scalar(at, LINE: tl.constexpr):
    return tl.load(at + LINE * CHUNK)[None, :]


@triton.jit
def lane_sums(terms, LANES: tl.constexpr):
    """Sums over the columns of each lane, ``(rows, LANES)``; over all columns if ``LANES`` is 1."""
    height: tl.constexpr = terms.shape[0]
    width: tl.constexpr = terms.shape[1]
    by_lane = tl.reshape(terms, [height, width // (LANES * _ADJACENT), LANES, _ADJACENT])
    return tl.sum(tl.sum(by_lane, 3), 1)


@triton.jit
def group_sums(terms):
    """Sums over the left and the right columns, ``(rows, 2)``: with tcgen05 and eight warps, a thread
    has one row of one of them."""
    height: tl.constexpr = terms.shape[0]
    width: tl.constexpr = terms.shape[1]
    return tl.sum(tl.reshape(terms, [height, 2, width // 2]), 2)


@triton.jit
def sums_of_half(terms, LANES: tl.constexpr, BY_LANE: tl.constexpr):
    """:func:`lane_sums` of one of the :func:`halves`, where a lane has no adjacent columns, or
    :func:`group_sums`."""
    height: tl.constexpr = terms.shape[0]
    width: tl.constexpr = terms.shape[1]
    return tl.sum(tl.reshape(terms, [height, width // LANES, LANES]), 1) if BY_LANE else group_sums(terms)


@triton.jit
def kept_sums(terms, KEPT: tl.constexpr):
    """Sums over the rows that one thread has, ``(KEPT, columns)``; 8 of them a warp of a matrix unit."""
    height: tl.constexpr = terms.shape[0]
    width: tl.constexpr = terms.shape[1]
    if height == KEPT:
        kept = terms
    elif KEPT == 1:
        kept = tl.sum(terms, 0)[None, :]
    else:
        by_lane = tl.reshape(terms, [height // (2 * KEPT), KEPT // 8, 2, 8, width])
        kept = tl.reshape(tl.sum(tl.sum(by_lane, 2), 0), [KEPT, width])
    return kept


@triton.jit
def round_to_tf32(x):
    """Round to nearest: products in tf32 then have the same operands as the sums."""
    bits = x.to(tl.int32, bitcast=True)
    nearest = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return tl.where(x == x, nearest, x)  # a GPU's NaN has all bits set: it would wrap around to -0


@triton.jit
def to_bfloat16(x):
    """In bfloat16, and that in float32. Two numbers at a time: single conversions would occupy the unit
    that computes exponentials."""
    return tl.inline_asm_elementwise(
        "cvt.rn.bf16x2.f32 $0, $4, $3; shl.b32 $1, $0, 16; and.b32 $2, $0, 0xffff0000;",
        "=&r,=&r,=&r,f,f",
        [x],
        dtype=(tl.bfloat16, tl.float32),
        is_pure=True,
        pack=2,
    )


@triton.jit
def exp2(x, INLINE_PTX: tl.constexpr):
    if INLINE_PTX:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.exp2(x)


@triton.jit
def log2(x, INLINE_PTX: tl.constexpr):
    """One instruction; ``tl.log2`` is a polynomial of two dozen."""
    if INLINE_PTX:
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.log2(x)
