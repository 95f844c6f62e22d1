"""The scalars that every pair of two point sets shares, from one matrix product.

With ``k = sqrt(c)``, ``P = k|x|``, ``Q = k|y|``, times ``A = sqrt(1 + P^2)`` and ``B = sqrt(1 + Q^2)``, and
rapidities ``a = asinh(P)``, ``b = asinh(Q)``:

    z = cosh(k d) - 1 = radial + lateral,   radial = 2 sinh^2((b-a)/2),   lateral = P Q - c x.y

The radial part comes from scalars of one point each and is exact to rounding. Only the lateral part
cancels: its error is a few roundings of ``P Q``. This *resolution* holds for every pairwise quantity: a
matrix product cannot tell apart two points whose lateral part is below it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hypkernels.pair_geometry import dot
from hypkernels.rowwise import map_rows

# The rounding of a dot product of up to several thousand terms, in units of its operands' norms.
RESOLUTION_ULPS = 16


class PointScalars(NamedTuple):
    """``P``, ``A``, ``A - 1``, ``exp(a) - 1`` and ``exp(-a/2)`` of each point."""

    P: Tensor
    A: Tensor
    A_minus_1: Tensor
    growth: Tensor
    shrink: Tensor

    def along_columns(self) -> PointScalars:
        """From a column vector ``(..., N, 1)`` to a row vector ``(..., 1, N)``."""
        return PointScalars(*(scalar.mT for scalar in self))

    def at(self, *place: slice) -> PointScalars:
        """The scalars of some points: a slice for each dimension before the last."""
        return PointScalars(*(scalar[place] for scalar in self))


def point_scalars(points: Tensor, c: Tensor) -> PointScalars:
    """Scalars ``(..., M, 1)`` of points ``(..., M, D)``, float64."""
    (square,) = map_rows(lambda rows: (dot(rows, rows),), [points], [(1, torch.float64)])
    return scalars_of_square(square, c)


def scalars_of_square(square: Tensor, c: Tensor) -> PointScalars:
    """The scalars of points from ``|x|^2``, float64."""
    P2 = c * square
    P, A = torch.sqrt(P2), torch.sqrt(1 + P2)
    A_minus_1 = P2 / (1 + A)
    return PointScalars(P, A, A_minus_1, A_minus_1 + P, torch.rsqrt(A + P))


class PairTile(NamedTuple):
    """The scalars of each pair; those of one point broadcast against them."""

    x: PointScalars
    y: PointScalars
    c: Tensor
    chord: Tensor
    lateral: Tensor
    z: Tensor

    @property
    def gram(self) -> Tensor:
        """``c x.y``"""
        return self.x.P * self.y.P - self.lateral

    @property
    def resolution(self) -> Tensor:
        """The error of ``lateral`` and ``z`` by the rounding of the matrix product."""
        return RESOLUTION_ULPS * torch.finfo(self.z.dtype).eps * self.x.P * self.y.P

    def swapped(self) -> PairTile:
        """The same pairs with the roles of ``x`` and ``y`` exchanged."""
        return self._replace(x=self.y, y=self.x, chord=-self.chord)


def pair_tile(x: PointScalars, y: PointScalars, lateral: Tensor, c: Tensor) -> PairTile:
    """``x`` along rows, ``y`` along columns; where rounding left ``lateral`` negative it is 0."""
    chord = (y.growth - x.growth) * x.shrink * y.shrink  # 2 sinh((b - a)/2)
    lateral = lateral.clamp(min=0)
    z = torch.addcmul(lateral, chord, chord, value=0.5)
    return PairTile(x, y, c.to(lateral.dtype), chord, lateral, z)
