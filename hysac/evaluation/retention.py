"""How much of what the starting CLIP could do is left after training, on the same images and captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hysac.embeddings import Embeddings
from hysac.evaluation.retrieval import COLUMNS, check_cut_offs, hit_chance, rank_counts

RESAMPLES = 2000

_SAFE_COLUMNS = tuple(column for column in COLUMNS if set(column.classes) == {"S", "V"})


def compared(before: Tensor, after: Tensor, *, seed: int = 0) -> dict[str, Any]:
    """Two models on the same items: how often each is right, and the 95 % intervals of what changed.

    The intervals are percentiles of 2000 bootstrap samples of the items. Both models get the same
    samples, so that easy and hard items cancel in the difference.

    Args:
        before, after: for each item whether the model is right, ``(N,)``, in [0, 1].
        seed: of the samples.

    Returns:
        ``before`` and ``after``, means; ``difference``, after minus before, and ``difference_95``, its
        interval; ``ratio``, after over before, and ``ratio_95``: None where it divides by zero.

    Raises:
        ValueError: no items, different numbers of them, or values outside of [0, 1].
    """
    if before.shape != after.shape or before.dim() != 1 or not len(before):
        raise ValueError(
            f"before and after must be of shape (N,) with N >= 1, got {tuple(before.shape)} and "
            f"{tuple(after.shape)}"
        )
    values = np.stack([one.double().cpu().numpy() for one in (before, after)], axis=1)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("before and after must lie in [0, 1]")
    # A sample of the items is a multinomial one of the pairs of values that occur.
    pairs, counts = np.unique(values, axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=RESAMPLES)
    samples = drawn @ pairs / len(values)
    mean = values.mean(0)
    has_ratio = bool(mean[0] > 0 and (samples[:, 0] > 0).all())
    return {
        "before": float(mean[0]),
        "after": float(mean[1]),
        "difference": float(mean[1] - mean[0]),
        "difference_95": _interval(samples[:, 1] - samples[:, 0]),
        "ratio": float(mean[1] / mean[0]) if mean[0] > 0 else None,
        "ratio_95": _interval(samples[:, 1] / samples[:, 0]) if has_ratio else None,
    }


def _interval(samples: np.ndarray) -> list[float]:
    low, high = np.quantile(samples, [0.025, 0.975])
    return [float(low), float(high)]


def retrieval_retention(
    before: Embeddings, after: Embeddings, ks: Sequence[int] = (1, 10, 20)
) -> dict[str, dict[str, Any]]:
    """:func:`compared` of the recalls of safe captions and safe images.

    Args:
        before: the quadruplets by the starting model. Those of a CLIP are encoded by
            :class:`hysac.models.cosine.CosineModel`.
        after: the same quadruplets, in the same order, by the trained model.
        ks: cut-offs, positive.

    Returns:
        By ``"T->I R@1"``, ``"I->T R@1"`` and so on.

    Raises:
        ValueError: quadruplets that are not the same, or without safe captions and images, or a cut-off that
            is not positive.
    """
    check_cut_offs(ks)
    if len(before) != len(after) or list(before.ids) != list(after.ids):
        raise ValueError("before and after must be of the same quadruplets in the same order")
    found = {}
    for column in _SAFE_COLUMNS:
        hits = [_hits(embeddings, column.query, column.correct, ks) for embeddings in (before, after)]
        for k in ks:
            found[f"{column.name} R@{k}"] = compared(hits[0][k], hits[1][k])
    return found


def _hits(embeddings: Embeddings, query: str, correct: str, ks: Sequence[int]) -> dict[int, Tensor]:
    """The probability that each query finds its partner, by ``k``."""
    points = embeddings[query]
    targets = torch.arange(len(points), device=points.device)
    nearer, tied = rank_counts(points, embeddings[correct], targets, embeddings.curv)
    return {k: hit_chance(nearer, tied, k) for k in ks}
