"""The definition: the matrix of all distances in float64, and a stable sort.

Of points nearer to each other than a product of matrices rounds it is as wrong as the functions of
:mod:`hypkernels.pairwise.reference`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hypkernels.distance.reference import time_component
from hypkernels.pairwise.reference import pairwise_inner
from hypkernels.retrieval.problem import Block, Cones, Piece, first_not_finite


class _Matrix:
    """``z`` of all pairs, and which of them may be found, both ``(B, N)``."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self._z: list[Tensor] = []
        self._open: list[Tensor] = []

    def add(self, piece: Piece) -> int | None:
        bad = first_not_finite(piece.rows)
        if bad is not None:
            return bad
        queries, c, cones, groups = self.block
        x, y = queries.double(), piece.rows.double()
        open = torch.ones(len(x), len(y), dtype=torch.bool, device=x.device)
        if piece.allowed is not None:
            open &= piece.allowed
        if piece.groups is not None and groups is not None:
            open &= groups[:, piece.groups] if groups.dim() == 2 else groups[:, None] == piece.groups
        if cones is not None:
            open &= in_cones(x, y, c, cones)
        self._z.append(cosh_distances(x, y, c) - 1)
        self._open.append(open)
        return None

    def matrices(self) -> tuple[Tensor, Tensor]:
        return torch.cat(self._z, 1), torch.cat(self._open, 1)


class Nearest(_Matrix):
    def __init__(self, block: Block, k: int) -> None:
        super().__init__(block)
        self.k = k

    def result(self) -> tuple[Tensor, Tensor]:
        z, open = self.matrices()
        z, ids = z.masked_fill(~open, torch.inf).sort(dim=1, stable=True)
        return z[:, : self.k], ids.masked_fill(z == torch.inf, -1)[:, : self.k]


class Counts(_Matrix):
    def __init__(self, block: Block, targets: Tensor, limits: Tensor) -> None:
        super().__init__(block)
        self.targets = targets[:, None]

    def result(self) -> Tensor:
        z, open = self.matrices()
        limit, index = z.gather(1, self.targets), torch.arange(z.shape[1], device=z.device)
        tied = open & (z == limit) & (index != self.targets)
        return torch.stack([(open & (z < limit)).sum(1), tied.sum(1), (tied & (index < self.targets)).sum(1)])


class Within(_Matrix):
    def __init__(self, block: Block, limit: float) -> None:
        super().__init__(block)
        self.limit = limit

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        z, open = self.matrices()
        query, index = (open & (z <= self.limit)).nonzero(as_tuple=True)
        return query, index, z[query, index]


def z_of_pairs(queries: Tensor, query: Tensor, items: Tensor, c: float) -> Tensor:
    x, y = queries[query].double(), items.double()
    inner = (x * y).sum(-1) - time_component(x, c) * time_component(y, c)
    return (-c * inner - 1).clamp(min=0)


def cosh_distances(queries: Tensor, items: Tensor, c: float) -> Tensor:
    """``cosh(sqrt(c) d)`` of float64 points, ``(B, N)``."""
    return (-c * pairwise_inner(queries, items, c)).clamp(min=1)


def in_cones(queries: Tensor, items: Tensor, c: float, cones: Cones) -> Tensor:
    """``(B, N)`` of bool, by the law of cosines for the exterior angle at the apex."""
    if not cones.at_query:
        return in_cones(items, queries, c, cones._replace(at_query=True)).T
    cosh = cosh_distances(queries, items, c)
    norm = torch.linalg.vector_norm(queries, dim=-1, keepdim=True)
    adjacent = time_component(items, c) - cosh * time_component(queries, c)[:, None]
    angle = torch.acos((adjacent / (norm * torch.sqrt(cosh**2 - 1))).clamp(-1, 1))
    angle = torch.where(cosh == 1, 0.0, torch.where(norm == 0, torch.pi / 2, angle))
    aperture = torch.asin((2 * cones.min_radius / (c**0.5 * norm)).clamp(max=1))
    return angle <= cones.aperture_scale * aperture
