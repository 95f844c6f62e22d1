"""Statistics of each class's distances to the origin: the bounds for redirection, and their file."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hysac.embeddings import CLASSES, Embeddings
from hysac.files import read_json, write_json
from hysac.json_object import is_number, shown
from hysac.safety.scores import unsafe_score


def _check_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    if not is_number(value) or value <= 0:
        raise ValueError(f"{name} must be positive and finite, got {shown(value)}")


@dataclass(frozen=True)
class ClassBounds:
    """Statistics of the distances of one class to the origin.

    Attributes:
        low_05, up_95: 5th and 95th percentile, ``0 < low_05 <= up_95``.
        avg: mean, > 0.
        max: the greatest distance seen, or None where it was not recorded.
    """

    low_05: float
    avg: float
    up_95: float
    max: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is None and name == "max":
                continue
            _check_positive(name, value)
        if self.low_05 > self.up_95:
            raise ValueError(f"low_05 must not exceed up_95, got {self.low_05} and {self.up_95}")
        if self.max is not None and self.max < self.up_95:
            raise ValueError(f"max must not be less than up_95, got {self.max} and {self.up_95}")
        # A few points very far out can put the mean outside the percentiles; mixed up fields are likelier.
        slack = 1e-6 * self.up_95
        if not self.low_05 - slack <= self.avg <= self.up_95 + slack:
            warnings.warn(
                f"avg={self.avg} lies outside [low_05, up_95] = [{self.low_05}, {self.up_95}]: "
                "the distances are very skewed, or the fields are mixed up",
                stacklevel=3,
            )


@dataclass(frozen=True)
class Bounds:
    """Statistics of each class's distances to the origin, by the paper's letters: ``bounds["V"].up_95``.

    S is safe text, V safe image, U unsafe text, G unsafe image.

    Attributes:
        classes: letter -> :class:`ClassBounds`, for some or all of S, V, U and G.
        curv: positive ``c`` of the space that the distances were measured in; None for the published
            ``hysac_bounds.json``, which does not record it.
    """

    classes: Mapping[str, ClassBounds]
    curv: float | None = None

    def __post_init__(self) -> None:
        if not self.classes or not set(self.classes) <= set(CLASSES):
            raise ValueError(
                f"classes must be some of {', '.join(CLASSES)}, got {', '.join(self.classes) or 'none'}"
            )
        if self.curv is not None:
            _check_positive("curv", self.curv)

    def __getitem__(self, letter: str) -> ClassBounds:
        if letter not in self.classes:
            raise ValueError(f"no bounds for class {letter!r}; there are {', '.join(self.classes)}")
        return self.classes[letter]

    def to_dict(self) -> dict[str, Any]:
        """The published file's shape, ``{"S": {"low_05": ...}, ...}``, plus ``curv`` and the maxima."""
        classes = {
            letter: {name: value for name, value in asdict(bounds).items() if value is not None}
            for letter, bounds in self.classes.items()
        }
        return classes if self.curv is None else classes | {"curv": self.curv}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Bounds:
        """The inverse of :meth:`to_dict`; unknown keys are ignored, missing statistics are an error."""
        if not isinstance(data, Mapping):
            raise TypeError(f"bounds must be a mapping of classes, got {type(data).__name__}")
        classes = {}
        for letter in CLASSES:
            if letter not in data:
                continue
            statistics = data[letter]
            if not isinstance(statistics, Mapping):
                raise TypeError(
                    f"bounds of class {letter} must be a mapping, got {type(statistics).__name__}"
                )
            missing = [name for name in ("low_05", "avg", "up_95") if name not in statistics]
            if missing:
                raise ValueError(f"bounds of class {letter} lack {', '.join(missing)}")
            try:
                classes[letter] = ClassBounds(
                    statistics["low_05"], statistics["avg"], statistics["up_95"], statistics.get("max")
                )
            except (TypeError, ValueError) as error:
                raise type(error)(f"bounds of class {letter}: {error}") from None
        return cls(classes, data.get("curv"))

    def save(self, path: str | Path, *, drop_classes: bool = False) -> None:
        """Write JSON; a reader sees the old file or the new one, never a part.

        Args:
            path: the file.
            drop_classes: whether bounds may be replaced by those of fewer classes.

        Raises:
            ValueError: the file has classes that these bounds lack, or is something else than bounds.
        """
        path = Path(path)
        if not drop_classes:
            check_replaces(path, self.classes)
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Bounds:
        """Read what :meth:`save` wrote, or the published ``hysac_bounds.json``.

        Raises:
            ValueError: the file is not JSON, lacks a statistic, or its values are impossible; names the file.
        """
        content = read_json(Path(path))
        try:
            return cls.from_dict(content)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error


def check_replaces(path: Path, classes: Iterable[str]) -> None:
    """Refuse bounds of ``classes`` in place of a file that has others, or is something else.

    Raises:
        ValueError: names the file and the classes.
    """
    if not path.exists():
        return
    try:
        before = Bounds.load(path).classes
    except ValueError as error:
        raise ValueError(f"{path} is there and holds no bounds: {error}") from error
    if lost := [f"{CLASSES[letter].replace('_', ' ')}s" for letter in before if letter not in set(classes)]:
        raise ValueError(
            f"{path} has bounds of {' and '.join(lost)}, which the new ones lack; drop_classes "
            "(--drop-classes) replaces it all the same"
        )


def fit_bounds(embeddings: Embeddings) -> Bounds:
    """The bounds of every class that ``embeddings`` has: mean, 5th and 95th percentile, and maximum.

    Percentiles interpolate linearly. Take embeddings of the model's training or validation set. One fit
    serves every later query of the same weights.

    Raises:
        ValueError: the embeddings have collapsed onto the origin.
    """
    classes = {}
    for letter in embeddings.present:
        distances = unsafe_score(embeddings[letter], embeddings.curv).detach().double().cpu().numpy()
        low, up = np.quantile(distances, [0.05, 0.95])
        classes[letter] = ClassBounds(float(low), float(distances.mean()), float(up), float(distances.max()))
    return Bounds(classes, embeddings.curv)
