"""The hinge of the entailment cone: value and gradient in closed form, on float64 rows."""

from __future__ import annotations

import torch
from torch import Tensor

from hypkernels.cone.closed_form import aperture, aperture_gradient, pair_angle, pair_angle_gradient
from hypkernels.pair_geometry import PairGeometry, pair_geometry
from hypkernels.wide import repaired


@repaired()
def entailment_loss(
    apex: Tensor,
    point: Tensor,
    c: Tensor,
    aperture_scale: float,
    min_radius: float,
    margin: float,
    leak: float,
) -> Tensor:
    pair, _ = pair_geometry(apex, point, c)
    return pair_entailment_loss(pair, aperture_scale, min_radius, margin, leak)


def pair_entailment_loss(
    pair: PairGeometry, aperture_scale: float, min_radius: float, margin: float, leak: float
) -> Tensor:
    angle = pair_angle(pair)
    outside = angle - aperture_scale * aperture(torch.sqrt(pair.P2), min_radius) + margin
    return outside.relu() + leak * angle


@repaired(points=2)
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
    pair, n = pair_geometry(apex, point, c)
    s = torch.sqrt(pair.P2)
    residual = pair_angle(pair) - aperture_scale * aperture(s, min_radius) + margin
    outside = (residual > 0).double()
    by_apex, by_point, by_curv = pair_angle_gradient(grad * (outside + leak), apex, n, pair)
    aperture_by_apex, aperture_by_curv = aperture_gradient(
        -aperture_scale * grad * outside, apex, s, c, min_radius
    )
    return by_apex + aperture_by_apex, by_point, by_curv + aperture_by_curv
