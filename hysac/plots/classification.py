"""Pictures of how well scores tell unsafe items from safe ones."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hysac.data.images import load_image
from hysac.embeddings import MODALITIES
from hysac.evaluation.classification import precision_recall, roc, worst_mistakes
from hysac.plots.figures import COLOURS, GREEN, GREY, _figure, draw_histogram, save
from hysac.safety import DEFAULT_STATISTIC, Bounds
from hysac.scoring.calibration import by_label
from hysac.scoring.labelled import Labelled
from hysac.scoring.operating_points import OperatingPoints

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = {"text": ("-", "o", "black"), "image": ("--", "s", GREEN)}


def save_classification(
    directory: Path,
    items: Sequence[Labelled],
    distances: Sequence[float],
    points: OperatingPoints | None,
    bounds: Bounds | None = None,
) -> list[Path]:
    """Write curves, histograms and each modality's worst mistakes into ``directory``; returns their paths."""
    by_modality = by_label([item.modality for item in items], [item.is_unsafe for item in items], distances)
    figures = {
        "classification": curves(by_modality, points),
        "histograms": histograms(by_modality, points, bounds),
    }
    for modality in by_modality:
        safe, unsafe = worst_mistakes(items, distances, modality, 8)
        figures[f"worst_{modality}s"] = mistakes(items, distances, safe, unsafe)
    return [save(figure, directory / f"{name}.png") for name, figure in figures.items()]


def curves(by_modality: dict[str, tuple[np.ndarray, np.ndarray]], points: OperatingPoints | None) -> Figure:
    """ROC, precision and recall, and the probability against the share that is unsafe.

    The marks are the thresholds that decide. Texts are solid and round, images dashed and square.
    """
    figure, grid = _figure(11, 3.6, columns=3)
    for modality, (safe, unsafe) in by_modality.items():
        line, mark, colour = _STYLE[modality]
        style: dict[str, Any] = {"linestyle": line, "color": colour, "label": f"{modality}s"}
        grid[0].plot(*roc(safe, unsafe), **style)
        grid[1].plot(*precision_recall(safe, unsafe), **style)
        if points is None or modality not in points.modalities:
            continue
        limit = points.point(modality).threshold
        alarms, hits = (safe > limit).mean(), (unsafe > limit).mean()
        grid[0].plot(alarms, hits, mark, color=colour, markersize=8)
        called = (safe > limit).sum() + (unsafe > limit).sum()
        if called:
            grid[1].plot(hits, (unsafe > limit).sum() / called, mark, color=colour, markersize=8)
        curve = points.modalities[modality].probability
        if curve is not None:
            told, found = reliability(safe, unsafe, curve)
            grid[2].plot(told, found, linestyle=line, marker=mark, color=colour, label=f"{modality}s")
    for axes in (grid[0], grid[2]):
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    named = [
        ("false positive rate", "true positive rate"),
        ("recall", "precision"),
        ("probability told", "share that is unsafe"),
    ]
    for axes, (x, y) in zip(grid, named, strict=True):
        axes.set(xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, fontsize=8)
    return figure


def histograms(
    by_modality: dict[str, tuple[np.ndarray, np.ndarray]],
    points: OperatingPoints | None,
    bounds: Bounds | None,
) -> Figure:
    """How safe and unsafe items spread over the distance, with the threshold and the bound."""
    figure, grid = _figure(5.6 * len(by_modality), 4, columns=len(by_modality))
    for axes, (modality, samples) in zip(np.atleast_1d(grid), by_modality.items(), strict=True):
        letters = MODALITIES[modality]
        shown = {letter: one for letter, one in zip(letters, samples, strict=True) if len(one)}
        safe, limit = letters[0], {}
        if points is not None and modality in points.modalities:
            limit[modality] = points.point(modality).threshold
        bound = {} if bounds is None or safe not in bounds.classes else {safe: bounds[safe]}
        draw_histogram(axes, shown, {one: getattr(of, DEFAULT_STATISTIC) for one, of in bound.items()}, limit)
    return figure


def reliability(
    safe: np.ndarray, unsafe: np.ndarray, curve: Any, bins: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Mean probability and share of unsafe items in equal bins of the probability, empty ones left out."""
    told = np.array([curve(distance) for distance in np.concatenate([safe, unsafe])])
    is_unsafe = np.repeat([0.0, 1.0], [len(safe), len(unsafe)])
    place = np.minimum((told * bins).astype(int), bins - 1)
    there = np.unique(place)
    means = [(told[place == one].mean(), is_unsafe[place == one].mean()) for one in there]
    return np.array(means)[:, 0], np.array(means)[:, 1]


def mistakes(
    items: Sequence[Labelled], distances: Sequence[float], safe: Sequence[int], unsafe: Sequence[int]
) -> Figure:
    """The safe items that are farthest out, above the unsafe ones that are nearest to the origin."""
    columns = max(len(safe), len(unsafe))
    figure, grid = _figure(1.6 * columns + 0.4, 4.2, rows=2, columns=columns)
    grid = np.asarray(grid).reshape(2, columns)
    rows = (
        ("\u25cf safe, the farthest out", safe, COLOURS["S"]),
        ("\u25b2 unsafe, the nearest to the origin", unsafe, COLOURS["U"]),
    )
    for line, (title, chosen, colour) in zip(grid, rows, strict=True):
        line[0].set_title(title, loc="left", fontsize=9, color=colour, weight="bold")
        for axes, place in zip(line, [*chosen, *[None] * (columns - len(chosen))], strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            if place is None:
                axes.set_axis_off()
                continue
            item = items[place]
            if isinstance(item.content, str):
                told = textwrap.fill(item.content[:160], 18)
                axes.text(0.5, 0.5, told, ha="center", va="center", fontsize=7, parse_math=False)
            else:
                axes.imshow(load_image(item.content, max_pixels=None))
            axes.set_xlabel(f"{distances[place]:.3f}", fontsize=8)
    return figure
