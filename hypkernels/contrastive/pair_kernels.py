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
weight 0. Sums leave a program as one partial sum for each row and tile, and for each column and tile or run
of tiles; they are merged in a fixed order.
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
    gap_of_spread,
    near_excess,
    own_terms,
    separation,
    sinh_squared,
    spread_of_pairs,
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
    group_sums,
    halves,
    halves_of_points,
    join,
    kept_sums,
    lane_sums,
    minus,
    place,
    places,
    products_of_tile,
    round_to_tf32,
    row_scalar,
    row_scalars,
    side_by_side,
    split,
    sums_of_half,
    tile_of_program,
    to_bfloat16,
)
from hypkernels.tritonlib.rows import rounded

# Of sums without terms: far below any logit, and still a number that can be subtracted.
_LOWEST, _HIGHEST = tl.constexpr(-1e38), tl.constexpr(3e38)
# A sum of float32 terms relative to 1 lost less than its last bit, if it is at least this for each of them.
_LEAST_OF_A_TERM = tl.constexpr(2.0 ** (24 - 126))


@triton.jit(do_not_specialize=["offset", "run"])
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
    run,
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
    NEAR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    KEPT: tl.constexpr,
    PIECES: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    INLINE_PTX: tl.constexpr,
):
    """The sums of ``2**(logit - reference)`` over each row of a tile and over each column of a run of tiles.

    The reference is one for the ``run`` of tiles below each other: the largest logit of the first piece of the
    first tile. One exponential serves a row and a column, and nothing is looked for in the other pairs. A sum
    of logits far above it is infinite, of logits far below it is 0: :func:`merge_log_sums` finds both, and
    then :func:`separate_log_sums` runs. Sums over columns stay in the registers of each thread until the run ends.
    ``NEAR``: for points that all are near each other, or for all others; one of two launches does nothing.
    """
    c = tl.load(C)
    if _is_for_other_launch(X_EXTENT, Y_EXTENT, FORMULA, NEAR):
        return
    first, j = tile_of_program(tl.program_id(0), tl.cdiv(M, run), N, BLOCK_M, BLOCK_N, GROUP)
    height = tl.cdiv(M, BLOCK_M)
    stop = j * height + tl.minimum(first * run + run, height)
    WIDTH: tl.constexpr = BLOCK_N // PIECES
    SPREAD: tl.constexpr = KEPT > 1 and KEPT < BLOCK_M
    LANES: tl.constexpr = SUM_LANES if SPREAD else 2
    column_sums = ()
    for _ in tl.static_range(PIECES):
        column_sums += (tl.zeros([KEPT, WIDTH], tl.float32),)
    reference = _LOWEST
    # What a tile needs is computed from its number: kept from one tile to the next it would take registers.
    for tile in tl.range(j * height + first * run, stop, disable_licm=True):
        i, j = tile % height, tile // height
        row = i * BLOCK_M + tl.arange(0, BLOCK_M)
        row_at = tl.minimum(row, M - 1)
        column_at = tl.minimum(j * BLOCK_N + tl.arange(0, BLOCK_N), N - 1)
        at_row = ROWS + first_place(i * BLOCK_M) + places(BLOCK_M)
        x = row_scalars(at_row, INLINE_PTX)
        rate = row_scalar(at_row, RATE, INLINE_PTX)
        whole = _is_whole(TARGETS, offset, i * BLOCK_M, j * BLOCK_N, row_at, M, N, BLOCK_M, BLOCK_N)

        products = products_of_tile(
            X, Y, row_at, column_at, x_stride, y_stride, D, BLOCK_K, PRECISION, UPCAST
        )
        pieces = split(products, PIECES)

        if i % run == 0:
            y = column_scalars(COLUMNS + first_place(j * BLOCK_N) + places(WIDTH))
            spread = spread_of_pairs(pieces[0], x, y, c, FORMULA, CENTRED)
            if not whole:
                column = j * BLOCK_N + tl.arange(0, WIDTH)
                spread = tl.where(_counts(TARGETS, offset, row, row_at, column, M, N), spread, _HIGHEST)
            least = tl.min(spread, 1)[:, None]
            largest = gap_of_spread(least, NEAR, FORMULA, INLINE_PTX) * minus(rate)
            # Of a matrix of one column: Triton 3.6 cannot reduce a vector here for sm_100.
            reference = tl.max(tl.max(tl.where(least < _HIGHEST, largest, _LOWEST), 0), 0)

        row_sum = tl.zeros([BLOCK_M, LANES], tl.float32)
        sums = ()
        for piece in tl.static_range(PIECES):
            y = column_scalars(COLUMNS + first_place(j * BLOCK_N) + place(piece * WIDTH) + places(WIDTH))
            gap = gap_of_pairs(pieces[piece], x, y, c, NEAR, FORMULA, CENTRED, INLINE_PTX)
            terms = exp2(tl.fma(gap, minus(rate), minus(reference)), INLINE_PTX)
            if not whole:
                column = j * BLOCK_N + piece * WIDTH + tl.arange(0, WIDTH)
                terms = tl.where(_counts(TARGETS, offset, row, row_at, column, M, N), terms, 0.0)
            row_sum += lane_sums(terms, LANES) if SPREAD else group_sums(terms)
            if BY_COLUMN:
                sums += (column_sums[piece] + kept_sums(terms, KEPT),)
        if BY_COLUMN:
            column_sums = sums
        if BY_ROW:
            at = j.to(tl.int64) * M + row
            tl.store(ROW_MAX + at, tl.zeros([BLOCK_M], tl.float32) + reference, mask=row < M)
            tl.store(ROW_SUM + at, tl.sum(row_sum, 1), mask=row < M)
    if BY_COLUMN:
        last = stop - 1
        for piece in tl.static_range(PIECES):
            column = last // height * BLOCK_N + piece * WIDTH + tl.arange(0, WIDTH)
            at = (last % height // run).to(tl.int64) * N + column
            tl.store(COLUMN_MAX + at, tl.zeros([WIDTH], tl.float32) + reference, mask=column < N)
            tl.store(COLUMN_SUM + at, tl.sum(column_sums[piece], 0), mask=column < N)


@triton.jit(do_not_specialize=["offset"])
def separate_log_sums(
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PIECES: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    INLINE_PTX: tl.constexpr,
):
    """As :func:`log_sums`, each row and each column of a tile relative to its own largest logit.

    For when :func:`merge_log_sums` has found one reference for all to be ``UNSAFE``.
    """
    c = tl.load(C)
    near = _all_near(X_EXTENT, Y_EXTENT)
    if tl.load(UNSAFE) == 0:
        return
    i, j = tile_of_program(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP)
    row = i * BLOCK_M + tl.arange(0, BLOCK_M)
    row_at = tl.minimum(row, M - 1)
    column_at = tl.minimum(j * BLOCK_N + tl.arange(0, BLOCK_N), N - 1)
    at_row = ROWS + first_place(i * BLOCK_M) + places(BLOCK_M)
    x = row_scalars(at_row, INLINE_PTX)
    rate = row_scalar(at_row, RATE, INLINE_PTX)

    products = products_of_tile(X, Y, row_at, column_at, x_stride, y_stride, D, BLOCK_K, PRECISION, UPCAST)
    pieces = split(products, PIECES)

    WIDTH: tl.constexpr = BLOCK_N // PIECES
    logits = ()
    row_max = tl.full([BLOCK_M], _LOWEST, tl.float32)
    for piece in tl.static_range(PIECES):
        column = j * BLOCK_N + piece * WIDTH + tl.arange(0, WIDTH)
        y = column_scalars(COLUMNS + first_place(j * BLOCK_N) + place(piece * WIDTH) + places(WIDTH))
        gap = gap_of_pairs(pieces[piece], x, y, c, near, FORMULA, CENTRED, INLINE_PTX)
        counts = _counts(TARGETS, offset, row, row_at, column, M, N)
        logits += (tl.where(counts, gap * minus(rate), float("-inf")),)
        row_max = tl.maximum(row_max, tl.max(logits[piece], 1))

    row_sum = tl.zeros([BLOCK_M], tl.float32)
    for piece in tl.static_range(PIECES):
        row_sum += tl.sum(exp2(logits[piece] - row_max[:, None], INLINE_PTX), 1)
        if BY_COLUMN:
            column_max = tl.maximum(tl.max(logits[piece], 0), _LOWEST)
            by_column = exp2(logits[piece] - column_max[None, :], INLINE_PTX)
            column = j * BLOCK_N + piece * WIDTH + tl.arange(0, WIDTH)
            at = i.to(tl.int64) * N + column
            tl.store(COLUMN_MAX + at, column_max, mask=column < N)
            tl.store(COLUMN_SUM + at, tl.sum(by_column, 0), mask=column < N)
    if BY_ROW:
        at = j.to(tl.int64) * M + row
        tl.store(ROW_MAX + at, row_max, mask=row < M)
        tl.store(ROW_SUM + at, row_sum, mask=row < M)


@triton.jit
def merge_log_sums(
    MAX, SUM, OUT, UNSAFE, items, tiles, terms, SHARED: tl.constexpr, ITEMS: tl.constexpr, TILES: tl.constexpr
):
    """Log-sum-exp over ``terms`` logits of each item from its parts in all tiles: natural, float64.

    A term below ``2**-126`` of a shared reference was 0 in float32. Where all of them together could matter,
    or a sum is beyond float32, the references have to be the maxima of each item.
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
        kept = (total >= terms * _LEAST_OF_A_TERM) & (total < float("inf"))
        lost = (item < items) & (kept == 0)
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    KEPT: tl.constexpr,
    PIECES: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    INLINE_PTX: tl.constexpr,
):
    """The negatives' gradient by ``-c x.y`` of each pair, a matrix, and what is summed over rows and columns.

    The sums that are to cancel against products with the matrix are those of the rounded matrix. ``NEAR`` as
    in :func:`log_sums`.
    """
    c = tl.load(C)
    if _is_for_other_launch(X_EXTENT, Y_EXTENT, FORMULA, NEAR):
        return
    i, j = tile_of_program(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP)
    WIDTH: tl.constexpr = BLOCK_N // PIECES
    TOGETHER: tl.constexpr = KEPT > 1 and KEPT < BLOCK_M
    # Of a row, a thread has every fourth column of a half; or, of tcgen05 with eight warps, one side.
    BY_LANE: tl.constexpr = KEPT < BLOCK_M or WIDTH == 2 * SUM_LANES or FORMULA >= ANGLE_AT_X
    # Sums of lanes take registers, which longer formulas have not.
    LANES: tl.constexpr = 1 if FORMULA >= ANGLE_AT_X else SUM_LANES if BY_LANE else 2
    row = i * BLOCK_M + tl.arange(0, BLOCK_M)
    row_at = tl.minimum(row, M - 1)
    column_at = tl.minimum(j * BLOCK_N + tl.arange(0, BLOCK_N), N - 1)
    at_row = ROWS + first_place(i * BLOCK_M) + places(BLOCK_M)
    x = row_scalars(at_row, INLINE_PTX)
    rate = row_scalar(at_row, RATE, INLINE_PTX)
    whole = _is_whole(TARGETS, offset, i * BLOCK_M, j * BLOCK_N, row_at, M, N, BLOCK_M, BLOCK_N)
    if BY_ROW:
        row_total = row_scalar(at_row, TOTAL, INLINE_PTX)
        row_weight = row_scalar(at_row, WEIGHT, INLINE_PTX)

    products = products_of_tile(X, Y, row_at, column_at, x_stride, y_stride, D, BLOCK_K, PRECISION, UPCAST)
    pieces = split(products, PIECES)

    corner = WEIGHTS + i.to(tl.int64) * BLOCK_M * weights_stride + j * BLOCK_N
    corner += tl.arange(0, BLOCK_M)[:, None] * weights_stride
    own_sum = tl.zeros([BLOCK_M, LANES], tl.float32)
    gap_sum, curv_sum, radial_sum = own_sum, own_sum, own_sum
    column_sums = ()
    for piece in tl.static_range(PIECES):
        # Every other column: of a row and a lane there is one, whose terms are added by the multiplication.
        products = halves(pieces[piece])
        at_column = COLUMNS + first_place(j * BLOCK_N) + place(piece * WIDTH) + places(WIDTH)
        y = halves_of_points(column_scalars(at_column))
        column_total = halves(column_scalar(at_column, TOTAL))
        column_weight = halves(column_scalar(at_column, WEIGHT))
        gradients = ()
        for half in tl.static_range(2):
            gap = gap_of_pairs(products[half], x, y[half], c, NEAR, FORMULA, CENTRED, INLINE_PTX)
            push = tl.zeros([BLOCK_M, WIDTH // 2], tl.float32)
            if BY_ROW:
                push = row_weight * exp2(tl.fma(gap, minus(rate), minus(row_total)), INLINE_PTX)
            if BY_COLUMN:
                terms = exp2(tl.fma(gap, minus(rate), minus(column_total[half])), INLINE_PTX)
                push = tl.fma(terms, column_weight[half], push)
            if FORMULA == INNER or not whole:  # where a branch would make the compiler spill
                every_other = j * BLOCK_N + piece * WIDTH + half + 2 * tl.arange(0, WIDTH // 2)
                push = tl.where(_counts(TARGETS, offset, row, row_at, every_other, M, N), push, 0.0)
            gap_sum += sums_of_half(push * gap, LANES, BY_LANE)

            pull = push * rate if FORMULA == DIST else push * (rate * UNITS_PER_RATE)
            gradients += (
                _gradient(products[half], gap, pull, x, y[half], c, NEAR, FORMULA, CENTRED, RESOLUTION),
            )
            curv_sum += sums_of_half(gradients[half].curv, LANES, BY_LANE)
            if FORMULA < ANGLE_AT_X:
                radial = gradients[half].radial
                radial_sum += sums_of_half(gradients[half].weight * radial * radial, LANES, BY_LANE)
        exact = join((gradients[0].weight, gradients[1].weight))
        if INLINE_PTX and WEIGHTS.dtype.element_ty == tl.bfloat16:
            weight, kept = to_bfloat16(exact)
        else:
            weight = rounded(round_to_tf32(exact) if ROUND_TF32 else exact, WEIGHTS.dtype.element_ty)
            kept = weight.to(tl.float32)
        tl.store(corner + piece * WIDTH + tl.arange(0, WIDTH)[None, :], weight)
        kept = halves(kept)
        by_y = ()
        for half in tl.static_range(2):
            by_x, one = own_terms(
                gradients[half], kept[half], products[half], x, y[half], c, FORMULA, CENTRED
            )
            own_sum += sums_of_half(by_x, LANES, BY_LANE)
            by_y += (kept_sums(one, KEPT) if TOGETHER else one,)
        if TOGETHER:
            column_sums += (join(by_y),)
        else:
            column = j * BLOCK_N + piece * WIDTH + tl.arange(0, WIDTH)
            tl.store(Y_SUM + i.to(tl.int64) * N + column, tl.sum(join(by_y), 0), mask=column < N)
    at = j.to(tl.int64) * M + row
    tl.store(X_SUM + at, tl.sum(own_sum, 1), mask=row < M)
    tl.store(GAP_SUM + at, tl.sum(gap_sum, 1), mask=row < M)
    curv_sum += radial_sum * (0.5 / (1.0 + x.height))
    tl.store(CURV_SUM + at, tl.sum(curv_sum, 1), mask=row < M)
    if TOGETHER:
        column = j * BLOCK_N + tl.arange(0, BLOCK_N)
        tl.store(Y_SUM + i.to(tl.int64) * N + column, tl.sum(side_by_side(column_sums), 0), mask=column < N)


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
def _counts(TARGETS, offset, row, row_at, column, M, N):
    """Which pairs are negatives: no row is with its target, none is past the end."""
    negative = column[None, :] != _target(TARGETS, offset, row, row_at)
    return negative & (column < N)[None, :] & (row < M)[:, None]


@triton.jit
def _is_whole(TARGETS, offset, row, column, row_at, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Whether all pairs of the tile from ``row`` and ``column`` are negatives: most tiles need no tests."""
    inside = (row + BLOCK_M <= M) & (column + BLOCK_N <= N)
    if TARGETS is None:
        first = row + offset - column
        negatives = (first <= -BLOCK_M) | (first >= BLOCK_N)
    else:
        target = tl.load(TARGETS + row_at) + (offset - column)
        negatives = tl.max(((target >= 0) & (target < BLOCK_N)).to(tl.int32), 0) == 0
    return inside & negatives


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
    steepest = x.steepest if NEAR else x.steepest * (y.root * y.root)
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
