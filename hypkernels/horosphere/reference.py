"""The definition, in plain differentiable PyTorch: the oracle of the tests, meant for float64."""

from __future__ import annotations

import torch
from torch import Tensor


def busemann(x: Tensor, direction: Tensor, curv: Tensor | float) -> Tensor:
    along = (x * direction).sum(-1) / torch.linalg.vector_norm(direction, dim=-1)
    return torch.log((1 + curv * (x * x).sum(-1)) ** 0.5 - curv**0.5 * along) / curv**0.5
