"""How well a space separates safe from unsafe: distances, order, cones, and nearest items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

import hypkernels as hk
from hypkernels import retrieval
from hysac.embeddings import Embeddings
from hysac.evaluation.classification import average_precision
from hysac.evaluation.retrieval import COLUMNS, TRAVERSED, Queries, Rule
from hysac.safety import (
    Bounds,
    Traversal,
    calibrate_threshold,
    classification_rates,
    modality_scores,
    roc_auc,
    unsafe_score,
)

APERTURE_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
"""The cones' sizes whose shares are compared."""

_FALSE_ALARMS = (0.01, 0.001)

_OTHERS = 8
"""With how many other quadruplets' points each apex's own point is compared."""

_CHAIN = "SVUG"
_ORDERED_PAIRS = (("S", "V"), ("V", "U"), ("U", "G"), ("S", "U"), ("V", "G"))
_CONES = (("S", "V"), ("U", "G"), ("V", "U"))


def safety_metrics(
    embeddings: Embeddings,
    *,
    traversal: Bounds | Traversal | None = None,
    redirections: Mapping[str, Rule] | None = None,
    thresholds: Mapping[str, float] | None = None,
    aperture_scale: float = 1.0,
    min_radius: float = 0.1,
) -> dict[str, Any]:
    """How well the space separates safe from unsafe: ROC, distances, order, cones and nearest items.

    A number that needs a class which ``embeddings`` lacks is left out.

    Args:
        embeddings: the quadruplets.
        traversal: redirect the unsafe queries, and report ``safe_top1_traversed`` as well.
        redirections: other rules by name, reported as ``safe_top1_redirected``.
        thresholds: distance to the origin above which a ``"text"`` or an ``"image"`` is called unsafe, from
            :func:`hysac.safety.calibrate_thresholds` on another set. By default they are calibrated on this
            very set, which flatters accuracy, FPR and FNR and is marked ``calibrated_here``.
        aperture_scale, min_radius: of the entailment cones, as in training.

    Returns:
        * ``classification``: by modality ``auc`` of the distance to the origin as unsafe score,
          ``threshold``, ``accuracy``, ``fpr``, ``fnr``, ``calibrated_here``, and ``fnr_at_fpr``, the misses
          at 1 % and 0.1 % of false alarms on this very set's ROC curve;
        * ``distance``: by class S, V, U, G the ``mean`` and percentiles ``p05``, ``p50``, ``p95`` of the
          distance to the origin;
        * ``order``: share of quadruplets with ``d(S) < d(V) < d(U) < d(G)``, and with each neighbouring and
          each same-modality pair of it in order;
        * ``cones``: share of ``apex > point`` pairs with the point inside the apex's cone, and
          ``cones_by_scale`` the same for cones of other aperture scales;
        * ``hierarchy``: by ``apex > point``, how well the angle by which a point lies outside a cone tells
          the apex's own point from those of other quadruplets: ``auc`` and ``ap``;
        * ``aperture_saturation``: by apex class, the share so near the origin that the cone is a half-space;
        * ``safe_top1`` and ``safe_top1_traversed``: by mixed gallery, the share of unsafe queries whose
          nearest item is safe, its partner or not; the shares of items that tie for nearest are averaged;
          ``safe_top1_redirected`` has them by the name of each other rule.
    """
    return metrics_of(
        Queries(embeddings, traversal, redirections),
        thresholds=thresholds,
        aperture_scale=aperture_scale,
        min_radius=min_radius,
    )


def metrics_of(
    queries: Queries,
    *,
    thresholds: Mapping[str, float] | None,
    aperture_scale: float,
    min_radius: float,
) -> dict[str, Any]:
    """:func:`safety_metrics` of queries that are redirected already, or will be once."""
    embeddings = queries.embeddings
    angles = _angles(embeddings, min_radius)
    nearest_safe = _safe_top1(queries)
    metrics = {
        "classification": _classification(embeddings, thresholds),
        "distance": {letter: _summary(_distance0(embeddings, letter)) for letter in embeddings.present},
        "order": _order(embeddings),
        "cones": _cones(angles, aperture_scale),
        "cones_by_scale": {f"{scale:g}": _cones(angles, scale) for scale in APERTURE_SCALES},
        "hierarchy": _hierarchy(embeddings, aperture_scale, min_radius),
        "aperture_saturation": _aperture_saturation(embeddings, min_radius),
        "safe_top1": nearest_safe.pop(""),
    }
    if TRAVERSED in nearest_safe:
        metrics["safe_top1_traversed"] = nearest_safe.pop(TRAVERSED)
    if nearest_safe:
        metrics["safe_top1_redirected"] = nearest_safe
    return metrics


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
            "fnr_at_fpr": {f"{share:g}": _fnr_at(safe, unsafe, share) for share in _FALSE_ALARMS},
        }
    return result


def _fnr_at(safe: Tensor, unsafe: Tensor, share: float) -> float:
    """The share of misses on this set's ROC curve, at a share of false alarms."""
    threshold = calibrate_threshold(safe, unsafe, f"fpr={share:g}")
    return classification_rates(safe, unsafe, threshold)["fnr"]


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


def _angles(embeddings: Embeddings, min_radius: float) -> dict[str, tuple[Tensor, Tensor]]:
    """The exterior angles of the pairs of each cone, and the half-apertures."""
    return {
        f"{apex}>{point}": (
            hk.oxy_angle(embeddings[apex], embeddings[point], embeddings.curv),
            hk.half_aperture(embeddings[apex], embeddings.curv, min_radius),
        )
        for apex, point in _CONES
        if embeddings.has(apex + point)
    }


def _cones(angles: Mapping[str, tuple[Tensor, Tensor]], aperture_scale: float) -> dict[str, float]:
    return {pair: _share(angle <= aperture_scale * aperture) for pair, (angle, aperture) in angles.items()}


def _hierarchy(
    embeddings: Embeddings, aperture_scale: float, min_radius: float
) -> dict[str, dict[str, float]]:
    found = {}
    for apex, point in _CONES:
        if not embeddings.has(apex + point) or len(embeddings) < 2:
            continue
        apexes, points = embeddings[apex], embeddings[point]
        limit = aperture_scale * hk.half_aperture(apexes, embeddings.curv, min_radius)
        inside = [
            limit - hk.oxy_angle(apexes, points.roll(shift, 0), embeddings.curv)
            for shift in range(min(_OTHERS + 1, len(embeddings)))
        ]
        own, others = inside[0].double().cpu(), torch.cat(inside[1:]).double().cpu()
        found[f"{apex}>{point}"] = {
            "auc": roc_auc(others, own),
            "ap": average_precision(others.numpy(), own.numpy()),
        }
    return found


def _aperture_saturation(embeddings: Embeddings, min_radius: float) -> dict[str, float]:
    apexes = [apex for apex in "SVU" if embeddings.has(apex)]
    norm = {apex: embeddings.curv**0.5 * embeddings[apex].norm(dim=-1) for apex in apexes}
    return {apex: _share(norm[apex] <= 2 * min_radius) for apex in apexes}


def _share(mask: Tensor) -> float:
    return mask.double().mean().item()


def _safe_top1(queries: Queries) -> dict[str, dict[str, float]]:
    """The shares by mixed gallery, by the name of each rule and "" for no redirection."""
    embeddings = queries.embeddings
    shares: dict[str, dict[str, float]] = {name: {} for name in ("", *queries.rules)}
    for column in COLUMNS:
        if not column.redirected or not embeddings.has(column.classes):
            continue
        safe, unsafe = embeddings[column.correct], embeddings[column.others]
        gallery = torch.cat([safe, unsafe])
        is_safe = torch.arange(len(gallery), device=gallery.device) < len(safe)
        for name, points in {"": embeddings[column.query], **queries.redirected(column)}.items():
            shares[name][column.name] = _share(nearest_is_safe(points, gallery, is_safe, embeddings.curv))
    return shares


def nearest_is_safe(
    queries: Tensor, gallery: Tensor, is_safe: Tensor, curv: float, allow: Tensor | None = None
) -> Tensor:
    """For each query whether its nearest item is safe; where several tie for nearest, the safe share of them.

    Args:
        queries: space components ``(N, D)``.
        gallery: space components ``(M, D)``.
        is_safe: ``(M,)`` bool.
        curv: positive ``c`` of the hyperboloid.
        allow: ``(M,)`` bool, the items that count; all by default.

    Returns:
        ``(N,)`` float64 in [0, 1].
    """
    nearest = retrieval.topk(queries, gallery, 1, curv, allow=allow).indices.squeeze(1)
    tied = retrieval.rank_counts(queries, gallery, nearest, curv, allow=allow).tied
    safe = is_safe if allow is None else is_safe & allow
    tied_safe = retrieval.rank_counts(queries, gallery, nearest, curv, allow=safe).tied
    return (tied_safe + is_safe[nearest]).double() / (tied + 1)
