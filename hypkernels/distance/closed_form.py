"""Row-wise Lorentz inner product and distances: values and gradients in closed form.

Rows are float64 ``(rows, D)``; per-row scalars keep a column, ``(rows, 1)``. The scalars of a pair are those
of :mod:`hypkernels.pair_geometry`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hypkernels.pair_geometry import PairGeometry, norm, of_norm, pair_geometry, ratio, scaled_norm
from hypkernels.scalar_functions import asinhc_slope
from hypkernels.wide import repaired


@repaired()
def elementwise_inner(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """``x.y - x_time y_time = -cosh(kd) / c``, by ``z``: far from the origin the two products cancel."""
    return pair_inner(pair_geometry(x, y, c)[0])


def pair_inner(pair: PairGeometry) -> Tensor:
    return -(1 + pair.z) / pair.c


@repaired(points=2)
def elementwise_inner_gradient(
    grad: Tensor, x: Tensor, y: Tensor, c: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    pair, n = pair_geometry(x, y, c)
    A, B = pair.A, pair.B
    by_y = pair.z_direction(-grad / B, x, n)
    return -B / A * by_y, by_y, grad * (A / B + B / A) / (2 * c * c)


@repaired()
def elementwise_dist(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return pair_dist(pair_geometry(x, y, c)[0])


def pair_dist(pair: PairGeometry) -> Tensor:
    return 2 / pair.k * torch.asinh(torch.sqrt(pair.z / 2))


@repaired(points=2)
def elementwise_dist_gradient(grad: Tensor, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """By points ``dz / (k sinh(kd))``, 0 for coincident ones; by ``c`` a sum of terms of one sign."""
    pair, n = pair_geometry(x, y, c)
    A, B, k, sinh = pair.A, pair.B, pair.k, pair.sinh
    by_y = pair.z_direction(grad * ratio(k, sinh) / B, x, n)
    h = torch.sqrt(pair.z / 2)  # sinh(kd/2)
    excess = -h * h * h * asinhc_slope(h)  # kd/2 - tanh(kd/2)
    radial = ratio(pair.B_minus_A * pair.B_minus_A, 2 * A * B * sinh)
    return -B / A * by_y, by_y, -grad * (excess + radial) / (c * k)


@repaired()
def dist0(x: Tensor, c: Tensor) -> Tensor:
    return _dist0(scaled_norm(norm(x), c), c)


def _dist0(s: Tensor, c: Tensor) -> Tensor:
    return torch.asinh(s) / torch.sqrt(c)


dist0_by_norm = of_norm(_dist0)


@repaired(points=1)
def dist0_gradient(grad: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    x_norm = norm(x)
    s = scaled_norm(x_norm, c)
    scale = grad * ratio(1.0, x_norm * torch.sqrt(1 + s * s))
    return scale * x, grad * x_norm**3 * asinhc_slope(s) / 2
