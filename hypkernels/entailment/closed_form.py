"""The hinge of the entailment cone: value and gradient in closed form, on float64 rows."""

from __future__ import annotations

from torch import Tensor

from hypkernels.cone.closed_form import half_aperture, half_aperture_gradient, pair_angle, pair_angle_gradient
from hypkernels.pair_geometry import pair_geometry


def entailment_loss(
    apex: Tensor,
    point: Tensor,
    c: Tensor,
    aperture_scale: float,
    min_radius: float,
    margin: float,
    leak: float,
) -> Tensor:
    angle = pair_angle(pair_geometry(apex, point, c))
    outside = angle - aperture_scale * half_aperture(apex, c, min_radius) + margin
    return outside.relu() + leak * angle


def entailment_loss_gradient(
    grad: Tensor,
    apex: Tensor,
    point: Tensor,
    c: Tensor,
    aperture_scale: float,
    min_radius: float,
    margin: float,
    leak: float,
) -> tuple[Tensor, Tensor, Tensor]:
    pair = pair_geometry(apex, point, c)
    residual = pair_angle(pair) - aperture_scale * half_aperture(apex, c, min_radius) + margin
    outside = (residual > 0).double()
    by_apex, by_point, by_curv = pair_angle_gradient(grad * (outside + leak), pair)
    aperture_by_apex, aperture_by_curv = half_aperture_gradient(
        -aperture_scale * grad * outside, apex, c, min_radius
    )
    return by_apex + aperture_by_apex, by_point, by_curv + aperture_by_curv
