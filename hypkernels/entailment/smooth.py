"""The hinge of the entailment cone as a formula that can be differentiated twice.

For derivatives of any order; see :mod:`hypkernels.cone.smooth`, whose arguments and conventions these are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hypkernels.cone.smooth import half_aperture, oxy_angle


def entailment_loss(
    apex: Tensor,
    point: Tensor,
    c: Tensor,
    aperture_scale: float,
    min_radius: float,
    margin: float,
    leak: float,
) -> Tensor:
    angle = oxy_angle(apex, point, c)
    outside = angle - aperture_scale * half_aperture(apex, c, min_radius) + margin
    return torch.where(outside > 0, outside, 0.0) + leak * angle
