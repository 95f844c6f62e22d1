# mypy: allow-untyped-defs, allow-incomplete-defs
"""Device code of the contrastive loss: one program computes the logits of one tile of pairs and reduces them.

Products are accumulated in float32. Distances, their squares and inner products are functions of
``z = cosh(k d) - 1 = (A B - 1) - c x.y`` with ``A = 1 + h_x``, ``B = 1 + h_y``. Points of half precision are
multiplied as they are, without rounding:

    z = h_x B + h_y - c x.y

Float32 points are *centred*: multiplied are ``u = k x - P o_x`` and ``v = k y - Q o_y``, with the centres
``o_x`` and ``o_y`` of :class:`hypkernels.contrastive.problem.Side`. The nearer the points are to their
centres, the smaller are the products and their rounding errors, above all in tf32. With the tilts ``t``

    z = lateral + radial,   lateral = t_x Q + P t_y - u.v,   radial = 2 sinh^2((b - a)/2)

Logits are in bits (base 2). A row and its target are no negative: their term of the sum is 0. Rows and
columns past the end repeat the last one, so that every number is that of some pair; their terms are 0,
too. A program stores partial sums, for each row and tile, and for each column and tile or run of tiles
(tiles below each other that one program computes). They are merged in a fixed order.

Shapes: a tile has ``(BLOCK_M, BLOCK_N)`` pairs, one of its pieces ``(BLOCK_M, WIDTH)``. Scalars of rows
are ``(BLOCK_M, 1)``, those of columns ``(1, WIDTH)``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

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

# The reference of a sum without terms: far below any logit, and still a number that can be subtracted.
_LOWEST, _HIGHEST = tl.constexpr(-1e38), tl.constexpr(3e38)
# A sum that is at least this times the number of its terms has lost less than its last bit to underflow.
_LEAST_OF_A_TERM = tl.constexpr(2.0 ** (24 - 126))


class Operands(NamedTuple):
    """What the logits of a block of pairs are made of.

    ``X (M, D)`` and ``Y (N, D)`` are the points, or the centred ones; ``ROWS`` and ``COLUMNS`` their
    tables. ``TARGETS (M,)``: the column of each row's positive, int32; None: column ``i`` for row ``i``.
    ``C``: the curvature. ``X_EXTENT`` and ``Y_EXTENT``: the largest ``sqrt(c)`` times norm on either
    side.
    """

    X: Any
    Y: Any
    x_stride: Any
    y_stride: Any
    ROWS: Any
    COLUMNS: Any
    TARGETS: Any
    C: Any
    X_EXTENT: Any
    Y_EXTENT: Any


class LogSums(NamedTuple):
    """The largest logit, or the reference, and the sum relative to it, float32.

    ``ROW_*``: ``(columns of tiles, M)``. ``COLUMN_*``: ``(rows of tiles or runs of them, N)``.
    """

    ROW_MAX: Any
    ROW_SUM: Any
    COLUMN_MAX: Any
    COLUMN_SUM: Any


class Weights(NamedTuple):
    """The matrix of weights, and sums over it with the shapes of :class:`LogSums`.

    ``X_SUM`` and ``Y_SUM``: of the points' own terms. ``GAP_SUM``: of gradients by logits times gaps.
    ``CURV_SUM``: of the gradient by ``log c``.
    """

    WEIGHTS: Any
    stride: Any
    X_SUM: Any
    Y_SUM: Any
    GAP_SUM: Any
    CURV_SUM: Any


class Logits(NamedTuple):
    """Which logits are computed, and which sums over them; known at compile time.

    ``near``: whether by the formula for points that all are near each other. Both formulas are launched,
    and one of the launches returns at once.
    """

    formula: int
    centred: bool
    by_row: bool
    by_column: bool
    near: bool = False


class Slopes(NamedTuple):
    """What gradients of pairs need besides; known at compile time.

    ``units_per_rate``: the unit of the gap, in the unit of its rate; ``resolution``: of the product, see
    :data:`~hypkernels.tritonlib.products.RESOLUTION`; ``round_tf32``: whether weights are rounded to
    tf32.
    """

    units_per_rate: float
    resolution: float
    round_tf32: bool


class Arithmetic(NamedTuple):
    """How products of ``width`` components are computed, and whether in instructions of NVIDIA's assembly."""

    width: int
    precision: str
    upcast: bool
    inline_ptx: bool


class _Places(NamedTuple):
    """A tile's rows, the rows and columns that are read for it, and the rows' places in their table."""

    row: tl.tensor
    row_at: tl.tensor
    column_at: tl.tensor
    table_at: tl.tensor


@triton.jit(do_not_specialize=["offset", "run"])
def log_sums(
    operands,
    sums,
    M,
    N,
    offset,
    run,
    LOGITS: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    TILE: tl.constexpr,
):
    """The sums of ``2**(logit - reference)`` over each row of a tile and over each column of a run of tiles.

    All tiles of the run have one reference: the largest logit of the first piece of the first tile. So
    one exponential serves a row and a column, and no other maximum is needed. A sum of logits far above
    the reference is infinite, a sum of logits far below it is 0: :func:`merge_log_sums` finds both, and
    then :func:`separate_log_sums` runs. Sums over columns stay in registers until the run ends.
    """
    FORMULA: tl.constexpr = LOGITS.formula
    INLINE_PTX: tl.constexpr = ARITHMETIC.inline_ptx
    BLOCK_M: tl.constexpr = TILE.rows
    BLOCK_N: tl.constexpr = TILE.columns
    KEPT: tl.constexpr = TILE.kept_rows
    PIECES: tl.constexpr = TILE.pieces
    WIDTH: tl.constexpr = BLOCK_N // PIECES
    SPREAD: tl.constexpr = KEPT > 1 and KEPT < BLOCK_M
    LANES: tl.constexpr = SUM_LANES if SPREAD else 2
    if _is_for_other_launch(operands, LOGITS):
        return
    c = tl.load(operands.C)
    first, j = tile_of_program(tl.program_id(0), tl.cdiv(M, run), N, BLOCK_M, BLOCK_N, TILE.group)
    height = tl.cdiv(M, BLOCK_M)
    stop = j * height + tl.minimum(first * run + run, height)
    column_sums = ()
    for _ in tl.static_range(PIECES):
        column_sums += (tl.zeros([KEPT, WIDTH], tl.float32),)  # type: ignore[assignment]
    reference = _LOWEST
    # No hoisting out of this loop: what is kept from one tile to the next takes registers.
    for tile in tl.range(j * height + first * run, stop, disable_licm=True):
        i, j = tile % height, tile // height
        at = _places(operands, i, j, M, N, TILE)
        x = row_scalars(at.table_at, INLINE_PTX)
        rate = row_scalar(at.table_at, RATE, INLINE_PTX)
        whole = _is_whole(operands.TARGETS, offset, at.row_at, i, j, M, N, TILE)
        pieces = split(_products(operands, at, ARITHMETIC, TILE), PIECES)  # PIECES of (BLOCK_M, WIDTH)

        if i % run == 0:
            y = column_scalars(_columns_of_piece(operands.COLUMNS, j, 0, TILE))
            spread = spread_of_pairs(pieces[0], x, y, c, FORMULA, LOGITS.centred)
            if not whole:
                column = j * BLOCK_N + tl.arange(0, WIDTH)
                spread = tl.where(_counts(operands.TARGETS, offset, at, column, M, N), spread, _HIGHEST)
            least = tl.min(spread, 1)[:, None]
            largest = gap_of_spread(least, LOGITS.near, FORMULA, INLINE_PTX) * minus(rate)
            # The maximum of a matrix (BLOCK_M, 1): Triton 3.6 cannot reduce a vector here for sm_100.
            reference = tl.max(tl.max(tl.where(least < _HIGHEST, largest, _LOWEST), 0), 0)

        row_sum = tl.zeros([BLOCK_M, LANES], tl.float32)
        column_sums_before, column_sums = column_sums, ()
        for piece in tl.static_range(PIECES):
            y = column_scalars(_columns_of_piece(operands.COLUMNS, j, piece, TILE))
            gap = gap_of_pairs(pieces[piece], x, y, c, LOGITS.near, FORMULA, LOGITS.centred, INLINE_PTX)
            terms = exp2(tl.fma(gap, minus(rate), minus(reference)), INLINE_PTX)
            if not whole:
                column = j * BLOCK_N + piece * WIDTH + tl.arange(0, WIDTH)
                terms = tl.where(_counts(operands.TARGETS, offset, at, column, M, N), terms, 0.0)
            row_sum += lane_sums(terms, LANES) if SPREAD else group_sums(terms)
            sum_of_piece = column_sums_before[piece]  # type: ignore[var-annotated]
            if LOGITS.by_column:
                sum_of_piece += kept_sums(terms, KEPT)
            column_sums += (sum_of_piece,)  # type: ignore[assignment]
        if LOGITS.by_row:
            out = j.to(tl.int64) * M + at.row
            tl.store(sums.ROW_MAX + out, tl.zeros([BLOCK_M], tl.float32) + reference, mask=at.row < M)
            tl.store(sums.ROW_SUM + out, tl.sum(row_sum, 1), mask=at.row < M)
    if LOGITS.by_column:
        last = stop - 1
        for piece in tl.static_range(PIECES):
            column = last // height * BLOCK_N + piece * WIDTH + tl.arange(0, WIDTH)
            out = (last % height // run).to(tl.int64) * N + column
            tl.store(sums.COLUMN_MAX + out, tl.zeros([WIDTH], tl.float32) + reference, mask=column < N)
            tl.store(sums.COLUMN_SUM + out, tl.sum(column_sums[piece], 0), mask=column < N)


@triton.jit(do_not_specialize=["offset"])
def separate_log_sums(
    operands,
    sums,
    UNSAFE,
    M,
    N,
    offset,
    LOGITS: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    TILE: tl.constexpr,
):
    """As :func:`log_sums`, but each row and each column of a tile is relative to its own largest logit.

    It returns at once unless :func:`merge_log_sums` has set ``UNSAFE``.
    """
    FORMULA: tl.constexpr = LOGITS.formula
    INLINE_PTX: tl.constexpr = ARITHMETIC.inline_ptx
    BLOCK_M: tl.constexpr = TILE.rows
    BLOCK_N: tl.constexpr = TILE.columns
    PIECES: tl.constexpr = TILE.pieces
    WIDTH: tl.constexpr = BLOCK_N // PIECES
    c = tl.load(operands.C)
    near = _all_near(operands)
    if tl.load(UNSAFE) == 0:
        return
    i, j = tile_of_program(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, TILE.group)
    at = _places(operands, i, j, M, N, TILE)
    x = row_scalars(at.table_at, INLINE_PTX)
    rate = row_scalar(at.table_at, RATE, INLINE_PTX)
    pieces = split(_products(operands, at, ARITHMETIC, TILE), PIECES)

    logits = ()
    row_max = tl.full([BLOCK_M], _LOWEST, tl.float32)
    for piece in tl.static_range(PIECES):
        column = j * BLOCK_N + piece * WIDTH + tl.arange(0, WIDTH)
        y = column_scalars(_columns_of_piece(operands.COLUMNS, j, piece, TILE))
        gap = gap_of_pairs(pieces[piece], x, y, c, near, FORMULA, LOGITS.centred, INLINE_PTX)
        counts = _counts(operands.TARGETS, offset, at, column, M, N)
        logits += (tl.where(counts, gap * minus(rate), float("-inf")),)  # type: ignore[assignment]
        row_max = tl.maximum(row_max, tl.max(logits[piece], 1))

    row_sum = tl.zeros([BLOCK_M], tl.float32)
    for piece in tl.static_range(PIECES):
        row_sum += tl.sum(exp2(logits[piece] - row_max[:, None], INLINE_PTX), 1)
        if LOGITS.by_column:
            column_max = tl.maximum(tl.max(logits[piece], 0), _LOWEST)
            by_column = exp2(logits[piece] - column_max[None, :], INLINE_PTX)
            column = j * BLOCK_N + piece * WIDTH + tl.arange(0, WIDTH)
            out = i.to(tl.int64) * N + column
            tl.store(sums.COLUMN_MAX + out, column_max, mask=column < N)
            tl.store(sums.COLUMN_SUM + out, tl.sum(by_column, 0), mask=column < N)
    if LOGITS.by_row:
        out = j.to(tl.int64) * M + at.row
        tl.store(sums.ROW_MAX + out, row_max, mask=at.row < M)
        tl.store(sums.ROW_SUM + out, row_sum, mask=at.row < M)


@triton.jit
def merge_log_sums(
    MAX, SUM, OUT, UNSAFE, items, tiles, terms, SHARED: tl.constexpr, ITEMS: tl.constexpr, TILES: tl.constexpr
):
    """Log-sum-exp over ``terms`` logits of each item, a row or column, from its sums in all tiles.

    ``MAX`` and ``SUM`` are ``(tiles, items)``, ``OUT (items,)`` is in nats, float64. With a ``SHARED``
    reference a term below ``2**-126`` of it was 0 in float32. ``UNSAFE`` is set where all such terms
    together could change the sum, or where the sum left float32: then each item needs its own maximum as
    the reference.
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
    operands,
    out,
    M,
    N,
    offset,
    LOGITS: tl.constexpr,
    SLOPES: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    TILE: tl.constexpr,
):
    """The matrix of the negatives' gradients by ``-c x.y``, and sums of gradients over rows and columns.

    Own terms nearly cancel against products with the matrix: they are summed from the rounded matrix.
    """
    FORMULA: tl.constexpr = LOGITS.formula
    INLINE_PTX: tl.constexpr = ARITHMETIC.inline_ptx
    BLOCK_M: tl.constexpr = TILE.rows
    BLOCK_N: tl.constexpr = TILE.columns
    KEPT: tl.constexpr = TILE.kept_rows
    PIECES: tl.constexpr = TILE.pieces
    WIDTH: tl.constexpr = BLOCK_N // PIECES
    TOGETHER: tl.constexpr = KEPT > 1 and KEPT < BLOCK_M
    # A thread has every fourth column of half a row; with tcgen05 and eight warps, the left or right
    # columns.
    BY_LANE: tl.constexpr = KEPT < BLOCK_M or WIDTH == 2 * SUM_LANES or FORMULA >= ANGLE_AT_X
    # Separate sums for the threads of a row take registers; longer formulas leave none for them.
    LANES: tl.constexpr = 1 if FORMULA >= ANGLE_AT_X else SUM_LANES if BY_LANE else 2
    if _is_for_other_launch(operands, LOGITS):
        return
    c = tl.load(operands.C)
    i, j = tile_of_program(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, TILE.group)
    at = _places(operands, i, j, M, N, TILE)
    x = row_scalars(at.table_at, INLINE_PTX)
    rate = row_scalar(at.table_at, RATE, INLINE_PTX)
    whole = _is_whole(operands.TARGETS, offset, at.row_at, i, j, M, N, TILE)
    if LOGITS.by_row:
        row_total = row_scalar(at.table_at, TOTAL, INLINE_PTX)
        row_weight = row_scalar(at.table_at, WEIGHT, INLINE_PTX)
    pieces = split(_products(operands, at, ARITHMETIC, TILE), PIECES)

    corner = out.WEIGHTS + i.to(tl.int64) * BLOCK_M * out.stride + j * BLOCK_N
    corner += tl.arange(0, BLOCK_M)[:, None] * out.stride
    own_sum = tl.zeros([BLOCK_M, LANES], tl.float32)
    gap_sum, curv_sum, radial_sum = own_sum, own_sum, own_sum
    column_sums = ()
    for piece in tl.static_range(PIECES):
        # The even, then the odd columns: of either a thread has one a row, so that a multiply-add sums
        # terms.
        products = halves(pieces[piece])  # 2 of (BLOCK_M, WIDTH / 2)
        at_column = _columns_of_piece(operands.COLUMNS, j, piece, TILE)
        y = halves_of_points(column_scalars(at_column))
        column_total = halves(column_scalar(at_column, TOTAL))
        column_weight = halves(column_scalar(at_column, WEIGHT))
        for half in tl.static_range(2):
            gap = gap_of_pairs(
                products[half], x, y[half], c, LOGITS.near, FORMULA, LOGITS.centred, INLINE_PTX
            )
            by_logit = tl.zeros([BLOCK_M, WIDTH // 2], tl.float32)
            if LOGITS.by_row:
                by_logit = row_weight * exp2(tl.fma(gap, minus(rate), minus(row_total)), INLINE_PTX)
            if LOGITS.by_column:
                terms = exp2(tl.fma(gap, minus(rate), minus(column_total[half])), INLINE_PTX)
                by_logit = tl.fma(terms, column_weight[half], by_logit)
            if FORMULA == INNER or not whole:  # where a branch would make the compiler spill
                every_other = j * BLOCK_N + piece * WIDTH + half + 2 * tl.arange(0, WIDTH // 2)
                counts = _counts(operands.TARGETS, offset, at, every_other, M, N)
                by_logit = tl.where(counts, by_logit, 0.0)
            gap_sum += sums_of_half(by_logit * gap, LANES, BY_LANE)

            by_gap = by_logit * rate if FORMULA == DIST else by_logit * (rate * SLOPES.units_per_rate)
            gradient = _gradient(products[half], gap, by_gap, x, y[half], c, LOGITS, SLOPES.resolution)
            curv_sum += sums_of_half(gradient.curv, LANES, BY_LANE)
            if FORMULA < ANGLE_AT_X:
                radial_sum += sums_of_half(
                    gradient.weight * gradient.radial * gradient.radial, LANES, BY_LANE
                )
            if half == 0:  # two names, not a tuple: in a tuple Triton 3.6 forgets the fields' names
                even = gradient
            else:
                odd = gradient
        exact = join((even.weight, odd.weight))
        if INLINE_PTX and out.WEIGHTS.dtype.element_ty == tl.bfloat16:
            weight, stored = to_bfloat16(exact)
        else:
            weight = round_to_tf32(exact) if SLOPES.round_tf32 else exact
            weight = rounded(weight, out.WEIGHTS.dtype.element_ty)
            stored = weight.to(tl.float32)
        tl.store(corner + piece * WIDTH + tl.arange(0, WIDTH)[None, :], weight)
        stored = halves(stored)
        by_y = ()
        for half in tl.static_range(2):
            gradient = even if half == 0 else odd
            by_x, one = own_terms(
                gradient, stored[half], products[half], x, y[half], c, FORMULA, LOGITS.centred
            )
            own_sum += sums_of_half(by_x, LANES, BY_LANE)
            by_y += (kept_sums(one, KEPT) if TOGETHER else one,)  # type: ignore[assignment]
        if TOGETHER:
            column_sums += (join(by_y),)  # type: ignore[assignment]
        else:
            column = j * BLOCK_N + piece * WIDTH + tl.arange(0, WIDTH)
            tl.store(out.Y_SUM + i.to(tl.int64) * N + column, tl.sum(join(by_y), 0), mask=column < N)
    place_of_sum = j.to(tl.int64) * M + at.row
    tl.store(out.X_SUM + place_of_sum, tl.sum(own_sum, 1), mask=at.row < M)
    tl.store(out.GAP_SUM + place_of_sum, tl.sum(gap_sum, 1), mask=at.row < M)
    curv_sum += radial_sum * (0.5 / (1.0 + x.height))
    tl.store(out.CURV_SUM + place_of_sum, tl.sum(curv_sum, 1), mask=at.row < M)
    if TOGETHER:
        column = j * BLOCK_N + tl.arange(0, BLOCK_N)
        sums = tl.sum(side_by_side(column_sums), 0)
        tl.store(out.Y_SUM + i.to(tl.int64) * N + column, sums, mask=column < N)


@triton.jit
def _places(operands, i, j, M, N, TILE: tl.constexpr):
    """The places of a tile; past the end they repeat the last row and the last column."""
    row = i * TILE.rows + tl.arange(0, TILE.rows)
    column = j * TILE.columns + tl.arange(0, TILE.columns)
    table_at = operands.ROWS + first_place(i * TILE.rows) + places(TILE.rows)
    return _Places(row, tl.minimum(row, M - 1), tl.minimum(column, N - 1), table_at)


@triton.jit
def _columns_of_piece(COLUMNS, j, piece, TILE: tl.constexpr):
    """The places of a piece's columns in their table, ``(WIDTH,)``."""
    WIDTH: tl.constexpr = TILE.columns // TILE.pieces
    return COLUMNS + first_place(j * TILE.columns) + place(piece * WIDTH) + places(WIDTH)


@triton.jit
def _products(operands, at, ARITHMETIC: tl.constexpr, TILE: tl.constexpr):
    WIDTH: tl.constexpr = ARITHMETIC.width
    DEPTH: tl.constexpr = TILE.depth_bytes * 8 // operands.X.dtype.element_ty.primitive_bitwidth
    PRECISION: tl.constexpr = ARITHMETIC.precision
    UPCAST: tl.constexpr = ARITHMETIC.upcast
    return products_of_tile(
        operands.X,
        operands.Y,
        at.row_at,
        at.column_at,
        operands.x_stride,
        operands.y_stride,
        WIDTH,
        DEPTH,
        PRECISION,
        UPCAST,
    )


@triton.jit
def _is_for_other_launch(operands, LOGITS: tl.constexpr):
    """Whether this launch has nothing to do: there are two, for near points and for all others."""
    if LOGITS.formula > SQDIST:
        return False
    return _all_near(operands) != LOGITS.near


@triton.jit
def _all_near(operands):
    """Whether all pairs are within the range of the series of :func:`distance_in_bits`."""
    return tl.load(operands.X_EXTENT).to(tl.float32) + tl.load(operands.Y_EXTENT).to(tl.float32) < NEAR_REACH


@triton.jit
def _counts(TARGETS, offset, at, column, M, N):
    """Which pairs count as negatives: not those of a row and its target, nor those past the end."""
    target = at.row + offset if TARGETS is None else tl.load(TARGETS + at.row_at) + offset
    negative = column[None, :] != target[:, None]
    return negative & (column < N)[None, :] & (at.row < M)[:, None]


@triton.jit
def _is_whole(TARGETS, offset, row_at, i, j, M, N, TILE: tl.constexpr):
    """Whether all pairs of a tile are negatives, as in most tiles: then none is tested by itself."""
    row, column = i * TILE.rows, j * TILE.columns
    inside = (row + TILE.rows <= M) & (column + TILE.columns <= N)
    if TARGETS is None:
        first = row + offset - column
        negatives = (first <= -TILE.rows) | (first >= TILE.columns)
    else:
        target = tl.load(TARGETS + row_at) + (offset - column)
        negatives = tl.max(((target >= 0) & (target < TILE.columns)).to(tl.int32), 0) == 0
    return inside & negatives


@triton.jit
def _gradient(
    product,
    gap,
    by_gap,
    x,
    y,
    c,
    LOGITS: tl.constexpr,
    RESOLUTION: tl.constexpr,
):
    FORMULA: tl.constexpr = LOGITS.formula
    CENTRED: tl.constexpr = LOGITS.centred
    if FORMULA == ANGLE_AT_X:
        return angle_gradient(product, by_gap, x, y, c, CENTRED, RESOLUTION)
    if FORMULA == ANGLE_AT_Y:
        g = angle_gradient(product, by_gap, y, x, c, CENTRED, RESOLUTION)
        return Gradient(g.weight, g.radial, g.curv, g.y, g.x)
    radial = tl.fma(x.height, y.root, minus(y.lever))  # (A - B) / sqrt(B)
    if FORMULA == INNER:
        return Gradient(by_gap, radial, by_gap, by_gap, by_gap)
    z = separation(product, x, y, c, CENTRED)
    slope = tl.rsqrt(sinh_squared(z))
    # Where all points are near each other every ``A`` is nearly 1, and registers for it are missing.
    steepest = x.steepest if LOGITS.near else x.steepest * (y.root * y.root)
    per_sinh = tl.minimum(slope, steepest, propagate_nan=tl.PropagateNan.ALL)
    distance = gap
    if FORMULA == SQDIST:
        distance = tl.sqrt(gap)
        by_gap *= distance * (2.0 * LN2)
    # With half the distance ``u`` and ``tanh(u) = z / sinh(2 u)``, ``u - tanh(u)``.
    tanh = z * slope
    deficit = tanh * near_excess(z) if LOGITS.near else tl.fma(distance, 0.5 * LN2, minus(tanh))
    weight = by_gap * per_sinh
    return Gradient(weight, radial, by_gap * deficit, weight, weight)
