"""Single pairs, computed exactly, and the results found so far: for searches made of PyTorch calls."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hypkernels.cone.closed_form import half_aperture, oxy_angle
from hypkernels.pair_geometry import pair_geometry
from hypkernels.retrieval.problem import Block
from hypkernels.rowwise import chunk_elements
from hypkernels.wide import repaired


class Side(NamedTuple):
    """Points ``(n, D)``, and float64 ``(n,)``: reaches ``P``, ``h = A - 1`` and, for cones, widest
    angles.

    ``h`` is NaN for points beyond the range of the search's products.
    """

    points: Tensor
    P: Tensor
    h: Tensor
    aperture: Tensor | None


class Pairs(NamedTuple):
    """The query, the item and ``z = cosh(sqrt(c) d) - 1`` of each pair; ``z`` is float64."""

    query: Tensor
    item: Tensor
    z: Tensor


class PairSearch:
    """Base of searches that rule out most pairs by bounds and compute the rest."""

    def __init__(self, block: Block, largest: float) -> None:
        """``largest``: bounds hold for reaches from its inverse to it, and for 0."""
        self.curv = block.c  # a number: reading the curvature from a GPU would wait
        self.c = torch.tensor(block.c, dtype=torch.float64, device=block.queries.device)
        self.cones, self.query_groups = block.cones, block.query_groups
        self.width, self._largest = block.queries.shape[1], largest
        self.x = self.side(block.queries, of_queries=True)

    def side(self, points: Tensor, *, of_queries: bool = False) -> Side:
        norm = _norms(points)
        P = torch.sqrt(self.c) * norm
        least, most = torch.minimum(P, norm), torch.maximum(P, norm)
        fits = (norm == 0) | ((least >= 1 / self._largest) & (most <= self._largest))
        h = torch.where(fits, P * P / (1 + torch.sqrt(1 + P * P)), torch.nan)
        aperture = None
        if self.cones is not None and self.cones.at_query == of_queries:
            # The aperture depends on the norm only.
            widest = half_aperture(norm[:, None], self.c, self.cones.min_radius).squeeze(-1)
            aperture = self.cones.aperture_scale * widest
        return Side(points, P, h, aperture)

    def exactly(self, query: Tensor, item: Tensor, first: int, y: Side) -> Pairs:
        """The pairs that are in their cones; item 0 of ``y`` has the index ``first``."""
        step = max(1, chunk_elements(query.device) // self.width)
        parts = [
            self._exactly(*part, first, y) for part in zip(query.split(step), item.split(step), strict=True)
        ]
        return Pairs(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def _exactly(self, query: Tensor, item: Tensor, first: int, y: Side) -> Pairs:
        queries, items = self.x.points[query].double(), y.points[item].double()
        found = Pairs(query, item + first, pair_z(queries, items, self.c))
        if self.cones is None:
            return found
        at_query = self.cones.at_query
        apex, point = (queries, items) if at_query else (items, queries)
        aperture = self.x.aperture if at_query else y.aperture
        assert aperture is not None
        angle = oxy_angle(apex, point, self.c).squeeze(-1)
        inside = angle <= aperture[query if at_query else item]
        return Pairs(*(part[inside] for part in found))


class NearestPairs:
    """The ``k`` nearest items of each query: ``z`` and ``ids``, ``(B, k)``; infinity and -1 for none."""

    def __init__(self, queries: int, k: int, device: torch.device) -> None:
        self.z = torch.full((queries, k), torch.inf, dtype=torch.float64, device=device)
        self.ids = torch.full((queries, k), -1, device=device)

    @property
    def within(self) -> Tensor:
        """The ``z`` up to which an item is kept, ``(B,)``."""
        return self.z[:, -1]

    def add(self, new: Pairs) -> None:
        rows, k = self.z.shape
        held = self.ids >= 0
        own = torch.arange(rows, device=held.device)[:, None].expand(rows, k)[held]
        query = torch.cat([own, new.query])
        z, ids = torch.cat([self.z[held], new.z]), torch.cat([self.ids[held], new.item])
        order = in_order(query, z, ids)
        query, z, ids = query[order], z[order], ids[order]
        starts = torch.searchsorted(query, torch.arange(rows, device=query.device))
        place = torch.arange(len(query), device=query.device) - starts[query]
        kept = place < k
        self.z[query[kept], place[kept]] = z[kept]
        self.ids[query[kept], place[kept]] = ids[kept]


class CountedPairs:
    """For each query how many items are nearer than its target, how many tie, how many of these before."""

    def __init__(self, targets: Tensor, limits: Tensor) -> None:
        self.targets, self.limits = targets, limits
        self.counts = torch.zeros(3, len(targets), dtype=torch.int64, device=targets.device)

    def add(self, new: Pairs) -> None:
        others = new.item != self.targets[new.query]
        query, index, z = (part[others] for part in new)
        tied = z == self.limits[query]
        kinds = z < self.limits[query], tied, tied & (index < self.targets[query])
        for count, of_kind in zip(self.counts, kinds, strict=True):
            count += torch.bincount(query[of_kind], minlength=len(count))


class PairsWithin:
    """All pairs up to a ``z``."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._found: list[Pairs] = []

    def add(self, new: Pairs) -> None:
        inside = new.z <= self.limit
        self._found.append(Pairs(*(part[inside] for part in new)))

    def result(self) -> Pairs:
        return Pairs(*(torch.cat(part) for part in zip(*self._found, strict=True)))


def z_of_pairs(queries: Tensor, query: Tensor, items: Tensor, c: float) -> Tensor:
    """``z`` of each item and the query that ``query`` names, float64."""
    curv = torch.tensor(c, dtype=torch.float64, device=queries.device)
    step = max(1, chunk_elements(queries.device) // queries.shape[1])
    parts = [
        pair_z(queries[rows].double(), those.double(), curv)
        for rows, those in zip(query.split(step), items.split(step), strict=True)
    ]
    return torch.cat([curv.new_empty(0), *parts])


def pair_z(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return _pair_z(x, y, c).squeeze(-1)


@repaired()
def _pair_z(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return pair_geometry(x, y, c)[0].z


def in_order(query: Tensor, z: Tensor, index: Tensor) -> Tensor:
    """The order of pairs: by query, then by ``z``, then by index."""
    order = torch.argsort(index)
    order = order[torch.argsort(z[order], stable=True)]
    return order[torch.argsort(query[order], stable=True)]


def _norms(points: Tensor) -> Tensor:
    """Norms in float64, some rows at a time."""
    step = max(1, chunk_elements(points.device) // points.shape[1])
    return torch.cat([torch.linalg.vector_norm(part.double(), dim=-1) for part in points.split(step)])
