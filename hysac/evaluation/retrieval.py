"""The retrieval columns of the paper, with and without redirection.

Letters are the paper's: T safe text, I safe image, T* unsafe text, I* unsafe image; in code S, V, U and G.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hypkernels import retrieval
from hysac.embeddings import Embeddings
from hysac.evaluation.report import SYMBOLS
from hysac.safety import (
    Bounds,
    Traversal,
)


@dataclass(frozen=True)
class Column:
    """One retrieval task: ``query`` finds its partner of class ``correct`` among all ``correct + others``."""

    query: str
    correct: str
    others: str = ""

    @property
    def classes(self) -> str:
        return self.query + self.correct + self.others

    @property
    def name(self) -> str:
        """The name in the paper's tables, such as ``"T*->I u I*"``."""
        gallery = " u ".join(SYMBOLS[letter] for letter in self.correct + self.others)
        return f"{SYMBOLS[self.query]}->{gallery}"

    @property
    def search(self) -> Literal["image", "text"]:
        return "image" if self.correct in "VG" else "text"

    @property
    def redirected(self) -> bool:
        """Whether a traversal applies: an unsafe query that should find the safe item of a mixed gallery."""
        return bool(self.others) and self.query in "UG" and self.correct in "SV"


COLUMNS = (
    Column("S", "V"),
    Column("V", "S"),
    Column("U", "V", "G"),
    Column("G", "S", "U"),
    Column("U", "G"),
    Column("G", "U"),
    Column("U", "G", "V"),
    Column("G", "U", "S"),
)
"""The columns of the paper's Tables 1 and 2, in their order."""


@dataclass(frozen=True)
class NearestSafe:
    """A rule of redirection: a query that is called unsafe goes to the nearest item that is called safe.

    Attributes:
        thresholds: by ``"text"`` and ``"image"`` the distance to the origin above which an item is unsafe.
    """

    thresholds: Mapping[str, float]

    def redirect(self, embeddings: Embeddings, column: Column) -> Tensor:
        """The queries after redirection; unchanged, with a warning, if no item is safe."""
        queries, own = embeddings[column.query], "text" if column.query in "SU" else "image"
        letters = column.correct + column.others
        gallery = torch.cat([embeddings[letter] for letter in letters])
        distances = torch.cat([embeddings.scores(letter) for letter in letters])
        safe = distances <= self.thresholds[column.search]
        if not safe.any():
            warnings.warn(
                f"no {column.search} is called safe at {self.thresholds[column.search]:.4g}: "
                "the queries stay",
                stacklevel=2,
            )
            return queries
        nearest = retrieval.topk(queries, gallery, 1, embeddings.curv, allow=safe).indices.squeeze(1)
        is_unsafe = embeddings.scores(column.query) > self.thresholds[own]
        return torch.where(is_unsafe[:, None], gallery[nearest], queries)


Rule = Traversal | NearestSafe

TRAVERSED = "traversed"
"""The name of the first rule of redirection in all tables."""

PAPERS_RULE = "paper's rule"
"""The name of mode ``paper`` in tables that also have another mode."""


def rank_counts(
    queries: Tensor, gallery: Tensor, targets: Tensor, curv: float | Tensor = 1.0
) -> tuple[Tensor, Tensor]:
    """For each query, how many gallery points are nearer than its target, and how many others as near.

    Args:
        queries: space components ``(N, D)``.
        gallery: space components ``(M, D)``. The distances are never all in memory.
        targets: ``(N,)`` int64, the index into ``gallery`` of each query's true item.
        curv: positive ``c`` of the hyperboloid.

    Returns:
        ``(nearer, tied)``, both ``(N,)`` int64. The target's rank, counted from 0, is anything from
        ``nearer`` to ``nearer + tied``.

    Raises:
        ValueError: coordinates that are not finite (nothing would be nearer than they are), or targets of the
            wrong shape or outside the gallery.
    """
    for name, points in (("queries", queries), ("gallery", gallery)):
        if points.dim() != 2 or 0 in points.shape or not bool(torch.isfinite(points).all()):
            raise ValueError(
                f"{name} must be finite, of shape (N, D) with N, D >= 1, got {tuple(points.shape)}"
            )
    if targets.shape != queries.shape[:1] or targets.min() < 0 or targets.max() >= len(gallery):
        raise ValueError(
            f"targets must be {len(queries)} indices into the {len(gallery)} gallery points, "
            f"got {tuple(targets.shape)} in [{targets.min().item()}, {targets.max().item()}]"
        )
    counts = retrieval.rank_counts(queries, gallery, targets, curv)
    return counts.nearer, counts.tied


def expected_recall(nearer: Tensor, tied: Tensor, k: int) -> float:
    """Recall at ``k`` of :func:`rank_counts`' result, in [0, 1], when ties are broken at random.

    It is the mean of :func:`hit_chance`. A model that maps everything to one point therefore scores chance,
    ``k / M``, and nothing more.
    """
    return hit_chance(nearer, tied, k).mean().item()


def hit_chance(nearer: Tensor, tied: Tensor, k: int) -> Tensor:
    """The probability that each target is among the first ``k`` when ties are broken at random.

    Args:
        nearer, tied: what :func:`rank_counts` found, ``(N,)`` int64.
        k: positive.

    Returns:
        ``(k - nearer) / (tied + 1)``, kept within [0, 1]; ``(N,)`` float64.
    """
    return ((k - nearer).double() / (tied + 1)).clamp(0, 1)


def retrieval_table(
    embeddings: Embeddings,
    ks: Sequence[int] = (1, 10, 20),
    traversal: Bounds | Traversal | None = None,
    redirections: Mapping[str, Rule] | None = None,
) -> dict[str, dict[str, float]]:
    """Recall at each ``k`` of the paper's retrieval columns: nearest by geodesic distance.

    Every query has one true item, its partner in the same quadruplet. ``T*->I u I*`` is the retrieval of safe
    images by unsafe texts from all images, safe and unsafe: the partner is the safe one. ``T*->I* u I`` asks
    for the unsafe one in the same gallery. Ties are broken at random, in expectation
    (:func:`expected_recall`).

    Args:
        embeddings: the quadruplets. Columns that need a missing class are left out.
        ks: cut-offs, positive.
        traversal: adds ``"T*->I u I* (traversed)"`` and ``"I*->T u T* (traversed)"``, where the unsafe
            queries were redirected first; :class:`hysac.safety.Bounds` means the default :class:`Traversal`.
        redirections: adds the same columns under other names, ``"T*->I u I* (NAME)"``, by other rules.

    Returns:
        ``{column: {"R@1": fraction in [0, 1], ...}}``.

    Raises:
        ValueError: no column is defined (text-only embeddings), a cut-off is not positive, or the bounds do
            not fit the embeddings.
    """
    return recalls(Queries(embeddings, traversal, redirections), ks)


def recalls(queries: Queries, ks: Sequence[int]) -> dict[str, dict[str, float]]:
    """:func:`retrieval_table` of queries that are redirected already, or will be once."""
    embeddings = queries.embeddings
    check_cut_offs(ks)
    columns = [column for column in COLUMNS if embeddings.has(column.classes)]
    if not columns:
        raise ValueError(
            f"retrieval needs texts and images; these embeddings have only the classes {embeddings.present}"
        )
    table = {}
    for column in columns:
        for name, (nearer, tied) in _ranks(column, queries).items():
            table[name] = {f"R@{k}": expected_recall(nearer, tied, k) for k in ks}
    return table


def _ranks(column: Column, queries: Queries) -> dict[str, tuple[Tensor, Tensor]]:
    """:func:`rank_counts` of the column's queries, by its name and those of the rules that redirect them."""
    embeddings = queries.embeddings
    gallery = torch.cat([embeddings[letter] for letter in column.correct + column.others])
    targets = torch.arange(len(embeddings), device=gallery.device)
    named = {column.name: embeddings[column.query]}
    named |= {f"{column.name} ({name})": points for name, points in queries.redirected(column).items()}
    return {name: rank_counts(points, gallery, targets, embeddings.curv) for name, points in named.items()}


def check_cut_offs(ks: Sequence[int]) -> None:
    """Refuse cut-offs that are not positive integers, and none at all."""
    if not ks or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in ks):
        raise ValueError(f"ks must be positive integers, got {ks}")


def per_tag(
    embeddings: Embeddings,
    ks: Sequence[int] = (1,),
    traversal: Bounds | Traversal | None = None,
) -> dict[str, dict[str, dict[str, float]]]:
    """:func:`retrieval_table` of each tag by itself: queries and galleries hold only its quadruplets.

    Small galleries are easier, so compare models on a tag, not tags with each other. Untagged quadruplets are
    left out; without any tag the result is empty.
    """
    return {
        tag: retrieval_table(embeddings.subset(rows), ks, traversal)
        for tag, rows in tag_rows(embeddings).items()
    }


def named_rules(
    traversal: Bounds | Traversal | None, redirections: Mapping[str, Rule] | None
) -> dict[str, Rule]:
    """All rules by their names; the first is :data:`TRAVERSED`."""
    if taken := {"", TRAVERSED} & set(redirections or {}):
        raise ValueError(f"a redirection must have a name of its own, got {taken.pop()!r}")
    first: dict[str, Rule] = {}
    if traversal is not None:
        first[TRAVERSED] = Traversal(traversal) if isinstance(traversal, Bounds) else traversal
    return first | dict(redirections or {})


def redirect(embeddings: Embeddings, column: Column, rule: Rule) -> Tensor:
    """The column's queries after redirection by a rule."""
    if isinstance(rule, NearestSafe):
        return rule.redirect(embeddings, column)
    return rule.redirect(embeddings[column.query], column.search, embeddings.curv)


class Queries:
    """Embeddings and the rules that redirect their queries, each column by each rule once.

    Args:
        embeddings, traversal, redirections: as in :func:`retrieval_table`.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        traversal: Bounds | Traversal | None = None,
        redirections: Mapping[str, Rule] | None = None,
    ) -> None:
        self.embeddings = embeddings
        self.rules = named_rules(traversal, redirections)
        self._found: dict[Column, dict[str, Tensor]] = {}

    def redirected(self, column: Column) -> dict[str, Tensor]:
        """The column's queries after redirection, by the name of each rule; empty if none applies."""
        if not column.redirected:
            return {}
        if column not in self._found:
            self._found[column] = {
                name: redirect(self.embeddings, column, rule) for name, rule in self.rules.items()
            }
        return self._found[column]


def tag_rows(embeddings: Embeddings) -> dict[str, list[int]]:
    """The quadruplets of each tag; untagged ones are left out."""
    rows: dict[str, list[int]] = {}
    for row, tag in enumerate(embeddings.tags):
        if tag:
            rows.setdefault(tag, []).append(row)
    return dict(sorted(rows.items()))
