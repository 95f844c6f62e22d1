"""The definition, in plain differentiable PyTorch: the oracle of the tests, meant for float64."""

from __future__ import annotations

from torch import Tensor

from hypkernels.cone.reference import half_aperture, oxy_angle


def entailment_loss(
    apex: Tensor,
    point: Tensor,
    curv: Tensor | float,
    aperture_scale: float = 1.0,
    min_radius: float = 0.1,
    margin: float = 0.0,
    leak: float = 0.0,
) -> Tensor:
    angle = oxy_angle(apex, point, curv)
    outside = angle - aperture_scale * half_aperture(apex, curv, min_radius) + margin
    return outside.relu() + leak * angle
