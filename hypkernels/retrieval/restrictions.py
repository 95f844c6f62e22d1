"""Which items a query may find: allowed and denied ones, groups, entailment cones."""

from __future__ import annotations

import sys
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hypkernels.checks import check_choice, check_dense, check_positive
from hypkernels.retrieval.gallery import Gallery
from hypkernels.retrieval.problem import Cones, Piece

Cone = Literal["query", "item"]


class Restrictions(NamedTuple):
    """``allow`` and ``deny`` are each a mask ``(N,)`` of bool, or sorted indices."""

    allow: Tensor | None
    deny: Tensor | None
    groups: Tensor | None
    query_groups: Tensor | None
    cones: Cones | None

    def piece(self, first: int, rows: Tensor) -> Piece:
        stop = first + len(rows)
        allowed = None if self.allow is None else _part(self.allow, first, stop)
        if self.deny is not None:
            kept = ~_part(self.deny, first, stop)
            allowed = kept if allowed is None else allowed & kept
        groups = None if self.groups is None else self.groups[first:stop].long()
        return Piece(first, rows, allowed, groups)

    def of_queries(self, start: int, stop: int) -> Tensor | None:
        return None if self.query_groups is None else self.query_groups[start:stop]


def checked_restrictions(
    queries: Tensor,
    gallery: Gallery,
    allow: Tensor | None,
    deny: Tensor | None,
    groups: Tensor | None,
    query_groups: Tensor | None,
    cone: Cone | None,
    min_radius: float,
    aperture_scale: float,
) -> Restrictions:
    """The arguments that all searches share."""
    check_choice("cone", cone, (None, "query", "item"))
    radius = check_positive("min_radius", min_radius, "a float")
    scale = check_positive("aperture_scale", aperture_scale, "a float")
    cones = None if cone is None else Cones(cone == "query", scale, min(radius, sys.float_info.max / 2))
    if (groups is None) != (query_groups is None):
        raise ValueError("groups and query_groups must come together, one of them is missing")
    of_items = of_queries = None
    if groups is not None and query_groups is not None:
        of_items, of_queries = _checked_groups(groups, query_groups, queries, gallery)
    return Restrictions(
        _checked_items("allow", allow, gallery),
        _checked_items("deny", deny, gallery),
        of_items,
        of_queries,
        cones,
    )


def _checked_items(name: str, items: Tensor | None, gallery: Gallery) -> Tensor | None:
    if items is None:
        return None
    _check_tensor(name, items, "of indices or of bool")
    if items.dim() != 1 or (items.dtype == torch.bool and len(items) != len(gallery)):
        raise ValueError(
            f"{name} must be indices (n,) or bool ({len(gallery)},), one for each item, "
            f"got {tuple(items.shape)}"
        )
    if items.dtype == torch.bool:
        return items.to(gallery.device)
    _check_indices(name, items, len(gallery))
    return items.to(gallery.device, torch.int64).unique()


def _part(items: Tensor, first: int, stop: int) -> Tensor:
    """The items of a piece that are named, as a mask."""
    if items.dtype == torch.bool:
        return items[first:stop]
    begin, end = torch.searchsorted(items, torch.tensor([first, stop], device=items.device)).tolist()
    mask = torch.zeros(stop - first, dtype=torch.bool, device=items.device)
    mask[items[begin:end] - first] = True
    return mask


def _checked_groups(
    groups: Tensor, query_groups: Tensor, queries: Tensor, gallery: Gallery
) -> tuple[Tensor, Tensor]:
    _check_tensor("groups", groups, "of integers")
    _check_tensor("query_groups", query_groups, "of integers or of bool")
    if groups.shape != (len(gallery),):
        raise ValueError(
            f"groups must have shape ({len(gallery)},), one each item, got {tuple(groups.shape)}"
        )
    _check_indices("groups", groups, sys.maxsize)
    several = query_groups.dtype == torch.bool
    if query_groups.dim() != 1 + several or len(query_groups) != len(queries):
        raise ValueError(
            f"query_groups must have shape ({len(queries)},) of integers or ({len(queries)}, G) of bool, "
            f"got {tuple(query_groups.shape)} of {query_groups.dtype}"
        )
    if not several:
        _check_indices("query_groups", query_groups, sys.maxsize)
        return groups.to(gallery.device), query_groups.to(queries.device, torch.int64)
    _check_indices("groups", groups, query_groups.shape[1])
    return groups.to(gallery.device), query_groups.to(queries.device)


def _check_tensor(name: str, tensor: Tensor, kind: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor {kind}, got {type(tensor).__name__}")
    check_dense(name, tensor)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.uint64:
        raise TypeError(f"{name} must be a tensor {kind}, got {tensor.dtype}")


def _check_indices(name: str, indices: Tensor, end: int) -> None:
    if indices.numel():
        low, high = (bound.item() for bound in indices.aminmax())
        if low < 0 or high >= end:
            raise ValueError(f"{name} must be in [0, {end}), got values in [{low}, {high}]")
