"""The geodesic along which a query is redirected, and the nearest items at steps of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

import hypkernels as hk
from hysac.index.search import (
    Hit,
    Redirection,
    allowed_items,
    check_scorer,
    encode_query,
    nearest,
    redirect,
)
from hysac.index.store import Index
from hysac.scoring.scorer import Picture, SafetyScorer, Score


@dataclass(frozen=True)
class Step:
    """A point of the geodesic from a query to where it is redirected.

    Attributes:
        share: of the length, from 0 at the query to 1 at the end.
        distance: to the origin.
        point: space components ``(D,)``.
        text, image: the nearest items; None if the index has none of that kind.
    """

    share: float
    distance: float
    point: Tensor = field(compare=False)
    text: Hit | None
    image: Hit | None


def redirection_path(
    index: Index,
    scorer: SafetyScorer,
    *,
    text: str | None = None,
    image: Picture | None = None,
    modality: str = "image",
    redirection: Redirection | None = None,
    steps: int = 8,
) -> tuple[Score, list[Step]]:
    """The geodesic from a query to where it is redirected, with the nearest items at equal steps.

    Args:
        index, scorer, text, image: see :func:`hysac.index.search`.
        modality: whose safe class is the end, ``"image"`` or ``"text"``.
        redirection: how. A query that is called safe, or lies within the bound, stays: one step.
        steps: how many, both ends included, at least 2.

    Returns:
        The query's score, and the steps.

    Raises:
        ValueError: see :func:`hysac.index.search`; ``steps`` < 2.
    """
    _check_steps(steps)
    point, score = encode_query(scorer, text=text, image=image)
    return score, path_from(
        index, scorer, point, score, modality=modality, redirection=redirection, steps=steps
    )


def path_from(
    index: Index,
    scorer: SafetyScorer,
    point: Tensor,
    score: Score,
    *,
    modality: str = "image",
    redirection: Redirection | None = None,
    steps: int = 8,
) -> list[Step]:
    """The steps of :func:`redirection_path` with what :func:`hysac.index.search.encode_query` returns.

    Raises:
        ValueError: see :func:`redirection_path`.
    """
    _check_steps(steps)
    check_scorer(index, scorer)
    end, moved = redirect(index, scorer, point, score, modality, redirection or Redirection())
    texts, images = (allowed_items(index, kind) for kind in ("text", "image"))
    shares = torch.linspace(0, 1, steps) if moved else torch.zeros(1)
    return [
        Step(
            float(share),
            float(hk.dist0(place, index.curv)),
            place,
            _first(index, scorer, place, texts),
            _first(index, scorer, place, images),
        )
        for share, place in zip(shares, geodesic(point, end, shares, index.curv), strict=True)
    ]


def _check_steps(steps: int) -> None:
    if steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}")


def geodesic(start: Tensor, end: Tensor, shares: Tensor, curv: float) -> Tensor:
    """Points ``(S, D)`` at shares of the way from ``start`` to ``end``, both ``(D,)``.

    With ``d`` their distance times ``sqrt(curv)`` the share ``t`` is
    ``(sinh((1 - t) d) start + sinh(t d) end) / sinh(d)``, computed in float64.
    """
    x, y, t = start.double(), end.double(), shares.double()[:, None]
    d = hk.elementwise_dist(x, y, curv) * curv**0.5
    if float(d) < 1e-6:  # a straight line, to rounding
        return ((1 - t) * x + t * y).to(start.dtype)
    return ((torch.sinh((1 - t) * d) * x + torch.sinh(t * d) * y) / torch.sinh(d)).to(start.dtype)


def _first(index: Index, scorer: SafetyScorer, point: Tensor, allowed: np.ndarray) -> Hit | None:
    return next(iter(nearest(index, scorer, point, 1, allowed)), None)
