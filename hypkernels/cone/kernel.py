"""Triton kernels of the half-aperture and the exterior angle.

Formulas of the scalars of a row, the same as in :mod:`hypkernels.cone.closed_form`; the kernels that apply
them to rows are those of :mod:`hypkernels.tritonlib.row_kernels`.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from hypkernels.cone.closed_form import moderate
from hypkernels.tritonlib.manifest import Variant
from hypkernels.tritonlib.pair_geometry import PairGradient, ratio
from hypkernels.tritonlib.row_kernels import (
    launch_backward,
    launch_forward,
    norm_backward,
    norm_forward,
    op_variants,
    pair_backward,
    pair_forward,
)
from hypkernels.tritonlib.scalar_math import atan2_positive


@triton.jit
def aperture(s, min_radius):
    """The half-aperture at ``s = sqrt(c)|x|``: pi/2 for ``s <= 2K``."""
    return atan2_positive(2.0 * min_radius, _beside(s, min_radius))


@triton.jit
def aperture_slope(s, min_radius):
    """Its derivative by ``log s``, 0 for ``s <= 2K``."""
    return -ratio(2.0 * min_radius, _beside(s, min_radius))


@triton.jit
def _beside(s, min_radius):
    """``sqrt(s^2 - 4K^2)``, 0 for ``s <= 2K``: the leg beside the aperture, whose opposite is ``2K``."""
    return tl.sqrt(tl.maximum(s - 2.0 * min_radius, 0.0)) * tl.sqrt(s + 2.0 * min_radius)


@triton.jit
def _half_aperture(x_norm, c, options):
    return aperture(tl.sqrt(c) * x_norm, options[0])


@triton.jit
def _half_aperture_gradient(grad, x_norm, c, options):
    s = tl.sqrt(c) * x_norm
    slope = grad * aperture_slope(s, options[0])
    return c * ratio(slope, s * s), slope / (2.0 * c)


@triton.jit
def angle(pair, options):
    """The angle between the logarithm of ``y`` at ``x`` and the ray from the origin through ``x``."""
    direction = atan2_positive(tl.sqrt(pair.N2), tl.sqrt(pair.P2) * pair.W)
    return tl.where(pair.z == 0.0, 0.0, direction)


@triton.jit
def angle_gradient(grad, pair, options):
    """The gradient of the angle; 0 where it has a kink, ``n = 0`` or ``x = 0``."""
    c, z, P2, N2, A, B = pair.c, pair.z, pair.P2, pair.N2, pair.A, pair.B
    PN = tl.sqrt(P2) * tl.sqrt(N2)
    turn_x = pair.alpha * P2 * pair.W + A * N2
    turn_y = pair.alpha * z + pair.alpha_minus_1
    lateral = N2 * (1.0 + z)
    scale = grad * ratio(c, z * (z + 2.0) * PN)
    by_curv = scale * (N2 * P2) * turn_x / (2.0 * c * c * A * B)
    return PairGradient(
        scale * lateral / A, -scale * turn_x, -scale / B * lateral, scale / B * P2 * turn_y, by_curv
    )


def half_aperture(x: Tensor, curv: Tensor, min_radius: float) -> Tensor:
    return launch_forward(norm_forward, _half_aperture, (x,), curv, moderate(min_radius))


def half_aperture_backward(grad: Tensor, x: Tensor, curv: Tensor, min_radius: float) -> tuple[Tensor, ...]:
    return launch_backward(norm_backward, _half_aperture_gradient, grad, (x,), curv, moderate(min_radius))


def oxy_angle(x: Tensor, y: Tensor, curv: Tensor) -> Tensor:
    return launch_forward(pair_forward, angle, (x, y), curv)


def oxy_angle_backward(grad: Tensor, x: Tensor, y: Tensor, curv: Tensor) -> tuple[Tensor, ...]:
    return launch_backward(pair_backward, angle_gradient, grad, (x, y), curv)


def aot_variants() -> Iterator[Variant]:
    yield from op_variants(__name__, "half_aperture", points=1, options=(0.1,))
    yield from op_variants(__name__, "oxy_angle", points=2)
