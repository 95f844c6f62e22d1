# mypy: allow-untyped-defs, allow-incomplete-defs
"""Device code of the pairwise functions: one program computes one tile of pairs of one matrix of a batch.

The value of a pair is computed from a product of float32 or narrower points, by the functions of
:mod:`hypkernels.tritonlib.pair_gaps`. In *near* pairs the product cancels. They and their tiles are only
marked here; :mod:`hypkernels.pairwise.near_kernels` computes them from differences.

Shapes: a tile has ``(BLOCK_M, BLOCK_N)`` pairs, one of its pieces ``(BLOCK_M, BLOCK_N / PIECES)``.
Scalars of rows are ``(BLOCK_M, 1)``, those of columns ``(1, BLOCK_N / PIECES)``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hypkernels.tritonlib.pair_gaps import (
    ANGLE_AT_X,
    DIST,
    INNER,
    LN2,
    Gradient,
    angle_gradient,
    angle_of_pairs,
    distance_in_bits,
    lateral_radial,
    near_excess,
    own_terms,
    separation,
    sinh_squared,
)
from hypkernels.tritonlib.pair_tiles import (
    GROWTH,
    HEIGHT,
    LEVER,
    NORM,
    ROOT,
    SHRINK,
    column_scalars,
    first_place,
    lane_sums,
    matrix_of_program,
    minus,
    place,
    places,
    products_of_tile,
    round_to_tf32,
    row_scalars,
    split,
    store_line,
    tile_of_program,
    to_bfloat16,
)
from hypkernels.tritonlib.rows import dot, input_rows, rounded, row_kernel, row_tile, scalar_of_rows

# A pair is near if ``z``, or the terms of an angle, are less than this share of ``P Q``.
NEAR_SHARE = tl.constexpr(2.0**-6)
# A pair with a smaller ``z`` is near: it lies so near the origin that squares leave float32.
_LEAST = tl.constexpr(1e-20)
# Up to this ``z`` series serve for distances.
_SERIES_REACH = tl.constexpr(0.125)


@row_kernel
def scalars_of_points(
    X,
    x_outer,
    x_inner,
    SQUARE,
    TABLE,
    size,
    table_matrix,
    CURV,
    curv_outer,
    curv_inner,
    outer_size,
    inner_size,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``|x|^2``, float64, and the lines of a table for each matrix of ``size`` points."""
    tile = row_tile(outer_size, inner_size, ROWS)
    x = input_rows(X, x_outer, x_inner, tile)
    c = scalar_of_rows(CURV, curv_outer, curv_inner, tile)
    square = dot(x, x, tile, D, BLOCK_D)
    tl.store(SQUARE + tile.number, square, mask=tile.live)
    P2 = c * square
    P, A = tl.sqrt(P2), tl.sqrt(1.0 + P2)
    height = P2 / (1.0 + A)
    at = TABLE + tile.number // size * table_matrix + place(tile.number % size)
    store_line(at, HEIGHT, height, tile.live)
    store_line(at, ROOT, 1.0 / tl.sqrt(A), tile.live)
    store_line(at, LEVER, height / tl.sqrt(A), tile.live)
    store_line(at, NORM, P, tile.live)
    store_line(at, GROWTH, height + P, tile.live)
    store_line(at, SHRINK, 1.0 / tl.sqrt(A + P), tile.live)


@triton.jit
def pair_values(
    X,
    Y,
    ROWS,
    COLUMNS,
    C,
    EXACT,
    OUT,
    NEAR,
    M,
    N,
    x_matrix,
    x_row,
    y_matrix,
    y_row,
    rows_matrix,
    columns_matrix,
    c_matrix,
    D: tl.constexpr,
    FORMULA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PIECES: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    INLINE_PTX: tl.constexpr,
):
    """The value of each pair, NaN for near pairs; and for each tile whether it has near pairs.

    ``EXACT``: whether all pairs of the matrix count as near.
    """
    matrix, program = matrix_of_program(M, N, BLOCK_M, BLOCK_N)
    i, j = tile_of_program(program, M, N, BLOCK_M, BLOCK_N, GROUP)
    row = i * BLOCK_M + tl.arange(0, BLOCK_M)
    wide = tl.load(C + matrix * c_matrix)
    c, unit = wide.to(tl.float32), _unit(wide, FORMULA).to(tl.float32)
    exact = tl.load(EXACT + matrix) != 0
    x = row_scalars(ROWS + matrix * rows_matrix + first_place(i * BLOCK_M) + places(BLOCK_M), INLINE_PTX)

    products = products_of_tile(
        X + matrix * x_matrix,
        Y + matrix * y_matrix,
        tl.minimum(row, M - 1),
        tl.minimum(j * BLOCK_N + tl.arange(0, BLOCK_N), N - 1),
        x_row,
        y_row,
        D,
        BLOCK_K,
        PRECISION,
        UPCAST,
    )
    pieces = split(products, PIECES)

    WIDTH: tl.constexpr = BLOCK_N // PIECES
    of_columns = COLUMNS + matrix * columns_matrix + first_place(j * BLOCK_N)
    out = OUT + (matrix * M + row.to(tl.int64))[:, None] * N
    found = tl.zeros([BLOCK_M], tl.int32)
    for piece in tl.static_range(PIECES):
        column = j * BLOCK_N + piece * WIDTH + tl.arange(0, WIDTH)
        y = column_scalars(of_columns + place(piece * WIDTH) + places(WIDTH))
        inside = (row < M)[:, None] & (column < N)[None, :]
        near = _near(pieces[piece], x, y, c, FORMULA) | exact
        value = tl.where(near, float("nan"), _value(pieces[piece], x, y, c, FORMULA, INLINE_PTX) * unit)
        tl.store(out + column[None, :], value, mask=inside)
        # From the stored values: ``near`` would be computed again in another layout, or kept in
        # registers.
        found = tl.maximum(found, tl.max(((value != value) & inside).to(tl.int32), 1))
    _store_found(NEAR, found, i, j, matrix, M, N, BLOCK_M, BLOCK_N)


@triton.jit
def pair_weights(
    X,
    Y,
    ROWS,
    COLUMNS,
    C,
    EXACT,
    GRAD,
    WEIGHTS,
    X_SUM,
    Y_SUM,
    CURV_SUM,
    NEAR,
    M,
    N,
    x_matrix,
    x_row,
    y_matrix,
    y_row,
    rows_matrix,
    columns_matrix,
    c_matrix,
    grad_matrix,
    grad_row,
    grad_column,
    weights_matrix,
    weights_row,
    D: tl.constexpr,
    FORMULA: tl.constexpr,
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
    """The gradient by ``x.y`` of each pair, a matrix, and sums over its rows and columns.

    Near pairs have the weight 0, by which :mod:`~hypkernels.pairwise.near_kernels` finds them. Own terms
    nearly cancel against products with the matrix: they are summed from the rounded matrix.
    """
    matrix, program = matrix_of_program(M, N, BLOCK_M, BLOCK_N)
    i, j = tile_of_program(program, M, N, BLOCK_M, BLOCK_N, GROUP)
    row = i * BLOCK_M + tl.arange(0, BLOCK_M)
    wide = tl.load(C + matrix * c_matrix)
    c, unit = wide.to(tl.float32), minus(_unit(wide, FORMULA) * wide).to(tl.float32)
    exact = tl.load(EXACT + matrix) != 0
    x = row_scalars(ROWS + matrix * rows_matrix + first_place(i * BLOCK_M) + places(BLOCK_M), INLINE_PTX)

    products = products_of_tile(
        X + matrix * x_matrix,
        Y + matrix * y_matrix,
        tl.minimum(row, M - 1),
        tl.minimum(j * BLOCK_N + tl.arange(0, BLOCK_N), N - 1),
        x_row,
        y_row,
        D,
        BLOCK_K,
        PRECISION,
        UPCAST,
    )
    pieces = split(products, PIECES)

    WIDTH: tl.constexpr = BLOCK_N // PIECES
    of_columns = COLUMNS + matrix * columns_matrix + first_place(j * BLOCK_N)
    weights = WEIGHTS + matrix * weights_matrix + row.to(tl.int64)[:, None] * weights_row
    grads = GRAD + matrix * grad_matrix + row.to(tl.int64)[:, None] * grad_row
    own_sum = tl.zeros([BLOCK_M, 1], tl.float32)
    curv_sum, radial_sum = own_sum, own_sum
    found = tl.zeros([BLOCK_M], tl.int32)
    for piece in tl.static_range(PIECES):
        column = j * BLOCK_N + piece * WIDTH + tl.arange(0, WIDTH)
        y = column_scalars(of_columns + place(piece * WIDTH) + places(WIDTH))
        inside = (row < M)[:, None] & (column < N)[None, :]
        grad = tl.load(grads + column.to(tl.int64)[None, :] * grad_column, mask=inside, other=0.0)
        gradient = _gradient(pieces[piece], grad * unit, x, y, c, FORMULA, RESOLUTION, INLINE_PTX)
        # Near pairs are found by their weight of 0: a weight that rounds to 0 makes a pair near.
        near = _near(pieces[piece], x, y, c, FORMULA) | exact | ((gradient.weight == 0.0) & (grad != 0.0))
        used = inside & (near == 0)
        curv_sum += lane_sums(tl.where(used, gradient.curv, 0.0), 1)
        exact_weight = tl.where(used, gradient.weight, 0.0)
        if FORMULA != ANGLE_AT_X:
            radial_sum += lane_sums(exact_weight * gradient.radial * gradient.radial, 1)
        if INLINE_PTX and WEIGHTS.dtype.element_ty == tl.bfloat16:
            weight, kept = to_bfloat16(exact_weight)
        else:
            weight = round_to_tf32(exact_weight) if ROUND_TF32 else exact_weight
            weight = rounded(weight, WEIGHTS.dtype.element_ty)
            kept = weight.to(tl.float32)
        tl.store(weights + column[None, :], weight)
        by_x, by_y = own_terms(gradient, kept, pieces[piece], x, y, c, FORMULA, False)
        own_sum += lane_sums(tl.where(used, by_x, 0.0), 1)
        by_y = tl.sum(tl.where(used, by_y, 0.0), 0)
        tiles = tl.cdiv(M, BLOCK_M)
        tl.store(Y_SUM + (matrix * tiles + i) * N + column, by_y, mask=column < N)
        found = tl.maximum(found, tl.max((near & inside).to(tl.int32), 1))
    at = (matrix * tl.cdiv(N, BLOCK_N) + j) * M + row
    curv_sum += radial_sum * (0.5 / (1.0 + x.height))
    tl.store(X_SUM + at, tl.sum(own_sum, 1), mask=row < M)
    tl.store(CURV_SUM + at, tl.sum(curv_sum, 1), mask=row < M)
    _store_found(NEAR, found, i, j, matrix, M, N, BLOCK_M, BLOCK_N)


@triton.jit
def _store_found(NEAR, found, i, j, matrix, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Flags reduced as one row: Triton 3.6 reduces no vector for sm_100, and computes a column twice."""
    rows, columns = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    at = NEAR + (matrix * rows + i) * columns + j + tl.arange(0, 1)
    tl.store(at, tl.max(found[None, :], 1))


@triton.jit
def _unit(c, FORMULA: tl.constexpr):
    """The unit of values, with their sign; ``c`` is float64."""
    if FORMULA == DIST:
        return 1.0 / tl.sqrt(c)
    elif FORMULA == INNER:
        return -1.0 / c
    else:
        return c * 0.0 + 1.0


@triton.jit
def _near(product, x, y, c, FORMULA: tl.constexpr):
    """Whether the product cancels; also where anything is NaN."""
    least = x.norm * y.norm * NEAR_SHARE
    if FORMULA == ANGLE_AT_X:
        lateral, _, z, extent = lateral_radial(product, x, y, c, False)
        serves = (lateral >= least) & (2.0 * extent - lateral >= least) & (z >= _LEAST)
    else:
        z = separation(product, x, y, c, False)
        serves = (z >= least) & (z >= _LEAST)
    return serves == 0


@triton.jit
def _value(product, x, y, c, FORMULA: tl.constexpr, INLINE_PTX: tl.constexpr):
    if FORMULA == ANGLE_AT_X:
        return angle_of_pairs(product, x, y, c, False)
    z = separation(product, x, y, c, False)
    if FORMULA == INNER:
        return 1.0 + z
    return _distance(z, INLINE_PTX)


@triton.jit
def _distance(z, INLINE_PTX: tl.constexpr):
    near, far = distance_in_bits(z, True, INLINE_PTX), distance_in_bits(z, False, INLINE_PTX)
    return tl.where(z < _SERIES_REACH, near, far) * LN2


@triton.jit
def _gradient(
    product, by_value, x, y, c, FORMULA: tl.constexpr, RESOLUTION: tl.constexpr, INLINE_PTX: tl.constexpr
):
    """``by_value`` is minus the gradient by the value of curvature -1, in this one's unit, times ``c``."""
    if FORMULA == ANGLE_AT_X:
        return angle_gradient(product, by_value, x, y, c, False, RESOLUTION)
    radial = tl.fma(x.height, y.root, minus(y.lever))  # (A - B) / sqrt(B)
    if FORMULA == INNER:
        return Gradient(by_value, radial, by_value, by_value, by_value)
    z = separation(product, x, y, c, False)
    slope = tl.rsqrt(sinh_squared(z))
    tanh = z * slope  # of half the distance
    far = distance_in_bits(z, False, INLINE_PTX) * (0.5 * LN2) - tanh
    deficit = tl.where(z < _SERIES_REACH, tanh * near_excess(z), far)
    weight = by_value * slope
    return Gradient(weight, radial, by_value * deficit, weight, weight)
