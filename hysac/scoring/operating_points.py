"""Thresholds of a model and what they do, as ``hysac calibrate`` leaves them in ``safety.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hysac.files import read_json, write_json
from hysac.json_object import is_number
from hysac.safety import MODALITIES

FORMAT_VERSION = 1

_DRIFT_LEVEL = 1.949
"""By chance a Kolmogorov-Smirnov gap exceeds this times ``sqrt(1/n + 1/m)`` once in 1000 times."""


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold of the distance to the origin, and what it does on the data that it was fitted to.

    Attributes:
        threshold: an item is called unsafe if its distance is greater.
        low, high: the 95 % interval of the threshold, by bootstrap.
        fpr: share of the safe items that are called unsafe.
        fnr: share of the unsafe items that are called safe.
    """

    threshold: float
    low: float
    high: float
    fpr: float
    fnr: float

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_number(field.name, getattr(self, field.name))
        if not self.low <= self.threshold <= self.high:
            raise ValueError(f"threshold {self.threshold} must lie within [{self.low}, {self.high}]")
        if not (0 <= self.fpr <= 1 and 0 <= self.fnr <= 1):
            raise ValueError(f"fpr and fnr must lie within [0, 1], got {self.fpr} and {self.fnr}")


@dataclass(frozen=True)
class Probability:
    """From a distance to the probability that an item is unsafe, for the shares of the calibration data.

    Attributes:
        kind: ``"logistic"`` or ``"isotonic"``.
        x: distances in ascending order; ``(centre, slope)`` for a logistic curve.
        y: the probabilities at ``x``; empty for a logistic curve.
        unsafe_share: of the data that it was fitted to.
    """

    kind: Literal["logistic", "isotonic"]
    x: tuple[float, ...]
    y: tuple[float, ...]
    unsafe_share: float

    def __post_init__(self) -> None:
        for value in (*self.x, *self.y, self.unsafe_share):
            _check_number("a probability's number", value)
        if self.kind == "logistic":
            if len(self.x) != 2 or self.y:
                raise ValueError(f"a logistic curve has a centre and a slope, got {len(self.x)} numbers")
        elif self.kind == "isotonic":
            rises = list(self.x) == sorted(self.x) and list(self.y) == sorted(self.y)
            if not (rises and len(self.x) == len(self.y) > 0 and self.y[0] >= 0 and self.y[-1] <= 1):
                raise ValueError("an isotonic curve needs as many rising distances as rising probabilities")
        else:
            raise ValueError(f"kind must be logistic or isotonic, got {self.kind!r}")

    def __call__(self, distance: float) -> float:
        if self.kind == "isotonic":
            return float(np.interp(distance, self.x, self.y))
        centre, slope = self.x
        return float(0.5 * (1 + np.tanh(0.5 * slope * (distance - centre))))


@dataclass(frozen=True)
class Reference:
    """The distances that a model was calibrated on: quantiles at equal steps, the least to the greatest.

    Attributes:
        safe, unsafe: the quantiles of each class.
        safe_count, unsafe_count: how many items they stand for.
    """

    safe: tuple[float, ...]
    unsafe: tuple[float, ...]
    safe_count: int
    unsafe_count: int

    def __post_init__(self) -> None:
        for name in ("safe", "unsafe"):
            quantiles = getattr(self, name)
            for value in quantiles:
                _check_number(name, value)
            if len(quantiles) < 2 or list(quantiles) != sorted(quantiles):
                raise ValueError(f"{name} must be rising quantiles, at least two")
            count = getattr(self, f"{name}_count")
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"{name}_count must be a positive integer, got {count!r}")

    @classmethod
    def of(cls, safe: np.ndarray, unsafe: np.ndarray, steps: int = 256) -> Reference:
        at = np.linspace(0, 1, steps + 1)
        of_safe, of_unsafe = (tuple(np.quantile(values, at).tolist()) for values in (safe, unsafe))
        return cls(of_safe, of_unsafe, len(safe), len(unsafe))

    def gap(self, distances: np.ndarray) -> float:
        """How far ``distances`` are from every mix of the two classes, in [0, 1].

        It is the Kolmogorov-Smirnov statistic, the greatest difference of cumulative shares, to the
        nearest mix: data that differ only in the shares of safe and unsafe items have no gap.
        """
        points = np.unique(np.concatenate([distances, self.safe, self.unsafe]))
        seen = np.searchsorted(np.sort(distances), points, side="right") / len(distances)
        at = np.linspace(0, 1, len(self.safe))
        safe, unsafe = (np.interp(points, one, at) for one in (self.safe, self.unsafe))
        mixes = np.linspace(0, 1, 101)[:, None]
        return float(np.abs(seen - (mixes * unsafe + (1 - mixes) * safe)).max(1).min())

    def is_foreign(self, distances: np.ndarray) -> bool:
        """Whether a :meth:`gap` this large occurs by chance less than once in 1000 times."""
        fewest = min(self.safe_count, self.unsafe_count)
        return self.gap(distances) > _DRIFT_LEVEL * math.sqrt(1 / len(distances) + 1 / fewest)


@dataclass(frozen=True)
class Direction:
    """The direction of the calibration data from the origin: other data may differ in it, not in
    distances.

    Attributes:
        mean: of the directions of its points, ``(D,)``.
        reference: the cosines of its points with ``mean``.
    """

    mean: tuple[float, ...]
    reference: Reference

    def __post_init__(self) -> None:
        for value in self.mean:
            _check_number("mean", value)

    @classmethod
    def of(cls, safe: np.ndarray, unsafe: np.ndarray) -> Direction:
        """The direction of points ``(N, D)``, space components."""
        mean = np.concatenate([_unit(safe), _unit(unsafe)]).mean(0)
        return cls(tuple(mean.tolist()), Reference.of(_cosines(safe, mean), _cosines(unsafe, mean)))

    def cosines(self, points: np.ndarray) -> np.ndarray:
        """The cosines ``(N,)`` of points ``(N, D)`` with :attr:`mean`.

        Raises:
            ValueError: points of another width.
        """
        if points.shape[1] != len(self.mean):
            raise ValueError(f"points must have width {len(self.mean)}, got {points.shape[1]}")
        return _cosines(points, np.array(self.mean))


def _unit(points: np.ndarray) -> np.ndarray:
    """Points divided by their norms; the origin stays 0."""
    norms = np.linalg.norm(points.astype(np.float64), axis=1, keepdims=True)
    return np.divide(points, norms, out=np.zeros(points.shape), where=norms > 0)


def _cosines(points: np.ndarray, mean: np.ndarray) -> np.ndarray:
    return _unit(points) @ _unit(mean[None])[0]


@dataclass(frozen=True)
class ModalityPoints:
    """The calibration of one modality.

    Attributes:
        points: operating points by name, such as ``"youden"`` and ``"fpr=0.01"``.
        probability: or None where it was not fitted.
        reference: the distances of the calibration data.
        direction: where these lie, or None where their points were not given.
    """

    points: Mapping[str, OperatingPoint]
    probability: Probability | None
    reference: Reference
    direction: Direction | None = None


@dataclass(frozen=True)
class OperatingPoints:
    """The operating points of a model, by modality ``"text"`` and ``"image"``.

    Attributes:
        modalities: of one or both.
        default: the name of the point that decides where none is asked for.
        data: name and fingerprint of the calibration data.
        model: the SHA-256 of the weights that they belong to.
    """

    modalities: Mapping[str, ModalityPoints]
    default: str
    data: Mapping[str, Any]
    model: str

    def __post_init__(self) -> None:
        if not self.modalities or not set(self.modalities) <= set(MODALITIES):
            raise ValueError(f"modalities must be some of text, image, got {', '.join(self.modalities)}")
        for modality, known in self.modalities.items():
            if self.default not in known.points:
                raise ValueError(f"{modality} has no operating point {self.default!r}, the default")

    def point(self, modality: str, name: str | None = None) -> OperatingPoint:
        """The operating point of a modality by name.

        Raises:
            ValueError: the modality was not calibrated, or has no point of that name.
        """
        if modality not in self.modalities:
            known = ", ".join(f"{name}s" for name in self.modalities)
            raise ValueError(f"{modality}s were not calibrated, only {known}")
        points = self.modalities[modality].points
        if (name or self.default) not in points:
            raise ValueError(
                f"{modality} has no threshold {name!r}; there are {', '.join(points)}. "
                "`hysac calibrate` fits others, such as fpr=0.05 by --target-fpr 0.05"
            )
        return points[name or self.default]

    def save(self, path: Path) -> None:
        """Write ``path``, replacing it at once."""
        write_json(path, {"format_version": FORMAT_VERSION, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> OperatingPoints:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: names the file, and the impossible value in it.
        """
        content = read_json(path)
        try:
            if not isinstance(content, dict) or content.pop("format_version", None) != FORMAT_VERSION:
                raise ValueError(f"format_version must be {FORMAT_VERSION}")
            modalities = {name: _modality(value) for name, value in content.pop("modalities").items()}
            return cls(modalities=modalities, **content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not operating points of this version: {error}") from error


def _modality(content: dict[str, Any]) -> ModalityPoints:
    probability = content["probability"]
    if probability is not None:
        lists = {name: tuple(probability[name]) for name in ("x", "y")}
        probability = Probability(**{**probability, **lists})
    direction = content.get("direction")
    if direction is not None:
        direction = Direction(tuple(direction["mean"]), _reference(direction["reference"]))
    return ModalityPoints(
        {name: OperatingPoint(**point) for name, point in content["points"].items()},
        probability,
        _reference(content["reference"]),
        direction,
    )


def _reference(content: dict[str, Any]) -> Reference:
    return Reference(**{**content, **{name: tuple(content[name]) for name in ("safe", "unsafe")}})


def _check_number(name: str, value: object) -> None:
    if not is_number(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
