"""Evaluation on a set of quadruplets: the paper's retrieval columns, safety metrics and a report of both.

Letters are the paper's: T safe text, I safe image, T* unsafe text, I* unsafe image; in code S, V, U and G.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

import hypkernels as hk
from hypkernels import retrieval
from hysac.embeddings import Embeddings, encode_dataset
from hysac.evaluation.report import SYMBOLS, EvaluationReport
from hysac.safety import (
    Bounds,
    Traversal,
    calibrate_threshold,
    classification_rates,
    modality_scores,
    roc_auc,
    unsafe_score,
)

if TYPE_CHECKING:
    from hysac.models.model import HySAC


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
        """As the paper's tables print it, ``"T*->I u I*"``."""
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

_CHAIN = "SVUG"
_ORDERED_PAIRS = (("S", "V"), ("V", "U"), ("U", "G"), ("S", "U"), ("V", "G"))
_CONES = (("S", "V"), ("U", "G"), ("V", "U"))


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

    A query's target is among the first ``k`` with probability ``(k - nearer) / (tied + 1)``, kept within
    [0, 1]. A model that maps everything to one point therefore scores chance, ``k / M``, and nothing more.
    """
    return ((k - nearer).double() / (tied + 1)).clamp(0, 1).mean().item()


def retrieval_table(
    embeddings: Embeddings,
    ks: Sequence[int] = (1, 10, 20),
    traversal: Bounds | Traversal | None = None,
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

    Returns:
        ``{column: {"R@1": fraction in [0, 1], ...}}``.

    Raises:
        ValueError: no column is defined (text-only embeddings), a cut-off is not positive, or the bounds do
            not fit the embeddings.
    """
    if not ks or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in ks):
        raise ValueError(f"ks must be positive integers, got {ks}")
    columns = [column for column in COLUMNS if embeddings.has(column.classes)]
    if not columns:
        raise ValueError(
            f"retrieval needs texts and images; these embeddings have only the classes {embeddings.present}"
        )
    table = {}
    for column in columns:
        gallery = torch.cat([embeddings[letter] for letter in column.correct + column.others])
        targets = torch.arange(len(embeddings), device=gallery.device)
        for name, queries in _queries(embeddings, column, traversal):
            nearer, tied = rank_counts(queries, gallery, targets, embeddings.curv)
            table[name] = {f"R@{k}": expected_recall(nearer, tied, k) for k in ks}
    return table


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
        for tag, rows in _tag_rows(embeddings).items()
    }


def safety_metrics(
    embeddings: Embeddings,
    *,
    traversal: Bounds | Traversal | None = None,
    thresholds: Mapping[str, float] | None = None,
    aperture_scale: float = 1.0,
    min_radius: float = 0.1,
) -> dict[str, Any]:
    """How well the space separates safe from unsafe. Everything a missing class would need is left out.

    Args:
        embeddings: the quadruplets.
        traversal: redirect the unsafe queries, and report ``safe_top1_traversed`` as well.
        thresholds: distance to the origin above which a ``"text"`` or an ``"image"`` is called unsafe, from
            :func:`hysac.safety.calibrate_thresholds` on another set. By default they are calibrated on this
            very set, which flatters accuracy, FPR and FNR and is marked ``calibrated_here``.
        aperture_scale, min_radius: of the entailment cones, as in training.

    Returns:
        * ``classification``: by modality ``auc`` of the distance to the origin as unsafe score,
          ``threshold``, ``accuracy``, ``fpr``, ``fnr``, ``calibrated_here``;
        * ``distance``: by class S, V, U, G the ``mean`` and percentiles ``p05``, ``p50``, ``p95`` of the
          distance to the origin;
        * ``order``: share of quadruplets with ``d(S) < d(V) < d(U) < d(G)``, and with each neighbouring and
          each same-modality pair of it in order;
        * ``cones``: share of ``apex > point`` pairs with the point inside the apex's cone;
        * ``aperture_saturation``: by apex class, the share so near the origin that the cone is a half-space;
        * ``safe_top1`` and ``safe_top1_traversed``: by mixed gallery, the share of unsafe queries whose
          nearest item is safe, its partner or not; the shares of items that tie for nearest are averaged.
    """
    metrics = {
        "classification": _classification(embeddings, thresholds),
        "distance": {letter: _summary(_distance0(embeddings, letter)) for letter in embeddings.present},
        "order": _order(embeddings),
        "cones": _cones(embeddings, aperture_scale, min_radius),
        "aperture_saturation": _aperture_saturation(embeddings, min_radius),
        "safe_top1": _safe_top1(embeddings, None),
    }
    if traversal is not None:
        metrics["safe_top1_traversed"] = _safe_top1(embeddings, traversal)
    return metrics


def evaluate_embeddings(
    embeddings: Embeddings,
    *,
    ks: Sequence[int] = (1, 10, 20),
    traversal: Bounds | Traversal | None = None,
    thresholds: Mapping[str, float] | None = None,
    aperture_scale: float = 1.0,
    min_radius: float = 0.1,
) -> EvaluationReport:
    """Everything in this module for one set of embeddings; see the functions the report names."""
    has_retrieval = any(embeddings.has(column.classes) for column in COLUMNS)
    return EvaluationReport(
        quadruplets=len(embeddings),
        curv=embeddings.curv,
        retrieval=retrieval_table(embeddings, ks, traversal) if has_retrieval else {},
        tag_sizes={tag: len(rows) for tag, rows in _tag_rows(embeddings).items()},
        per_tag=per_tag(embeddings, ks, traversal) if has_retrieval else {},
        safety=safety_metrics(
            embeddings,
            traversal=traversal,
            thresholds=thresholds,
            aperture_scale=aperture_scale,
            min_radius=min_radius,
        ),
    )


def evaluate(
    model: HySAC,
    loader: Iterable[dict[str, Any]],
    *,
    device: str | torch.device | None = None,
    progress: bool = True,
    **options: Any,
) -> EvaluationReport:
    """Encode ``loader`` with :func:`encode_dataset` and pass ``options`` to :func:`evaluate_embeddings`."""
    return evaluate_embeddings(encode_dataset(model, loader, device, progress), **options)


def _queries(
    embeddings: Embeddings, column: Column, traversal: Bounds | Traversal | None
) -> Iterator[tuple[str, Tensor]]:
    """The column's queries under its name, and those redirected where a traversal applies."""
    queries = embeddings[column.query]
    yield column.name, queries
    if traversal is not None and column.redirected:
        yield f"{column.name} (traversed)", _redirect(embeddings, column, traversal)


def _redirect(embeddings: Embeddings, column: Column, traversal: Bounds | Traversal) -> Tensor:
    rule = Traversal(traversal) if isinstance(traversal, Bounds) else traversal
    return rule.redirect(embeddings[column.query], column.search, embeddings.curv)


def _tag_rows(embeddings: Embeddings) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, tag in enumerate(embeddings.tags):
        if tag:
            rows.setdefault(tag, []).append(row)
    return dict(sorted(rows.items()))


def _classification(embeddings: Embeddings, thresholds: Mapping[str, float] | None) -> dict[str, Any]:
    result = {}
    for modality, (safe, unsafe) in modality_scores(embeddings).items():
        if thresholds is not None and modality not in thresholds:
            raise ValueError(f"thresholds lacks {modality!r}, got {', '.join(thresholds) or 'none'}")
        threshold = calibrate_threshold(safe, unsafe) if thresholds is None else float(thresholds[modality])
        result[modality] = {
            "auc": roc_auc(safe, unsafe),
            "threshold": threshold,
            **classification_rates(safe, unsafe, threshold),
            "calibrated_here": thresholds is None,
        }
    return result


def _distance0(embeddings: Embeddings, letter: str) -> Tensor:
    return unsafe_score(embeddings[letter], embeddings.curv)


def _summary(distances: Tensor) -> dict[str, float]:
    values = distances.double().cpu().numpy()
    p05, p50, p95 = np.quantile(values, [0.05, 0.5, 0.95])
    return {"mean": float(values.mean()), "p05": float(p05), "p50": float(p50), "p95": float(p95)}


def _order(embeddings: Embeddings) -> dict[str, float]:
    distance = {letter: _distance0(embeddings, letter) for letter in embeddings.present}
    shares = {
        f"{near}<{far}": _share(distance[near] < distance[far])
        for near, far in _ORDERED_PAIRS
        if embeddings.has(near + far)
    }
    if embeddings.has(_CHAIN):
        chain = torch.stack([distance[letter] for letter in _CHAIN])
        shares = {"<".join(_CHAIN): _share((chain[1:] > chain[:-1]).all(0)), **shares}
    return shares


def _cones(embeddings: Embeddings, aperture_scale: float, min_radius: float) -> dict[str, float]:
    shares = {}
    for apex, point in _CONES:
        if embeddings.has(apex + point):
            angle = hk.oxy_angle(embeddings[apex], embeddings[point], embeddings.curv)
            aperture = hk.half_aperture(embeddings[apex], embeddings.curv, min_radius)
            shares[f"{apex}>{point}"] = _share(angle <= aperture_scale * aperture)
    return shares


def _aperture_saturation(embeddings: Embeddings, min_radius: float) -> dict[str, float]:
    apexes = [apex for apex in "SVU" if embeddings.has(apex)]
    norm = {apex: embeddings.curv**0.5 * embeddings[apex].norm(dim=-1) for apex in apexes}
    return {apex: _share(norm[apex] <= 2 * min_radius) for apex in apexes}


def _share(mask: Tensor) -> float:
    return mask.double().mean().item()


def _safe_top1(embeddings: Embeddings, traversal: Bounds | Traversal | None) -> dict[str, float]:
    return {
        column.name: _share_nearest_safe(
            embeddings[column.query] if traversal is None else _redirect(embeddings, column, traversal),
            embeddings[column.correct],
            embeddings[column.others],
            embeddings.curv,
        )
        for column in COLUMNS
        if column.redirected and embeddings.has(column.classes)
    }


def _share_nearest_safe(queries: Tensor, safe: Tensor, unsafe: Tensor, curv: float) -> float:
    gallery = torch.cat([safe, unsafe])
    is_safe = torch.arange(len(gallery), device=queries.device) < len(safe)
    nearest = retrieval.topk(queries, gallery, 1, curv).indices.squeeze(1)
    tied = retrieval.rank_counts(queries, gallery, nearest, curv).tied
    tied_safe = retrieval.rank_counts(queries, gallery, nearest, curv, allow=is_safe).tied
    return ((tied_safe + is_safe[nearest]).double() / (tied + 1)).mean().item()
