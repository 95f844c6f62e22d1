"""The plane of the origin and two points: the scalars of which distance, angle and logarithm are made.

Rows are float64, ``(rows, D)``; per-row scalars keep a column, ``(rows, 1)``. With ``k = sqrt(c)`` and
``y = alpha x + n``, ``n`` across ``x``:

    P = k|x|    A = sqrt(1 + P^2)    B = sqrt(1 + k^2 |y|^2)
    N = k|n|    W = alpha A - B      z = cosh(k d) - 1

``y A - x B = W x + A n`` is the direction of every gradient of ``z``, and ``(P W, N)`` are the radial and
lateral components of the logarithm of ``y`` at ``x``, in units of ``1/k``. No scalar is formed by subtracting
nearly equal numbers, so coincident, collinear and distant points keep full relative accuracy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hypkernels.rowwise import RowSums
from hypkernels.wide import NORMS, marked, resolved, unless, within

# If the square of a lateral part is below this share of what it was computed from, it is rounding.
ROUNDING_NOISE = 2.0**-98


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def norm(a: Tensor) -> Tensor:
    return resolved(torch.linalg.vector_norm(a, dim=-1, keepdim=True), a)


def of_norm(value: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``value(s, c, *options)`` with ``s = sqrt(c)|x|``, as a function of ``NORM``, ``c`` and options."""

    @marked
    def of_number(x_norm: Tensor, c: Tensor, *options: float) -> Tensor:
        return value(scaled_norm(x_norm, c), c, *options)

    return of_number


def scaled_norm(x_norm: Tensor, c: Tensor) -> Tensor:
    """``sqrt(c) |x|``, within the range of the plain formulas."""
    s = torch.sqrt(c) * x_norm
    return unless(within(s, **NORMS), s)


NORM = RowSums(marked(lambda x: (norm(x),)), 1)


def ratio(numerator: Tensor | float, denominator: Tensor) -> Tensor:
    """``numerator / denominator``, and 0 where the denominator is 0: the convention at degenerate points."""
    return (numerator / denominator).masked_fill_(denominator == 0, 0)


class Split(NamedTuple):
    """``y = alpha x + n`` with ``n`` across ``x``; for ``x = 0``, ``alpha = 0`` and ``n = y``."""

    x_sq: Tensor
    alpha: Tensor
    alpha_minus_1: Tensor
    n_sq: Tensor
    n: Tensor


def split_along(x: Tensor, y: Tensor) -> Split:
    """Split ``y`` along and across ``x`` by two Gram-Schmidt steps.

    The first step subtracts a multiple of ``x`` with 8 significant bits: that product is exact for float32
    values, and for float64 ones where the multiple is 1, which is where ``y`` is close to ``x``. What is
    left is small, so the second step rounds relative to it and not to ``y``.
    """
    x_sq = norm(x).square_()
    coarse = leading_bits(ratio(dot(x, y), x_sq))
    rest = torch.addcmul(y, coarse, x, value=-1)
    fine = ratio(dot(rest, x), x_sq)
    n = rest.addcmul_(fine, x, value=-1)
    n_sq = norm(n).square_()
    of_rest = n_sq + fine * fine * x_sq
    n_sq = n_sq.masked_fill_(n_sq <= ROUNDING_NOISE * of_rest, 0)
    n_sq = n_sq + (of_rest - of_rest)  # NaN where that overflows: beyond the range
    return Split(x_sq, coarse + fine, (coarse - 1) + fine, n_sq, n)


def leading_bits(value: Tensor) -> Tensor:
    """``value`` rounded to its 8 leading bits (Veltkamp's splitting)."""
    shifted = value * (2.0**45 + 1)
    return shifted - (shifted - value)


class PairGeometry(NamedTuple):
    """The scalars of the module's docstring for each pair of rows."""

    c: Tensor
    alpha: Tensor
    alpha_minus_1: Tensor
    P2: Tensor
    N2: Tensor
    A: Tensor
    B: Tensor
    W: Tensor
    z: Tensor

    @property
    def k(self) -> Tensor:
        return torch.sqrt(self.c)

    @property
    def sinh(self) -> Tensor:
        """``sinh(k d)``"""
        return torch.sqrt(self.z * (self.z + 2))

    @property
    def B_minus_A(self) -> Tensor:
        return (self.alpha_minus_1 * (self.alpha + 1) * self.P2 + self.N2) / (self.A + self.B)

    def z_direction(self, factor: Tensor | float, x: Tensor, n: Tensor) -> Tensor:
        """``factor * u``, ``u = y A - x B``: ``dz/dx = -(c/A) u`` and ``dz/dy = (c/B) u``."""
        return (factor * self.W * x).addcmul_(factor * self.A * torch.sign(self.N2), n)

    def z_by_c(self) -> Tensor:
        """``dz/dc = |u|^2 / (2AB)``"""
        A, B, W = self.A, self.B, self.W
        return (W * W * self.P2 + A * A * self.N2) / (2 * self.c * A * B)


def pair_geometry(x: Tensor, y: Tensor, c: Tensor) -> tuple[PairGeometry, Tensor]:
    """The scalars of each pair of rows, and the rows ``n``."""
    x_sq, alpha, alpha_minus_1, n_sq, n = split_along(x, y)
    return geometry_of_split(x_sq, alpha, alpha_minus_1, n_sq, c), n


# What a value needs of two rows: all arguments of :func:`geometry_of_split` except the curvature.
SPLIT_SUMS = RowSums(marked(lambda x, y: split_along(x, y)[:4]), 4)


def of_split(value: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``value(pair, *options)`` as a function of two rows' ``SPLIT_SUMS``, the curvature and the options.

    NaN for pairs beyond the range of the plain formulas.
    """
    pair_arguments = SPLIT_SUMS.numbers + 1

    @marked
    def of_numbers(*arguments: Any) -> Tensor:
        return value(geometry_of_split(*arguments[:pair_arguments]), *arguments[pair_arguments:])

    return of_numbers


def geometry_of_split(
    x_sq: Tensor, alpha: Tensor, alpha_minus_1: Tensor, n_sq: Tensor, c: Tensor
) -> PairGeometry:
    P2, N2 = c * x_sq, c * n_sq
    Q2 = alpha * alpha * P2 + N2
    A, B = torch.sqrt(1 + P2), torch.sqrt(1 + Q2)
    AB, G = A * B, alpha * P2
    same_side = alpha > 0
    W = torch.where(same_side, (alpha_minus_1 * (alpha + 1) - N2) / (alpha * A + B), alpha * A - B)
    z = torch.where(
        same_side,
        (alpha_minus_1 * alpha_minus_1 * P2 + A * A * N2) / (1 + AB + G),
        (P2 + A * A * Q2) / (1 + AB) - G,
    )
    beyond = within(P2, Q2, z)
    return PairGeometry(c, alpha, alpha_minus_1, P2, N2, A, B, unless(beyond, W), unless(beyond, z))
