"""The public functions: argument checks, docstrings, and the choice of an implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor

from hypkernels.retrieval.gallery import Source

Cone = Literal["query", "item"]
Progress = Callable[[int, int], object]


class Neighbours(NamedTuple):
    """``(Q, k)`` each, the nearest first; where fewer qualify, infinity and -1."""

    distances: Tensor
    indices: Tensor


class RangeResult(NamedTuple):
    """Query ``i`` has ``distances[limits[i]:limits[i + 1]]`` and the same of ``indices``, nearest first."""

    limits: Tensor
    distances: Tensor
    indices: Tensor


class RankCounts(NamedTuple):
    """``(Q,)`` int64 each: items nearer than the target, others as near, and those of them before it."""

    nearer: Tensor
    tied: Tensor
    tied_before: Tensor


def topk(
    queries: Tensor,
    gallery: Source,
    k: int,
    curv: float | Tensor = 1.0,
    *,
    allow: Tensor | None = None,
    deny: Tensor | None = None,
    groups: Tensor | None = None,
    query_groups: Tensor | None = None,
    cone: Cone | None = None,
    min_radius: float = 0.1,
    aperture_scale: float = 1.0,
    progress: Progress | None = None,
) -> Neighbours:
    """The ``k`` nearest items of each query by geodesic distance, exactly.

    Args:
        queries: space components ``(Q, D)``, float64, float32, bfloat16 or float16; ``Q`` may be 0.
        gallery: ``N`` points of the same width, see :func:`hypkernels.retrieval.open_gallery`; its dtype may
            be another.
        k: how many, from 1 to ``N``.
        curv: positive ``c`` of the hyperboloid, a float or a tensor of one element.
        allow: only these items: indices, or ``(N,)`` of bool. All by default.
        deny: not these items, in the same form.
        groups: ``(N,)`` integers from 0, the group of each item.
        query_groups: with ``groups``: the group that each query searches, ``(Q,)`` integers, or the groups,
            ``(Q, G)`` of bool.
        cone: ``"query"``: only items in the query's entailment cone; ``"item"``: only items whose cone holds
            the query. ``oxy_angle <= aperture_scale * half_aperture``, in float64; a point is in its own cone
            and everything in that of the origin.
        min_radius, aperture_scale: of the cones, positive.
        progress: called with the number of items read and ``N`` after each piece. What it raises ends the
            search.

    Returns:
        ``(distances, indices)``, each ``(Q, k)``, the nearest first and ties in the order of the gallery:
        float64 if queries or gallery are, else float32, and int64. Where the restrictions leave fewer than
        ``k``, the rest is infinity and -1. Detached, on the queries' device.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range, by name, before any work;
            rows that are not finite, by their number, those of the gallery when they are read.
    """
    raise NotImplementedError


def rerank(
    queries: Tensor,
    gallery: Source,
    candidates: Tensor,
    k: int,
    curv: float | Tensor = 1.0,
) -> Neighbours:
    """The ``k`` nearest of each query's own candidates, exactly: what another index found, put right.

    Args:
        candidates: ``(Q, m)`` indices into the gallery, int64 or int32, with -1 for none. A repeated one
            counts once.
        k: how many, at most ``m``.

    Returns:
        As :func:`topk`, of these candidates alone.
    """
    raise NotImplementedError


def rank_counts(
    queries: Tensor,
    gallery: Source,
    targets: Tensor,
    curv: float | Tensor = 1.0,
    *,
    allow: Tensor | None = None,
    deny: Tensor | None = None,
    groups: Tensor | None = None,
    query_groups: Tensor | None = None,
    cone: Cone | None = None,
    min_radius: float = 0.1,
    aperture_scale: float = 1.0,
    progress: Progress | None = None,
) -> RankCounts:
    """How many items are nearer than each query's target, and how many others exactly as near.

    Args:
        targets: ``(Q,)`` int64 or int32, the index of each query's true item, counted or not.

    The other arguments and errors are those of :func:`topk`.
    """
    raise NotImplementedError


def positive_rank(
    queries: Tensor,
    gallery: Source,
    targets: Tensor,
    curv: float | Tensor = 1.0,
    *,
    allow: Tensor | None = None,
    deny: Tensor | None = None,
    groups: Tensor | None = None,
    query_groups: Tensor | None = None,
    cone: Cone | None = None,
    min_radius: float = 0.1,
    aperture_scale: float = 1.0,
    progress: Progress | None = None,
) -> Tensor:
    """The rank of each query's target, ``(Q,)`` int64, 0 for the nearest: its place in the order of :func:`topk`.

    That is the number of items that are nearer, and of those as near with a smaller index. The arguments are
    those of :func:`rank_counts`.
    """
    raise NotImplementedError


def range_search(
    queries: Tensor,
    gallery: Source,
    radius: float,
    curv: float | Tensor = 1.0,
    *,
    allow: Tensor | None = None,
    deny: Tensor | None = None,
    groups: Tensor | None = None,
    query_groups: Tensor | None = None,
    cone: Cone | None = None,
    min_radius: float = 0.1,
    aperture_scale: float = 1.0,
    progress: Progress | None = None,
) -> RangeResult:
    """All items within ``radius`` of each query, it included: ``distance <= radius`` in float64.

    Args:
        radius: a geodesic length, not negative.

    The other arguments and errors are those of :func:`topk`. The result is as large as it is: memory grows
    with it, and with nothing else.

    Returns:
        ``(limits, distances, indices)``: ``(Q + 1,)``, and one entry for each item found.
    """
    raise NotImplementedError
