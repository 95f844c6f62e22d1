"""What an implementation of the searches is given, and what it is."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Cones(NamedTuple):
    """Only pairs with the item in the query's cone, or the query in the item's."""

    at_query: bool
    aperture_scale: float
    min_radius: float


class Block(NamedTuple):
    """Queries that go through the gallery together.

    ``query_groups`` is the one group that each searches, ``(B,)`` int64, or those it may, ``(B, G)`` of bool.
    """

    queries: Tensor
    c: float
    cones: Cones | None
    query_groups: Tensor | None


class Piece(NamedTuple):
    """Items of a gallery, from index ``first``; ``allowed`` of bool, ``groups`` of int64, ``(P,)`` each."""

    first: int
    rows: Tensor
    allowed: Tensor | None
    groups: Tensor | None

    def to(self, device: torch.device) -> Piece:
        rest = (None if one is None else one.to(device) for one in (self.allowed, self.groups))
        return Piece(self.first, self.rows.to(device), *rest)


class Search(Protocol):
    """A search of a block of queries that is under way.

    An order of pairs is that of ``z = cosh(sqrt(c) d) - 1`` in float64, then of the items' indices.
    """

    def add(self, piece: Piece) -> int | None:
        """Search a piece. The first row in it that is not finite, if any: then the search is void."""


class NotFiniteError(ValueError):
    """Rows that are no points."""


def first_not_finite(rows: Tensor) -> int | None:
    finite = torch.isfinite(rows).all(-1)
    return None if bool(finite.all()) else int((~finite).int().argmax())
