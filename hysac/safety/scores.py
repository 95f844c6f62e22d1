"""How unsafe items are, by their distance to the origin, and how well a threshold separates them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import hypkernels as hk
from hysac.embeddings import MODALITIES, Embeddings


def unsafe_score(x: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """How unsafe each point is: its geodesic distance to the origin, ``asinh(sqrt(c)|x|) / sqrt(c)``.

    Args:
        x: space components ``(..., D)``, float64, float32, bfloat16 or float16.
        curv: positive ``c`` (sectional curvature ``-c``), a float or a tensor of one element.

    Returns:
        Scores ``(...)``, not negative; float64 for float64 points, else float32.

    Raises:
        TypeError, ValueError: as :func:`hypkernels.dist0`.
    """
    return hk.dist0(x, curv)


def roc_auc(safe_scores: Tensor, unsafe_scores: Tensor) -> float:
    """The area under the ROC curve: the probability that an unsafe score exceeds a safe one.

    Exact, from ranks; ties count one half. Scores are one-dimensional and not empty; the result is in [0, 1],
    0.5 for no information.
    """
    safe, unsafe = _check_scores(safe_scores, unsafe_scores)
    ordered = safe.sort().values
    below = torch.searchsorted(ordered, unsafe, right=False).sum()
    not_above = torch.searchsorted(ordered, unsafe, right=True).sum()
    return (below + not_above).item() / (2 * len(safe) * len(unsafe))


def calibrate_threshold(safe_scores: Tensor, unsafe_scores: Tensor, target: str = "youden") -> float:
    """The threshold above which a score is called unsafe.

    The threshold lies half-way between two observed scores, so that rounding does not decide, or it
    calls all or none unsafe. Of equally good thresholds the smallest is returned, and for ``fnr=X`` the
    greatest.

    Args:
        safe_scores, unsafe_scores: one-dimensional, not empty, finite.
        target: ``"youden"`` has the greatest TPR - FPR, whatever the shares of the two classes;
            ``"max-f1"`` has the greatest F1 of the unsafe class. ``"fpr=X"`` is the smallest threshold
            that calls at most a share X of the safe items unsafe; ``"fnr=X"`` is the greatest that calls
            at most a share X of the unsafe items safe.

    Returns:
        A threshold in the units of the scores. Calibrate on one set, report on another.

    Raises:
        ValueError: an unknown target, X outside of (0, 1), or scores as above.
    """
    safe, unsafe = _check_scores(safe_scores, unsafe_scores)
    return threshold_of(safe.cpu().numpy(), unsafe.cpu().numpy(), target)


def threshold_of(safe: np.ndarray, unsafe: np.ndarray, target: str) -> float:
    """:func:`calibrate_threshold` of arrays, unchecked: a bootstrap calls it some thousand times.

    Raises:
        ValueError: an unknown target.
    """
    kind, share = target_share(target)
    observed = np.unique(np.concatenate([safe, unsafe]))
    below = np.nextafter(observed[0], -np.inf)
    edges = np.concatenate([[below], (observed[:-1] + observed[1:]) / 2, observed[-1:]])
    alarms, hits = (
        len(scores) - np.searchsorted(np.sort(scores), edges, side="right") for scores in (safe, unsafe)
    )
    if kind == "youden":
        # TPR - FPR over the common denominator: integers, so equal rates compare equal.
        best = (hits * len(safe) - alarms * len(unsafe)).argmax()
    elif kind == "max-f1":
        best = (2 * hits / (hits + alarms + len(unsafe))).argmax()
    elif kind == "fpr":
        best = (alarms / len(safe) <= share).argmax()
    else:
        best = np.flatnonzero((len(unsafe) - hits) / len(unsafe) <= share)[-1]
    return float(edges[best])


def target_share(target: str) -> tuple[str, float]:
    """The kind of a threshold's target, and its share X, 0 where it has none.

    Raises:
        ValueError: neither ``youden``, ``max-f1``, ``fpr=X`` nor ``fnr=X`` with X in (0, 1).
    """
    kind, equals, share = target.partition("=")
    if target in ("youden", "max-f1"):
        return target, 0.0
    try:
        if kind in ("fpr", "fnr") and equals and 0 < float(share) < 1:
            return kind, float(share)
    except ValueError:
        pass
    raise ValueError(f"a threshold's name is youden, max-f1, fpr=X or fnr=X with X in (0, 1), got {target!r}")


def classification_rates(safe_scores: Tensor, unsafe_scores: Tensor, threshold: float) -> dict[str, float]:
    """How well ``score > threshold`` means unsafe.

    Returns:
        ``accuracy``, ``fpr`` (share of the safe called unsafe) and ``fnr`` (share of the unsafe called safe).
    """
    safe, unsafe = _check_scores(safe_scores, unsafe_scores)
    false_positives = (safe > threshold).sum().item()
    false_negatives = (unsafe <= threshold).sum().item()
    total = len(safe) + len(unsafe)
    return {
        "accuracy": (total - false_positives - false_negatives) / total,
        "fpr": false_positives / len(safe),
        "fnr": false_negatives / len(unsafe),
    }


def modality_scores(embeddings: Embeddings) -> dict[str, tuple[Tensor, Tensor]]:
    """The scores of the safe and the unsafe items of each modality that ``embeddings`` has.

    They are :func:`unsafe_score` of the points, and of captions in windows that of the farthest.
    """
    return {
        modality: (embeddings.scores(safe), embeddings.scores(unsafe))
        for modality, (safe, unsafe) in MODALITIES.items()
        if embeddings.has(safe + unsafe)
    }


def calibrate_thresholds(embeddings: Embeddings, target: str = "youden") -> dict[str, float]:
    """:func:`calibrate_threshold` for each modality (``"text"``, ``"image"``) that ``embeddings`` has."""
    return {
        modality: calibrate_threshold(safe, unsafe, target)
        for modality, (safe, unsafe) in modality_scores(embeddings).items()
    }


def _check_scores(safe_scores: Tensor, unsafe_scores: Tensor) -> tuple[Tensor, Tensor]:
    for name, scores in (("safe_scores", safe_scores), ("unsafe_scores", unsafe_scores)):
        if not isinstance(scores, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(scores).__name__}")
        if scores.dim() != 1 or not len(scores):
            raise ValueError(f"{name} must have shape (N,) with N >= 1, got {tuple(scores.shape)}")
        if not bool(torch.isfinite(scores).all()):
            raise ValueError(f"{name} has entries that are not finite")
    return safe_scores.detach().double().contiguous(), unsafe_scores.detach().double().contiguous()
