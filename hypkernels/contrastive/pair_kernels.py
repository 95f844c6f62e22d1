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
LINES = 9
HEIGHT, NORM, GROWTH, SHRINK, TILT, TOTAL, WEIGHT, RATE, PER_UNIT = (tl.constexpr(i) for i in range(LINES))

# Stand to the right of a tensor: in the interpreter of Triton 3.8 they swallow one that is to their right.
_LN2 = tl.constexpr(0.6931471805599453)
_LOG2E = tl.constexpr(1.4426950408889634)
_HALF_PI = tl.constexpr(1.5707963267948966)
# Of sums without terms: far below any logit, and still a number that can be subtracted.
_LOWEST = tl.constexpr(-1e38)
# The rounding of a dot product, in units of the norms: closer points coincide.
_COINCIDENT = tl.constexpr(16 * 2.0**-23)
# A sum of float32 terms relative to 1 lost less than its last bit, if it is at least this for each of them.
_LEAST_OF_A_TERM = tl.constexpr(2.0 ** (24 - 126))
# Up to this distance, with curvature -1, the series in ``z / (z + 2)`` serve: the last term is a rounding.
_NEAR = tl.constexpr(0.5)
# Between points that all are the origin.
_TINY = tl.constexpr(1e-37)


class Points(NamedTuple):
    """Scalars of the rows ``(n, 1)`` or of the columns ``(1, n)`` of a tile."""

    height: tl.tensor
    norm: tl.tensor
    growth: tl.tensor
    shrink: tl.tensor
    tilt: tl.tensor


class Gradient(NamedTuple):
    """By each pair's ``-c x.y`` and by ``log c``. Of angles also the terms of the points themselves."""

    weight: tl.tensor
    curv: tl.tensor
    x: tl.tensor
    y: tl.tensor


@triton.jit
def log_sums(
    X,
    Y,
    ROWS,
    COLUMNS,
    TARGETS,
    C,
    X_SQUARE,
    Y_SQUARE,
    ROW_MAX,
    ROW_SUM,
    COLUMN_MAX,
    COLUMN_SUM,
    UNSAFE,
    M,
    N,
    x_stride,
    y_stride,
    row_plane,
    column_plane,
    D: tl.constexpr,
    FORMULA: tl.constexpr,
    CENTRED: tl.constexpr,
    BY_ROW: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    SHARED: tl.constexpr,
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
    """
    if not SHARED:  # noqa: SIM102 -- the compiler decides this one, the device the next
        if tl.load(UNSAFE) == 0:
            return
    i, j = _tile_of_program(M, N, BLOCK_M, BLOCK_N, GROUP)
    row = i * BLOCK_M + tl.arange(0, BLOCK_M)
    row_at = tl.minimum(row, M - 1)
    column_at = tl.minimum(j * BLOCK_N + tl.arange(0, BLOCK_N), N - 1)
    products = _products(X, Y, row_at, column_at, x_stride, y_stride, D, BLOCK_K, PRECISION, UPCAST)
    pieces = _split(products, PIECES)

    c, near = tl.load(C), _all_near(X_SQUARE, Y_SQUARE, C)
    x = _row_scalars(ROWS, row_at, row_plane, FORMULA, CENTRED)
    rate = tl.load(ROWS + RATE * row_plane + row_at)[:, None]
    target = tl.load(TARGETS + row_at)[:, None]
    WIDTH: tl.constexpr = BLOCK_N // PIECES
    logits = ()
    row_max = tl.full([BLOCK_M], _LOWEST, tl.float32)
    for piece in tl.static_range(PIECES):
        column = j * BLOCK_N + piece * WIDTH + tl.arange(0, WIDTH)
        y = _column_scalars(COLUMNS, tl.minimum(column, N - 1), column_plane, FORMULA, CENTRED)
        gap = _gap(pieces[piece], x, y, c, near, FORMULA, CENTRED, INLINE_PTX)
        logits += (_logits(gap, rate, column, target, N),)
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


@triton.jit
def pair_weights(
    X,
    Y,
    ROWS,
    COLUMNS,
    TARGETS,
    C,
    X_SQUARE,
    Y_SQUARE,
    WEIGHTS,
    X_SUM,
    Y_SUM,
    GAP_SUM,
    CURV_SUM,
    M,
    N,
    x_stride,
    y_stride,
    row_plane,
    column_plane,
    weights_stride,
    D: tl.constexpr,
    FORMULA: tl.constexpr,
    CENTRED: tl.constexpr,
    BY_ROW: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    RESOLUTION: tl.constexpr,
    ROUND_TF32: tl.constexpr,
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

    The sums that are to cancel against products with the matrix are those of the rounded matrix.
    """
    i, j = _tile_of_program(M, N, BLOCK_M, BLOCK_N, GROUP)
    row = i * BLOCK_M + tl.arange(0, BLOCK_M)
    row_at = tl.minimum(row, M - 1)
    column_at = tl.minimum(j * BLOCK_N + tl.arange(0, BLOCK_N), N - 1)
    products = _products(X, Y, row_at, column_at, x_stride, y_stride, D, BLOCK_K, PRECISION, UPCAST)
    pieces = _split(products, PIECES)

    c, near = tl.load(C), _all_near(X_SQUARE, Y_SQUARE, C)
    x = _row_scalars(ROWS, row_at, row_plane, FORMULA, CENTRED)
    rate = tl.load(ROWS + RATE * row_plane + row_at)[:, None]
    target = tl.load(TARGETS + row_at)[:, None]
    per_unit = tl.load(ROWS + PER_UNIT * row_plane + row_at, mask=row < M, other=0.0)[:, None]
    if BY_ROW:
        row_total = tl.load(ROWS + TOTAL * row_plane + row_at)[:, None]
        row_weight = tl.load(ROWS + WEIGHT * row_plane + row_at)[:, None]
    WIDTH: tl.constexpr = BLOCK_N // PIECES
    own_sum = tl.zeros([BLOCK_M], tl.float32)
    gap_sum, curv_sum = own_sum, own_sum
    for piece in tl.static_range(PIECES):
        column = j * BLOCK_N + piece * WIDTH + tl.arange(0, WIDTH)
        column_at = tl.minimum(column, N - 1)
        y = _column_scalars(COLUMNS, column_at, column_plane, FORMULA, CENTRED)
        gap = _gap(pieces[piece], x, y, c, near, FORMULA, CENTRED, INLINE_PTX)
        logits = _logits(gap, rate, column, target, N)
        push = tl.zeros([BLOCK_M, WIDTH], tl.float32)
        if BY_ROW:
            push = row_weight * _exp2(logits - row_total, INLINE_PTX)
        if BY_COLUMN:
            column_total = tl.load(COLUMNS + TOTAL * column_plane + column_at)[None, :]
            column_weight = tl.load(COLUMNS + WEIGHT * column_plane + column_at)[None, :]
            push = tl.fma(_exp2(logits - column_total, INLINE_PTX), column_weight, push)
        gap_sum += tl.sum(push * gap, 1)

        pull = push * per_unit
        gradient = _gradient(pieces[piece], gap, pull, x, y, c, near, FORMULA, CENTRED, RESOLUTION)
        curv_sum += tl.sum(gradient.curv, 1)
        if ROUND_TF32:
            weight = round_to_tf32(gradient.weight)
        elif INLINE_PTX and WEIGHTS.dtype.element_ty == tl.bfloat16:
            weight = _to_bfloat16(gradient.weight)
        else:
            weight = rounded(gradient.weight, WEIGHTS.dtype.element_ty)
        tl.store(WEIGHTS + row[:, None].to(tl.int64) * weights_stride + column[None, :], weight)
        by_x, by_y = _own_terms(gradient, weight.to(tl.float32), pieces[piece], x, y, c, FORMULA, CENTRED)
        own_sum += tl.sum(by_x, 1)
        tl.store(Y_SUM + i.to(tl.int64) * N + column, tl.sum(by_y, 0), mask=column < N)
    at = j.to(tl.int64) * M + row
    tl.store(X_SUM + at, own_sum, mask=row < M)
    tl.store(GAP_SUM + at, gap_sum, mask=row < M)
    tl.store(CURV_SUM + at, curv_sum, mask=row < M)


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
def _all_near(X_SQUARE, Y_SQUARE, C):
    """Whether no two points are farther apart than the series of :func:`_distance` serves."""
    farthest = tl.sqrt(tl.load(X_SQUARE).to(tl.float32)) + tl.sqrt(tl.load(Y_SQUARE).to(tl.float32))
    return tl.sqrt(tl.load(C)) * farthest < _NEAR


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
    elif PIECES == 2:
        pieces = _halves(tile)
    else:
        left, right = _halves(tile)
        a, b = _halves(left)
        c, d = _halves(right)
        pieces = (a, b, c, d)
    return pieces


@triton.jit
def _halves(tile):
    rows: tl.constexpr = tile.shape[0]
    width: tl.constexpr = tile.shape[1] // 2
    return tl.reshape(tile, [rows, 2, width]).permute(0, 2, 1).split()


@triton.jit
def _row_scalars(TABLE, at, plane, FORMULA: tl.constexpr, CENTRED: tl.constexpr):
    p = _scalars(TABLE, at, plane, FORMULA, CENTRED)
    return Points(p.height[:, None], p.norm[:, None], p.growth[:, None], p.shrink[:, None], p.tilt[:, None])


@triton.jit
def _column_scalars(TABLE, at, plane, FORMULA: tl.constexpr, CENTRED: tl.constexpr):
    p = _scalars(TABLE, at, plane, FORMULA, CENTRED)
    return Points(p.height[None, :], p.norm[None, :], p.growth[None, :], p.shrink[None, :], p.tilt[None, :])


@triton.jit
def _scalars(TABLE, at, plane, FORMULA: tl.constexpr, CENTRED: tl.constexpr):
    """Those that are not used are not loaded."""
    height = tl.load(TABLE + HEIGHT * plane + at)
    norm, growth, shrink, tilt = height, height, height, height
    if CENTRED or FORMULA >= ANGLE_AT_X:
        norm = tl.load(TABLE + NORM * plane + at)
        growth = tl.load(TABLE + GROWTH * plane + at)
        shrink = tl.load(TABLE + SHRINK * plane + at)
    if CENTRED:
        tilt = tl.load(TABLE + TILT * plane + at)
    return Points(height, norm, growth, shrink, tilt)


@triton.jit
def _logits(gap, rate, column, target, N):
    padding = tl.where(column < N, 0.0, float("-inf"))[None, :]
    logits = tl.fma(gap, -rate, padding)
    return tl.where(column[None, :] == target, float("-inf"), logits)


@triton.jit
def _gap(product, x, y, c, near, FORMULA: tl.constexpr, CENTRED: tl.constexpr, INLINE_PTX: tl.constexpr):
    """Distances in bits, ``d / ln 2``; angles in radians."""
    if FORMULA == ANGLE_AT_X:
        return _angle(product, x, y, c, CENTRED)
    if FORMULA == ANGLE_AT_Y:
        return _angle(product, y, x, c, CENTRED)
    z, _ = _separation(product, x, y, c, CENTRED)
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
    near,
    FORMULA: tl.constexpr,
    CENTRED: tl.constexpr,
    RESOLUTION: tl.constexpr,
):
    if FORMULA == ANGLE_AT_X:
        return _angle_gradient(product, push, x, y, c, CENTRED, RESOLUTION)
    if FORMULA == ANGLE_AT_Y:
        g = _angle_gradient(product, push, y, x, c, CENTRED, RESOLUTION)
        return Gradient(g.weight, g.curv, g.y, g.x)
    apart = x.height - y.height
    radial = (apart * (0.5 / (1.0 + x.height))) * (apart * (1.0 / (1.0 + y.height)))
    if FORMULA == INNER:
        return Gradient(push, tl.fma(push, radial, push), push, push)
    z, extent = _separation(product, x, y, c, CENTRED)
    floored = tl.maximum(z, tl.fma(extent, RESOLUTION, _TINY), propagate_nan=tl.PropagateNan.ALL)
    per_sinh = tl.rsqrt(floored * (floored + 2.0))
    distance = gap
    if FORMULA == SQDIST:
        distance = tl.sqrt(gap)
        push *= distance * (2.0 * _LN2)
    if near:
        deficit = _near_deficit(z)
    else:
        deficit = tl.fma(-floored, per_sinh, distance * (0.5 * _LN2))
        deficit = tl.maximum(deficit, 0.0, propagate_nan=tl.PropagateNan.ALL)
    weight = push * per_sinh
    return Gradient(weight, tl.fma(weight, radial, push * deficit), weight, weight)


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
    """``z``, and what its rounding is relative to: ``A B - 1`` or, centred, ``P Q``."""
    if CENTRED:
        _, _, z, extent = _lateral_radial(product, x, y, c, CENTRED)
        return z, extent
    extent = tl.fma(x.height, 1.0 + y.height, y.height)
    return tl.maximum(tl.fma(product, -c, extent), 0.0, propagate_nan=tl.PropagateNan.ALL), extent


@triton.jit
def _distance(z, near, INLINE_PTX: tl.constexpr):
    """In bits. Where all points are near each other ``1 + z`` would round away what there is of ``z``."""
    if near:
        w = z / (z + 2.0)
        distance = tl.sqrt(w) * (2.0 * _LOG2E) * tl.fma(w, _atanh_tail(w), 1.0)
    else:
        distance = _log2(1.0 + (z + tl.sqrt(z * (z + 2.0))), INLINE_PTX)
    return distance


@triton.jit
def _near_deficit(z):
    """``u - tanh(u)`` for half the distance ``u``, ``tanh(u)^2 = z / (z + 2)``."""
    w = z / (z + 2.0)
    return tl.sqrt(w) * w * _atanh_tail(w)


@triton.jit
def _atanh_tail(w):
    """``(atanh(t) / t - 1) / w`` for ``w = t^2 < 0.06``."""
    tail = tl.fma(w, 1.0 / 13, 1.0 / 11)
    tail = tl.fma(w, tail, 1.0 / 9)
    tail = tl.fma(w, tail, 1.0 / 7)
    tail = tl.fma(w, tail, 1.0 / 5)
    return tl.fma(w, tail, 1.0 / 3)


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
    """Two at a time: one by one, they would pass through the unit of the exponentials."""
    return tl.inline_asm_elementwise(
        "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [x], dtype=tl.bfloat16, is_pure=True, pack=2
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
