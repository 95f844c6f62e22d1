"""The public functions: argument checks, docstrings, and the choice of an implementation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hypkernels import backend
from hypkernels.checks import check_not_negative, check_points, check_values, scalar_tensor, target_tensor
from hypkernels.retrieval import reference, strips
from hypkernels.retrieval.gallery import PIECE_BYTES, Source, open_gallery
from hypkernels.retrieval.pairs import in_order
from hypkernels.retrieval.problem import Block, NotFiniteError, first_not_finite
from hypkernels.retrieval.restrictions import Cone, Restrictions, checked_restrictions

Progress = Callable[[int, int], object]

# Memory of the queries that go through the gallery together, as float64, and of their results.
_BLOCK_BYTES = 64 << 20


class Neighbours(NamedTuple):
    """``(Q, k)`` each, the nearest first; infinity and -1 where fewer than ``k`` items qualify."""

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

    ``topk(queries, gallery, 10, curv=0.7)`` returns distances and indices, ``(Q, 10)`` each.

    Args:
        queries: space components ``(Q, D)``, float64, float32, bfloat16 or float16; ``Q`` may be 0.
        gallery: ``N`` points of the same width, see :func:`hypkernels.retrieval.open_gallery`; its dtype may
            be another.
        k: how many, from 1 to ``N``.
        curv: positive ``c`` (sectional curvature ``-c``), a float or a tensor of one element.
        allow: the items to search: indices, or ``(N,)`` of bool. All by default.
        deny: items to leave out, in the same form.
        groups: ``(N,)`` integers from 0, the group of each item.
        query_groups: with ``groups``: the group that each query searches, ``(Q,)`` integers; or the
            groups, ``(Q, G)`` of bool.
        cone: ``"query"`` searches only items in the query's entailment cone; ``"item"`` only items whose
            cone holds the query. A point is in a cone where
            ``oxy_angle <= aperture_scale * half_aperture``, in float64. A point is in its own cone, and
            every point is in the cone of the origin.
        min_radius, aperture_scale: positive numbers of the cones, see
            :func:`hypkernels.entailment_loss`.
        progress: called after each piece of the gallery with the number of items read and ``N``. An
            exception that it raises ends the search.

    Returns:
        ``(distances, indices)``, each ``(Q, k)``, the nearest first, ties in the order of the gallery.
        Distances are float64 if queries or gallery are, else float32; indices are int64. Where the
        restrictions leave fewer than ``k`` items, the rest is infinity and -1. Both tensors are detached
        and on the queries' device. Distances beyond ``709 / sqrt(c)``, which only float64 points have,
        are infinite.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range, by name, before any work;
            rows that are not finite, by their number, those of the gallery when they are read.
    """
    problem = _Problem("topk", queries, gallery, curv)
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k must be an integer, got {type(k).__name__}")
    if not 1 <= k <= len(problem.gallery):
        raise ValueError(f"k must be from 1 to the gallery's {len(problem.gallery)} items, got {k}")
    where = _restrictions(problem, locals())
    found = []
    for start, block in problem.blocks(where, numbers=k):
        search = problem.module.Nearest(block, k)
        problem.run(search, start, where, progress)
        found.append(search.result())
    z, ids = (torch.cat(part) for part in zip(*found, strict=True))
    return Neighbours(problem.distances(z), ids)


def rerank(
    queries: Tensor,
    gallery: Source,
    candidates: Tensor,
    k: int,
    curv: float | Tensor = 1.0,
) -> Neighbours:
    """The ``k`` nearest of each query's own candidates, exactly, such as those of an approximate index.

    Args:
        queries, gallery, curv: of :func:`topk`.
        candidates: ``(Q, m)`` indices into the gallery, int64 or int32, with -1 for none. A repeated
            index counts once.
        k: how many, at most ``m``.

    Returns:
        ``(distances, indices)`` as of :func:`topk`, of these candidates alone.

    Raises:
        TypeError, ValueError: as :func:`topk`.
    """
    problem = _Problem("rerank", queries, gallery, curv)
    items = _checked_candidates(candidates, problem)
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k must be an integer, got {type(k).__name__}")
    if not 1 <= k <= items.shape[1]:
        raise ValueError(f"k must be from 1 to the {items.shape[1]} candidates, got {k}")
    items = items.sort(1).values
    real = items >= 0
    real[:, 1:] &= items[:, 1:] != items[:, :-1]
    z = torch.full(items.shape, torch.inf, dtype=torch.float64, device=items.device)
    z[real] = problem.z_of_pairs(real.nonzero()[:, 0], items[real])
    items = items.masked_fill(~real, -1)
    z, order = z.sort(dim=1, stable=True)
    return Neighbours(problem.distances(z[:, :k]), items.gather(1, order)[:, :k])


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
        targets: ``(Q,)`` int64 or int32, the index of each query's true item. The restrictions may leave
            it out.

    The other arguments and errors are those of :func:`topk`.

    Returns:
        ``(nearer, tied, tied_before)``, each ``(Q,)`` int64: the items nearer than the target, the
        others exactly as near, and those of them with a smaller index.
    """
    problem = _Problem("rank_counts", queries, gallery, curv)
    indices = _checked_targets(targets, problem)
    where = _restrictions(problem, locals())
    found = []
    for start, block in problem.blocks(where):
        rows = torch.arange(start, start + len(block.queries), device=queries.device)
        limits = problem.z_of_pairs(rows, indices[rows])
        search = problem.module.Counts(block, indices[rows], limits)
        problem.run(search, start, where, progress)
        found.append(search.result())
    return RankCounts(*torch.cat(found, 1))


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
    """The rank of each query's target, 0 for the nearest, ``(Q,)`` int64: its place in :func:`topk`'s order.

    The rank is the number of nearer items, plus the number of items as near with a smaller index. The
    arguments are those of :func:`rank_counts`.
    """
    counts = rank_counts(
        queries,
        gallery,
        targets,
        curv,
        allow=allow,
        deny=deny,
        groups=groups,
        query_groups=query_groups,
        cone=cone,
        min_radius=min_radius,
        aperture_scale=aperture_scale,
        progress=progress,
    )
    return counts.nearer + counts.tied_before


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
    """All items with ``distance <= radius`` of each query, compared in float64.

    Args:
        radius: a geodesic length, not negative.

    The other arguments and errors are those of :func:`topk`. Memory grows with the number of items
    found, and with nothing else.

    Returns:
        ``(limits, distances, indices)``: ``(Q + 1,)``, and one entry for each item found.
    """
    problem = _Problem("range_search", queries, gallery, curv)
    length = check_not_negative("radius", radius)
    where = _restrictions(problem, locals())
    limit = _cosh_minus_1(math.sqrt(problem.c) * length) * (1 + _RADIUS_SLACK)
    number, distances, ids = [], [], []
    for start, block in problem.blocks(where):
        search = problem.module.Within(block, limit)
        problem.run(search, start, where, progress)
        query, index, z = search.result()
        order = in_order(query, z, index)
        distance = problem.distances(z[order], torch.float64)
        inside = distance <= length
        number.append(torch.bincount(query[order][inside], minlength=len(block.queries)))
        distances.append(distance[inside].to(problem.dtype))
        ids.append(index[order][inside])
    limits = torch.cat([number[0].new_zeros(1), *number]).cumsum(0)
    return RangeResult(limits, torch.cat(distances), torch.cat(ids))


# Of z, beyond what the rounding of a distance hides.
_RADIUS_SLACK = 1e-12
_SHARED = ("allow", "deny", "groups", "query_groups", "cone", "min_radius", "aperture_scale")


class _Problem:
    """Checked queries and gallery, and who searches."""

    def __init__(self, name: str, queries: Tensor, gallery: Source, curv: float | Tensor) -> None:
        check_points("queries", queries)
        if queries.dim() != 2:
            raise ValueError(f"queries must have shape (Q, D), got {tuple(queries.shape)}")
        self.queries = queries.detach()
        self.gallery = open_gallery(gallery)
        if self.gallery.width != queries.shape[1]:
            raise ValueError(
                f"queries and gallery must have the same width (last dimension), got {tuple(queries.shape)} "
                f"and {tuple(self.gallery.points.shape)}"
            )
        if self.gallery.device.type != "cpu" and self.gallery.device != queries.device:
            raise ValueError(
                f"gallery must be on the CPU or with the queries on {queries.device}, "
                f"got {self.gallery.device}"
            )
        scalar = scalar_tensor("curv", curv, queries).detach()
        self.c = scalar.item()
        check_values("curv", torch.tensor(self.c, dtype=torch.float64))
        bad = first_not_finite(self.queries)
        if bad is not None:
            raise NotFiniteError(f"queries must be finite, row {bad} is not")
        self.module = _implementation(backend.choose(name, queries).implementation)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of distances."""
        is_wide = torch.float64 in (self.queries.dtype, self.gallery.dtype)
        return torch.float64 if is_wide else torch.float32

    def blocks(self, where: Restrictions, numbers: int = 0) -> Iterator[tuple[int, Block]]:
        """The first row of each block of queries, of which ``numbers`` items are found each; at least one."""
        step = max(1, _BLOCK_BYTES // (8 * max(self.gallery.width, 2 * numbers)))
        for start in range(0, max(1, len(self.queries)), step):
            rows = self.queries[start : start + step]
            yield start, Block(rows, self.c, where.cones, where.of_queries(start, start + step))

    def run(self, search: Any, start: int, where: Restrictions, progress: Progress | None) -> None:
        """Take a block's search through the gallery."""
        for first, rows in self.gallery.pieces():
            bad = search.add(where.piece(first, rows).to(self.queries.device))
            if bad is not None:
                raise NotFiniteError(f"gallery must be finite, row {first + bad} is not")
            if progress is not None:
                progress(first + len(rows), len(self.gallery))

    def z_of_pairs(self, query: Tensor, index: Tensor) -> Tensor:
        """The ``z`` of single pairs, some of them at a time."""
        step = max(1, PIECE_BYTES // (8 * self.gallery.width))
        parts = [torch.empty(0, dtype=torch.float64, device=query.device)]
        for at in range(0, len(query), step):
            of_items = index[at : at + step]
            items = self.gallery.take(of_items.to(self.gallery.device)).to(query.device)
            bad = first_not_finite(items)
            if bad is not None:
                raise NotFiniteError(f"gallery must be finite, row {of_items[bad].item()} is not")
            parts.append(self.module.z_of_pairs(self.queries, query[at : at + step], items, self.c))
            self.gallery.release()
        return torch.cat(parts)

    def distances(self, z: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return (2 / math.sqrt(self.c) * torch.asinh(torch.sqrt(z / 2))).to(dtype or self.dtype)


def _implementation(name: str) -> ModuleType:
    if name == "native":
        from hypkernels.cpu import retrieval  # when first needed, as all that the compiled library runs

        return retrieval
    if name == "triton":
        from hypkernels.retrieval import kernel  # the same

        return kernel
    return reference if name == "reference" else strips


def _restrictions(problem: _Problem, arguments: dict[str, Any]) -> Restrictions:
    shared = {name: arguments[name] for name in _SHARED}
    return checked_restrictions(problem.queries, problem.gallery, **shared)


def _checked_targets(targets: Tensor, problem: _Problem) -> Tensor:
    indices = target_tensor("targets", targets, problem.queries)
    _check_within("targets", indices, 0, len(problem.gallery))
    return indices


def _checked_candidates(candidates: Tensor, problem: _Problem) -> Tensor:
    if not isinstance(candidates, Tensor) or candidates.dtype not in (torch.int64, torch.int32):
        got = candidates.dtype if isinstance(candidates, Tensor) else type(candidates).__name__
        raise TypeError(f"candidates must be a tensor of int64 or int32, got {got}")
    queries = problem.queries
    if candidates.dim() != 2 or len(candidates) != len(queries):
        raise ValueError(f"candidates must have shape ({len(queries)}, m), got {tuple(candidates.shape)}")
    if candidates.device != queries.device:
        raise ValueError(
            f"candidates must be on {queries.device} as the queries are, got {candidates.device}"
        )
    _check_within("candidates", candidates, -1, len(problem.gallery))
    return candidates.long()


def _check_within(name: str, indices: Tensor, begin: int, end: int) -> None:
    if indices.numel():
        low, high = (bound.item() for bound in indices.aminmax())
        if low < begin or high >= end:
            raise ValueError(f"{name} must be in [{begin}, {end}), got values in [{low}, {high}]")


def _cosh_minus_1(gap: float) -> float:
    return 2 * math.sinh(gap / 2) ** 2 if gap < 700 else math.inf
