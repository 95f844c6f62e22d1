"""The definitions, in plain differentiable PyTorch: the oracle of the tests, meant for float64."""

from __future__ import annotations

import torch
from torch import Tensor

from hypkernels.distance.reference import elementwise_dist, elementwise_inner, time_component


def exp_map0(v: Tensor, curv: Tensor | float) -> Tensor:
    t = (curv**0.5 * torch.linalg.vector_norm(v, dim=-1)).unsqueeze(-1)
    return torch.sinh(t) / t * v


def scaled_exp_map0(x: Tensor, scale: Tensor, curv: Tensor | float) -> Tensor:
    return exp_map0(scale.to(x.device).unsqueeze(-1) * x, curv)


def log_map0(x: Tensor, curv: Tensor | float) -> Tensor:
    s = (curv**0.5 * torch.linalg.vector_norm(x, dim=-1)).unsqueeze(-1)
    return torch.asinh(s) / s * x


def exp_map(x: Tensor, v: Tensor, curv: Tensor | float) -> Tensor:
    v_time = (x * v).sum(-1) / time_component(x, curv)
    tau = (curv * ((v * v).sum(-1) - v_time**2)).sqrt().unsqueeze(-1)
    return torch.cosh(tau) * x + torch.sinh(tau) / tau * v


def log_map(x: Tensor, y: Tensor, curv: Tensor | float) -> Tensor:
    tau = (curv**0.5 * elementwise_dist(x, y, curv)).unsqueeze(-1)
    cosh = (-curv * elementwise_inner(x, y, curv)).unsqueeze(-1)
    return tau / torch.sinh(tau) * (y - cosh * x)
