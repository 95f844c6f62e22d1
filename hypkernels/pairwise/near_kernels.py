# mypy: allow-untyped-defs, allow-incomplete-defs
"""Device code for near pairs: those in which a product of float32 numbers cancels.

They are computed from differences of the points' directions, ``e = y/|y| - s x/|x|`` with ``s = 1``, or
-1 if an angle is near pi. A direction is the sum of two float32 numbers, so that ``e`` has the relative
accuracy of float32 down to 1e-8; it takes four float32 operations for a component of a pair. With
``omega = |e|^2 / 2``, which is ``1 - s cos(x, y)``, and ``S = sinh(b - a)``,

    z = cosh(k d) - 1 = P Q omega + 2 sinh^2((b - a)/2)

and all numbers per pair are float64. A function ``f(P, Q, cos)`` has the gradients

    df/dx = f_cos/|x| (e + s omega x/|x|) + k f_P x/|x|,   df/dc = (P f_P + Q f_Q) / 2c

A program takes ``ROWS`` rows and looks through the tiles of their columns that have near pairs, ``COLUMNS``
of them and ``DEPTH`` components at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from hypkernels.tritonlib.pair_gaps import ANGLE_AT_X, ANGLE_AT_Y, DIST, HALF_PI, INNER
from hypkernels.tritonlib.pair_geometry import ratio
from hypkernels.tritonlib.scalar_math import asinh, asinhc_slope, atan2_positive

# An ``e`` whose square is below this is rounding: its direction means nothing.
_ROUNDING_NOISE = tl.constexpr(2.0**-98)


class Points(NamedTuple):
    """Some points: their places, whether they are within the set, and float64 scalars."""

    at: tl.tensor
    live: tl.tensor
    inverse: tl.tensor
    P: tl.tensor
    A: tl.tensor
    growth: tl.tensor
    shrink: tl.tensor


class Pairs(NamedTuple):
    """``S`` is ``sinh(b - a)``, ``apart`` is ``B - A``, ``sine`` that of the angle of the directions."""

    sign: tl.tensor
    omega: tl.tensor
    z: tl.tensor
    S: tl.tensor
    apart: tl.tensor
    sine: tl.tensor


class PairGradient(NamedTuple):
    """Coefficients of ``e`` and of ``x/|x|`` in the gradient by ``x``, and the gradient by ``c``."""

    e: tl.tensor
    x: tl.tensor
    curv: tl.tensor


@triton.jit
def near_values(
    X,
    Y,
    X_SQUARE,
    Y_SQUARE,
    C,
    NEAR,
    OUT,
    M,
    N,
    x_matrix,
    x_row,
    y_matrix,
    y_row,
    c_matrix,
    D: tl.constexpr,
    FORMULA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Replace the values that are NaN, which mark near pairs."""
    matrix, i = _matrix_and_rows(M, ROWS)
    c = tl.load(C + matrix * c_matrix)
    x = _points(X + matrix * x_matrix, X_SQUARE + matrix * M, i, M, x_row, c, ROWS)
    row = i * ROWS + tl.arange(0, ROWS)
    near = NEAR + (matrix * tl.cdiv(M, BLOCK_M) + i * ROWS // BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for tile in range(0, tl.cdiv(N, BLOCK_N)):
        if tl.load(near + tile) != 0:
            for part in range(0, BLOCK_N // COLUMNS):
                j = tile * (BLOCK_N // COLUMNS) + part
                column = j * COLUMNS + tl.arange(0, COLUMNS)
                out = OUT + (matrix * M + row.to(tl.int64))[:, None] * N + column[None, :]
                inside = (row < M)[:, None] & (column < N)[None, :]
                value = tl.load(out, mask=inside, other=0.0)
                if _any(value != value):
                    y = _points(Y + matrix * y_matrix, Y_SQUARE + matrix * N, j, N, y_row, c, COLUMNS)
                    pairs = _pairs(x, y, D, FORMULA, DEPTH)
                    right = _value(pairs, x, y, c, FORMULA).to(tl.float32)
                    tl.store(out, right, mask=inside & (value != value))


@triton.jit
def near_gradients(
    X,
    Y,
    X_SQUARE,
    Y_SQUARE,
    C,
    NEAR,
    GRAD,
    WEIGHTS,
    BY_X,
    BY_CURV,
    M,
    N,
    x_matrix,
    x_row,
    y_matrix,
    y_row,
    square_matrix,
    other_square_matrix,
    c_matrix,
    near_matrix,
    near_row,
    near_column,
    grad_matrix,
    grad_row,
    grad_column,
    weights_matrix,
    weights_row,
    weights_column,
    by_x_matrix,
    by_x_row,
    D: tl.constexpr,
    FORMULA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Add the gradients of near pairs, which have weight 0, by their rows' points, and by the curvature.

    A second launch, with the matrices transposed, does it for the columns. There ``BY_CURV`` is
    ``None``.
    """
    matrix, i = _matrix_and_rows(M, ROWS)
    c = tl.load(C + matrix * c_matrix)
    x = _points(X + matrix * x_matrix, X_SQUARE + matrix * square_matrix, i, M, x_row, c, ROWS)
    row = i * ROWS + tl.arange(0, ROWS)
    wide_row = row.to(tl.int64)[:, None]
    grads, weights = GRAD + matrix * grad_matrix, WEIGHTS + matrix * weights_matrix
    by_x = BY_X + matrix * by_x_matrix + wide_row * by_x_row
    near = NEAR + matrix * near_matrix + (i * ROWS // BLOCK_M) * near_row
    along = tl.zeros([ROWS], tl.float64)
    by_curv = tl.zeros([ROWS], tl.float64)
    for tile in range(0, tl.cdiv(N, BLOCK_N)):
        if tl.load(near + tile * near_column) != 0:
            for part in range(0, BLOCK_N // COLUMNS):
                j = tile * (BLOCK_N // COLUMNS) + part
                column = j * COLUMNS + tl.arange(0, COLUMNS)
                wide_column = column.to(tl.int64)[None, :]
                inside = (row < M)[:, None] & (column < N)[None, :]
                at = wide_row * weights_row + wide_column * weights_column
                weight = tl.load(weights + at, mask=inside, other=1.0).to(tl.float32)
                at = wide_row * grad_row + wide_column * grad_column
                grad = tl.load(grads + at, mask=inside & (weight == 0.0), other=0.0).to(tl.float64)
                if _any(grad != 0.0):
                    y = _points(
                        Y + matrix * y_matrix,
                        Y_SQUARE + matrix * other_square_matrix,
                        j,
                        N,
                        y_row,
                        c,
                        COLUMNS,
                    )
                    pairs = _pairs(x, y, D, FORMULA, DEPTH)
                    gradient = _gradient(grad, pairs, x, y, c, FORMULA)
                    # Pairs that are not near have gradient 0, and may have NaN here: NaN times 0 is NaN.
                    by_e = tl.where(grad == 0.0, 0.0, gradient.e).to(tl.float32)
                    along += tl.sum(tl.where(grad == 0.0, 0.0, gradient.x), 1)
                    by_curv += tl.sum(tl.where(grad == 0.0, 0.0, gradient.curv), 1)
                    _add_differences(by_x, by_e, pairs.sign.to(tl.float32), x, y, D, DEPTH)
    if _any((along != 0.0)[:, None]):
        tl.debug_barrier()
        for start in range(0, D, DEPTH):
            k = start + tl.arange(0, DEPTH)
            mask = x.live[:, None] & (k < D)[None, :]
            term = along[:, None] * _direction(x, k, D)
            total = tl.load(by_x + k[None, :], mask=mask, other=0.0) + term.to(tl.float32)
            tl.store(by_x + k[None, :], total, mask=mask)
    if BY_CURV is not None:
        at = BY_CURV + matrix * square_matrix + row
        tl.store(at, tl.load(at, mask=x.live, other=0.0) + by_curv, mask=x.live)


@triton.jit
def _add_differences(by_x, by_e, sign, x, y, D: tl.constexpr, DEPTH: tl.constexpr):
    """Add the sums of ``by_e e`` over columns, behind a barrier: other threads wrote the rows before."""
    tl.debug_barrier()
    for start in range(0, D, DEPTH):
        k = start + tl.arange(0, DEPTH)
        x_high, x_low = _high_and_low(_direction(x, k, D))
        y_high, y_low = _high_and_low(_direction(y, k, D))
        high = y_high[None, :, :] - sign[:, :, None] * x_high[:, None, :]
        low = y_low[None, :, :] - sign[:, :, None] * x_low[:, None, :]
        term = tl.sum(by_e[:, :, None] * (high + low), 1)
        mask = x.live[:, None] & (k < D)[None, :]
        total = tl.load(by_x + k[None, :], mask=mask, other=0.0) + term
        tl.store(by_x + k[None, :], total, mask=mask)


@triton.jit
def _matrix_and_rows(M, ROWS: tl.constexpr):
    blocks = tl.cdiv(M, ROWS)
    program = tl.program_id(0)
    return (program // blocks).to(tl.int64), program % blocks


@triton.jit
def _any(flags):
    return tl.max(tl.max(flags.to(tl.int32), 1), 0) != 0


@triton.jit
def _points(X, SQUARE, i, M, stride, c, SIZE: tl.constexpr):
    row = i * SIZE + tl.arange(0, SIZE)
    live = row < M
    norm = tl.sqrt(tl.load(SQUARE + row, mask=live, other=0.0))
    P = tl.sqrt(c) * norm
    A = tl.sqrt(1.0 + P * P)
    growth = P * P / (1.0 + A) + P
    at = X + (row.to(tl.int64) * stride)[:, None]
    return Points(at, live, ratio(norm * 0.0 + 1.0, norm), P, A, growth, 1.0 / tl.sqrt(A + P))


@triton.jit
def _direction(rows, k, D: tl.constexpr):
    """``x/|x|``; 0 for the origin."""
    mask = rows.live[:, None] & (k < D)[None, :]
    return tl.load(rows.at + k[None, :], mask=mask, other=0.0).to(tl.float64) * rows.inverse[:, None]


@triton.jit
def _high_and_low(number):
    high = number.to(tl.float32)
    return high, (number - high.to(tl.float64)).to(tl.float32)


@triton.jit
def _pairs(x, y, D: tl.constexpr, FORMULA: tl.constexpr, DEPTH: tl.constexpr):
    same = tl.zeros([x.live.shape[0], y.live.shape[0]], tl.float64)
    opposite = same
    for start in range(0, D, DEPTH):
        k = start + tl.arange(0, DEPTH)
        x_high, x_low = _high_and_low(_direction(x, k, D))
        y_high, y_low = _high_and_low(_direction(y, k, D))
        e = (y_high[None, :, :] - x_high[:, None, :]) + (y_low[None, :, :] - x_low[:, None, :])
        same += tl.sum(e * e, 2).to(tl.float64)
        if FORMULA >= ANGLE_AT_X:
            e = (y_high[None, :, :] + x_high[:, None, :]) + (y_low[None, :, :] + x_low[:, None, :])
            opposite += tl.sum(e * e, 2).to(tl.float64)
    same = tl.where(same <= _ROUNDING_NOISE, 0.0, same)
    if FORMULA >= ANGLE_AT_X:
        opposite = tl.where(opposite <= _ROUNDING_NOISE, 0.0, opposite)
        turned = opposite < same
        sign, omega = tl.where(turned, -1.0, 1.0).to(tl.float64), tl.where(turned, opposite, same) * 0.5
    else:
        turned, sign, omega = same < 0.0, same * 0.0 + 1.0, same * 0.5
    P, Q = x.P[:, None], y.P[None, :]
    chord = (y.growth[None, :] - x.growth[:, None]) * x.shrink[:, None] * y.shrink[None, :]
    z = P * Q * tl.where(turned, 2.0 - omega, omega) + 0.5 * chord * chord
    S = chord * tl.sqrt(1.0 + 0.25 * chord * chord)
    apart = (Q - P) * (Q + P) / (x.A[:, None] + y.A[None, :])
    off_origin = (P > 0.0) & (Q > 0.0)
    sine = tl.where(off_origin, tl.sqrt(omega) * tl.sqrt(tl.maximum(2.0 - omega, 0.0)), 0.0)
    return Pairs(sign, omega, z, S, apart, sine)


@triton.jit
def _value(pairs, x, y, c, FORMULA: tl.constexpr):
    if FORMULA == DIST:
        return asinh(tl.sqrt(0.5 * pairs.z)) * (2.0 / tl.sqrt(c))
    elif FORMULA == INNER:
        return (1.0 + pairs.z) * (-1.0 / c)
    else:
        P, Q, A = x.P[:, None], y.P[None, :], x.A[:, None]
        lateral = P * Q * tl.where(pairs.sign < 0.0, 2.0 - pairs.omega, pairs.omega)
        angle = atan2_positive(P * Q * pairs.sine, P * pairs.S - A * lateral)
        angle = tl.where((P == 0.0) & (Q >= 0.0), HALF_PI, angle)
        return tl.where(pairs.z == 0.0, 0.0, angle)


@triton.jit
def _gradient(grad, pairs, x, y, c, FORMULA: tl.constexpr):
    k, z = tl.sqrt(c), pairs.z
    A, B = x.A[:, None], y.A[None, :]
    if FORMULA == DIST:
        sinh = tl.sqrt(z) * tl.sqrt(z + 2.0)
        h = tl.sqrt(0.5 * z)
        radial = ratio(pairs.apart * pairs.apart, 2.0 * A * B * sinh)
        by_curv = (h * h * h * asinhc_slope(h) - radial) / (c * k)
        return _z_gradient(grad * ratio(1.0 / k, sinh), grad * by_curv, pairs, x, y, k)
    elif FORMULA == INNER:
        by_curv = grad * (A / B + B / A) / (2.0 * c * c)
        return _z_gradient(-grad / c, by_curv, pairs, x, y, k)
    else:
        return _angle_gradient(grad, pairs, x, y, c, FORMULA)


@triton.jit
def _z_gradient(by_z, by_curv, pairs, x, y, k):
    by_z = by_z * k
    return PairGradient(-by_z * y.P[None, :], -by_z * pairs.S / x.A[:, None], by_curv)


@triton.jit
def _angle_gradient(grad, pairs, x, y, c, FORMULA: tl.constexpr):
    """The gradient of the angle, 0 where it has none. The apex is the row's point, or the column's."""
    k, z, sine = tl.sqrt(c), pairs.z, pairs.sine
    row_P, column_P = x.P[:, None], y.P[None, :]
    if FORMULA == ANGLE_AT_Y:
        P, Q, A, B, S = column_P, row_P, y.A[None, :], x.A[:, None], -pairs.S
    else:
        P, Q, A, B, S = row_P, column_P, x.A[:, None], y.A[None, :], pairs.S
    to_other = tl.where(pairs.sign < 0.0, 2.0 - pairs.omega, pairs.omega)
    turn = Q * (S + B * P * to_other)
    per_sinh = ratio(grad, z) / (z + 2.0)
    by_cos = -ratio(per_sinh, sine) * turn
    of_other, of_apex = -(P * sine) / B, (Q * sine) * (1.0 + z) / A
    by_norm = per_sinh * (of_other if FORMULA == ANGLE_AT_Y else of_apex)
    by_curv = per_sinh * (P * sine) * Q / A * turn / B / (2.0 * c)
    per_x = k * ratio(by_cos, row_P)
    along = k * by_norm + pairs.sign * pairs.omega * per_x
    kink = (sine == 0.0) & (z == z)
    return PairGradient(tl.where(kink, 0.0, per_x), tl.where(kink, 0.0, along), tl.where(kink, 0.0, by_curv))
