"""The definitions, in plain differentiable PyTorch: the oracle of the tests, meant for float64."""

from __future__ import annotations

import torch
from torch import Tensor

from hypkernels.distance.reference import time_component

# ``curv`` is one number for all pairs, or a tensor of one for each matrix of them.


def pairwise_inner(x: Tensor, y: Tensor, curv: Tensor | float) -> Tensor:
    c = _beside(curv)
    return x @ y.mT - _column(time_component(x, c)) * _row(time_component(y, c))


def pairwise_dist(x: Tensor, y: Tensor, curv: Tensor | float) -> Tensor:
    c = _beside(_beside(curv))
    return torch.acosh(-c * pairwise_inner(x, y, curv)) / c**0.5


def pairwise_oxy_angle(x: Tensor, y: Tensor, curv: Tensor | float) -> Tensor:
    """The law of cosines in the triangle O-x-y, solved for the exterior angle at ``x``."""
    c = _beside(curv)
    c_inner = _beside(c) * pairwise_inner(x, y, curv)
    adjacent = _row(time_component(y, c)) + c_inner * _column(time_component(x, c))
    x_norm = _column(torch.linalg.vector_norm(x, dim=-1))
    return torch.acos(adjacent / (x_norm * torch.sqrt(c_inner**2 - 1)))


def _beside(curv: Tensor | float) -> Tensor | float:
    return curv.unsqueeze(-1) if isinstance(curv, Tensor) and curv.dim() else curv


def _column(scalars: Tensor) -> Tensor:
    return scalars.unsqueeze(-1)


def _row(scalars: Tensor) -> Tensor:
    return scalars.unsqueeze(-2)
