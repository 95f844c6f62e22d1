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

from typing import NamedTuple

import triton
import triton.language as tl

from hypkernels.tritonlib.rows import rounded

DIST, SQDIST, INNER, ANGLE_AT_X, ANGLE_AT_Y = (tl.constexpr(i) for i in range(5))

# The lines of the tables of scalars, which :mod:`hypkernels.contrastive.point_kernels` fills.
LINES = tl.constexpr(11)
HEIGHT, ROOT, LEVER, STEEPEST, NORM, GROWTH, SHRINK, TILT, TOTAL, WEIGHT, RATE = (
    tl.constexpr(i) for i in range(LINES.value)
)

# A table has all lines of so many points, then those of the next: all of a tile's are near one address.
CHUNK = tl.constexpr(32)

# Stand to the right of a tensor: in the interpreter of Triton 3.8 they swallow one that is to their right.
_LN2 = tl.constexpr(0.6931471805599453)
_LOG2E = tl.constexpr(1.4426950408889634)
_ROOT_2 = tl.constexpr(1.4142135623730951)
_HALF_PI = tl.constexpr(1.5707963267948966)
# Of a row's results of a matrix unit, a thread ("lane") has so many adjacent ones, and again after all lanes.
_LANES, _ADJACENT = tl.constexpr(4), tl.constexpr(2)
# Of sums without terms: far below any logit, and still a number that can be subtracted.
_LOWEST = tl.constexpr(-1e38)
# The rounding of a dot product, in units of the norms: closer points coincide.
_COINCIDENT = tl.constexpr(16 * 2.0**-23)
# A sum of float32 terms relative to 1 lost less than its last bit, if it is at least this for each of them.
_LEAST_OF_A_TERM = tl.constexpr(2.0 ** (24 - 126))
# Up to this distance, with curvature -1, the series in ``z`` serve: what they leave out is a rounding.
_NEAR = tl.constexpr(0.5)
# Between points that all are the origin.
_TINY = tl.constexpr(1e-37)


class Points(NamedTuple):
    """Scalars of the rows ``(n, 1)`` or of the columns ``(1, n)`` of a tile.

    ``root = A^-1/2`` and ``lever = h A^-1/2``; ``steepest``: ``A`` times the slope of the distance by ``z``
    where the product leaves off to tell two such points apart. Over the ``A`` of another point it is that of
    the pair, or larger where the two are so far apart that the product tells them apart anyway.
    """

    height: tl.tensor
    root: tl.tensor
    lever: tl.tensor
    steepest: tl.tensor
    norm: tl.tensor
    growth: tl.tensor
    shrink: tl.tensor
    tilt: tl.tensor


class Gradient(NamedTuple):
    """By each pair's ``-c x.y`` and by ``log c``. Of angles also the terms of the points themselves.

    Of all others ``curv`` lacks ``weight radial^2 / 2A``, where ``A`` is the row's.
    """

    weight: tl.tensor
    radial: tl.tensor
    curv: tl.tensor
    x: tl.tensor
    y: tl.tensor


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
    i, j = _tile_of_program(M, N, BLOCK_M, BLOCK_N, GROUP)
    row = i * BLOCK_M + tl.arange(0, BLOCK_M)
    row_at = tl.minimum(row, M - 1)
    column_at = tl.minimum(j * BLOCK_N + tl.arange(0, BLOCK_N), N - 1)
    at_row = ROWS + _first_place(i * BLOCK_M) + _places(BLOCK_M)
    x = _row_scalars(at_row, INLINE_PTX)
    rate = _row_scalar(at_row, RATE, INLINE_PTX)
    target = _target(TARGETS, offset, row, row_at)

    products = _products(X, Y, row_at, column_at, x_stride, y_stride, D, BLOCK_K, PRECISION, UPCAST)
    pieces = _split(products, PIECES)

    WIDTH: tl.constexpr = BLOCK_N // PIECES
    logits = ()
    row_max = tl.full([BLOCK_M], _LOWEST, tl.float32)
    for piece in tl.static_range(PIECES):
        column = j * BLOCK_N + piece * WIDTH + tl.arange(0, WIDTH)
        y = _column_scalars(COLUMNS + _first_place(j * BLOCK_N) + place(piece * WIDTH) + _places(WIDTH))
        gap = _gap(pieces[piece], x, y, c, near, FORMULA, CENTRED, INLINE_PTX)
        negative = (column[None, :] != target) & (column < N)[None, :]
        logits += (tl.where(negative, gap * _minus(rate), float("-inf")),)
        row_max = tl.maximum(row_max, tl.max(logits[piece], 1))
    if SHARED:
        # Of a matrix of one column: Triton 3.6 cannot reduce a vector here for sm_100.
        largest = tl.max(row_max[:, None], 0)
        row_max = tl.zeros([BLOCK_M], tl.float32) + largest

    exists = tl.where(row < M, 1.0, 0.0)[:, None]
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    for piece in tl.static_range(PIECES):
        by_row = _exp2(logits[piece] - row_max[:, None], INLINE_PTX)
        row_sum += tl.sum(by_row, 1)
        if BY_COLUMN:
            if SHARED:
                column_max = tl.zeros([WIDTH], tl.float32) + largest
                by_column = by_row
            else:
                column_max = tl.maximum(tl.max(logits[piece], 0), _LOWEST)
                by_column = _exp2(logits[piece] - column_max[None, :], INLINE_PTX)
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
    tl.store(OUT + item, (largest + tl.log2(total)) * _LN2, mask=item < items)
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
    i, j = _tile_of_program(M, N, BLOCK_M, BLOCK_N, GROUP)
    row = i * BLOCK_M + tl.arange(0, BLOCK_M)
    row_at = tl.minimum(row, M - 1)
    column_at = tl.minimum(j * BLOCK_N + tl.arange(0, BLOCK_N), N - 1)
    at_row = ROWS + _first_place(i * BLOCK_M) + _places(BLOCK_M)
    x = _row_scalars(at_row, INLINE_PTX)
    rate = _row_scalar(at_row, RATE, INLINE_PTX)
    target = _target(TARGETS, offset, row, row_at)
    if BY_ROW:
        row_total = _row_scalar(at_row, TOTAL, INLINE_PTX)
        row_weight = _row_scalar(at_row, WEIGHT, INLINE_PTX)

    products = _products(X, Y, row_at, column_at, x_stride, y_stride, D, BLOCK_K, PRECISION, UPCAST)
    pieces = _split(products, PIECES)

    WIDTH: tl.constexpr = BLOCK_N // PIECES
    corner = WEIGHTS + i.to(tl.int64) * BLOCK_M * weights_stride + j * BLOCK_N
    corner += tl.arange(0, BLOCK_M)[:, None] * weights_stride
    # Sums of lanes take registers, which longer formulas have not.
    LANES: tl.constexpr = 1 if FORMULA >= ANGLE_AT_X else _LANES // 2 if NEAR else _LANES
    own_sum = tl.zeros([BLOCK_M, LANES], tl.float32)
    gap_sum, curv_sum, radial_sum = own_sum, own_sum, own_sum
    for piece in tl.static_range(PIECES):
        column = j * BLOCK_N + piece * WIDTH + tl.arange(0, WIDTH)
        at_column = COLUMNS + _first_place(j * BLOCK_N) + place(piece * WIDTH) + _places(WIDTH)
        y = _column_scalars(at_column)
        gap = _gap(pieces[piece], x, y, c, NEAR, FORMULA, CENTRED, INLINE_PTX)
        push = tl.zeros([BLOCK_M, WIDTH], tl.float32)
        if BY_ROW:
            push = row_weight * _exp2(tl.fma(gap, _minus(rate), _minus(row_total)), INLINE_PTX)
        if BY_COLUMN:
            column_total = _column_scalar(at_column, TOTAL)
            column_weight = _column_scalar(at_column, WEIGHT)
            push = tl.fma(
                _exp2(tl.fma(gap, _minus(rate), _minus(column_total)), INLINE_PTX), column_weight, push
            )
        push = tl.where((column < N)[None, :], push, 0.0)
        push = tl.where(column[None, :] != target, push, 0.0)
        gap_sum += _sums(push * gap, LANES)

        pull = push * rate if FORMULA == DIST else push * (rate * UNITS_PER_RATE)
        gradient = _gradient(pieces[piece], gap, pull, x, y, c, NEAR, FORMULA, CENTRED, RESOLUTION)
        curv_sum += _sums(gradient.curv, LANES)
        if FORMULA < ANGLE_AT_X:
            radial_sum += _sums(gradient.weight * gradient.radial * gradient.radial, LANES)
        if INLINE_PTX and WEIGHTS.dtype.element_ty == tl.bfloat16:
            weight, kept = _to_bfloat16(gradient.weight)
        else:
            weight = round_to_tf32(gradient.weight) if ROUND_TF32 else gradient.weight
            weight = rounded(weight, WEIGHTS.dtype.element_ty)
            kept = weight.to(tl.float32)
        tl.store(corner + piece * WIDTH + tl.arange(0, WIDTH)[None, :], weight)
        by_x, by_y = _own_terms(gradient, kept, pieces[piece], x, y, c, FORMULA, CENTRED)
        own_sum += _sums(by_x, LANES)
        if RAGGED:
            by_y = tl.where((row < M)[:, None], by_y, 0.0)
        tl.store(Y_SUM + i.to(tl.int64) * N + column, tl.sum(by_y, 0), mask=column < N)
    at = j.to(tl.int64) * M + row
    tl.store(X_SUM + at, tl.sum(own_sum, 1), mask=row < M)
    tl.store(GAP_SUM + at, tl.sum(gap_sum, 1), mask=row < M)
    curv_sum += radial_sum * (0.5 / (1.0 + x.height))
    tl.store(CURV_SUM + at, tl.sum(curv_sum, 1), mask=row < M)


@triton.jit
def _sums(terms, LANES: tl.constexpr):
    """Over the columns of each lane, or over all."""
    height: tl.constexpr = terms.shape[0]
    width: tl.constexpr = terms.shape[1]
    by_lane = tl.reshape(terms, [height, width // (LANES * _ADJACENT), LANES, _ADJACENT])
    return tl.sum(tl.sum(by_lane, 3), 1)


@triton.jit
def add_product(
    A,
    B,
    OUT,
    M,
    N,
    K,
    a_row,
    a_column,
    b_row,
    out_row,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """``OUT += A @ B`` in float32, for any strides of ``A``."""
    i, j = _tile_of_program(M, N, BLOCK_M, BLOCK_N, GROUP)
    row = i * BLOCK_M + tl.arange(0, BLOCK_M)
    column = j * BLOCK_N + tl.arange(0, BLOCK_N)
    row_at, column_at = tl.minimum(row, M - 1).to(tl.int64), tl.minimum(column, N - 1)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a_at = row_at[:, None] * a_row + k[None, :].to(tl.int64) * a_column
        b_at = k[:, None].to(tl.int64) * b_row + column_at[None, :]
        a = tl.load(A + a_at, mask=(k < K)[None, :], other=0.0)
        b = tl.load(B + b_at, mask=(k < K)[:, None], other=0.0)
        if UPCAST or A.dtype.element_ty != B.dtype.element_ty:
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    at = row[:, None].to(tl.int64) * out_row + column[None, :]
    mask = (row < M)[:, None] & (column < N)[None, :]
    tl.store(OUT + at, tl.load(OUT + at, mask=mask) + total, mask=mask)


@triton.jit
def _is_for_other_launch(X_EXTENT, Y_EXTENT, FORMULA: tl.constexpr, NEAR: tl.constexpr):
    """Of a distance there are two, one for points that all are near each other and one for all others."""
    if FORMULA > SQDIST:
        return False
    return _all_near(X_EXTENT, Y_EXTENT) != NEAR


@triton.jit
def _all_near(X_EXTENT, Y_EXTENT):
    """Whether no two points are farther apart than the series of :func:`_distance` serves."""
    return tl.load(X_EXTENT).to(tl.float32) + tl.load(Y_EXTENT).to(tl.float32) < _NEAR


@triton.jit
def _tile_of_program(M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """Down ``GROUP`` rows of tiles, then along: tiles computed at the same time share their operands."""
    program = tl.program_id(0)
    rows, columns = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    first = program // (GROUP * columns) * GROUP
    height = tl.minimum(rows - first, GROUP)
    inside = program % (GROUP * columns)
    return first + inside % height, inside // height


@triton.jit
def _products(
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
def _split(tile, PIECES: tl.constexpr):
    """Side by side: fewer values are alive at a time."""
    if PIECES == 1:
        pieces = (tile,)
    else:
        left, right = _halves(tile)
        pieces = _split(left, PIECES // 2) + _split(right, PIECES // 2)
    return pieces


@triton.jit
def _halves(tile):
    rows: tl.constexpr = tile.shape[0]
    width: tl.constexpr = tile.shape[1] // 2
    return tl.reshape(tile, [rows, 2, width]).permute(0, 2, 1).split()


@triton.jit
def _minus(x):
    """Part of the instruction that uses it. ``-x`` is ``0 - x``, an instruction and a register of its own."""
    return x * -1.0


@triton.jit
def _target(TARGETS, offset, row, row_at):
    """The column of each row's positive: without ``TARGETS``, that of its number in the whole problem."""
    target = row + offset if TARGETS is None else tl.load(TARGETS + row_at) + offset
    return target[:, None]


@triton.jit
def place(index):
    """Of a point in a table, of its first line."""
    return index + index // CHUNK * ((LINES - 1) * CHUNK)


@triton.jit
def _first_place(index):
    """Of a point that begins a chunk."""
    return index // CHUNK * (LINES * CHUNK)


@triton.jit
def _places(SIZE: tl.constexpr):
    """Of so many points from the first of a chunk, or from one in a chunk that has them all."""
    index = tl.arange(0, SIZE)
    return index if SIZE <= CHUNK else place(index)


@triton.jit
def _row_scalars(at, INLINE_PTX: tl.constexpr):
    """Of the points ``at`` their places in a table. Those that are not used are not loaded."""
    return Points(
        _row_scalar(at, HEIGHT, INLINE_PTX),
        _row_scalar(at, ROOT, INLINE_PTX),
        _row_scalar(at, LEVER, INLINE_PTX),
        _row_scalar(at, STEEPEST, INLINE_PTX),
        _row_scalar(at, NORM, INLINE_PTX),
        _row_scalar(at, GROWTH, INLINE_PTX),
        _row_scalar(at, SHRINK, INLINE_PTX),
        _row_scalar(at, TILT, INLINE_PTX),
    )


@triton.jit
def _column_scalars(at):
    return Points(
        _column_scalar(at, HEIGHT),
        _column_scalar(at, ROOT),
        _column_scalar(at, LEVER),
        _column_scalar(at, STEEPEST),
        _column_scalar(at, NORM),
        _column_scalar(at, GROWTH),
        _column_scalar(at, SHRINK),
        _column_scalar(at, TILT),
    )


@triton.jit
def _row_scalar(at, LINE: tl.constexpr, INLINE_PTX: tl.constexpr):
    """Without an exchange between threads: this instruction takes the layout of what needs its result."""
    at += LINE * CHUNK
    if INLINE_PTX:
        value = tl.inline_asm_elementwise(
            "ld.global.nc.f32 $0, [$1];", "=f,l", [at.to(tl.int64)], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        value = tl.load(at)
    return value[:, None]


@triton.jit
def _column_scalar(at, LINE: tl.constexpr):
    return tl.load(at + LINE * CHUNK)[None, :]


@triton.jit
def _gap(product, x, y, c, near, FORMULA: tl.constexpr, CENTRED: tl.constexpr, INLINE_PTX: tl.constexpr):
    """Distances in bits, ``d / ln 2``; angles in radians."""
    if FORMULA == ANGLE_AT_X:
        return _angle(product, x, y, c, CENTRED)
    if FORMULA == ANGLE_AT_Y:
        return _angle(product, y, x, c, CENTRED)
    z = _separation(product, x, y, c, CENTRED)
    if FORMULA == INNER:
        return 1.0 + z
    distance = _distance(z, near, INLINE_PTX)
    return distance * distance if FORMULA == SQDIST else distance


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
        return _angle_gradient(product, push, x, y, c, CENTRED, RESOLUTION)
    if FORMULA == ANGLE_AT_Y:
        g = _angle_gradient(product, push, y, x, c, CENTRED, RESOLUTION)
        return Gradient(g.weight, g.radial, g.curv, g.y, g.x)
    radial = tl.fma(x.height, y.root, _minus(y.lever))  # (A - B) / sqrt(B)
    if FORMULA == INNER:
        return Gradient(push, radial, push, push, push)
    z = _separation(product, x, y, c, CENTRED)
    slope = tl.rsqrt(_sinh_squared(z))
    # Where all points are near each other every ``A`` is all but 1, and there are no registers to tell.
    steepest = x.steepest if NEAR else x.steepest * y.root * y.root
    per_sinh = tl.minimum(slope, steepest, propagate_nan=tl.PropagateNan.ALL)
    distance = gap
    if FORMULA == SQDIST:
        distance = tl.sqrt(gap)
        push *= distance * (2.0 * _LN2)
    # With half the distance ``u`` and ``tanh(u) = z / sinh(2 u)``, ``u - tanh(u)``.
    tanh = z * slope
    deficit = tanh * _near_excess(z) if NEAR else tl.fma(distance, 0.5 * _LN2, _minus(tanh))
    weight = push * per_sinh
    return Gradient(weight, radial, push * deficit, weight, weight)


@triton.jit
def _own_terms(gradient, weight, product, x, y, c, FORMULA: tl.constexpr, CENTRED: tl.constexpr):
    """The weights of the points themselves, where ``weight`` is the matrix as it was rounded."""
    if FORMULA < ANGLE_AT_X:
        return weight * (1.0 + y.height), weight * (1.0 + x.height)
    kept = tl.where(gradient.weight == 0.0, 1.0, weight / gradient.weight)
    lateral, extent = _lateral(product, x, y, c, CENTRED)
    at_apex = weight * (extent - lateral)
    if FORMULA == ANGLE_AT_X:
        return tl.fma(gradient.x, kept, at_apex), gradient.y * kept
    return gradient.x * kept, tl.fma(gradient.y, kept, at_apex)


@triton.jit
def _separation(product, x, y, c, CENTRED: tl.constexpr):
    """``z``, never 0: its slopes are finite."""
    if CENTRED:
        _, _, z, _ = _lateral_radial(product, x, y, c, CENTRED)
    else:
        z = tl.fma(product, _minus(c), tl.fma(x.height, 1.0 + y.height, y.height))
    return tl.maximum(z, _TINY, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _distance(z, near, INLINE_PTX: tl.constexpr):
    """In bits. Where all points are near each other ``1 + z`` would round away what there is of ``z``."""
    if near:
        series = tl.fma(z, tl.fma(z, tl.fma(z, -63 / 90112, 35 / 18432), -5 / 896), 3 / 160)
        series = tl.fma(z, tl.fma(z, series, -1 / 12), 1.0)
        distance = tl.sqrt(z) * series * (_ROOT_2 * _LOG2E)
    else:
        distance = _log2((1.0 + z) + tl.sqrt(_sinh_squared(z)), INLINE_PTX)
    return distance


@triton.jit
def _sinh_squared(z):
    return tl.fma(z, 1.0 + z, z)


@triton.jit
def _near_excess(z):
    """``u / tanh(u) - 1`` for half the distance ``u``."""
    series = tl.fma(z, tl.fma(z, tl.fma(z, -4 / 9009, 4 / 3465), -1 / 315), 1 / 105)
    return z * tl.fma(z, tl.fma(z, series, -1 / 30), 1 / 6)


@triton.jit
def _lateral_radial(product, apex, other, c, CENTRED: tl.constexpr):
    """``P Q - c x.y``, ``2 sinh((b - a) / 2)``, ``z`` and ``P Q``."""
    lateral, extent = _lateral(product, apex, other, c, CENTRED)
    chord = (other.growth - apex.growth) * apex.shrink * other.shrink
    return lateral, chord, tl.fma(0.5 * chord, chord, lateral), extent


@triton.jit
def _lateral(product, apex, other, c, CENTRED: tl.constexpr):
    extent = apex.norm * other.norm
    if CENTRED:
        lateral = tl.fma(apex.norm, other.tilt, tl.fma(apex.tilt, other.norm, -product))
    else:
        lateral = tl.fma(product, -c, extent)
    return tl.maximum(lateral, 0.0, propagate_nan=tl.PropagateNan.ALL), extent


@triton.jit
def _angle(product, apex, other, c, CENTRED: tl.constexpr):
    lateral, chord, z, extent = _lateral_radial(product, apex, other, c, CENTRED)
    sinh_between = chord * tl.sqrt(tl.fma(0.25 * chord, chord, 1.0))
    along = tl.fma(-(1.0 + apex.height), lateral, apex.norm * sinh_between)
    across = tl.sqrt(lateral) * tl.sqrt(_opposite(lateral, extent))
    angle = tl.where(apex.norm == 0.0, _HALF_PI, _atan2(across, along))
    return tl.where(z <= extent * _COINCIDENT, 0.0, angle)


@triton.jit
def _angle_gradient(product, push, apex, other, c, CENTRED: tl.constexpr, RESOLUTION: tl.constexpr):
    """``x`` stands for the apex, without ``weight c x.y``; what is divided by norms is so elsewhere."""
    lateral, chord, z, extent = _lateral_radial(product, apex, other, c, CENTRED)
    sinh_between = chord * tl.sqrt(tl.fma(0.25 * chord, chord, 1.0))
    gram = extent - lateral
    floor = extent * RESOLUTION
    floored = tl.maximum(z, floor, propagate_nan=tl.PropagateNan.ALL)
    per_z = tl.where(floored == 0.0, 0.0, push / floored)
    per_z_plus_2 = 1.0 / (floored + 2.0)
    opposite = _opposite(lateral, extent)
    width = tl.sqrt(tl.maximum(lateral, floor)) * tl.sqrt(tl.maximum(opposite, floor))
    across = tl.sqrt(lateral) * tl.sqrt(opposite)
    apex_A, other_A = 1.0 + apex.height, 1.0 + other.height
    turn = per_z * (tl.fma(other.norm, sinh_between, other_A * lateral) * per_z_plus_2)
    turn_other = per_z * (
        (z * (gram * per_z_plus_2)) + (apex.norm * (other.norm - apex.norm) - lateral) * per_z_plus_2
    )
    return Gradient(
        weight=tl.where(width == 0.0, 0.0, turn / width),
        radial=chord,
        curv=-0.5 * turn * (across / apex_A) / other_A,
        x=per_z * ((1.0 + z) * per_z_plus_2) * across / apex_A,
        y=tl.where(width == 0.0, 0.0, turn_other / width),
    )


@triton.jit
def _opposite(lateral, extent):
    """``P Q + c x.y``"""
    return tl.maximum(2.0 * extent - lateral, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _atan2(y, x):
    """For ``y >= 0``; ``atan2(0, 0)`` is 0."""
    size = tl.abs(x)
    larger = tl.maximum(size, y, propagate_nan=tl.PropagateNan.ALL)
    smaller = tl.minimum(size, y, propagate_nan=tl.PropagateNan.ALL)
    t = tl.where(larger == 0.0, 0.0, smaller / larger)
    w = t * t
    series = tl.fma(w, -0.0018775620265, 0.0112576363608)
    series = tl.fma(w, series, -0.0317505523562)
    series = tl.fma(w, series, 0.0584578439593)
    series = tl.fma(w, series, -0.0842763110991)
    series = tl.fma(w, series, 0.1095836237069)
    series = tl.fma(w, series, -0.1426489204168)
    series = tl.fma(w, series, 0.1999853253364)
    series = tl.fma(w, series, -0.3333329260349)
    angle = tl.fma(t * w, series, t)
    angle = tl.where(y > size, -angle + _HALF_PI, angle)
    return tl.where(x < 0.0, -angle + 2.0 * _HALF_PI, angle)


@triton.jit
def round_to_tf32(x):
    """To nearest: products of tf32 then see the very numbers that the sums see."""
    bits = x.to(tl.int32, bitcast=True)
    nearest = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return tl.where(x == x, nearest, x)  # a GPU's NaN has all bits set: it would wrap around to -0


@triton.jit
def _to_bfloat16(x):
    """And what that is in float32. Two at a time: one by one, they would take the unit of exponentials."""
    return tl.inline_asm_elementwise(
        "cvt.rn.bf16x2.f32 $0, $4, $3; shl.b32 $1, $0, 16; and.b32 $2, $0, 0xffff0000;",
        "=&r,=&r,=&r,f,f",
        [x],
        dtype=(tl.bfloat16, tl.float32),
        is_pure=True,
        pack=2,
    )


@triton.jit
def _exp2(x, INLINE_PTX: tl.constexpr):
    if INLINE_PTX:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.exp2(x)


@triton.jit
def _log2(x, INLINE_PTX: tl.constexpr):
    """One instruction where ``tl.log2`` is a polynomial of two dozen."""
    if INLINE_PTX:
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.log2(x)
