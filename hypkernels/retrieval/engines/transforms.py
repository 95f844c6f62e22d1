"""Vectors for engines that know L2, cosine or inner products, in the order of hyperbolic distance.

For a query ``q`` with time coordinate ``u`` and an item ``x`` with ``t`` the distance grows with
``z = u t - q.x``. With ``M`` and ``C`` the largest values that keep the square roots real:

============  ===========================================  =======================  ========  ================
name          item                                         query                    metric    order
============  ===========================================  =======================  ========  ================
``inner``     ``(x, t)``                                   ``(q, -u)``              inner     of ``z``
``augmented`` ``(x, t, sqrt(M - |x|^2 - t^2))``            ``(q, -u, 0)``           L2        of ``z``
``cosine``    the same                                     the same                 cosine    of ``z``
``centred``   ``(x, sqrt(C - (t - s)^2))``                 ``(s q / u, 0)``         L2        of ``z``
``tangent``   ``log_map0(x)``                              ``log_map0(q)``          L2        near that of z
``ball``      ``lorentz_to_ball(x)``                       ``lorentz_to_ball(q)``   L2        near that of z
============  ===========================================  =======================  ========  ================

``centred`` follows from ``|x|^2 = t^2 - 1/c``: the squared distance of its vectors is a constant of the
query plus ``2 s z / u``. With ``s`` half-way between the least and the largest time coordinate, ``C`` is
as small as it can be and queries lie near their items, as graphs and clusters expect. Queries of
``augmented`` lie far from all items.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from hypkernels.conventions import lorentz_to_ball, space_to_full
from hypkernels.lorentz import log_map0

Metric = Literal["l2", "cosine", "inner"]


class Transform(ABC):
    """From points ``(n, D)`` to float32 vectors ``(n, width)``.

    Args:
        curv: positive ``c``.
        points_width: ``D``.
        longest: the largest time coordinate that an item may have.
    """

    metric: ClassVar[Metric] = "l2"
    extra: ClassVar[int] = 0  # components beyond those of the points

    def __init__(self, curv: float, points_width: int, longest: float) -> None:
        self.curv, self.longest = curv, longest
        self.width = points_width + self.extra

    @property
    def largest(self) -> float:
        """A bound of the components of items' vectors."""
        return self.longest

    def items(self, points: Tensor) -> np.ndarray:
        return _float32(self._items(*self._split(points)))

    def queries(self, points: Tensor) -> np.ndarray:
        return _float32(self._queries(*self._split(points)))

    def _split(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Space components ``(n, D)`` and time ``(n, 1)`` in float64."""
        full = space_to_full(points.double(), self.curv)
        return full[:, 1:], full[:, :1]

    @abstractmethod
    def _items(self, x: Tensor, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _queries(self, q: Tensor, u: Tensor) -> Tensor: ...


class Inner(Transform):
    metric = "inner"
    extra = 1

    def _items(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([x, t], 1)

    def _queries(self, q: Tensor, u: Tensor) -> Tensor:
        return torch.cat([q, -u], 1)


class Augmented(Transform):
    extra = 2

    @property
    def largest(self) -> float:
        return math.sqrt(2) * self.longest

    def _items(self, x: Tensor, t: Tensor) -> Tensor:
        rest = 2 * (self.longest - t) * (self.longest + t)  # M - |x|^2 - t^2
        return torch.cat([x, t, rest.clamp(min=0).sqrt()], 1)

    def _queries(self, q: Tensor, u: Tensor) -> Tensor:
        return torch.cat([q, -u, torch.zeros_like(u)], 1)


class Cosine(Augmented):
    metric = "cosine"


class Centred(Transform):
    extra = 1

    def __init__(self, curv: float, points_width: int, longest: float) -> None:
        super().__init__(curv, points_width, longest)
        self.shortest = 1 / math.sqrt(curv)
        self.centre = (self.shortest + longest) / 2

    def _items(self, x: Tensor, t: Tensor) -> Tensor:
        rest = (self.longest - t) * (t - self.shortest)  # C - (t - s)^2
        return torch.cat([x, rest.clamp(min=0).sqrt()], 1)

    def _queries(self, q: Tensor, u: Tensor) -> Tensor:
        return torch.cat([self.centre * (q / u), torch.zeros_like(u)], 1)


class _Coordinates(Transform):
    """Coordinates that are the same map for items and queries."""

    def _queries(self, q: Tensor, u: Tensor) -> Tensor:
        return self._items(q, u)


class Tangent(_Coordinates):
    @property
    def largest(self) -> float:
        return radius_of(self.longest, self.curv)

    def _items(self, x: Tensor, t: Tensor) -> Tensor:
        return log_map0(x, self.curv)


class Ball(_Coordinates):
    @property
    def largest(self) -> float:
        return 1 / math.sqrt(self.curv)

    def _items(self, x: Tensor, t: Tensor) -> Tensor:
        return lorentz_to_ball(x, self.curv)


TRANSFORMS: dict[str, type[Transform]] = {
    "inner": Inner,
    "augmented": Augmented,
    "cosine": Cosine,
    "centred": Centred,
    "tangent": Tangent,
    "ball": Ball,
}


def radius_of(time: float, curv: float) -> float:
    """The distance to the origin of a point with this time coordinate."""
    root = math.sqrt(curv)
    return math.acosh(max(1.0, root * time)) / root


def time_at(radius: float, curv: float) -> float:
    """The time coordinate of a point at this distance to the origin, at most 1e304."""
    root = math.sqrt(curv)
    return math.cosh(min(root * radius, 700.0)) / root


def _float32(vectors: Tensor) -> np.ndarray:
    return np.ascontiguousarray(vectors.float().numpy())
