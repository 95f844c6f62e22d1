"""The inputs of an implementation of the searches, and its interface."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Cones(NamedTuple):
    """Restricts a search to pairs with the item in the query's cone, or the query in the item's."""

    at_query: bool
    aperture_scale: float
    min_radius: float


class Block(NamedTuple):
    """Queries that go through the gallery together.

    ``query_groups``: the group that each query searches, ``(B,)`` int64, or masks of groups, ``(B, G)``.
    """

    queries: Tensor
    c: float
    cones: Cones | None
    query_groups: Tensor | None


class Piece(NamedTuple):
    """Items of a gallery, from index ``first``; ``allowed (P,)`` is bool, ``groups (P,)`` int64."""

    first: int
    rows: Tensor
    allowed: Tensor | None
    groups: Tensor | None

    def to(self, device: torch.device) -> Piece:
        rest = (None if one is None else one.to(device) for one in (self.allowed, self.groups))
        return Piece(self.first, self.rows.to(device), *rest)


class Search(Protocol):
    """A search of a block of queries, to which pieces of the gallery are added.

    Pairs are ordered by ``z = cosh(sqrt(c) d) - 1`` in float64, then by the items' indices.
    """

    def add(self, piece: Piece) -> int | None:
        """Search a piece. Returns its first row that is not finite, if any: then the search is void."""


class NotFiniteError(ValueError):
    """Rows that are not finite."""


def first_not_finite(rows: Tensor) -> int | None:
    finite = torch.isfinite(rows).all(-1)
    return None if bool(finite.all()) else int((~finite).int().argmax())
