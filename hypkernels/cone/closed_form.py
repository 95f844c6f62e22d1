"""Entailment cones: half-aperture and exterior angle, values and gradients in closed form.

Rows are float64 ``(rows, D)``; per-row scalars keep a column, ``(rows, 1)``. The scalars of a pair are those
of :mod:`hypkernels.pair_geometry`.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from hypkernels.pair_geometry import PairGeometry, norm, of_norm, pair_geometry, ratio, scaled_norm
from hypkernels.wide import repaired


@repaired()
def half_aperture(x: Tensor, c: Tensor, min_radius: float) -> Tensor:
    return aperture(scaled_norm(norm(x), c), min_radius)


@repaired(points=1)
def half_aperture_gradient(grad: Tensor, x: Tensor, c: Tensor, min_radius: float) -> tuple[Tensor, Tensor]:
    return aperture_gradient(grad, x, scaled_norm(norm(x), c), c, min_radius)


def aperture(s: Tensor, min_radius: float) -> Tensor:
    """The half-aperture of a cone with its apex at ``s = sqrt(c)|x|``: pi/2 for ``s <= 2K``."""
    return torch.atan(_opposite(min_radius) / _beside(s, min_radius))


half_aperture_by_norm = of_norm(lambda s, c, min_radius: aperture(s, min_radius))


def aperture_gradient(
    grad: Tensor, x: Tensor, s: Tensor, c: Tensor, min_radius: float
) -> tuple[Tensor, Tensor]:
    slope = -grad * ratio(_opposite(min_radius), _beside(s, min_radius))
    return c * ratio(slope, s * s) * x, slope / (2 * c)


def _beside(s: Tensor, min_radius: float) -> Tensor:
    """``sqrt(s^2 - 4K^2)``, 0 for ``s <= 2K``: the leg beside the aperture, whose opposite is ``2K``."""
    opposite = _opposite(min_radius)
    return torch.sqrt((s - opposite).clamp(min=0)) * torch.sqrt(s + opposite)


def _opposite(min_radius: float) -> float:
    """``2K``, or the largest float64 number if that is infinite."""
    return 2 * moderate(min_radius)


def moderate(min_radius: float) -> float:
    """A ``min_radius`` whose double is finite: differences and quotients with infinity are NaN."""
    return min(min_radius, sys.float_info.max / 2)


@repaired()
def oxy_angle(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return pair_angle(pair_geometry(x, y, c)[0])


@repaired(points=2)
def oxy_angle_gradient(grad: Tensor, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    pair, n = pair_geometry(x, y, c)
    return pair_angle_gradient(grad, x, n, pair)


def pair_angle(pair: PairGeometry) -> Tensor:
    """The angle between the logarithm of ``y`` at ``x`` and the ray from the origin through ``x``."""
    angle = torch.atan2(torch.sqrt(pair.N2), torch.sqrt(pair.P2) * pair.W)
    return angle.masked_fill_(pair.z == 0, 0)


def pair_angle_gradient(
    grad: Tensor, x: Tensor, n: Tensor, pair: PairGeometry
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by ``x``, ``y`` and (per row) ``c``: 0 where the angle has a kink, ``n = 0`` or ``x = 0``."""
    c, z, P2, N2, A, B = pair.c, pair.z, pair.P2, pair.N2, pair.A, pair.B
    PN = torch.sqrt(P2) * torch.sqrt(N2)
    turn_x = pair.alpha * P2 * pair.W + A * N2  # = A Q^2 - B P Q cos(xOy)
    turn_y = pair.alpha * z + pair.alpha_minus_1
    lateral = N2 * (1 + z)
    scale = grad * ratio(1.0, z * (z + 2) * PN)
    by_curv = scale * (N2 * P2) * turn_x / (2 * c * A * B)
    scale = scale * c
    grad_x = (scale * lateral / A * x).addcmul_(-scale * turn_x, n)
    grad_y = (-scale / B * lateral * x).addcmul_(scale / B * P2 * turn_y, n)
    return grad_x, grad_y, by_curv
