"""Drawn sets of points of curvature -1, in four regimes that are of different difficulty for engines."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize


def near(count: int, width: int, generator: torch.Generator) -> Tensor:
    """Any direction, 0.3 to 1.2 from the origin: no two are close, as in a batch of unlike images."""
    return _shell(count, width, 0.3, 1.2, generator)


def clustered(count: int, width: int, generator: torch.Generator) -> Tensor:
    """200 clusters, 0.5 to 1.5 from the origin, as classes are."""
    centres = _shell(200, width, 0.5, 1.5, generator)
    chosen = torch.randint(len(centres), (count,), generator=generator)
    return centres[chosen] + 0.35 / width**0.5 * _normal(count, width, generator)


def tree(count: int, width: int, generator: torch.Generator) -> Tensor:
    """Each point has four children, 0.8 farther out, up to 6.4; deeper ones are closer in direction."""
    directions, radius = _normal(count, width, generator), torch.zeros(count, dtype=torch.float64)
    first, size = 1, 4  # of a level
    while first < count:
        children = torch.arange(first, min(count, first + size))
        parents = (children - 1) // 4
        radius[children] = radius[parents] + 0.8
        directions[children] = (
            directions[parents] + (-radius[parents] / 2).exp()[:, None] * directions[children]
        )
        first, size = first + size, 4 * size
    return radius.sinh()[:, None] * normalize(directions, dim=1)


def far(count: int, width: int, generator: torch.Generator) -> Tensor:
    """Any direction, 0.5 to 6 from the origin, where time coordinates reach 200."""
    return _shell(count, width, 0.5, 6.0, generator)


REGIMES: dict[str, Callable[[int, int, torch.Generator], Tensor]] = {
    "near": near,
    "clustered": clustered,
    "tree": tree,
    "far": far,
}


def draw(regime: str, count: int, queries: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points ``(count, width)`` and queries ``(queries, width)`` of one set, float32."""
    generator = torch.Generator().manual_seed(seed)
    points = REGIMES[regime](count + queries, width, generator).float()
    points = points[torch.randperm(len(points), generator=generator)]
    return points[queries:], points[:queries]


def _shell(count: int, width: int, least: float, most: float, generator: torch.Generator) -> Tensor:
    radius = least + (most - least) * torch.rand(count, 1, generator=generator, dtype=torch.float64)
    return radius.sinh() * normalize(_normal(count, width, generator), dim=1)


def _normal(count: int, width: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, width, generator=generator, dtype=torch.float64)
