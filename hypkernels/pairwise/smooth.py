"""Functions of all pairs as formulas that can be differentiated any number of times.

Plain out-of-place PyTorch on float64 sets ``(..., M, D)`` and ``(..., N, D)``, with matrices of all pairs;
the curvature is 0-d or ``(...)``. They resolve pairs as :mod:`hypkernels.pairwise.closed_form` does: where a
matrix product cannot tell two points apart, distance and angle are 0, and so are all derivatives.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hypkernels.pair_geometry import dot
from hypkernels.pairwise.geometry import RESOLUTION_ULPS
from hypkernels.smooth_geometry import NEAR_ORIGIN, asinhc_of_square, sqrt_or_0, where_safe


class Pairs(NamedTuple):
    """``x_sq, A`` are ``(..., M, 1)``, ``y_sq, B`` are ``(..., 1, N)``, all others ``(..., M, N)``.

    ``lateral = |x||y| - x.y`` and ``M = z/c`` with ``z = cosh(kd) - 1``.
    """

    c: Tensor
    x_sq: Tensor
    y_sq: Tensor
    gram: Tensor
    A: Tensor
    B: Tensor
    lateral: Tensor
    M: Tensor
    resolved: Tensor


def _pairs(x: Tensor, y: Tensor, curv: Tensor) -> Pairs:
    c = curv.reshape(*curv.shape, 1, 1) if curv.dim() else curv
    x_sq, y_sq, gram = dot(x, x), dot(y, y).mT, x @ y.mT
    A, B = torch.sqrt(1 + c * x_sq), torch.sqrt(1 + c * y_sq)
    near_origin = c * torch.minimum(x_sq, y_sq) < NEAR_ORIGIN**2
    x_norm, y_norm = (where_safe(~near_origin, torch.sqrt, square) for square in (x_sq, y_sq))
    lateral = (x_norm * y_norm - gram).clamp(min=0)
    away = lateral + (y_norm - x_norm) ** 2 / (1 + A * B + c * x_norm * y_norm)
    M = torch.where(near_origin, (x_sq + y_sq + c * x_sq * y_sq) / (1 + A * B) - gram, away)
    resolution = RESOLUTION_ULPS * torch.finfo(M.dtype).eps * torch.sqrt(x_sq * y_sq).detach()
    return Pairs(c, x_sq, y_sq, gram, A, B, lateral, M, resolution < M)


def pairwise_inner(x: Tensor, y: Tensor, curv: Tensor) -> Tensor:
    pairs = _pairs(x, y, curv)
    return -(1 / pairs.c + pairs.M)


def pairwise_dist(x: Tensor, y: Tensor, curv: Tensor) -> Tensor:
    """``2 h asinhc(k h)`` with ``k h = sinh(kd/2)``"""
    pairs = _pairs(x, y, curv)
    h_sq = torch.where(pairs.resolved, pairs.M / 2, 0.0)
    return 2 * sqrt_or_0(h_sq) * asinhc_of_square(pairs.c * h_sq)


def pairwise_oxy_angle(x: Tensor, y: Tensor, curv: Tensor) -> Tensor:
    """``atan2`` of ``|x||n|`` and ``|x|^2 W``, both over a constant that keeps their squares in range."""
    pairs = _pairs(x, y, curv)
    x_sq, y_sq, gram, A, B = pairs.x_sq, pairs.y_sq, pairs.gram, pairs.A, pairs.B
    wedge = (x_sq * y_sq - gram * gram).clamp(min=0)
    same_side = gram > 0
    facing = torch.where(same_side, gram * A + x_sq * B, 1.0)
    inward = x_sq - gram
    outward = torch.where(
        same_side, (-inward * (gram + x_sq) - pairs.c * x_sq * wedge) / facing, gram * A - x_sq * B
    )
    kink = (wedge <= 0) | ~pairs.resolved
    lateral = sqrt_or_0(wedge)
    unit = torch.where(kink, 1.0, lateral + outward.abs()).detach()
    angle = torch.atan2(torch.where(kink, 1.0, lateral) / unit, torch.where(kink, 1.0, outward) / unit)
    at_kink = torch.where(outward < 0, math.pi, torch.zeros_like(outward))
    at_kink = torch.where(x_sq == 0, math.pi / 2, at_kink)
    return torch.where(kink, torch.where(pairs.resolved, at_kink, 0.0), angle)
