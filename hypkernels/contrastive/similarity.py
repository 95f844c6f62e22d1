"""What the logits are made of: how far apart two points are, for one pair exactly and for a tile of pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from hypkernels.cone.closed_form import oxy_angle, oxy_angle_gradient
from hypkernels.distance.closed_form import (
    elementwise_dist,
    elementwise_dist_gradient,
    elementwise_inner,
    elementwise_inner_gradient,
)
from hypkernels.pairwise.closed_form import (
    ANGLE_AT_X,
    ANGLE_AT_Y,
    DISTANCE,
    NEGATIVE_INNER,
    SQUARED_DISTANCE,
    PairFunction,
)

PointGradients = tuple[Tensor, Tensor, Tensor]


class Gap(NamedTuple):
    """A function of two points that is smaller the more similar they are.

    ``of_rows`` and ``of_rows_gradient`` are the exact row-wise formulas, on float64 rows; ``of_pairs`` is the
    same function on a tile.
    """

    of_rows: Callable[[Tensor, Tensor, Tensor], Tensor]
    of_rows_gradient: Callable[[Tensor, Tensor, Tensor, Tensor], PointGradients]
    of_pairs: PairFunction


class Logits(NamedTuple):
    """One matrix of logits, and the directions in which its softmax is taken."""

    gap: Gap
    rows: bool
    columns: bool


def logit_matrices(similarity: str, symmetric: bool) -> list[Logits]:
    """One matrix serves both directions, except for the angle: its apex is the item that chooses."""
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


def _angle_at_column(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return oxy_angle(y, x, c)


def _angle_at_column_gradient(grad: Tensor, x: Tensor, y: Tensor, c: Tensor) -> PointGradients:
    grad_y, grad_x, grad_curv = oxy_angle_gradient(grad, y, x, c)
    return grad_x, grad_y, grad_curv


_SYMMETRIC_GAPS = {
    "dist": Gap(elementwise_dist, elementwise_dist_gradient, DISTANCE),
    "sqdist": Gap(_squared_dist, _squared_dist_gradient, SQUARED_DISTANCE),
    "inner": Gap(_negative_inner, _negative_inner_gradient, NEGATIVE_INNER),
}
_ANGLE = Gap(oxy_angle, oxy_angle_gradient, ANGLE_AT_X)
_ANGLE_AT_COLUMN = Gap(_angle_at_column, _angle_at_column_gradient, ANGLE_AT_Y)

SIMILARITIES = (*_SYMMETRIC_GAPS, "angle")
