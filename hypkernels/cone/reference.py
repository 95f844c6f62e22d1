"""The definitions, in plain differentiable PyTorch: the oracle of the tests, meant for float64."""

from __future__ import annotations

import torch
from torch import Tensor

from hypkernels.distance.reference import elementwise_inner, time_component


def half_aperture(x: Tensor, curv: Tensor | float, min_radius: float = 0.1) -> Tensor:
    x_norm = torch.linalg.vector_norm(x, dim=-1)
    return torch.asin((2 * min_radius / (curv**0.5 * x_norm)).clamp(max=1))


def oxy_angle(x: Tensor, y: Tensor, curv: Tensor | float) -> Tensor:
    """The law of cosines in the triangle O-x-y, solved for the exterior angle at ``x``."""
    c_inner = curv * elementwise_inner(x, y, curv)
    adjacent = time_component(y, curv) + c_inner * time_component(x, curv)
    x_norm = torch.linalg.vector_norm(x, dim=-1)
    return torch.acos(adjacent / (x_norm * torch.sqrt(c_inner**2 - 1)))
