# mypy: allow-untyped-defs, allow-incomplete-defs
"""Device code of the searches: bounds of the ``z`` of all pairs, kept for bundles of adjacent items.

With ``T = h_x (1 + h_y) + h_y`` the float32 product of two points gives

    z = T - c x.y,   |error| <= PRODUCT_SLACK P Q + SUM_SLACK T + SMALLEST

so that ``z = cosh(k d) - 1`` lies between ``z - error`` and ``z + error``. A pair with a NaN in ``h``,
for which the product proves nothing, has infinite bounds. A bundle is ``BUNDLE`` adjacent items: a
program computes a tile of pairs and writes two numbers a bundle, ``(queries, bundles)``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hypkernels.tritonlib.pair_tiles import products_of_tile, split, tile_of_program

# Scalars of each point, in lines: its reach ``P``, ``h``, and for apexes of cones ``P cos(aperture)``.
REACH, HEIGHT, TURN = (tl.constexpr(i) for i in range(3))
NO_CONE, CONE_OF_QUERY, CONE_OF_ITEM = (tl.constexpr(i) for i in range(3))
# Sixteen roundings of the formulas, and the loss in products of subnormal components.
SUM_SLACK = tl.constexpr(16 * 2.0**-24)
SMALLEST = tl.constexpr(1e-30)
_INFINITY = tl.constexpr(float("inf"))


@triton.jit
def bounds_of_bundles(
    X,
    Y,
    OF_X,
    OF_Y,
    ALLOWED,
    GROUPS,
    QUERY_GROUPS,
    LEAST,
    MOST,
    M,
    N,
    x_row,
    y_row,
    of_x_line,
    of_y_line,
    query_groups_row,
    c,
    product_slack,
    D: tl.constexpr,
    CONE: tl.constexpr,
    BUNDLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PIECES: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """The least lower and the least upper bound of each bundle; infinity if no item may be found."""
    i, j = tile_of_program(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP)
    row, pieces = _products(
        X, Y, i, j, M, N, x_row, y_row, D, BLOCK_M, BLOCK_N, BLOCK_K, PIECES, PRECISION, UPCAST
    )
    WIDTH: tl.constexpr = BLOCK_N // PIECES
    for piece in tl.static_range(PIECES):
        column = j * BLOCK_N + piece * WIDTH + tl.arange(0, WIDTH)
        least, most, open = _bounds(
            pieces[piece],
            row,
            column,
            OF_X,
            OF_Y,
            ALLOWED,
            GROUPS,
            QUERY_GROUPS,
            M,
            N,
            of_x_line,
            of_y_line,
            query_groups_row,
            c,
            product_slack,
            CONE,
        )
        at, inside = _place_of_bundles(row, j * BLOCK_N + piece * WIDTH, M, N, WIDTH, BUNDLE)
        tl.store(LEAST + at, _smallest(tl.where(open, least, _INFINITY), BUNDLE), mask=inside)
        tl.store(MOST + at, _smallest(tl.where(open, most, _INFINITY), BUNDLE), mask=inside)


@triton.jit
def counts_of_bundles(
    X,
    Y,
    OF_X,
    OF_Y,
    ALLOWED,
    GROUPS,
    QUERY_GROUPS,
    BELOW,
    ABOVE,
    COUNTS,
    M,
    N,
    x_row,
    y_row,
    of_x_line,
    of_y_line,
    query_groups_row,
    c,
    product_slack,
    D: tl.constexpr,
    CONE: tl.constexpr,
    BUNDLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PIECES: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """How many items of a bundle are nearer than each query's limit; -1 if the bounds leave any item
    open.

    ``BELOW`` and ``ABOVE`` are float32 numbers on both sides of the limit. Bounds never prove that a
    point is in a cone.
    """
    i, j = tile_of_program(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP)
    row, pieces = _products(
        X, Y, i, j, M, N, x_row, y_row, D, BLOCK_M, BLOCK_N, BLOCK_K, PIECES, PRECISION, UPCAST
    )
    below = tl.load(BELOW + row, mask=row < M, other=0.0)[:, None]
    above = tl.load(ABOVE + row, mask=row < M, other=0.0)[:, None]
    WIDTH: tl.constexpr = BLOCK_N // PIECES
    for piece in tl.static_range(PIECES):
        column = j * BLOCK_N + piece * WIDTH + tl.arange(0, WIDTH)
        least, most, open = _bounds(
            pieces[piece],
            row,
            column,
            OF_X,
            OF_Y,
            ALLOWED,
            GROUPS,
            QUERY_GROUPS,
            M,
            N,
            of_x_line,
            of_y_line,
            query_groups_row,
            c,
            product_slack,
            CONE,
        )
        nearer = open & (most < below) & (CONE == NO_CONE)
        open = open & (least <= above) & ~nearer
        # One sum has both: an open item subtracts more than all items of a bundle add.
        sums = _total(tl.where(open, -2 * BUNDLE, nearer.to(tl.int32)), BUNDLE)
        at, inside = _place_of_bundles(row, j * BLOCK_N + piece * WIDTH, M, N, WIDTH, BUNDLE)
        tl.store(COUNTS + at, tl.maximum(sums, -1).to(tl.int8), mask=inside)


@triton.jit
def _products(
    X,
    Y,
    i,
    j,
    M,
    N,
    x_row,
    y_row,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PIECES: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    row = i * BLOCK_M + tl.arange(0, BLOCK_M)
    column = j * BLOCK_N + tl.arange(0, BLOCK_N)
    products = products_of_tile(
        X, Y, tl.minimum(row, M - 1), tl.minimum(column, N - 1), x_row, y_row, D, BLOCK_K, PRECISION, UPCAST
    )
    return row, split(products, PIECES)


@triton.jit
def _bounds(
    product,
    row,
    column,
    OF_X,
    OF_Y,
    ALLOWED,
    GROUPS,
    QUERY_GROUPS,
    M,
    N,
    of_x_line,
    of_y_line,
    query_groups_row,
    c,
    product_slack,
    CONE: tl.constexpr,
):
    """The least and the most ``z`` of each pair, and whether it may be found."""
    of_x, x_inside = OF_X + row, row < M
    of_y, y_inside = OF_Y + column, column < N
    P = tl.load(of_x + REACH * of_x_line, mask=x_inside, other=0.0)[:, None]
    Q = tl.load(of_y + REACH * of_y_line, mask=y_inside, other=0.0)[None, :]
    h = tl.load(of_x + HEIGHT * of_x_line, mask=x_inside, other=0.0)[:, None]
    g = tl.load(of_y + HEIGHT * of_y_line, mask=y_inside, other=0.0)[None, :]
    T = tl.fma(h, 1.0 + g, g)
    z = T - c * product
    error = tl.fma(product_slack * P, Q, tl.fma(T, SUM_SLACK, SMALLEST))
    known = T == T
    least = tl.where(known, z - error, -_INFINITY)
    most = tl.where(known, z + error, _INFINITY)
    open = x_inside[:, None] & y_inside[None, :]
    if ALLOWED is not None:
        open &= tl.load(ALLOWED + column, mask=y_inside, other=0)[None, :] != 0
    if GROUPS is not None:
        of_items = tl.load(GROUPS + column, mask=y_inside, other=0)[None, :]
        if query_groups_row is None:
            open &= tl.load(QUERY_GROUPS + row, mask=x_inside, other=-1)[:, None] == of_items
        else:
            at = QUERY_GROUPS + row[:, None].to(tl.int64) * query_groups_row + of_items
            open &= tl.load(at, mask=open, other=0) != 0
    if CONE == CONE_OF_QUERY:
        turn = tl.load(of_x + TURN * of_x_line, mask=x_inside, other=0.0)[:, None]
        open &= ~_beyond_cone(least, h, g, turn)
    if CONE == CONE_OF_ITEM:
        turn = tl.load(of_y + TURN * of_y_line, mask=y_inside, other=0.0)[None, :]
        open &= ~_beyond_cone(least, g, h, turn)
    return least, most, open


@triton.jit
def _beyond_cone(least, own, far, turn):
    """See ``strips``. Wide apertures have NaN here, which rules nothing out."""
    least = tl.maximum(least, 0.0)
    across, fall = turn * tl.sqrt(tl.fma(least, least, 2.0 * least)), tl.fma(own, least, least)
    return far - own - fall - across < (far + own + fall + across) * SUM_SLACK * -2.0


@triton.jit
def _place_of_bundles(row, first, M, N, WIDTH: tl.constexpr, BUNDLE: tl.constexpr):
    """The places of a piece's bundles in the matrix of bundles, and a mask of those that exist."""
    bundles = tl.cdiv(N, BUNDLE)
    bundle = first // BUNDLE + tl.arange(0, WIDTH // BUNDLE)
    return (row.to(tl.int64) * bundles)[:, None] + bundle[None, :], (row < M)[:, None] & (bundle < bundles)[
        None, :
    ]


@triton.jit
def _smallest(values, BUNDLE: tl.constexpr):
    return values if BUNDLE == 1 else tl.min(_bundled(values, BUNDLE), 2)


@triton.jit
def _total(values, BUNDLE: tl.constexpr):
    return values if BUNDLE == 1 else tl.sum(_bundled(values, BUNDLE), 2)


@triton.jit
def _bundled(values, BUNDLE: tl.constexpr):
    height: tl.constexpr = values.shape[0]
    width: tl.constexpr = values.shape[1]
    return tl.reshape(values, [height, width // BUNDLE, BUNDLE])
