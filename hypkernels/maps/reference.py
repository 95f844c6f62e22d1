"""The definitions, in plain differentiable PyTorch: the oracle of the tests, meant for float64."""

from __future__ import annotations

import torch
from torch import Tensor


def exp_map0(v: Tensor, curv: Tensor | float) -> Tensor:
    t = torch.as_tensor(curv).sqrt() * torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    return torch.sinh(t) / t * v


def log_map0(x: Tensor, curv: Tensor | float) -> Tensor:
    s = torch.as_tensor(curv).sqrt() * torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.asinh(s) / s * x
