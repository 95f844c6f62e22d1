"""The searches in PyTorch calls, on any device: a tile of pairs at a time, never all of them.

A float64 product tells of each pair within which bounds ``z = cosh(k d) - 1`` lies. With ``h = A - 1`` and
``u`` a unit of rounding,

    z = T - c x.y,   T = h_x (1 + h_y) + h_y,   |error| <= u ((D + 8) P Q + 8 T).

Pairs that the bounds do not decide are computed from the points themselves, row by row. On a GPU that stands
in for kernels, and waits for the device once a tile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hypkernels.cone.closed_form import half_aperture, oxy_angle
from hypkernels.pair_geometry import pair_geometry
from hypkernels.retrieval.problem import Block, Piece, first_not_finite
from hypkernels.rowwise import chunk_elements
from hypkernels.wide import repaired

# Of a tile, or of the points of its items; some eight such matrices of float64 are held at once.
_CPU_TILE, _GPU_TILE = 1 << 18, 1 << 22
_ROUNDING = 2.0**-53
# What products in float64 allow of P and of norms, besides 0.
_LEAST, _LARGEST = 1e-70, 1e70


class _Side(NamedTuple):
    """float64: points ``(n, D)``, and ``(n,)`` reaches, ``h = A - 1`` and, of cones, widest angles."""

    points: Tensor
    P: Tensor
    h: Tensor
    aperture: Tensor | None


class _Tile(NamedTuple):
    """Pairs of all queries and the items from ``first``: bounds of ``z``, and which may be found."""

    first: int
    items: _Side
    least: Tensor
    most: Tensor
    open: Tensor


class _Pairs(NamedTuple):
    query: Tensor
    item: Tensor
    z: Tensor


class _Tiles:
    """What the searches share."""

    def __init__(self, block: Block) -> None:
        self.c = torch.tensor(block.c, dtype=torch.float64, device=block.queries.device)
        self.cones, self.query_groups = block.cones, block.query_groups
        self.width = block.queries.shape[1]
        self.x = self._side(block.queries, self.cones is not None and self.cones.at_query)

    def _side(self, points: Tensor, has_cones: bool) -> _Side:
        wide = points.double()
        norm = torch.linalg.vector_norm(wide, dim=-1)
        P = torch.sqrt(self.c) * norm
        fits = (norm == 0) | ((torch.minimum(P, norm) >= _LEAST) & (torch.maximum(P, norm) <= _LARGEST))
        h = torch.where(fits, P * P / (1 + torch.sqrt(1 + P * P)), torch.nan)
        aperture = None
        if has_cones:
            assert self.cones is not None
            aperture = self.cones.aperture_scale * half_aperture(wide, self.c, self.cones.min_radius).squeeze(
                -1
            )
        return _Side(wide, P, h, aperture)

    def add(self, piece: Piece) -> int | None:
        bad = first_not_finite(piece.rows)
        if bad is not None:
            return bad
        size = _CPU_TILE if piece.rows.device.type == "cpu" else _GPU_TILE
        step = max(1, size // max(len(self.x.P), self.width))
        for start in range(0, len(piece.rows), step):
            place = slice(start, start + step)
            self.add_tile(self._tile(piece, place))
        return None

    def add_tile(self, tile: _Tile) -> None:
        raise NotImplementedError

    def _tile(self, piece: Piece, place: slice) -> _Tile:
        x, y = self.x, self._side(piece.rows[place], self.cones is not None and not self.cones.at_query)
        T = torch.addcmul(y.h, x.h[:, None], 1 + y.h)
        z = torch.addmm(T, x.points, y.points.T, alpha=-self.c.item())
        error = torch.outer((self.width + 8) * 1.01 * _ROUNDING * x.P, y.P).add_(T, alpha=8 * _ROUNDING)
        least, most = z - error, z + error
        open = torch.ones_like(least, dtype=torch.bool)
        if piece.allowed is not None:
            open &= piece.allowed[place]
        if piece.groups is not None:
            assert self.query_groups is not None
            groups = piece.groups[place]
            several = self.query_groups.dim() == 2
            open &= self.query_groups[:, groups] if several else self.query_groups[:, None] == groups
        if self.cones is not None:
            open &= ~self._beyond_cone(least.clamp(min=0), y)
        return _Tile(piece.first + place.start, y, least, most, open)

    def _beyond_cone(self, least: Tensor, y: _Side) -> Tensor:
        """Where the angle at the apex is certainly too wide: ``h_y - h_x - A z < cos(aperture) P sinh(kd)``.

        That is for apertures that are at most a right angle: the difference falls as ``z`` grows.
        """
        x = self.x
        at_query = self.cones is not None and self.cones.at_query
        apex, other = (x, y) if at_query else (y, x)
        shape = (-1, 1) if at_query else (1, -1)
        assert apex.aperture is not None
        decides = apex.aperture <= torch.pi / 2
        turned = torch.where(decides, apex.P * torch.cos(apex.aperture), torch.nan).view(shape)
        own, far = apex.h.view(shape), other.h.view(shape[::-1])
        turn, fall = turned * torch.sqrt(least * (least + 2)), (1 + own) * least
        return far - own - fall - turn < -32 * _ROUNDING * (far + own + fall + turn)

    def pairs(self, open: Tensor, tile: _Tile) -> _Pairs:
        """Exactly, those that are in their cones."""
        query, item = open.nonzero(as_tuple=True)
        step = max(1, chunk_elements(open.device) // self.width)
        parts = []
        for start in range(0, len(query), step):
            rows, columns = query[start : start + step], item[start : start + step]
            x, y = self.x.points[rows], tile.items.points[columns]
            parts.append(_Pairs(rows, columns + tile.first, pair_z(x, y, self.c)))
            if self.cones is not None:
                apex, point = (x, y) if self.cones.at_query else (y, x)
                aperture = self.x.aperture if self.cones.at_query else tile.items.aperture
                assert aperture is not None
                angle = oxy_angle(apex, point, self.c).squeeze(-1)
                inside = angle <= aperture[rows if self.cones.at_query else columns]
                parts[-1] = _Pairs(*(part[inside] for part in parts[-1]))
        if not parts:
            return _Pairs(query, item, self.c.new_empty(0))
        return _Pairs(*(torch.cat(part) for part in zip(*parts, strict=True)))


class Nearest(_Tiles):
    def __init__(self, block: Block, k: int) -> None:
        super().__init__(block)
        shape = (len(block.queries), k)
        self.z = self.c.new_full(shape, torch.inf)
        self.ids = torch.full(shape, -1, device=self.c.device)

    def add_tile(self, tile: _Tile) -> None:
        k = self.z.shape[1]
        within = self.z[:, -1]
        if self.cones is None and tile.most.shape[1] > k:
            most = tile.most.masked_fill(~tile.open | tile.most.isnan(), torch.inf)
            within = torch.minimum(within, most.kthvalue(k, dim=1).values)
        new = self.pairs(tile.open & ~(tile.least > within[:, None]), tile)
        if len(new.query):
            self._merge(new)

    def _merge(self, new: _Pairs) -> None:
        rows, k = self.z.shape
        held = self.ids >= 0
        own = torch.arange(rows, device=held.device)[:, None].expand(rows, k)[held]
        query = torch.cat([own, new.query])
        order = in_order(query, torch.cat([self.z[held], new.z]), torch.cat([self.ids[held], new.item]))
        query = query[order]
        starts = torch.searchsorted(query, torch.arange(rows, device=query.device))
        place = torch.arange(len(query), device=query.device) - starts[query]
        kept = place < k
        for found, values in (
            (self.z, torch.cat([self.z[held], new.z])),
            (self.ids, torch.cat([self.ids[held], new.item])),
        ):
            found[query[kept], place[kept]] = values[order][kept]

    def result(self) -> tuple[Tensor, Tensor]:
        return self.z, self.ids


class Counts(_Tiles):
    def __init__(self, block: Block, targets: Tensor, limits: Tensor) -> None:
        super().__init__(block)
        self.targets, self.limits = targets, limits
        self.counts = torch.zeros(3, len(targets), dtype=torch.int64, device=targets.device)

    def add_tile(self, tile: _Tile) -> None:
        limit = self.limits[:, None]
        decided = tile.open & (tile.most < limit) if self.cones is None else torch.zeros_like(tile.open)
        self.counts[0] += decided.sum(1)
        near = self.pairs(tile.open & ~(tile.least > limit) & ~decided, tile)
        others = near.item != self.targets[near.query]
        query, index, z = (part[others] for part in near)
        tied = z == self.limits[query]
        for of, those in zip(
            self.counts, (z < self.limits[query], tied, tied & (index < self.targets[query])), strict=True
        ):
            of += torch.bincount(query[those], minlength=len(of))

    def result(self) -> Tensor:
        return self.counts


class Within(_Tiles):
    def __init__(self, block: Block, limit: float) -> None:
        super().__init__(block)
        self.limit = limit
        self.found: list[_Pairs] = []

    def add_tile(self, tile: _Tile) -> None:
        near = self.pairs(tile.open & ~(tile.least > self.limit), tile)
        inside = near.z <= self.limit
        self.found.append(_Pairs(*(part[inside] for part in near)))

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        query, index, z = (torch.cat(part) for part in zip(*self.found, strict=True))
        return query, index, z


def z_of_pairs(queries: Tensor, query: Tensor, items: Tensor, c: float) -> Tensor:
    """``z`` of each item and the query that ``query`` names, float64."""
    curv = torch.tensor(c, dtype=torch.float64, device=queries.device)
    step = max(1, chunk_elements(queries.device) // queries.shape[1])
    parts = [
        pair_z(queries[query[at : at + step]].double(), items[at : at + step].double(), curv)
        for at in range(0, len(items), step)
    ]
    return torch.cat([curv.new_empty(0), *parts])


def pair_z(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return _pair_z(x, y, c).squeeze(-1)


@repaired()
def _pair_z(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return pair_geometry(x, y, c)[0].z


def in_order(query: Tensor, z: Tensor, index: Tensor) -> Tensor:
    """Of pairs: by query, then by ``z``, then by index."""
    order = torch.argsort(index)
    order = order[torch.argsort(z[order], stable=True)]
    return order[torch.argsort(query[order], stable=True)]
