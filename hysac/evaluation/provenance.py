"""The model, data and settings of a report."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

from hysac.data import Quadruplets
from hysac.data.manifest import fingerprint
from hysac.safety import DEFAULT_STATISTIC, Bounds

_PACKAGES = ("hysac", "torch", "open_clip_torch")


def made_with(
    model: str,
    name: str,
    dataset: Quadruplets,
    bounds: Bounds | None,
    thresholds: Mapping[str, float] | None,
    *,
    statistic: str = DEFAULT_STATISTIC,
    mode: str = "geodesic",
    margin: float = 0.0,
    alpha: float = 0.8,
    aperture_scale: float = 1.0,
    min_radius: float = 0.1,
) -> dict[str, Any]:
    """``made_with`` of an :class:`EvaluationReport`, ready for JSON.

    Args:
        model: identifies the weights, as :func:`hysac.scoring.identity.weights_digest` does.
        name: of the data.
        dataset: the quadruplets.
        bounds: those that redirected queries, or None.
        thresholds: above which items were called unsafe, by modality; None if fitted to the data itself.
        statistic, mode, margin, alpha: of :class:`hysac.safety.Traversal`.
        aperture_scale, min_radius: of :func:`hysac.evaluation.safety_metrics`.
    """
    return {
        "model": model,
        "data": {"name": name, "sha256": fingerprint(dataset.records)},
        "bounds": None if bounds is None else bounds.to_dict(),
        "thresholds": None if thresholds is None else dict(thresholds),
        "statistic": statistic,
        "mode": mode,
        "margin": margin,
        "alpha": alpha,
        "aperture_scale": aperture_scale,
        "min_radius": min_radius,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """The versions of the packages that compute."""
    return {name: metadata.version(name) for name in _PACKAGES}
