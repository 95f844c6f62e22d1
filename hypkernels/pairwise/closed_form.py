"""Functions of a pair of points on a tile of pairs: values and gradients in closed form.

Each function ``f`` is the quantity at curvature -1; at curvature ``-c`` it is ``f / c**curv_power``. It
depends on ``|x|^2``, ``|y|^2`` and ``x.y`` only, so its gradients are sums over the pairs of a tile:

    dx_i = x_coefficient_i x_i + sum_j cross_ij y_j,   dy_j = y_coefficient_j y_j + sum_i cross_ij x_i

For pairs closer than the resolution of the tile the slope is taken at the resolution: gradients stay
bounded where the matrix product cannot tell two points apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hypkernels.pair_geometry import ratio
from hypkernels.pairwise.geometry import PairTile
from hypkernels.scalar_functions import tanh_deficit


class TileGradient(NamedTuple):
    """``cross`` has the shape of the tile, the coefficients those of the points' scalars.

    ``curv`` is one number for each matrix of pairs.
    """

    cross: Tensor
    x_coefficient: Tensor
    y_coefficient: Tensor
    curv: Tensor


class PairFunction(NamedTuple):
    """``value(tile)`` and ``gradient(weight, value, tile)``.

    ``weight`` is the upstream gradient times ``c**-curv_power``: the gradient is that of
    ``value / c**curv_power``, in the points and in ``c``.
    """

    value: Callable[[PairTile], Tensor]
    gradient: Callable[[Tensor, Tensor, PairTile], TileGradient]
    curv_power: float


def _distance(tile: PairTile) -> Tensor:
    return torch.log1p(tile.z + torch.sqrt(tile.z) * torch.sqrt(tile.z + 2))


def _distance_gradient(weight: Tensor, distance: Tensor, tile: PairTile) -> TileGradient:
    """In the gradient by ``c`` the changes of ``k`` and of ``z`` combine to terms of one sign."""
    z = torch.maximum(tile.z, tile.resolution)
    slope = ratio(weight, torch.sqrt(z) * torch.sqrt(z + 2))
    return _z_gradient(slope, -weight * tanh_deficit(distance / 2, tile.z / (tile.z + 2)), tile)


def _squared_distance(tile: PairTile) -> Tensor:
    return _distance(tile).square_()


def _squared_distance_gradient(weight: Tensor, squared: Tensor, tile: PairTile) -> TileGradient:
    distance = torch.sqrt(squared)
    return _distance_gradient(2 * distance * weight, distance, tile)


def _inner(tile: PairTile) -> Tensor:
    return 1 + tile.z


def _inner_gradient(weight: Tensor, inner: Tensor, tile: PairTile) -> TileGradient:
    return _z_gradient(weight, -weight, tile)


def _z_gradient(slope: Tensor, curv_weight: Tensor, tile: PairTile) -> TileGradient:
    """The gradient from ``slope``, the weighted derivative by ``z``.

    By the curvature, ``c dz/dc = z - (A - B)^2 / (2 A B)``.

    ``curv_weight`` is the rest of the derivative by ``log c``, with that first term ``slope z`` included.
    """
    x, y, c = tile.x, tile.y, tile.c
    apart = x.A_minus_1 - y.A_minus_1
    radial = slope * (apart / x.A) * (apart / y.A)
    return TileGradient(
        cross=-c * slope,
        x_coefficient=c * (slope * y.A).sum_to_size(x.A.shape) / x.A,
        y_coefficient=c * (slope * x.A).sum_to_size(y.A.shape) / y.A,
        curv=(_total(curv_weight) - _total(radial) / 2) / _of_tile(c),
    )


def _angle(tile: PairTile) -> Tensor:
    """``atan2`` of the lateral and radial parts of the logarithm of ``y`` at ``x``, times ``P`` both."""
    x, w = tile.x, tile.lateral
    across = torch.sqrt(w) * torch.sqrt(_opposite(tile).clamp_(min=0))
    angle = torch.atan2(across, x.P * _sinh_between(tile) - x.A * w)
    angle = torch.where(x.P == 0, math.pi / 2, angle)
    return torch.where(tile.z <= tile.resolution, 0.0, angle)


def _angle_gradient(weight: Tensor, angle: Tensor, tile: PairTile) -> TileGradient:
    """Divides before it multiplies: far from the origin ``sinh^2`` times the width overflows float32."""
    x, y, c, w, z, gram = tile.x, tile.y, tile.c, tile.lateral, tile.z, tile.gram
    resolution, opposite = tile.resolution, _opposite(tile)
    floored = torch.maximum(z, resolution)
    per_z, z_plus_2 = ratio(weight, floored), floored + 2
    width = torch.sqrt(torch.maximum(w, resolution)) * torch.sqrt(torch.maximum(opposite, resolution))
    across = torch.sqrt(w) * torch.sqrt(opposite.clamp_(min=0))
    turn_x = per_z * ((y.P * _sinh_between(tile) + y.A * w) / z_plus_2)
    turn_y = per_z * (z * (gram / z_plus_2) + (x.P * (y.P - x.P) - w) / z_plus_2)
    along = per_z * ((1 + z) / z_plus_2) * across / x.A
    cross = -c * ratio(turn_x, width)
    return TileGradient(
        cross=cross,
        x_coefficient=ratio((c * along - cross * gram).sum_to_size(x.P.shape), x.P * x.P),
        y_coefficient=c * ratio(turn_y, width).sum_to_size(y.P.shape) / y.A,
        curv=_total(turn_x * across / (x.A * y.A)) / (2 * _of_tile(c)),
    )


def _sinh_between(tile: PairTile) -> Tensor:
    """``sinh(b - a)``, positive where ``y`` is farther out than ``x``."""
    return tile.chord * torch.sqrt(1 + tile.chord * tile.chord / 4)


def _opposite(tile: PairTile) -> Tensor:
    """``P Q + c x.y``: with ``lateral``, the factors of ``P^2 Q^2 - (c x.y)^2``."""
    return 2 * tile.x.P * tile.y.P - tile.lateral


def _total(terms: Tensor) -> Tensor:
    """The sum over the pairs of each matrix."""
    return terms.sum((-2, -1), dtype=torch.float64)


def _of_tile(c: Tensor) -> Tensor:
    """The curvature of each matrix, in a shape that broadcasts against tiles; 0-d if all share one."""
    return c.reshape(c.shape[:1])


def _angle_at_y(tile: PairTile) -> Tensor:
    return _angle(tile.swapped())


def _angle_at_y_gradient(weight: Tensor, angle: Tensor, tile: PairTile) -> TileGradient:
    cross, y_coefficient, x_coefficient, curv = _angle_gradient(weight, angle, tile.swapped())
    return TileGradient(cross, x_coefficient, y_coefficient, curv)


DISTANCE = PairFunction(_distance, _distance_gradient, curv_power=0.5)
SQUARED_DISTANCE = PairFunction(_squared_distance, _squared_distance_gradient, curv_power=1)
NEGATIVE_INNER = PairFunction(_inner, _inner_gradient, curv_power=1)
ANGLE_AT_X = PairFunction(_angle, _angle_gradient, curv_power=0)
ANGLE_AT_Y = PairFunction(_angle_at_y, _angle_at_y_gradient, curv_power=0)
