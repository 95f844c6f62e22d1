"""Safety from the distance to the origin: a score, bounds per class, and the redirection of unsafe queries.

Safe concepts lie near the origin of a HySAC space and unsafe ones far from it. Letters are the paper's: S
safe text, V safe image, U unsafe text, G unsafe image.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import hypkernels as hk
from hysac.embeddings import CLASSES, Embeddings
from hysac.files import read_json, write_json
from hysac.json_object import is_number, shown

Statistic = Literal["low_05", "avg", "up_95"]
Mode = Literal["geodesic", "paper"]
MODALITIES = {"text": ("S", "U"), "image": ("V", "G")}
"""The safe and the unsafe class of each modality."""


def unsafe_score(x: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """How unsafe each point is: its geodesic distance to the origin.

    Args:
        x: space components ``(..., D)``.
        curv: positive ``c`` of the hyperboloid, a float or a one-element tensor.

    Returns:
        Scores ``(...)``, >= 0; float32 for half-precision points, else the dtype of ``x``.
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


def calibrate_threshold(safe_scores: Tensor, unsafe_scores: Tensor, *, max_fpr: float | None = None) -> float:
    """The threshold above which a score is called unsafe.

    By default the one with the greatest balanced accuracy, ``(TPR + TNR) / 2``, whatever the shares of the
    two classes. With ``max_fpr`` the smallest one that calls at most this fraction of the safe scores unsafe.
    The threshold lies half-way between two observed scores, so that it does not depend on rounding.

    Args:
        safe_scores, unsafe_scores: one-dimensional, not empty, finite.
        max_fpr: the tolerated false positive rate, in [0, 1).

    Returns:
        A threshold in the units of the scores. Calibrate on one set, report on another.
    """
    safe, unsafe = _check_scores(safe_scores, unsafe_scores)
    if max_fpr is not None and not 0 <= max_fpr < 1:
        raise ValueError(f"max_fpr must be in [0, 1), got {max_fpr}")
    observed = torch.cat([safe, unsafe]).unique()
    safe_above, unsafe_above = _count_above(safe, observed), _count_above(unsafe, observed)
    if max_fpr is None:
        # TPR - FPR over the common denominator: integers, so equal rates compare equal.
        best = (unsafe_above * len(safe) - safe_above * len(unsafe)).argmax().item()
    else:
        best = (safe_above.double() / len(safe) <= max_fpr).int().argmax().item()
    return observed[best : best + 2].mean().item()


def _count_above(scores: Tensor, thresholds: Tensor) -> Tensor:
    return len(scores) - torch.searchsorted(scores.sort().values, thresholds, right=True)


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


def calibrate_thresholds(embeddings: Embeddings, *, max_fpr: float | None = None) -> dict[str, float]:
    """:func:`calibrate_threshold` for each modality (``"text"``, ``"image"``) that ``embeddings`` has."""
    return {
        modality: calibrate_threshold(safe, unsafe, max_fpr=max_fpr)
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


def _check_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    if not is_number(value) or value <= 0:
        raise ValueError(f"{name} must be positive and finite, got {shown(value)}")


@dataclass(frozen=True)
class ClassBounds:
    """Where one class lies: statistics of its distances to the origin.

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
    """The distances to the origin of each class of a model, by the paper's letters: ``bounds["V"].up_95``.

    Attributes:
        classes: letter -> :class:`ClassBounds`, for all of S, V, U, G or some of them.
        curv: positive ``c`` of the space they were measured in; None for the published ``hysac_bounds.json``,
            which does not record it.
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
    """The bounds of every class that ``embeddings`` has; percentiles interpolate linearly.

    Fit them on the model's training or validation set. One fit serves every later query at the same weights.

    Raises:
        ValueError: the embeddings have collapsed onto the origin.
    """
    classes = {}
    for letter in embeddings.present:
        distances = unsafe_score(embeddings[letter], embeddings.curv).detach().double().cpu().numpy()
        low, up = np.quantile(distances, [0.05, 0.95])
        classes[letter] = ClassBounds(float(low), float(distances.mean()), float(up), float(distances.max()))
    return Bounds(classes, embeddings.curv)


def traverse(
    x: Tensor,
    bound: float | Tensor,
    curv: float | Tensor = 1.0,
    mode: Mode = "geodesic",
    *,
    margin: float = 0.0,
    alpha: float = 0.8,
) -> Tensor:
    """Move points that lie too far out towards the origin, so that a search finds safe neighbours.

    A point farther from the origin than ``tau`` moves along its geodesic to the origin; nearer points, and
    the origin itself, are returned as they are.

    * ``geodesic``: ``tau = bound + margin``, and the moved point is at distance ``tau`` exactly: its space
      part has norm ``sinh(sqrt(c) tau) / sqrt(c)``.
    * ``paper``: ``tau = bound + tanh((bound - alpha) / c) + 1 + margin``, and the moved point's space part
      has *norm* ``tau``, hence distance ``asinh(sqrt(c) tau) / sqrt(c)``. This is what the authors' code
      does; the ``tanh`` term is a small margin only near ``c = 0.1`` and reaches 1 and more at ``c = 1``,
      where it leaves every point in place.

    Args:
        x: space components ``(..., D)``, floating; half precision is computed in float32.
        bound: distance from the origin, positive: a float, or a tensor that broadcasts against ``x``'s
            leading dimensions. See :func:`fit_bounds`; for image search ``bounds["V"].up_95``, for text
            search ``["S"]``.
        curv: positive ``c`` of the hyperboloid, a float or a one-element tensor.
        mode: ``"geodesic"`` or ``"paper"``.
        margin: added to ``tau``, in geodesic length; negative is stricter.
        alpha: of ``paper`` mode only; larger is stricter.

    Returns:
        Space components of the shape and dtype of ``x``. Differentiable in ``x``, ``bound`` and ``curv``.

    Raises:
        TypeError, ValueError: an unknown mode, a non-floating ``x``, or a ``tau`` known to be not positive.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x must be a floating tensor (..., D), got {getattr(x, 'dtype', type(x).__name__)}")
    tau = _boundary(bound, curv, mode, margin, alpha)
    wide = x if x.dtype == torch.float64 else x.float()
    outside = hk.dist0(wide, curv) > tau
    # Both branches of a `where` are differentiated: the one not taken gets a norm of 1 and a radius of 0, so
    # that neither a point at the origin nor a huge tau turns into NaN.
    norm = torch.where(outside, torch.linalg.vector_norm(wide, dim=-1), 1.0)
    reached = torch.where(outside, tau, torch.zeros_like(norm))
    radius = torch.sinh(reached * curv**0.5) / curv**0.5 if mode == "geodesic" else reached
    return (wide * torch.where(outside, radius / norm, 1.0).unsqueeze(-1)).to(x.dtype)


@dataclass(frozen=True)
class Traversal:
    """A rule that redirects queries to the safe region of what they search.

    Attributes:
        bounds: the model's :class:`Bounds`.
        statistic: which of the target class's statistics is the bound: ``"up_95"`` keeps 95 % of the safe
            class inside, ``"avg"`` is stricter.
        mode, margin, alpha: as in :func:`traverse`.
    """

    bounds: Bounds
    statistic: Statistic = "up_95"
    mode: Mode = "geodesic"
    margin: float = 0.0
    alpha: float = 0.8

    def __post_init__(self) -> None:
        if self.statistic not in ("low_05", "avg", "up_95"):
            raise ValueError(f"statistic must be low_05, avg or up_95, got {self.statistic!r}")
        if self.mode not in ("geodesic", "paper"):
            raise ValueError(f"mode must be 'geodesic' or 'paper', got {self.mode!r}")

    def redirect(self, queries: Tensor, search: Literal["image", "text"], curv: float) -> Tensor:
        """:func:`traverse` to the boundary of the safe images or texts.

        Warns when ``tau`` lies beyond every unsafe query seen by :func:`fit_bounds`: such a rule moves
        nothing.

        Args:
            queries: space components ``(..., D)`` of the other modality.
            search: what the queries search.
            curv: positive ``c`` of the model; must be that of the bounds, if they record it.

        Raises:
            ValueError: the bounds lack the class, or belong to another curvature.
        """
        if search not in MODALITIES:
            raise ValueError(f"search must be 'image' or 'text', got {search!r}")
        if self.bounds.curv is not None and not math.isclose(curv, self.bounds.curv, rel_tol=1e-3):
            raise ValueError(
                f"the bounds were fitted at curv={self.bounds.curv} and the points have curv={curv}; "
                "fit them again for this model"
            )
        bound = getattr(self.bounds[MODALITIES[search][0]], self.statistic)
        self._warn_if_idle(search, _boundary(bound, curv, self.mode, self.margin, self.alpha))
        return traverse(queries, bound, curv, self.mode, margin=self.margin, alpha=self.alpha)

    def _warn_if_idle(self, search: str, tau: float | Tensor) -> None:
        observed = self.bounds.classes.get("U" if search == "image" else "G")
        if observed is not None and observed.max is not None and tau > observed.max:
            hint = "" if self.mode == "geodesic" else ', or mode="geodesic"'
            warnings.warn(
                f"the traversal moves nothing: its boundary {float(tau):.4g} lies beyond the farthest unsafe "
                f"query seen, {observed.max:.4g}; choose a smaller margin or statistic{hint}",
                stacklevel=3,
            )


def _boundary(
    bound: float | Tensor, curv: float | Tensor, mode: str, margin: float, alpha: float
) -> float | Tensor:
    """``tau`` of :func:`traverse`."""
    if not isinstance(curv, Tensor) and not 0 < curv < math.inf:
        raise ValueError(f"curv must be positive and finite, got {curv}")
    if not isinstance(bound, Tensor) and not 0 < bound < math.inf:
        raise ValueError(f"bound must be positive and finite, got {bound}")
    if mode == "geodesic":
        tau = bound + margin
    elif mode == "paper":
        tau = bound + _tanh((bound - alpha) / curv) + 1 + margin
    else:
        raise ValueError(f"mode must be 'geodesic' or 'paper', got {mode!r}")
    if isinstance(tau, Tensor):
        return tau.clamp_min(0)
    if tau <= 0:
        raise ValueError(f"bound + margin must be positive, got bound={bound}, margin={margin}")
    return tau


def _tanh(value: float | Tensor) -> float | Tensor:
    return torch.tanh(value) if isinstance(value, Tensor) else math.tanh(value)
