"""Half-aperture and exterior angle as formulas that can be differentiated twice.

For derivatives of any order; see :mod:`hypkernels.smooth_geometry`. Arguments are those of
:mod:`hypkernels.cone.reference`, with points as float64 rows ``(rows, D)``, the curvature 0-d or
``(rows, 1)`` and results ``(rows, 1)``. Derivatives are 0 where the angle has a kink, and where the aperture
is pi/2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hypkernels.pair_geometry import dot
from hypkernels.smooth_geometry import smooth_pair, sqrt_or_0


def half_aperture(x: Tensor, c: Tensor, min_radius: float) -> Tensor:
    """``atan2(K, sqrt(s^2 / 4 - K^2))``: halves, as ``2K`` may be infinite."""
    s = 0.5 * torch.sqrt(c) * sqrt_or_0(dot(x, x))
    beside = sqrt_or_0((s - min_radius).clamp(min=0) * (s + min_radius))
    return torch.where(beside > 0, torch.atan2(min_radius + torch.zeros_like(s), beside), math.pi / 2)


def oxy_angle(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """``atan2(|x||n|, |x|^2 W)``, both over a constant that keeps their squares in range."""
    pair = smooth_pair(x, y, c)
    A, B, x_sq, gram, x_delta = pair.A, pair.B, pair.x_sq, pair.gram, dot(x, y - x)
    same_side = gram > 0
    facing = torch.where(same_side, gram * A + x_sq * B, 1.0)
    outward = torch.where(
        same_side,
        (x_delta * (gram + x_sq) - c * x_sq * pair.across.square) / facing,
        gram * A - x_sq * B,
    )
    kink = pair.across.collinear | (x_sq == 0)
    lateral = sqrt_or_0(pair.across.longer_sq) * sqrt_or_0(pair.across.n_sq)
    unit = torch.where(kink, 1.0, lateral + outward.abs()).detach()
    angle = torch.atan2(torch.where(kink, 1.0, lateral) / unit, torch.where(kink, 1.0, outward) / unit)
    at_kink = torch.where(outward < 0, math.pi, torch.zeros_like(outward))
    at_kink = torch.where(x_sq == 0, math.pi / 2, at_kink)
    at_kink = torch.where(pair.delta_sq == 0, 0.0, at_kink)
    return torch.where(kink, at_kink, angle)
