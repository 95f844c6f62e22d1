"""Pictures of a model and of its training; needs matplotlib (``pip install 'hysac[plot]'``).

Every function returns a ``matplotlib.figure.Figure`` that belongs to no window: ``figure.savefig(path)``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

import hypkernels as hk
from hysac.data import Quadruplets
from hysac.embeddings import Embeddings
from hysac.safety import MODALITIES, Traversal
from hysac.training.run_log import read_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, which colour-blind readers can tell apart: safe is blue, unsafe is red;
# texts are dark, images light. Every colour also has its own shape, dash or hatch, for print in grey:
# safe is round or square and unsafe a triangle; frames of safe items are solid, others dashed.
COLOURS = {"S": "#0072B2", "V": "#56B4E9", "U": "#D55E00", "G": "#E69F00"}
GREEN, GREY = "#009E73", "#7F7F7F"
NAMES = {"S": "safe text", "V": "safe image", "U": "unsafe text", "G": "unsafe image"}
MARKERS = {"S": "o", "V": "s", "U": "^", "G": "v"}
DASHES: dict[str, Any] = {"S": "-", "V": (0, (5, 1.5)), "U": (0, (3, 1, 1, 1)), "G": (0, (1, 1))}
HATCHES = {"S": "", "V": "////", "U": "....", "G": "xxxx"}
MODALITY_DASHES, MODALITY_MARKERS = {"text": "-", "image": "--"}, {"text": "o", "image": "s"}
DPI = 150

_BINS = (5, 80)


def distance_histogram(
    embeddings: Embeddings,
    traversal: Traversal | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> Figure:
    """How the classes spread over the distance to the origin.

    Args:
        embeddings: of any of the classes.
        traversal: marks the bounds that it moves unsafe queries to.
        thresholds: of ``"text"`` and ``"image"``, beyond which they are called unsafe: marked, too.
    """
    figure, axes = _figure(7, 4.5)
    distances = {letter: _distance0(embeddings, letter) for letter in embeddings.present}
    bounds = {}
    if traversal is not None:
        for letter in "SV":
            if letter in traversal.bounds.classes:
                bounds[letter] = getattr(traversal.bounds[letter], traversal.statistic) + traversal.margin
    draw_histogram(axes, distances, bounds, thresholds or {})
    axes.set_title("Distance to the origin, by class")
    return figure


def draw_histogram(
    axes: Any,
    distances: Mapping[str, np.ndarray],
    bounds: Mapping[str, float],
    thresholds: Mapping[str, float],
) -> None:
    """The distances of classes by letter; bounds dotted in the colours of classes, thresholds black, knobbed.

    What is called unsafe lies beyond a threshold; a bound is where redirected queries go.
    """
    edges = bin_edges(list(distances.values()))
    for letter, values in distances.items():
        axes.hist(
            values,
            bins=edges,
            weights=np.full(len(values), 100 / len(values)),
            histtype="stepfilled",
            facecolor=(COLOURS[letter], 0.3),
            edgecolor=COLOURS[letter],
            hatch=HATCHES[letter],
            linestyle=DASHES[letter],
            linewidth=1.3,
            label=NAMES[letter],
        )
    for letter, dashes in (("S", (0, (1, 1.5))), ("V", (0, (4, 1.5, 1, 1.5)))):
        if letter in bounds:
            label = f"bound of {NAMES[letter]}s: redirection"
            style = {"color": COLOURS[letter], "linestyle": dashes, "linewidth": 2.2}
            axes.axvline(bounds[letter], **style, label=label)
    for modality, dash in MODALITY_DASHES.items():
        if modality in thresholds:
            style = {"color": "black", "linestyle": dash, "linewidth": 1.3, "clip_on": False}
            knob = {"marker": MODALITY_MARKERS[modality], "markevery": [1], "markersize": 6}
            label = f"threshold of {modality}s: unsafe beyond"
            axes.axvline(thresholds[modality], **style, **knob, label=label)
    axes.set_xlabel("geodesic distance to the origin")
    axes.set_ylabel("share of the class, %")
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18)}  # where it covers nothing
    axes.legend(**below, ncols=2, frameon=False, fontsize=8, handlelength=3)


def bin_edges(samples: Sequence[np.ndarray]) -> np.ndarray:
    """Edges of equal bins for all samples, of the least width that Freedman and Diaconis' rule gives one.

    That is ``2 IQR / n**(1/3)``. For few items the rule is unreliable: ``N`` items in all get at most
    ``2 sqrt(N)`` bins, and 5 to 80.
    """
    pooled = np.concatenate(samples)
    low, high = float(pooled.min()), float(pooled.max())
    if low == high:
        low, high = low - 0.5 * max(abs(low), 1e-3), high + 0.5 * max(abs(high), 1e-3)
    spreads = [np.subtract(*np.percentile(one, [75, 25])) / len(one) ** (1 / 3) for one in samples]
    width = min((2 * spread for spread in spreads if spread > 0), default=high - low)
    most = max(_BINS[0], min(_BINS[1], int(2 * len(pooled) ** 0.5)))
    return np.linspace(low, high, 1 + int(np.clip(np.ceil((high - low) / width), _BINS[0], most)))


def polar_view(embeddings: Embeddings, limit: int = 400) -> Figure:
    """Distance to the origin against a direction, for up to ``limit`` quadruplets.

    The distance is the true one. The angle is that of the first two principal components of all points'
    tangent vectors at the origin: these are two of many directions, so that near angles mean little.
    """
    rows = range(min(limit, len(embeddings)))
    shown = embeddings.subset(list(rows))
    tangents = {letter: hk.log_map0(shown[letter], shown.curv).double().cpu() for letter in shown.present}
    plane = _principal_plane(torch.cat(list(tangents.values())))
    figure, axes = _figure(5.6, 5.6, projection="polar")
    for letter, vectors in tangents.items():
        flat = (vectors @ plane).numpy()
        axes.scatter(
            np.arctan2(flat[:, 1], flat[:, 0]),
            vectors.norm(dim=1).numpy(),
            s=13,
            marker=MARKERS[letter],
            color=COLOURS[letter],
            alpha=0.75,
            linewidths=0,
            label=NAMES[letter],
        )
    axes.set_rmin(0)
    axes.set_rlabel_position(90)
    axes.set_xticks(np.arange(8) * np.pi / 4, [])
    axes.tick_params(labelsize=8, colors=GREY)
    axes.grid(linewidth=0.4)
    axes.set_title("Radius: geodesic distance to the origin; angle: direction", fontsize=11)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9, markerscale=2)
    return figure


def retrieved_images(
    dataset: Quadruplets,
    embeddings: Embeddings,
    traversal: Traversal,
    rows: Sequence[int] | None = None,
    k: int = 4,
) -> Figure:
    """The images that unsafe captions find among all images, as they are and redirected.

    Args:
        dataset: what ``embeddings`` were made from, in the same order.
        embeddings: with texts and images.
        traversal: the rule of redirection.
        rows: quadruplets whose unsafe captions are the queries; by default four, spread over the set.
        k: how many of the nearest to show.
    """
    rows = _spread(len(embeddings), 4) if rows is None else rows
    figure, grid = _grid(rows, "unsafe caption", "nearest images", [2.6, *[1] * k, 0.25, *[1] * k], 1.15)
    for line, row in enumerate(rows):
        caption = figure.add_subplot(grid[line, 0])
        caption.axis("off")
        text = textwrap.fill(dataset.records[row].unsafe_caption, 26)
        style: dict[str, Any] = {
            "va": "center",
            "fontsize": 9,
            "color": COLOURS["U"],
            "transform": caption.transAxes,
        }
        caption.text(0, 0.5, text, **style, parse_math=False)  # $ is a dollar sign
    for side, nearest in enumerate(_search(embeddings, traversal, rows, "U", k)):
        for line, row in enumerate(rows):
            for place, (index, unsafe) in enumerate(nearest[line]):
                axes = figure.add_subplot(grid[line, 1 + side * (k + 1) + place])
                axes.imshow(dataset.images(index)[unsafe], interpolation="nearest")
                _frame(axes, unsafe, is_partner=index == row)
    return figure


def retrieved_texts(
    dataset: Quadruplets,
    embeddings: Embeddings,
    traversal: Traversal,
    rows: Sequence[int] | None = None,
    k: int = 3,
) -> Figure:
    """The captions that unsafe images find among all captions; arguments as in :func:`retrieved_images`."""
    rows = _spread(len(embeddings), 4) if rows is None else rows
    figure, grid = _grid(rows, "unsafe image", "nearest captions", [1, 0.1, 4, 0.1, 4], 1.35)
    for line, row in enumerate(rows):
        axes = figure.add_subplot(grid[line, 0])
        axes.imshow(dataset.images(row)[1], interpolation="nearest")
        _frame(axes, True, is_partner=False)
    for side, nearest in enumerate(_search(embeddings, traversal, rows, "G", k)):
        for line, row in enumerate(rows):
            axes = figure.add_subplot(grid[line, 2 + 2 * side])
            axes.axis("off")
            for place, (index, unsafe) in enumerate(nearest[line]):
                record = dataset.records[index]
                height = 1 - (place + 0.5) / k
                mark(axes, 0.015, height, unsafe)
                axes.text(
                    0.05,
                    height,
                    textwrap.fill(record.unsafe_caption if unsafe else record.safe_caption, 64),
                    va="center",
                    fontsize=8,
                    color=COLOURS["U" if unsafe else "S"],
                    weight="bold" if index == row else "normal",
                    transform=axes.transAxes,
                    parse_math=False,
                )
    return figure


def training_curves(run_dir: Path) -> Figure:
    """The losses, recalls, distances and curvature recorded in a run's ``metrics.jsonl``."""
    records = read_log(run_dir / "metrics.jsonl")
    train = [record for record in records if record["kind"] == "train"]
    val = [record for record in records if record["kind"] == "val"]
    if not train:
        raise ValueError(f"{run_dir} has no record of training")
    figure, grid = _figure(10, 6.4, rows=2, columns=2)
    (losses, recalls), (distances, curvature) = grid

    for family, letter, dashes in (("contrastive", "S", ("-", "--")), ("entailment", "U", ("-.", ":"))):
        for split, line, dash in zip(("training", "validation"), (train, val), dashes, strict=True):
            sums = [sum(v for name, v in record.items() if name.startswith(family)) for record in line]
            marker = MARKERS[letter] if split == "validation" else None
            style = {"linestyle": dash, "marker": marker, "color": COLOURS[letter]}
            losses.plot(_steps(line), sums, **style, label=f"{family}, {split}", markersize=4, linewidth=1.4)
    losses.set_ylabel("sum of the loss terms")

    shown = {
        "T->I R@1": ("T→I", COLOURS["S"], "o-"),
        "I->T R@1": ("I→T", COLOURS["V"], "s--"),
        "T*->I u I* R@1": ("T*→I u I*, as it is", COLOURS["U"], "^-."),
        "T*->I u I* (traversed) R@1": ("T*→I u I*, redirected", GREEN, "D:"),
    }
    for name, (label, colour, look) in shown.items():
        points = [record for record in val if name in record]
        values = [100 * record[name] for record in points]
        recalls.plot(_steps(points), values, look, color=colour, label=label, markersize=4)
    recalls.set_ylabel("validation R@1, %")

    for letter, name in NAMES.items():
        points = [record for record in val if f"distance {letter}" in record]
        values = [record[f"distance {letter}"] for record in points]
        style = {"linestyle": DASHES[letter], "marker": MARKERS[letter], "color": COLOURS[letter]}
        distances.plot(_steps(points), values, **style, label=name, markersize=4)
    distances.set_ylabel("mean distance to the origin")

    curvature.plot(_steps(train), [record["curvature"] for record in train], color=COLOURS["S"])
    curvature.set_ylabel("curvature c")
    for axes in grid.flat:
        axes.set_xlabel("step")
        axes.set_xlim(left=0)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, fontsize=8)
    return figure


def heat_map(image: Tensor, shares: Tensor) -> Figure:
    """An image ``(3, H, W)`` beside what each part adds to its distance ``(H, W)``: see ``explain_image``.

    Red parts move it away from the origin, to the unsafe; blue ones towards it. Those that do most of it are
    dotted and striped.
    """
    figure, grid = _figure(7.4, 3.9, columns=2)
    picture = image.permute(1, 2, 0).numpy()
    for axes in grid.flat:
        axes.imshow(picture)
        axes.set_axis_off()
    most = float(shares.abs().max()) or 1.0
    drawn = grid.flat[1].imshow(shares.numpy(), cmap="coolwarm", vmin=-most, vmax=most, alpha=0.65)
    figure.colorbar(drawn, ax=grid.flat[1], label="share of the distance to the origin")
    levels = np.array([-1.001, -0.4, 0.4, 1.001]) * most  # a map that both ends darken says no sign in grey
    grid.flat[1].contourf(shares.numpy(), levels, colors="none", hatches=["////", None, "..."])
    grid.flat[0].set_title("dotted: away from the origin   striped: towards it", fontsize=9, loc="left")
    return figure


def save_plots(
    directory: Path,
    dataset: Quadruplets,
    embeddings: Embeddings,
    traversal: Traversal | None,
    thresholds: Mapping[str, float] | None = None,
) -> list[Path]:
    """Write every picture that the data allows into ``directory``; returns their paths."""
    histogram = distance_histogram(embeddings, traversal, thresholds)
    figures = {"distances": histogram, "polar": polar_view(embeddings)}
    if traversal is not None and embeddings.has("SVUG"):
        figures["retrieved_images"] = retrieved_images(dataset, embeddings, traversal)
        figures["retrieved_texts"] = retrieved_texts(dataset, embeddings, traversal)
    return [save(figure, directory / f"{name}.png") for name, figure in figures.items()]


def save(figure: Figure, path: Path) -> Path:
    """Write a figure; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    return path


def _figure(
    width: float,
    height: float,
    *,
    rows: int = 1,
    columns: int = 1,
    projection: str | None = None,
    axes: bool = True,
) -> tuple[Figure, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'hysac[plot]'") from error
    figure = Figure(figsize=(width, height), layout="constrained" if axes else None)
    if not axes:
        return figure, None
    grid = figure.subplots(rows, columns, subplot_kw={"projection": projection})
    for one in np.asarray(grid).flat:
        if projection is None:
            one.spines[["top", "right"]].set_visible(False)
    return figure, grid


def _grid(
    rows: Sequence[int], query: str, found: str, widths: Sequence[float], row_height: float
) -> tuple[Figure, Any]:
    """A grid with headings: the query, what it finds, and from the middle on what it finds redirected."""
    height = row_height * len(rows) + 0.9
    figure, _ = _figure(11.6, height, axes=False)
    grid = figure.add_gridspec(
        len(rows),
        len(widths),
        width_ratios=widths,
        left=0.01,
        right=0.995,
        top=1 - 0.6 / height,
        bottom=0.3 / height,
        wspace=0.08,
        hspace=0.12,
    )
    first = 1 if len(widths) % 2 == 0 else 2
    titles = {
        0: query,
        first: f"{found}, query as it is",
        (len(widths) + first + 1) // 2: f"{found}, query redirected",
    }
    for column, title in titles.items():
        left = grid[0, column].get_position(figure).x0
        figure.text(left, 1 - 0.35 / height, title, fontsize=10, weight="bold")
    legend = (
        "blue \u25cf, solid: safe   red \u25b2, dashed: unsafe   thick or bold: the query's own quadruplet"
    )
    figure.text(0.01, 0.08 / height, legend, fontsize=8, color=GREY)
    return figure, grid


def _frame(axes: Any, unsafe: bool, *, is_partner: bool) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    frame(axes, "unsafe" if unsafe else "safe", 4 if is_partner else 1.5)


def frame(axes: Any, decision: str | None, width: float) -> None:
    """A frame and a mark: blue, solid and a disc for safe, red, dashed and a triangle for unsafe."""
    colour = {"safe": COLOURS["S"], "unsafe": COLOURS["U"], None: GREY}[decision]
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(colour)
        spine.set_linewidth(width)
        spine.set_capstyle("butt")  # others fill the gaps
        spine.set_linestyle((0, (2, 1)) if decision == "unsafe" else "-")
    if decision is not None:
        mark(axes, 0.1, 0.9, decision == "unsafe")


def mark(axes: Any, x: float, y: float, unsafe: bool) -> None:
    """A red triangle or a blue disc at a place of the axes, from 0 to 1; it moves no limits."""
    from matplotlib.lines import Line2D

    letter = "U" if unsafe else "S"
    style: dict[str, Any] = {"marker": MARKERS[letter], "color": COLOURS[letter], "markeredgecolor": "white"}
    drawn = Line2D([x], [y], **style, markersize=8, transform=axes.transAxes, clip_on=False)
    drawn.set_in_layout(False)
    axes.add_artist(drawn)


def _search(
    embeddings: Embeddings, traversal: Traversal, rows: Sequence[int], query: Literal["U", "G"], k: int
) -> list[list[list[tuple[int, bool]]]]:
    """For the queries as they are and redirected: for each the nearest items, as (row, is unsafe)."""
    search: Literal["image", "text"] = "image" if query == "U" else "text"
    gallery = torch.cat([embeddings[letter] for letter in MODALITIES[search]]).double()
    queries = embeddings[query][list(rows)]
    found = []
    for points in (queries, traversal.redirect(queries, search, embeddings.curv)):
        distances = hk.pairwise_dist(points.double(), gallery, embeddings.curv)
        nearest = distances.topk(min(k, len(gallery)), largest=False).indices.tolist()
        count = len(embeddings)
        found.append([[(item % count, item >= count) for item in line] for line in nearest])
    return found


def _spread(count: int, number: int) -> list[int]:
    return sorted({(2 * i + 1) * count // (2 * number) for i in range(number)})


def _distance0(embeddings: Embeddings, letter: str) -> np.ndarray:
    return embeddings.scores(letter).double().cpu().numpy()


def _principal_plane(vectors: Tensor) -> Tensor:
    """The two directions ``(D, 2)`` in which the unit vectors vary most; signs fixed by the largest entry."""
    directions = vectors / vectors.norm(dim=1, keepdim=True)
    plane = torch.linalg.svd(directions - directions.mean(0), full_matrices=False).Vh[:2].T
    largest = plane.gather(0, plane.abs().argmax(0, keepdim=True))
    return plane * largest.sign()


def _steps(records: Sequence[dict[str, Any]]) -> list[int]:
    return [record["step"] for record in records]
