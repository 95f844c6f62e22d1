"""The searches in PyTorch calls, on any device: a tile of pairs at a time, never all of them.

A float64 product gives bounds of ``z = cosh(k d) - 1`` for each pair. With ``h = A - 1`` and ``u`` a
unit of rounding,

    z = T - c x.y,   T = h_x (1 + h_y) + h_y,   |error| <= u ((D + 8) P Q + 8 T).

Pairs that the bounds do not decide are computed from the points themselves, row by row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hypkernels.retrieval.pairs import CountedPairs, NearestPairs, Pairs, PairSearch, PairsWithin, Side
from hypkernels.retrieval.pairs import z_of_pairs as z_of_pairs
from hypkernels.retrieval.problem import Block, Piece, first_not_finite

# Elements of a tile, or of its items' points; some eight such float64 matrices are in memory at a time.
_CPU_TILE, _GPU_TILE = 1 << 18, 1 << 22
_ROUNDING = 2.0**-53
# In float64 products ``P`` and norms must be 0, or between this and its inverse.
_LARGEST = 1e70


class _Tile(NamedTuple):
    """Pairs of all queries with items from ``first`` on: bounds of ``z``, and which may be found."""

    first: int
    items: Side
    least: Tensor
    most: Tensor
    open: Tensor


class _Tiles(PairSearch):
    """What the searches share."""

    def __init__(self, block: Block) -> None:
        super().__init__(block, _LARGEST)
        self.x = self.x._replace(points=self.x.points.double())

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
        x, y = self.x, self.side(piece.rows[place].double())
        T = torch.addcmul(y.h, x.h[:, None], 1 + y.h)
        z = torch.addmm(T, x.points, y.points.T, alpha=-self.curv)
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

    def _beyond_cone(self, least: Tensor, y: Side) -> Tensor:
        """Pairs whose angle at the apex is certainly too wide.

        They have ``h_y - h_x - A z < cos(aperture) P sinh(kd)``. The test is for apertures up to a right
        angle: there the left side less the right falls as ``z`` grows.
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

    def pairs(self, open: Tensor, tile: _Tile) -> Pairs:
        query, item = open.nonzero(as_tuple=True)
        return self.exactly(query, item, tile.first, tile.items)


class Nearest(_Tiles):
    def __init__(self, block: Block, k: int) -> None:
        super().__init__(block)
        self.found = NearestPairs(len(block.queries), k, self.c.device)

    def add_tile(self, tile: _Tile) -> None:
        k, within = self.found.z.shape[1], self.found.within
        if self.cones is None and tile.most.shape[1] > k:
            most = tile.most.masked_fill(~tile.open | tile.most.isnan(), torch.inf)
            within = torch.minimum(within, most.kthvalue(k, dim=1).values)
        self.found.add(self.pairs(tile.open & ~(tile.least > within[:, None]), tile))

    def result(self) -> tuple[Tensor, Tensor]:
        return self.found.z, self.found.ids


class Counts(_Tiles):
    def __init__(self, block: Block, targets: Tensor, limits: Tensor) -> None:
        super().__init__(block)
        self.found = CountedPairs(targets, limits)

    def add_tile(self, tile: _Tile) -> None:
        limit = self.found.limits[:, None]
        decided = tile.open & (tile.most < limit) if self.cones is None else torch.zeros_like(tile.open)
        self.found.counts[0] += decided.sum(1)
        self.found.add(self.pairs(tile.open & ~(tile.least > limit) & ~decided, tile))

    def result(self) -> Tensor:
        return self.found.counts


class Within(_Tiles):
    def __init__(self, block: Block, limit: float) -> None:
        super().__init__(block)
        self.found = PairsWithin(limit)

    def add_tile(self, tile: _Tile) -> None:
        self.found.add(self.pairs(tile.open & ~(tile.least > self.found.limit), tile))

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.found.result()
