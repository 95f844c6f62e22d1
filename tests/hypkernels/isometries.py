"""Motions of hyperbolic space, in float64: what distances must not notice."""

import torch
from torch import Tensor


def random_rotation(width: int, generator: torch.Generator) -> Tensor:
    q, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    return q


def boost(points: Tensor, velocity: Tensor, curv: float) -> Tensor:
    """Space components after the Lorentz boost of ``velocity``, ``|velocity| < 1``."""
    time = torch.sqrt(1 / curv + (points * points).sum(-1, keepdim=True))
    gamma = 1 / torch.sqrt(1 - velocity @ velocity)
    along = points @ velocity
    return points + (gamma**2 / (1 + gamma) * along.unsqueeze(-1) + gamma * time) * velocity
