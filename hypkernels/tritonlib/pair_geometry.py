"""The scalars of :mod:`hypkernels.pair_geometry` for rows of points, in Triton kernels.

Points are ``rows.input_rows``; tiles of their columns and scalars of the rows are float64. An element
costs six float64 operations, and four more for its gradients. On GPUs with float64 at half the rate of
float32, memory takes longer to deliver it. Everything else happens once a row.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from hypkernels.tritonlib.rows import bounded, bounded_square, columns_from, dot, load, out_of_bounds, zeros

# If the square of a lateral part is below this share of what it was computed from, it is rounding.
_ROUNDING_NOISE = tl.constexpr(2.0**-98)
# float64 has 53 bits: 8 are left if 45 are dropped; this is half of the first bit that stays.
_HALF_OF_DROPPED_BITS = tl.constexpr(1 << 44)
_KEPT_BITS = tl.constexpr(-(1 << 45))


class Split(NamedTuple):
    """``y = alpha x + n`` with ``n`` across ``x``; for ``x = 0``, ``alpha = 0`` and ``n = y``.

    ``alpha = coarse + fine``, and :func:`across` computes ``n``.
    """

    x_sq: tl.tensor
    coarse: tl.tensor
    fine: tl.tensor
    n_sq: tl.tensor


class Pair(NamedTuple):
    """The scalars of each pair of rows, as in :mod:`hypkernels.pair_geometry`; see :class:`Split`."""

    c: tl.tensor
    x_sq: tl.tensor
    coarse: tl.tensor
    fine: tl.tensor
    n_sq: tl.tensor
    alpha: tl.tensor
    alpha_minus_1: tl.tensor
    P2: tl.tensor
    N2: tl.tensor
    A: tl.tensor
    B: tl.tensor
    W: tl.tensor
    z: tl.tensor


class PairGradient(NamedTuple):
    """Gradients ``x_by_x x + x_by_n n`` and ``y_by_x x + y_by_n n``, and the row's share by ``c``."""

    x_by_x: tl.tensor
    x_by_n: tl.tensor
    y_by_x: tl.tensor
    y_by_n: tl.tensor
    curv: tl.tensor


@triton.jit
def ratio(numerator, denominator):
    """``numerator / denominator``, and 0 where the denominator is 0: the convention at degenerate points."""
    return tl.where(denominator == 0.0, 0.0, numerator / denominator)


@triton.jit
def across(coarse, fine, x, y):
    """``n`` of a :class:`Split`, in the columns of the tiles ``x`` and ``y``."""
    return tl.fma(-fine[:, None], x, tl.fma(-coarse[:, None], x, y))


@triton.jit
def split_along(x, y, tile, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Two Gram-Schmidt steps, the first with 8 significant bits: see :mod:`hypkernels.pair_geometry`.

    NaN for float64 rows with a point out of bounds.
    """
    x_sq = bounded_square(x, tile, D, BLOCK_D)
    coarse = _leading_bits(ratio(dot(x, y, tile, D, BLOCK_D), x_sq))
    rest_x = zeros(tile, BLOCK_D)
    for start in range(0, D, BLOCK_D):
        columns = columns_from(start, tile, D, BLOCK_D)
        x_part = load(x, columns)
        rest_x += tl.fma(-coarse[:, None], x_part, load(y, columns)) * x_part
    fine = ratio(tl.sum(rest_x, axis=1), x_sq)
    squares = zeros(tile, BLOCK_D)
    for start in range(0, D, BLOCK_D):
        columns = columns_from(start, tile, D, BLOCK_D)
        n = across(coarse, fine, load(x, columns), load(y, columns))
        squares += n * n
    n_sq = tl.sum(squares, axis=1)
    n_sq += out_of_bounds(y, tile, D, BLOCK_D)
    n_sq = tl.where(n_sq <= (n_sq + fine * fine * x_sq) * _ROUNDING_NOISE, 0.0, n_sq)
    return Split(x_sq, coarse, fine, n_sq)


@triton.jit
def pair_geometry(x, y, c, tile, D: tl.constexpr, BLOCK_D: tl.constexpr):
    x_sq, coarse, fine, n_sq = split_along(x, y, tile, D, BLOCK_D)
    alpha, alpha_minus_1 = coarse + fine, (coarse - 1.0) + fine
    P2, N2 = bounded(c * x_sq), c * n_sq
    Q2 = bounded(alpha * alpha * P2 + N2)
    A, B = tl.sqrt(1.0 + P2), tl.sqrt(1.0 + Q2)
    AB, G = A * B, alpha * P2
    same_side = alpha > 0.0
    # One division in each line: it costs as much as the rest of the line.
    W = tl.where(same_side, alpha_minus_1 * (alpha + 1.0) - N2, alpha * A - B)
    W = W / tl.where(same_side, alpha * A + B, 1.0)
    z = tl.where(same_side, alpha_minus_1 * alpha_minus_1 * P2 + A * A * N2, P2 + A * A * Q2)
    z = z / (1.0 + AB + tl.where(same_side, G, 0.0)) - tl.where(same_side, 0.0, G)
    return Pair(c, x_sq, coarse, fine, n_sq, alpha, alpha_minus_1, P2, N2, A, B, W, z)


@triton.jit
def _leading_bits(value):
    """``value`` rounded to its 8 leading bits, by its bit pattern: compilers fuse Veltkamp's products."""
    bits = value.to(tl.int64, bitcast=True)
    return ((bits + _HALF_OF_DROPPED_BITS) & _KEPT_BITS).to(tl.float64, bitcast=True)


@triton.jit
def along_z(pair, by_z, curv):
    """The gradient of a function of ``z``, from its derivatives by ``z`` and by ``c``.

    With ``u = y A - x B = W x + A n``: ``dz/dx = -(c/A) u`` and ``dz/dy = (c/B) u``.
    """
    across = tl.where(pair.N2 > 0.0, pair.A, 0.0)
    by_x, by_y = -by_z * pair.c / pair.A, by_z * pair.c / pair.B
    return PairGradient(by_x * pair.W, by_x * across, by_y * pair.W, by_y * across, curv)
