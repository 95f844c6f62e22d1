"""Fitting a model's operating points to labelled distances; probabilities need ``hysac[calibrate]``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hysac.safety.scores import target_share, threshold_of
from hysac.scoring.operating_points import (
    Direction,
    ModalityPoints,
    OperatingPoint,
    OperatingPoints,
    Probability,
    Reference,
)

TARGETS = ("youden", "max-f1", "fpr=0.01", "fpr=0.001", "fnr=0.01")
"""The operating points that are always fitted. Others are ``fpr=X`` and ``fnr=X`` with any X in (0, 1)."""

_RESAMPLES = 1000
_RESAMPLED_ITEMS = 20_000_000
_FEWEST_FOR_ISOTONIC = 1000


def fit_operating_points(
    distances: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    points: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    default: str = "youden",
    probability: str | None = None,
    data: Mapping[str, Any],
    model: str,
    seed: int = 0,
) -> OperatingPoints:
    """Thresholds, probabilities and the distances themselves, of each modality.

    Args:
        distances: by modality those of its safe and of its unsafe items, finite, at least two of each.
        points: their points ``(N, D)``, so that other data are noticed by their directions, too.
        default: the point that decides where none is asked for: one of :data:`TARGETS`, ``fpr=X``, ``fnr=X``.
            Other points that need more items than there are, are left out.
        probability: ``"logistic"``, ``"isotonic"`` or ``"none"``; by default isotonic for at least 1000 items
            of each class, else logistic.
        data, model: see :class:`OperatingPoints`.
        seed: of the bootstrap.

    Raises:
        ValueError: too few items, distances that are not finite, an unknown target.
        ImportError: scikit-learn is missing and a probability is asked for.
    """
    modalities = {}
    for modality, (safe, unsafe) in distances.items():
        for kind, values in (("safe", safe), ("unsafe", unsafe)):
            if len(values) < 2 or not np.isfinite(values).all():
                raise ValueError(
                    f"calibration needs at least two {kind} {modality}s, all with finite distances; got "
                    f"{len(values)}"
                )
        check_target(default, modality, len(safe), len(unsafe))
        generator = np.random.default_rng(seed)
        targets = [name for name in TARGETS if _fewest(name, len(safe), len(unsafe)) is None]
        fitted = {
            target: _operating_point(safe, unsafe, target, generator)
            for target in dict.fromkeys([*targets, default])
        }
        curve = fit_probability(safe, unsafe, probability)
        direction = None if points is None else Direction.of(*points[modality])
        modalities[modality] = ModalityPoints(fitted, curve, Reference.of(safe, unsafe), direction)
    return OperatingPoints(modalities, default, data, model)


def check_target(target: str, modality: str, safe: int, unsafe: int) -> None:
    """Refuse a share for which there are too few items.

    Raises:
        ValueError: an unknown target, or fewer items than one for its share.
    """
    needed = _fewest(target, safe, unsafe)
    if needed is not None:
        kind, count = ("safe", safe) if target.startswith("fpr") else ("unsafe", unsafe)
        raise ValueError(f"{target} needs at least {needed} {kind} {modality}s, got {count}")


def _fewest(target: str, safe: int, unsafe: int) -> int | None:
    """How many items ``target`` needs, if there are fewer."""
    kind, share = target_share(target)
    if not share:
        return None
    needed = math.ceil(1 / share - 1e-9)
    return needed if (safe if kind == "fpr" else unsafe) < needed else None


def check_probability(kind: str | None) -> None:
    """Refuse a curve whose library is missing.

    Raises:
        ImportError: names the extra.
    """
    if kind != "none":
        try:
            import sklearn  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "the calibration of a probability needs scikit-learn: pip install 'hysac[calibrate]' "
                "(or --probability none)"
            ) from error


def fit_probability(safe: np.ndarray, unsafe: np.ndarray, kind: str | None) -> Probability | None:
    """The probability of being unsafe, as an increasing function of the distance."""
    if kind is None:
        kind = "isotonic" if min(len(safe), len(unsafe)) >= _FEWEST_FOR_ISOTONIC else "logistic"
    if kind == "none":
        return None
    check_probability(kind)
    from sklearn.isotonic import IsotonicRegression
    from sklearn.linear_model import LogisticRegression

    x = np.concatenate([safe, unsafe]).astype(np.float64)
    y = np.concatenate([np.zeros(len(safe)), np.ones(len(unsafe))])
    share = len(unsafe) / len(x)
    if kind == "isotonic":
        fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(x, y)
        x, y = fitted.X_thresholds_, fitted.y_thresholds_
        return Probability("isotonic", tuple(x.tolist()), tuple(y.tolist()), share)
    if kind != "logistic":
        raise ValueError(f"probability must be logistic, isotonic or none, got {kind!r}")
    mean, scale = x.mean(), x.std() or 1.0
    fitted = LogisticRegression(C=1e3).fit(((x - mean) / scale)[:, None], y)
    slope = float(fitted.coef_[0, 0]) / scale
    if slope <= 0:
        return Probability("isotonic", (float(mean),), (share,), share)  # distances have no information
    return Probability("logistic", (float(mean - fitted.intercept_[0] / slope), slope), (), share)


def _operating_point(
    safe: np.ndarray, unsafe: np.ndarray, target: str, generator: np.random.Generator
) -> OperatingPoint:
    threshold = threshold_of(safe, unsafe, target)
    resamples = max(100, min(_RESAMPLES, _RESAMPLED_ITEMS // (len(safe) + len(unsafe))))
    drawn = [
        threshold_of(generator.choice(safe, len(safe)), generator.choice(unsafe, len(unsafe)), target)
        for _ in range(resamples)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return OperatingPoint(
        threshold,
        min(float(low), threshold),
        max(float(high), threshold),
        float((safe > threshold).mean()),
        float((unsafe <= threshold).mean()),
    )


def by_label(
    modalities: Sequence[str], is_unsafe: Sequence[bool], values: Any
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The values of safe and of unsafe items, for each modality that has both.

    Args:
        modalities, is_unsafe: of each item.
        values: of each item, such as distances ``(N,)`` or points ``(N, D)``.
    """
    of = np.asarray(modalities)
    unsafe, values = np.asarray(is_unsafe, bool), np.asarray(values, np.float64)
    return {
        name: (values[(of == name) & ~unsafe], values[(of == name) & unsafe])
        for name in ("text", "image")
        if ((of == name) & ~unsafe).any() and ((of == name) & unsafe).any()
    }
