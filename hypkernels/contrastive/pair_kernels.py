# mypy: ignore-errors
"""Device code of the contrastive loss: one program computes the logits of one tile of pairs and reduces them.

Products are accumulated in float32. Distances, their squares and inner products are functions of
``z = cosh(k d) - 1 = (A B - 1) - c x.y`` with ``A = 1 + h_x``, ``B = 1 + h_y``. Points of half precision are
multiplied as they are, without rounding:

    z = h_x B + h_y - c x.y

``CENTRED``: float32 points are multiplied as ``u = k x - P o`` and ``v = k y - Q p``, with the centres ``o``
and ``p`` of :class:`hypkernels.contrastive.problem.Side`. The products are as small as the points are near
their centre, and so is what they round, above all in tf32. With the tilts ``t = P offset``

    z = lateral + radial,   lateral = t_x Q + P t_y - u.v,   radial = 2 sinh^2((b - a)/2)

Logits are in bits (base 2). A pair of a row and its target is no negative: its logit is ``-inf``. Rows and
columns past the end repeat the last one, so every number is that of some pair; what is not to count has
weight 0. Sums leave a program as one partial sum for each row and tile; they are merged in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hypkernels.tritonlib.pair_gaps import (
    ANGLE_AT_X,
    ANGLE_AT_Y,
    DIST,
    INNER,
    LN2,
    NEAR_REACH,
    SQDIST,
    Gradient,
    angle_gradient,
    gap_of_pairs,
    near_excess,
    own_terms,
    separation,
    sinh_squared,
)
from hypkernels.tritonlib.pair_tiles import (
    RATE,
    SUM_LANES,
    TOTAL,
    WEIGHT,
    column_scalar,
    column_scalars,
    exp2,
    first_place,
    lane_sums,
    minus,
    place,
    places,
    products_of_tile,
    round_to_tf32,
    row_scalar,
    row_scalars,
    split,
    tile_of_program,
    to_bfloat16,
)
from hypkernels.tritonlib.rows import rounded

# Of sums without terms: far below any logit, and still a number that can be subtracted.
_LOWEST = tl.constexpr(-1e38)
# A sum of float32 terms relative to 1 lost less than its last bit, if it is at least this for each of them.
_LEAST_OF_A_TERM = tl.constexpr(2.0 ** (24 - 126))


@triton.jit(do_not_specialize=["offset"])
def log_sums(
    X,
    Y,
    ROWS,
    COLUMNS,
    TARGETS,
    C,
    X_EXTENT,
    Y_EXTENT,
    ROW_MAX,
    ROW_SUM,
    COLUMN_MAX,
    COLUMN_SUM,
    UNSAFE,
    M,
    N,
    offset,
    x_stride,
    y_stride,
    D: tl.constexpr,
    FORMULA: tl.constexpr,
    CENTRED: tl.constexpr,
    BY_ROW: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    SHARED: tl.constexpr,
    NEAR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PIECES: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    INLINE_PTX: tl.constexpr,
):
    """The sums of ``2**(logit - largest)`` over each row and each column of a tile, and the largest logit.

    ``SHARED``: the largest of the tile, so that one exponential serves a row and a column. Else the largest
    of the row or of the column: for when :func:`merge_log_sums` has found the first to be ``UNSAFE``.
    ``NEAR``: for points that all are near each other, or for all others; one of two launches does nothing.
    """
    c = tl.load(C)
    near = NEAR
    if not SHARED:
        near = _all_near(X_EXTENT, Y_EXTENT)
        if tl.load(UNSAFE) == 0:
            return
    elif _is_for_other_launch(X_EXTENT, Y_EXTENT, FORMULA, NEAR):
        return
    i, j = tile_of_program(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP)
    row = i * BLOCK_M + tl.arange(0, BLOCK_M)
    row_at = tl.minimum(row, M - 1)
    column_at = tl.minimum(j * BLOCK_N + tl.arange(0, BLOCK_N), N - 1)
    at_row = ROWS + first_place(i * BLOCK_M) + places(BLOCK_M)
    x = row_scalars(at_row, INLINE_PTX)
    rate = row_scalar(at_row, RATE, INLINE_PTX)
    target = _target(TARGETS, offset, row, row_at)

    products = products_of_tile(X, Y, row_at, column_at, x_stride, y_stride, D, BLOCK_K, PRECISION, UPCAST)
    pieces = split(products, PIECES)

    WIDTH: tl.constexpr = BLOCK_N // PIECES
    logits = ()
    row_max = tl.full([BLOCK_M], _LOWEST, tl.float32)
    for piece in tl.static_range(PIECES):
        column = j * BLOCK_N + piece * WIDTH + tl.arange(0, WIDTH)
        y = column_scalars(COLUMNS + first_place(j * BLOCK_N) + place(piece * WIDTH) + places(WIDTH))
        gap = gap_of_pairs(pieces[piece], x, y, c, near, FORMULA, CENTRED, INLINE_PTX)
        negative = (column[None, :] != target) & (column < N)[None, :]
        logits += (tl.where(negative, gap * minus(rate), float("-inf")),)
        row_max = tl.maximum(row_max, tl.max(logits[piece], 1))
    if SHARED:
        # Of a matrix of one column: Triton 3.6 cannot reduce a vector here for sm_100.
        largest = tl.max(row_max[:, None], 0)
        row_max = tl.zeros([BLOCK_M], tl.float32) + largest

    exists = tl.where(row < M, 1.0, 0.0)[:, None]
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    for piece in tl.static_range(PIECES):
        by_row = exp2(logits[piece] - row_max[:, None], INLINE_PTX)
        row_sum += tl.sum(by_row, 1)
        if BY_COLUMN:
            if SHARED:
                column_max = tl.zeros([WIDTH], tl.float32) + largest
                by_column = by_row
            else:
                column_max = tl.maximum(tl.max(logits[piece], 0), _LOWEST)
                by_column = exp2(logits[piece] - column_max[None, :], INLINE_PTX)
            column = j * BLOCK_N + piece * WIDTH + tl.arange(0, WIDTH)
            at = i.to(tl.int64) * N + column
            tl.store(COLUMN_MAX + at, column_max, mask=column < N)
            tl.store(COLUMN_SUM + at, tl.sum(by_column * exists, 0), mask=column < N)
    if BY_ROW:
        at = j.to(tl.int64) * M + row
        tl.store(ROW_MAX + at, row_max, mask=row < M)
        tl.store(ROW_SUM + at, row_sum, mask=row < M)


@triton.jit
def merge_log_sums(
    MAX, SUM, OUT, UNSAFE, items, tiles, terms, SHARED: tl.constexpr, ITEMS: tl.constexpr, TILES: tl.constexpr
):
    """Log-sum-exp over ``terms`` logits of each item from its parts in all tiles: natural, float64.

    A term below ``2**-126`` of a shared maximum was 0 in float32. Where all of them together could matter,
    the maxima have to be those of each item.
    """
    if not SHARED:  # noqa: SIM102 -- the compiler decides this one, the device the next
        if tl.load(UNSAFE) == 0:
            return
    item = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)
    largest = tl.full([ITEMS], _LOWEST, tl.float64)
    total = tl.zeros([ITEMS], tl.float64)
    for start in range(0, tiles, TILES):
        tile = start + tl.arange(0, TILES)
        at = tile[:, None].to(tl.int64) * items + item[None, :]
        mask = (tile < tiles)[:, None] & (item < items)[None, :]
        parts = tl.load(MAX + at, mask=mask, other=_LOWEST).to(tl.float64)
        sums = tl.load(SUM + at, mask=mask, other=0.0).to(tl.float64)
        before = largest
        largest = tl.maximum(before, tl.max(parts, 0))
        total = total * tl.exp2(before - largest) + tl.sum(sums * tl.exp2(parts - largest[None, :]), 0)
    tl.store(OUT + item, (largest + tl.log2(total)) * LN2, mask=item < items)
    if SHARED:
        lost = (item < items) & (total < terms * _LEAST_OF_A_TERM)
        tl.store(UNSAFE + tl.zeros([ITEMS], tl.int32), 1, mask=lost)


@triton.jit(do_not_specialize=["offset"])
def pair_weights(
    X,
    Y,
    ROWS,
    COLUMNS,
    TARGETS,
    C,
    X_EXTENT,
    Y_EXTENT,
    WEIGHTS,
    X_SUM,
    Y_SUM,
    GAP_SUM,
    CURV_SUM,
    M,
    N,
    offset,
    x_stride,
    y_stride,
    weights_stride,
    D: tl.constexpr,
    FORMULA: tl.constexpr,
    CENTRED: tl.constexpr,
    BY_ROW: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    UNITS_PER_RATE: tl.constexpr,
    RESOLUTION: tl.constexpr,
    ROUND_TF32: tl.constexpr,
    NEAR: tl.constexpr,
    RAGGED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PIECES: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    INLINE_PTX: tl.constexpr,
):
    """The negatives' gradient by ``-c x.y`` of each pair, a matrix, and what is summed over rows and columns.

    The sums that are to cancel against products with the matrix are those of the rounded matrix. ``NEAR`` as
    in :func:`log_sums`. ``RAGGED``: whether rows end within a tile.
    """
    c = tl.load(C)
    if _is_for_other_launch(X_EXTENT, Y_EXTENT, FORMULA, NEAR):
        return
    i, j = tile_of_program(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP)
    row = i * BLOCK_M + tl.arange(0, BLOCK_M)
    row_at = tl.minimum(row, M - 1)
    column_at = tl.minimum(j * BLOCK_N + tl.arange(0, BLOCK_N), N - 1)
    at_row = ROWS + first_place(i * BLOCK_M) + places(BLOCK_M)
    x = row_scalars(at_row, INLINE_PTX)
    rate = row_scalar(at_row, RATE, INLINE_PTX)
    target = _target(TARGETS, offset, row, row_at)
    if BY_ROW:
        row_total = row_scalar(at_row, TOTAL, INLINE_PTX)
        row_weight = row_scalar(at_row, WEIGHT, INLINE_PTX)

    products = products_of_tile(X, Y, row_at, column_at, x_stride, y_stride, D, BLOCK_K, PRECISION, UPCAST)
    pieces = split(products, PIECES)

    WIDTH: tl.constexpr = BLOCK_N // PIECES
    corner = WEIGHTS + i.to(tl.int64) * BLOCK_M * weights_stride + j * BLOCK_N
    corner += tl.arange(0, BLOCK_M)[:, None] * weights_stride
    # Sums of lanes take registers, which longer formulas have not.
    LANES: tl.constexpr = 1 if FORMULA >= ANGLE_AT_X else SUM_LANES // 2 if NEAR else SUM_LANES
    own_sum = tl.zeros([BLOCK_M, LANES], tl.float32)
    gap_sum, curv_sum, radial_sum = own_sum, own_sum, own_sum
    for piece in tl.static_range(PIECES):
        column = j * BLOCK_N + piece * WIDTH + tl.arange(0, WIDTH)
        at_column = COLUMNS + first_place(j * BLOCK_N) + place(piece * WIDTH) + places(WIDTH)
        y = column_scalars(at_column)
        gap = gap_of_pairs(pieces[piece], x, y, c, NEAR, FORMULA, CENTRED, INLINE_PTX)
        push = tl.zeros([BLOCK_M, WIDTH], tl.float32)
        if BY_ROW:
            push = row_weight * exp2(tl.fma(gap, minus(rate), minus(row_total)), INLINE_PTX)
        if BY_COLUMN:
            column_total = column_scalar(at_column, TOTAL)
            column_weight = column_scalar(at_column, WEIGHT)
            push = tl.fma(
                exp2(tl.fma(gap, minus(rate), minus(column_total)), INLINE_PTX), column_weight, push
            )
        push = tl.where((column < N)[None, :], push, 0.0)
        push = tl.where(column[None, :] != target, push, 0.0)
        gap_sum += lane_sums(push * gap, LANES)

        pull = push * rate if FORMULA == DIST else push * (rate * UNITS_PER_RATE)
        gradient = _gradient(pieces[piece], gap, pull, x, y, c, NEAR, FORMULA, CENTRED, RESOLUTION)
        curv_sum += lane_sums(gradient.curv, LANES)
        if FORMULA < ANGLE_AT_X:
            radial_sum += lane_sums(gradient.weight * gradient.radial * gradient.radial, LANES)
        if INLINE_PTX and WEIGHTS.dtype.element_ty == tl.bfloat16:
            weight, kept = to_bfloat16(gradient.weight)
        else:
            weight = round_to_tf32(gradient.weight) if ROUND_TF32 else gradient.weight
            weight = rounded(weight, WEIGHTS.dtype.element_ty)
            kept = weight.to(tl.float32)
        tl.store(corner + piece * WIDTH + tl.arange(0, WIDTH)[None, :], weight)
        by_x, by_y = own_terms(gradient, kept, pieces[piece], x, y, c, FORMULA, CENTRED)
        own_sum += lane_sums(by_x, LANES)
        if RAGGED:
            by_y = tl.where((row < M)[:, None], by_y, 0.0)
        tl.store(Y_SUM + i.to(tl.int64) * N + column, tl.sum(by_y, 0), mask=column < N)
    at = j.to(tl.int64) * M + row
    tl.store(X_SUM + at, tl.sum(own_sum, 1), mask=row < M)
    tl.store(GAP_SUM + at, tl.sum(gap_sum, 1), mask=row < M)
    curv_sum += radial_sum * (0.5 / (1.0 + x.height))
    tl.store(CURV_SUM + at, tl.sum(curv_sum, 1), mask=row < M)


@triton.jit
def _is_for_other_launch(X_EXTENT, Y_EXTENT, FORMULA: tl.constexpr, NEAR: tl.constexpr):
    """Of a distance there are two, one for points that all are near each other and one for all others."""
    if FORMULA > SQDIST:
        return False
    return _all_near(X_EXTENT, Y_EXTENT) != NEAR


@triton.jit
def _all_near(X_EXTENT, Y_EXTENT):
    """Whether no two points are farther apart than the series of :func:`distance_in_bits` serves."""
    return tl.load(X_EXTENT).to(tl.float32) + tl.load(Y_EXTENT).to(tl.float32) < NEAR_REACH


@triton.jit
def _target(TARGETS, offset, row, row_at):
    """The column of each row's positive: without ``TARGETS``, that of its number in the whole problem."""
    target = row + offset if TARGETS is None else tl.load(TARGETS + row_at) + offset
    return target[:, None]


@triton.jit
def _gradient(
    product,
    gap,
    push,
    x,
    y,
    c,
    NEAR: tl.constexpr,
    FORMULA: tl.constexpr,
    CENTRED: tl.constexpr,
    RESOLUTION: tl.constexpr,
):
    if FORMULA == ANGLE_AT_X:
        return angle_gradient(product, push, x, y, c, CENTRED, RESOLUTION)
    if FORMULA == ANGLE_AT_Y:
        g = angle_gradient(product, push, y, x, c, CENTRED, RESOLUTION)
        return Gradient(g.weight, g.radial, g.curv, g.y, g.x)
    radial = tl.fma(x.height, y.root, minus(y.lever))  # (A - B) / sqrt(B)
    if FORMULA == INNER:
        return Gradient(push, radial, push, push, push)
    z = separation(product, x, y, c, CENTRED)
    slope = tl.rsqrt(sinh_squared(z))
    # Where all points are near each other every ``A`` is all but 1, and there are no registers to tell.
    steepest = x.steepest if NEAR else x.steepest * y.root * y.root
    per_sinh = tl.minimum(slope, steepest, propagate_nan=tl.PropagateNan.ALL)
    distance = gap
    if FORMULA == SQDIST:
        distance = tl.sqrt(gap)
        push *= distance * (2.0 * LN2)
    # With half the distance ``u`` and ``tanh(u) = z / sinh(2 u)``, ``u - tanh(u)``.
    tanh = z * slope
    deficit = tanh * near_excess(z) if NEAR else tl.fma(distance, 0.5 * LN2, minus(tanh))
    weight = push * per_sinh
    return Gradient(weight, radial, push * deficit, weight, weight)
