"""Items of a hyperbolic space in the Poincaré disk, as a map of an index."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import hypkernels as hk

SAMPLE = 500
_RIM = 1 - 1e-9
"""A radius of 1 would be at infinity; far out ``tanh`` rounds to it."""


class Disk:
    """Puts points of any dimension into the disk of radius 1.

    The radius is that of the Poincaré ball, ``tanh(sqrt(c) d / 2)`` for a distance ``d`` to the origin. The
    angle is that of the point's direction, along the two axes in which the directions of a sample differ
    most. So geodesics to the origin are drawn as radii. Angles between points are only approximate.

    Args:
        sample: points ``(S, D)``, not empty.
        curv: the curvature ``c`` of their space.
    """

    def __init__(self, sample: Tensor, curv: float) -> None:
        self.curv = curv
        directions = _directions(sample)
        self._middle = directions.mean(0)
        axes = torch.linalg.svd(directions - self._middle, full_matrices=False).Vh[:2]
        # The sign of an axis is free: its greatest entry is positive.
        signs = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
        self._axes = torch.zeros(2, sample.shape[1], dtype=torch.float64)
        self._axes[: len(axes)] = axes * signs

    def place(self, points: Tensor) -> list[tuple[float, float]]:
        """The places of points ``(N, D)`` in the disk."""
        distances = hk.dist0(points.double(), self.curv)
        radii = torch.tanh(distances * math.sqrt(self.curv) / 2).clamp_max(_RIM)
        x, y = ((_directions(points) - self._middle) @ self._axes.T).unbind(-1)
        angles = torch.atan2(y, x)
        return list(zip((radii * angles.cos()).tolist(), (radii * angles.sin()).tolist(), strict=True))


def _directions(points: Tensor) -> Tensor:
    return torch.nn.functional.normalize(points.double(), dim=-1)


def sample_places(is_there: Tensor, size: int = SAMPLE) -> Tensor:
    """The places of at most ``size`` items that are not deleted: a fixed random choice, in order."""
    places = is_there.nonzero()[:, 0]
    if len(places) <= size:
        return places
    chosen = torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[:size]
    return places[chosen.sort().values]
