"""A summary of scores in text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

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
    """Bars of the distances to the origin: ``#`` beyond the threshold, ``=`` up to it."""
    least, most = distances.min(), distances.max()
    edges = np.linspace(least, most, 1 + min(_BINS, len(np.unique(distances))))
    safe = distances <= (np.inf if threshold is None else threshold)
    counts = np.array([np.histogram(some, edges)[0] for some in (distances[safe], distances[~safe])])
    lines = []
    for of_bin, low, high in zip(counts.T, edges[:-1], edges[1:], strict=True):
        bar = "=" * round(_WIDTH * of_bin[0] / counts.sum(0).max())
        bar = bar.ljust(round(_WIDTH * of_bin.sum() / counts.sum(0).max()), "#")
        lines.append(f"{low:10.4f} to {high:8.4f}  {bar:{_WIDTH}} {of_bin.sum()}")
    if threshold is not None:
        lines.append(f"threshold {threshold:.4f}: = is safe, # is unsafe")
    return "\n".join(lines)


class Cosines:
    """Cosines of points with the calibration's directions; the points are not kept."""

    def __init__(self, points: OperatingPoints | None) -> None:
        known = {} if points is None else points.modalities
        self._directions = {name: one.direction for name, one in known.items() if one.direction is not None}
        self._parts: dict[str, list[np.ndarray]] = {name: [] for name in self._directions}

    def add(self, modalities: Sequence[str], points: Tensor) -> None:
        """Add the cosines of points ``(N, D)`` with their ``N`` modalities."""
        of = np.asarray(modalities)
        for name, direction in self._directions.items():
            self._parts[name].append(direction.cosines(points.numpy()[of == name]))

    def all(self) -> dict[str, np.ndarray]:
        """The cosines of all points that were added, by modality."""
        return {name: np.concatenate(parts) for name, parts in self._parts.items() if parts}


def warnings_of(
    rows: Sequence[dict[str, Any]],
    points: OperatingPoints | None,
    cosines: Mapping[str, np.ndarray] | None = None,
) -> list[str]:
    """Warnings for the reader of the scores.

    Args:
        rows: with ``modality`` and ``distance``.
        points: of the model, None for one that was not calibrated.
        cosines: by modality, :meth:`Direction.cosines` of some or all items.
    """
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
        known = points.modalities[modality]
        compared = [("distances", known.reference, distances)]
        if known.direction is not None and cosines is not None and len(cosines.get(modality, ())):
            compared.append(("directions", known.direction.reference, cosines[modality]))
        for what, reference, values in compared:
            if reference.is_foreign(values):
                told.append(
                    f"the {modality}s lie elsewhere than those that the model was calibrated on: no mix of "
                    f"its safe and unsafe ones has such {what} (gap {reference.gap(values):.2f} by "
                    "Kolmogorov and Smirnov). Its thresholds may not hold: calibrate on data like these"
                )
    return told


def _distances(rows: Sequence[dict[str, Any]], modality: str) -> np.ndarray:
    of_modality = [row["distance"] for row in rows if row["modality"] == modality]
    return np.array([distance for distance in of_modality if distance is not None], float)
