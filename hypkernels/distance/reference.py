"""The definitions, in plain differentiable PyTorch: the oracle of the tests, meant for float64."""

from __future__ import annotations

import torch
from torch import Tensor


def time_component(x: Tensor, curv: Tensor | float) -> Tensor:
    return (1 / curv + (x * x).sum(-1)) ** 0.5


def elementwise_inner(x: Tensor, y: Tensor, curv: Tensor | float) -> Tensor:
    return (x * y).sum(-1) - time_component(x, curv) * time_component(y, curv)


def elementwise_dist(x: Tensor, y: Tensor, curv: Tensor | float) -> Tensor:
    return torch.acosh(-curv * elementwise_inner(x, y, curv)) / curv**0.5


def dist0(x: Tensor, curv: Tensor | float) -> Tensor:
    return torch.acosh(curv**0.5 * time_component(x, curv)) / curv**0.5
