"""Pictures of a search's results, and of the geodesic of a redirected query."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hysac.data.images import load_image
from hysac.index import Answer, Hit, Step
from hysac.plots.figures import _figure, frame
from hysac.scoring.scorer import Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKS = {"safe": "\u25cf safe", "unsafe": "\u25b2 unsafe", None: ""}
"""A disc and a triangle, so that no colour is needed to tell them apart."""


def found_sheet(query: str, answer: Answer, columns: int = 5) -> Figure:
    """The items of an answer, the nearest first."""
    rows = max(1, -(-len(answer.hits) // columns))
    figure, grid = _figure(2.1 * columns, 2.5 * rows + 0.6, rows=rows, columns=columns)
    title = f"{query}   {_mark(answer.query)}" + (
        f", redirected by {answer.moved:.3f}" if answer.moved else ""
    )
    figure.suptitle(textwrap.shorten(title, 110), fontsize=10, parse_math=False)
    for axes, hit in zip(np.asarray(grid).flat, [*answer.hits, *[None] * (rows * columns)], strict=False):
        _draw(axes, hit)
        if hit is not None:
            axes.set_xlabel(f"{hit.distance:.3f}  {_mark(hit.score)}", fontsize=8)
    return figure


def redirection_strip(query: str, steps: Sequence[Step]) -> Figure:
    """The nearest caption above the nearest image at each step."""
    figure, grid = _figure(1.7 * len(steps) + 0.3, 4.4, rows=2, columns=len(steps))
    figure.suptitle(textwrap.shorten(query, 110), fontsize=10, parse_math=False)
    for step, column in zip(steps, np.asarray(grid).reshape(2, -1).T, strict=True):
        for axes, hit in zip(column, (step.text, step.image), strict=True):
            _draw(axes, hit)
        column[1].set_xlabel(f"{step.share:.0%}, at {step.distance:.3f}", fontsize=8)
    return figure


def _draw(axes: Any, hit: Hit | None) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    if hit is None:
        axes.set_axis_off()
        return
    frame(axes, hit.score.decision, 2)
    content = hit.item.content
    if isinstance(content, str):
        axes.text(
            0.5, 0.5, textwrap.fill(content[:160], 20), ha="center", va="center", fontsize=7, parse_math=False
        )
        return
    try:
        axes.imshow(load_image(content, max_pixels=None))  # type: ignore[arg-type]
    except ValueError:  # the image has gone since it was indexed
        axes.text(0.5, 0.5, "cannot be read", ha="center", va="center", fontsize=7)


def _mark(score: Score) -> str:
    return _MARKS[score.decision]
