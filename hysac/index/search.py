"""Searching an index with a query as it is, redirected, or not at all where it is unsafe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

import hypkernels as hk
from hypkernels.retrieval import rerank, topk
from hysac.index.store import Index
from hysac.safety import DEFAULT_STATISTIC, Mode, Statistic, Traversal
from hysac.scoring.items import Item
from hysac.scoring.scorer import Picture, SafetyScorer, Score, check_finite

Policy = Literal["as-asked", "redirect", "block"]
POLICIES = ("as-asked", "redirect", "block")
To = Literal["origin", "nearest-safe"]


@dataclass(frozen=True)
class Hit:
    """An item that was found.

    Attributes:
        place: where it stands in the index.
        item: what it is.
        distance: from the query that searched.
        score: how unsafe the item itself is.
    """

    place: int
    item: Item
    distance: float
    score: Score


@dataclass(frozen=True)
class Answer:
    """The answer to a query.

    Attributes:
        query: how unsafe it is.
        point: where it searched from, ``(D,)``; None if it was blocked.
        moved: how far it was redirected.
        hits: the nearest first.
    """

    query: Score
    point: Tensor | None
    moved: float
    hits: tuple[Hit, ...]

    @property
    def is_blocked(self) -> bool:
        return self.point is None


@dataclass(frozen=True)
class Redirection:
    """How unsafe queries are redirected.

    Attributes:
        to: ``"origin"``: towards the origin, to the bound of the safe class that is searched;
            ``"nearest-safe"``: to the nearest item that is called safe, of the kind that is searched.
        statistic, mode, margin: of :class:`hysac.safety.Traversal`, for ``"origin"``.
    """

    to: To = "origin"
    statistic: Statistic = DEFAULT_STATISTIC
    mode: Mode = "geodesic"
    margin: float = 0.0

    def __post_init__(self) -> None:
        if self.to not in ("origin", "nearest-safe"):
            raise ValueError(f"to must be 'origin' or 'nearest-safe', got {self.to!r}")


def encode_query(
    scorer: SafetyScorer, *, text: str | None = None, image: Picture | None = None
) -> tuple[Tensor, Score]:
    """The point ``(D,)`` of a caption or an image, and its score.

    Raises:
        TypeError, ValueError: both or none is given, or it cannot be read.
        FloatingPointError: its distance is not finite.
    """
    if (text is None) == (image is None):
        raise ValueError("a query is a text or an image, one of both")
    modality = "text" if image is None else "image"
    prepared = scorer.tokens(text) if text is not None else scorer.pixels(image)  # type: ignore[arg-type]
    points, distances = scorer.encode_prepared(modality, [prepared])
    check_finite("the query", distances[0])
    return points[0], scorer.judge(modality, distances[0])


def search(
    index: Index,
    scorer: SafetyScorer,
    *,
    text: str | None = None,
    image: Picture | None = None,
    k: int = 10,
    modality: str | None = None,
    policy: Policy = "as-asked",
    redirection: Redirection | None = None,
) -> Answer:
    """The items nearest to a query.

    Args:
        index: made by the scorer's model.
        scorer: whose thresholds tell what is unsafe.
        text, image: the query, one of both.
        k: how many items.
        modality: what is searched, ``"image"``, ``"text"`` or ``"any"``; by default the other kind than the
            query's if the index has it, else the query's.
        policy: ``"as-asked"`` searches with the query as it is. ``"redirect"`` moves an unsafe one first.
            ``"block"`` answers an unsafe query with nothing, and leaves unsafe items out of other answers;
            it needs thresholds (``hysac calibrate``).
        redirection: how.

    Raises:
        ValueError: an unknown policy or modality, ``k`` < 1, an index of other weights, thresholds or bounds
            that the policy needs and that are missing, no such items.
    """
    _check(policy, k)
    query = encode_query(scorer, text=text, image=image)
    return search_from(index, scorer, *query, k=k, modality=modality, policy=policy, redirection=redirection)


def search_from(
    index: Index,
    scorer: SafetyScorer,
    point: Tensor,
    score: Score,
    *,
    k: int = 10,
    modality: str | None = None,
    policy: Policy = "as-asked",
    redirection: Redirection | None = None,
) -> Answer:
    """:func:`search` with what :func:`encode_query` returns.

    Raises:
        ValueError: see :func:`search`.
    """
    _check(policy, k)
    check_scorer(index, scorer)
    kind = searched_kind(index, score.modality, modality)
    allowed = allowed_items(index, kind)
    start, moved = point, 0.0
    if policy == "block":
        needs_thresholds(scorer, "--policy block")
        if score.decision != "safe":
            return Answer(score, None, 0.0, ())
        allowed &= is_safe(index, scorer)
    elif policy == "redirect":
        point, moved = redirect(index, scorer, start, score, kind, redirection or Redirection())
    return Answer(score, point, moved, tuple(nearest(index, scorer, point, k, allowed)))


def _check(policy: str, k: int) -> None:
    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be a positive integer, got {k!r}")


def check_scorer(index: Index, scorer: SafetyScorer) -> None:
    """Refuse an index of other weights than the scorer's.

    Raises:
        ValueError: names both.
    """
    if scorer.weights is not None:
        index.check_model(scorer.weights)


def redirect(
    index: Index, scorer: SafetyScorer, point: Tensor, score: Score, kind: str, how: Redirection
) -> tuple[Tensor, float]:
    """The point to which a query is moved, and the distance of the move.

    A query that is called safe stays. With ``to="origin"`` a query within the bound stays, too.
    """
    if score.decision == "safe":
        return point, 0.0
    if how.to == "origin":
        target = _towards_origin(index, scorer, point, score, kind, how)
    else:
        needs_thresholds(scorer, "--to nearest-safe")
        safe = allowed_items(index, kind) & is_safe(index, scorer)
        if not safe.any():
            raise ValueError(f"{index.path} has no {kind} that is called safe")
        (hit,) = _topk(index, point, 1, safe)
        target = index.gallery().take(torch.tensor([hit[0]]))[0]
    return target, float(hk.elementwise_dist(point.double(), target.double(), index.curv))


def nearest(index: Index, scorer: SafetyScorer, point: Tensor, k: int, allowed: np.ndarray) -> list[Hit]:
    """The ``k`` nearest of the ``allowed`` items, or of those among them that the engine proposes."""
    scored = index.distances()
    found = []
    for place, distance in _topk(index, point, k, allowed):
        item = index.item(place)
        found.append(Hit(place, item, distance, scorer.judge(item.modality, float(scored[place]))))
    return found


def is_safe(index: Index, scorer: SafetyScorer) -> np.ndarray:
    """Which items are called safe, ``(N,)`` bool; none of a modality without a threshold."""
    images, distances = index.is_image(), index.distances()
    safe = np.zeros(len(images), bool)
    assert scorer.points is not None
    for modality, mine in (("image", images), ("text", ~images)):
        if modality in scorer.points.modalities:
            limit = scorer.points.point(modality, scorer.threshold).threshold
            safe |= mine & (distances <= limit)
    return safe


def needs_thresholds(scorer: SafetyScorer, what: str) -> None:
    """Refuse an action that needs thresholds, if there are none.

    Raises:
        ValueError: the model was not calibrated.
    """
    if scorer.points is None:
        raise ValueError(f"{what} needs thresholds, and the model has none: run `hysac calibrate`")


def _towards_origin(
    index: Index, scorer: SafetyScorer, point: Tensor, score: Score, kind: str, how: Redirection
) -> Tensor:
    if scorer.bounds is None:
        raise ValueError(
            "a redirection to the origin needs bounds, and the model has none: run `hysac bounds`"
        )
    searched: Literal["image", "text"] = "image" if kind == "image" else "text"
    if kind == "any":
        searched = "image" if score.modality == "text" else "text"
    rule = Traversal(scorer.bounds, how.statistic, how.mode, how.margin)
    return rule.redirect(point[None], searched, index.curv)[0]


def searched_kind(index: Index, of_query: str, asked: str | None) -> str:
    """The kind that is searched: the one asked for, else the other kind than the query's if there are
    any.

    Raises:
        ValueError: an unknown kind, or one of which the index has no items.
    """
    images, there = index.is_image(), index.is_there()
    has = {"image": bool((images & there).any()), "text": bool((~images & there).any())}
    if asked is None:
        other = "image" if of_query == "text" else "text"
        asked = other if has[other] else of_query
    if asked not in ("image", "text", "any"):
        raise ValueError(f"modality must be image, text or any, got {asked!r}")
    if not (any(has.values()) if asked == "any" else has[asked]):
        raise ValueError(f"{index.path} has no {'item' if asked == 'any' else asked}")
    return asked


def allowed_items(index: Index, kind: str) -> np.ndarray:
    """A mask of the items of a kind that are not deleted, ``(N,)`` bool."""
    images, there = index.is_image(), index.is_there()
    return there if kind == "any" else there & (images == (kind == "image"))


def _topk(index: Index, point: Tensor, k: int, allowed: np.ndarray) -> Sequence[tuple[int, float]]:
    number = min(k, int(allowed.sum()))
    if not number:
        return []
    gallery, places = index.gallery(), None
    if index.engines is not None:
        places = index.engines.propose(point, number, allowed, index.is_image())
    if places is None:
        mask = torch.from_numpy(np.ascontiguousarray(allowed))
        found = topk(point[None], gallery, number, index.curv, allow=mask)
    else:
        found = rerank(point[None], gallery, torch.from_numpy(places)[None], number, index.curv)
    return list(zip(found.indices[0].tolist(), found.distances[0].tolist(), strict=True))
