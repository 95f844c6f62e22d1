"""Gaps, of which logits are made: how far apart two points are, of one pair exactly and of a tile."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hypkernels.cone.closed_form import oxy_angle, oxy_angle_gradient
from hypkernels.distance.closed_form import (
    elementwise_dist,
    elementwise_dist_gradient,
    elementwise_inner,
    elementwise_inner_gradient,
)
from hypkernels.pair_geometry import pair_geometry
from hypkernels.pairwise.closed_form import (
    ANGLE_AT_X,
    ANGLE_AT_Y,
    DISTANCE,
    NEGATIVE_INNER,
    SQUARED_DISTANCE,
    PairFunction,
    TileGradient,
)
from hypkernels.pairwise.geometry import PairTile
from hypkernels.wide import repaired

PointGradients = tuple[Tensor, Tensor, Tensor]


class Gap(NamedTuple):
    """A function of two points that is smaller the more similar they are.

    ``of_rows`` and ``of_rows_gradient`` are the exact row-wise formulas, on float64 rows; ``of_pairs`` is the
    same function on a tile. ``largest`` is its largest value, with curvature -1, at a given distance.
    """

    of_rows: Callable[[Tensor, Tensor, Tensor], Tensor]
    of_rows_gradient: Callable[[Tensor, Tensor, Tensor, Tensor], PointGradients]
    of_pairs: PairFunction
    largest: Callable[[float], float]


class Logits(NamedTuple):
    """One matrix of logits, and the directions in which its softmax is taken."""

    gap: Gap
    rows: bool
    columns: bool


def logit_matrices(similarity: str, symmetric: bool, *, one_scale: bool = False) -> list[Logits]:
    """One matrix of logits serves both directions, but for angles: their apex is the item that chooses.

    ``one_scale``: all rows have the same scale. Then the ``1/c`` in all inner products cancels in each
    softmax and is left out: near points and small curvatures would lose their digits beside it.
    """
    if similarity == "inner" and (one_scale or not symmetric):
        return [Logits(_EXCESS_OF_INNER, rows=True, columns=symmetric)]
    if similarity == "angle":
        at_rows = Logits(_ANGLE, rows=True, columns=False)
        return [at_rows, Logits(_ANGLE_AT_COLUMN, rows=False, columns=True)] if symmetric else [at_rows]
    return [Logits(_SYMMETRIC_GAPS[similarity], rows=True, columns=symmetric)]


def _squared_dist(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return elementwise_dist(x, y, c) ** 2


def _squared_dist_gradient(grad: Tensor, x: Tensor, y: Tensor, c: Tensor) -> PointGradients:
    return elementwise_dist_gradient(2 * elementwise_dist(x, y, c) * grad, x, y, c)


def _negative_inner(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return -elementwise_inner(x, y, c)


def _negative_inner_gradient(grad: Tensor, x: Tensor, y: Tensor, c: Tensor) -> PointGradients:
    return elementwise_inner_gradient(-grad, x, y, c)


@repaired()
def _excess_of_inner(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return pair_geometry(x, y, c)[0].z / c


@repaired(points=2)
def _excess_of_inner_gradient(grad: Tensor, x: Tensor, y: Tensor, c: Tensor) -> PointGradients:
    pair, _ = pair_geometry(x, y, c)
    by_x, by_y, _ = elementwise_inner_gradient(-grad, x, y, c)
    apart = pair.B_minus_A / c
    return by_x, by_y, -grad * (apart / pair.A) * (apart / pair.B) / 2


def _excess_of_pairs_gradient(weight: Tensor, excess: Tensor, tile: PairTile) -> TileGradient:
    apart = tile.x.A_minus_1 - tile.y.A_minus_1
    radial = (weight * (apart / tile.x.A) * (apart / tile.y.A)).sum(dtype=torch.float64)
    return NEGATIVE_INNER.gradient(weight, excess, tile)._replace(curv=-radial / (2 * tile.c))


EXCESS_OF_INNER = PairFunction(lambda tile: tile.z, _excess_of_pairs_gradient, curv_power=1)


def _angle_at_column(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return oxy_angle(y, x, c)


def _angle_at_column_gradient(grad: Tensor, x: Tensor, y: Tensor, c: Tensor) -> PointGradients:
    grad_y, grad_x, grad_curv = oxy_angle_gradient(grad, y, x, c)
    return grad_x, grad_y, grad_curv


_SYMMETRIC_GAPS = {
    "dist": Gap(elementwise_dist, elementwise_dist_gradient, DISTANCE, lambda distance: distance),
    "sqdist": Gap(_squared_dist, _squared_dist_gradient, SQUARED_DISTANCE, lambda distance: distance**2),
    "inner": Gap(_negative_inner, _negative_inner_gradient, NEGATIVE_INNER, math.cosh),
}
_EXCESS_OF_INNER = Gap(_excess_of_inner, _excess_of_inner_gradient, EXCESS_OF_INNER, math.cosh)
_ANGLE = Gap(oxy_angle, oxy_angle_gradient, ANGLE_AT_X, lambda distance: math.pi)
_ANGLE_AT_COLUMN = Gap(_angle_at_column, _angle_at_column_gradient, ANGLE_AT_Y, lambda distance: math.pi)

SIMILARITIES = (*_SYMMETRIC_GAPS, "angle")
