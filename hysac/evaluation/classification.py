"""How well scores tell unsafe items from safe ones, at the thresholds of a model and over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hysac.safety import roc_auc
from hysac.scoring.labelled import Labelled, told_by_label
from hysac.scoring.operating_points import OperatingPoints


def classification_report(
    items: Sequence[Labelled], distances: Sequence[float], points: OperatingPoints | None
) -> dict[str, Any]:
    """Rates and areas under curves, by modality and by category of what is unsafe.

    Args:
        items: labelled.
        distances: their scores.
        points: the model's operating points, or None.

    Returns:
        For each modality with safe and unsafe items: their numbers ``safe`` and ``unsafe``; ``auc`` and
        ``ap``, the areas under the ROC and the precision-recall curve; ``thresholds``, by name the
        ``threshold`` and its ``fpr`` and ``fnr`` here; and ``categories``, by name ``unsafe``, ``auc``
        against all safe items, and ``fnr`` at the threshold that decides.

    Raises:
        ValueError: no modality has safe and unsafe items.
    """
    values, unsafe = np.asarray(distances, np.float64), np.array([item.is_unsafe for item in items], bool)
    categories = np.array([item.category for item in items], object)
    report = {}
    for modality in ("text", "image"):
        mine = np.array([item.modality == modality for item in items], bool)
        if not (mine & unsafe).any() or not (mine & ~unsafe).any():
            continue
        known = None if points is None or modality not in points.modalities else points
        report[modality] = _of_modality(
            values[mine & ~unsafe], values[mine & unsafe], categories[mine & unsafe], modality, known
        )
    if not report:
        raise ValueError(f"no modality has safe and unsafe items: there are {told_by_label(items)}")
    return report


def _of_modality(
    safe: np.ndarray,
    unsafe: np.ndarray,
    categories: np.ndarray,
    modality: str,
    points: OperatingPoints | None,
) -> dict[str, Any]:
    thresholds = {} if points is None else points.modalities[modality].points
    limit = None if points is None else points.point(modality).threshold
    by_category = {}
    for name in sorted({name for name in categories if name}):
        of_category = unsafe[categories == name]
        by_category[name] = {"unsafe": len(of_category), "auc": _auc(safe, of_category)}
        if limit is not None:
            by_category[name]["fnr"] = float((of_category <= limit).mean())
    return {
        "safe": len(safe),
        "unsafe": len(unsafe),
        "auc": _auc(safe, unsafe),
        "ap": average_precision(safe, unsafe),
        "decides": None if points is None else points.default,
        "thresholds": {
            name: {
                "threshold": point.threshold,
                "fpr": float((safe > point.threshold).mean()),
                "fnr": float((unsafe <= point.threshold).mean()),
            }
            for name, point in thresholds.items()
        },
        "categories": by_category,
    }


def average_precision(safe: np.ndarray, unsafe: np.ndarray) -> float:
    """The precision at each unsafe item's score, averaged over them; items of equal score count together."""
    recall, precision = precision_recall(safe, unsafe)
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def precision_recall(safe: np.ndarray, unsafe: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall, rising, and precision of ``score >= t`` for each score ``t`` that was seen."""
    hits, alarms = _counts(safe, unsafe)
    return hits / len(unsafe), hits / (hits + alarms)


def roc(safe: np.ndarray, unsafe: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates, rising, from (0, 0) to (1, 1)."""
    hits, alarms = _counts(safe, unsafe)
    return np.append(0.0, alarms / len(safe)), np.append(0.0, hits / len(unsafe))


def _counts(safe: np.ndarray, unsafe: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unsafe and safe items at or above each score that was seen, from the greatest down."""
    seen = np.unique(np.concatenate([safe, unsafe]))[::-1]
    above = (len(one) - np.searchsorted(np.sort(one), seen, side="left") for one in (unsafe, safe))
    hits, alarms = above
    return hits, alarms


def _auc(safe: np.ndarray, unsafe: np.ndarray) -> float:
    return roc_auc(torch.from_numpy(safe), torch.from_numpy(unsafe))


def worst_mistakes(
    items: Sequence[Labelled], distances: Sequence[float], modality: str, count: int
) -> tuple[list[int], list[int]]:
    """The safe items that are farthest out and the unsafe ones nearest to the origin, worst first."""
    order = np.argsort(np.asarray(distances), kind="stable")
    mine = [int(i) for i in order if items[i].modality == modality]
    safe = [i for i in reversed(mine) if not items[i].is_unsafe]
    return safe[:count], [i for i in mine if items[i].is_unsafe][:count]


def format_report(report: dict[str, Any]) -> str:
    """The report as text."""
    lines = []
    for modality, numbers in report.items():
        lines.append(
            f"{modality}s: {numbers['safe']} safe, {numbers['unsafe']} unsafe; "
            f"AUC {numbers['auc']:.4f}, AP {numbers['ap']:.4f}"
        )
        if numbers["thresholds"]:
            lines.append(f"  {'threshold':16}{'distance':>10}{'FPR':>9}{'FNR':>9}")
        for name, at in numbers["thresholds"].items():
            mark = "*" if name == numbers["decides"] else " "
            lines.append(f" {mark}{name:16}{at['threshold']:10.4f}{at['fpr']:9.2%}{at['fnr']:9.2%}")
        if numbers["categories"]:
            lines.append(f"  {'category':16}{'unsafe':>10}{'AUC':>9}{'FNR':>9}")
        for name, of in numbers["categories"].items():
            missed = f"{of['fnr']:9.2%}" if "fnr" in of else f"{'':9}"
            lines.append(f"  {name:16}{of['unsafe']:10}{of['auc']:9.4f}{missed}")
    return "\n".join(lines)
