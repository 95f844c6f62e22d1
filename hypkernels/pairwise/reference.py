"""The definitions, in plain differentiable PyTorch: the oracle of the tests, meant for float64."""

from __future__ import annotations

import torch
from torch import Tensor

from hypkernels.distance.reference import time_component


def pairwise_inner(x: Tensor, y: Tensor, curv: Tensor | float) -> Tensor:
    return x @ y.mT - _column(time_component(x, curv)) * _row(time_component(y, curv))


def pairwise_dist(x: Tensor, y: Tensor, curv: Tensor | float) -> Tensor:
    return torch.acosh(-curv * pairwise_inner(x, y, curv)) / curv**0.5


def pairwise_oxy_angle(x: Tensor, y: Tensor, curv: Tensor | float) -> Tensor:
    """The law of cosines in the triangle O-x-y, solved for the exterior angle at ``x``."""
    c_inner = curv * pairwise_inner(x, y, curv)
    adjacent = _row(time_component(y, curv)) + c_inner * _column(time_component(x, curv))
    x_norm = _column(torch.linalg.vector_norm(x, dim=-1))
    return torch.acos(adjacent / (x_norm * torch.sqrt(c_inner**2 - 1)))


def _column(scalars: Tensor) -> Tensor:
    return scalars.unsqueeze(-1)


def _row(scalars: Tensor) -> Tensor:
    return scalars.unsqueeze(-2)
