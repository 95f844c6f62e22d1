"""What a run of scores came to, in text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from hysac.scoring.operating_points import OperatingPoints

_BINS, _WIDTH = 12, 40


def summary(rows: Sequence[dict[str, Any]], points: OperatingPoints | None, threshold: str | None) -> str:
    """Counts, decisions and a histogram of the distances, for each modality."""
    parts = []
    for modality in ("image", "text"):
        of_modality = [row for row in rows if row["modality"] == modality]
        distances = _distances(rows, modality)
        if not of_modality:
            continue
        told = f"{len(distances)} {modality}s scored"
        if unread := len(of_modality) - len(distances):
            told += f", {unread} could not be read"
        decisions = Counter(row["decision"] for row in of_modality if row["decision"] is not None)
        limit = None
        if decisions and points is not None:
            limit = points.point(modality, threshold).threshold
            told += (
                f": {decisions['unsafe']} unsafe, {decisions['safe']} safe, by {threshold or points.default}"
            )
        parts.append(told + "\n" + histogram(distances, limit) if len(distances) else told)
    return "\n".join(parts)


def histogram(distances: np.ndarray, threshold: float | None = None) -> str:
    """Bars of the distances to the origin; those beyond the threshold are of ``#``, the others of ``=``."""
    counts, edges = np.histogram(distances, min(_BINS, max(1, len(np.unique(distances)))))
    lines = []
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        bar = "#" if threshold is not None and (low + high) / 2 > threshold else "="
        lines.append(
            f"{low:10.4f} to {high:8.4f}  {bar * round(_WIDTH * count / counts.max()):{_WIDTH}} {count}"
        )
    if threshold is not None:
        lines.append(f"threshold {threshold:.4f}: = is safe, # is unsafe")
    return "\n".join(lines)


def warnings_of(rows: Sequence[dict[str, Any]], points: OperatingPoints | None) -> list[str]:
    """What a reader of the scores should know first."""
    told = []
    for modality in ("image", "text"):
        distances = _distances(rows, modality)
        if not len(distances):
            continue
        if points is None or modality not in points.modalities:
            told.append(
                f"the model is not calibrated for {modality}s: there are distances, and no decisions. "
                "`hysac calibrate` makes thresholds"
            )
            continue
        reference = points.modalities[modality].reference
        if reference.is_foreign(distances):
            told.append(
                f"the {modality}s lie elsewhere than those that the model was calibrated on: no mix of its "
                f"safe and unsafe ones has such distances (gap {reference.gap(distances):.2f} by Kolmogorov "
                "and Smirnov). Its thresholds may not hold: calibrate on data like these"
            )
    return told


def _distances(rows: Sequence[dict[str, Any]], modality: str) -> np.ndarray:
    of_modality = [row["distance"] for row in rows if row["modality"] == modality]
    return np.array([distance for distance in of_modality if distance is not None], float)
