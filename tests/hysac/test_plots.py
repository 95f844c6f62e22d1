"""The pictures: labelled, complete, and of the numbers they claim to show."""

import builtins
import copy
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import hypkernels as hk
from hysac import Bounds, Embeddings, Traversal, fit_bounds, plots
from hysac.data import ToyQuadruplets
from hysac.index import Answer, Hit
from hysac.plots.classification import curves, histograms, mistakes
from hysac.scoring.calibration import fit_operating_points
from hysac.scoring.items import Item
from hysac.scoring.labelled import Labelled
from hysac.scoring.scorer import Score
from hysac.training.run_log import RunLog

pytest.importorskip("matplotlib")

COUNT, CURV = 24, 0.5
RADII = {"S": 0.4, "V": 0.6, "U": 0.85, "G": 1.0}


@pytest.fixture(scope="module")
def embeddings():
    """Each class at its own distance; every quadruplet has a direction of its own."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(COUNT, 16, generator=generator), dim=1)
    spread = 1 + 0.02 * torch.randn(COUNT, 1, generator=generator)
    points = {letter: hk.exp_map0(radius * spread * directions, CURV) for letter, radius in RADII.items()}
    return Embeddings(points["V"], points["G"], points["S"], points["U"], CURV)


@pytest.fixture(scope="module")
def traversal(embeddings):
    return Traversal(fit_bounds(embeddings), "avg")


@pytest.fixture(scope="module")
def dataset():
    return ToyQuadruplets(
        "val",
        COUNT,
        preprocess=lambda image: image,
        tokenizer=lambda texts: torch.zeros(len(texts), 1).long(),
    )


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_histogram(embeddings, traversal):
    thresholds = {"text": 0.62, "image": 0.8}
    figure = plots.distance_histogram(embeddings, traversal, thresholds)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "geodesic distance to the origin"
    assert axes.get_ylabel() == "share of the class, %"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [
        *plots.NAMES.values(),
        "bound of safe texts: redirection",
        "bound of safe images: redirection",
        "threshold of texts: unsafe beyond",
        "threshold of images: unsafe beyond",
    ]
    assert len(axes.patches) == 4
    for letter, filled in zip("SVUG", axes.patches, strict=True):
        corners = filled.get_xy()
        top = corners[1 : len(corners) // 2 + 1]
        heights, middles = top[:-1:2, 1], (top[:-1:2, 0] + top[1::2, 0]) / 2
        assert heights.sum() == pytest.approx(100)
        assert (heights * middles).sum() / 100 == pytest.approx(RADII[letter], rel=0.02)
    marked = [line.get_xdata()[0] for line in axes.lines]
    bounds = [traversal.bounds[letter].avg for letter in "SV"]
    assert marked == pytest.approx([*bounds, *thresholds.values()])


@pytest.mark.parametrize(("count", "fewest", "most"), [(1, 5, 5), (6, 5, 8), (500, 20, 60)])
def test_bins_are_as_wide_as_there_are_few_items(count, fewest, most):
    samples = [np.random.default_rng(seed).normal(seed, 0.3, count) for seed in range(3)]
    edges = plots.bin_edges(samples)
    assert fewest <= len(edges) - 1 <= most
    assert np.ptp(np.diff(edges)) == pytest.approx(0, abs=1e-12)
    assert sum(np.histogram(one, edges)[0].sum() for one in samples) == 3 * count
    spread = min(np.subtract(*np.percentile(one, [75, 25])) for one in samples)
    if count == 500:
        wanted = np.ptp(np.concatenate(samples)) / (2 * spread / count ** (1 / 3))
        assert len(edges) - 1 == np.ceil(wanted)


def test_bins_of_items_at_one_distance():
    for value in (0.0, 0.7):
        edges = plots.bin_edges([np.full(4, value)])
        assert edges[0] < value < edges[-1]
        assert np.histogram(np.full(4, value), edges)[0].max() == 4


def test_histogram_of_texts_alone(embeddings):
    alone = Embeddings(None, None, embeddings["S"], embeddings["U"], CURV)
    (axes,) = plots.distance_histogram(alone).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["safe text", "unsafe text"]


def test_polar_view_keeps_true_distances(embeddings):
    figure = plots.polar_view(embeddings, limit=10)
    (axes,) = figure.axes
    assert axes.get_rmin() == 0
    for letter, points in zip("SVUG", axes.collections, strict=True):
        radii = np.asarray(points.get_offsets())[:, 1]
        assert radii == pytest.approx(hk.dist0(embeddings[letter][:10], CURV).numpy(), rel=1e-5)
    angles = [np.asarray(points.get_offsets())[:, 0] for points in axes.collections]
    for other in angles[1:]:  # a quadruplet's four points have one direction here
        assert np.cos(other - angles[0]) == pytest.approx(np.ones(10), abs=1e-4)


def test_retrieved_images(embeddings, traversal, dataset):
    rows = [3, 17]
    figure = plots.retrieved_images(dataset, embeddings, traversal, rows, k=2)
    assert [text.get_text() for text in figure.texts[:3]] == [
        "unsafe caption",
        "nearest images, query as it is",
        "nearest images, query redirected",
    ]
    captions = [axes for axes in figure.axes if axes.texts]
    for axes, row in zip(captions, rows, strict=True):
        assert texts(axes)[0].replace("\n", " ") == dataset.records[row].unsafe_caption
    shown = [(axes.images[0].get_array(), axes) for axes in figure.axes if axes.images]
    # All on one ray: U at 0.85 as it is has G at 1.0 nearer than V at 0.6; redirected to 0.6 it meets V.
    wanted = [(row, first) for side in (True, False) for row in rows for first in (side, not side)]
    for (pixels, axes), (row, unsafe) in zip(shown, wanted, strict=True):
        assert np.array_equal(pixels, np.asarray(dataset.images(row)[unsafe]))
        colour = plots.COLOURS["U" if unsafe else "S"]
        spine = axes.spines["left"]
        assert spine.get_edgecolor()[:3] == pytest.approx(
            [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        )
        assert spine.get_linewidth() == 4
        assert (spine.get_linestyle() != "-") == unsafe
        assert [line.get_marker() for line in axes.lines] == ["^" if unsafe else "o"]


def test_retrieved_texts(embeddings, traversal, dataset):
    figure = plots.retrieved_texts(dataset, embeddings, traversal, [5], k=2)
    record = dataset.records[5]
    found = [axes for axes in figure.axes if axes.texts]
    as_it_is, redirected = ([text.replace("\n", " ") for text in texts(axes)] for axes in found)
    assert as_it_is == [record.unsafe_caption, record.safe_caption]
    assert redirected == [record.safe_caption, record.unsafe_caption]
    assert found[1].texts[0].get_color() == plots.COLOURS["S"]
    assert [[line.get_marker() for line in axes.lines] for axes in found] == [["^", "o"], ["o", "^"]]


@pytest.mark.parametrize("caption", ["costs $5 and $7", "a $broken_{ price", r"\frac $\alpha$ _a_ ^b^"])
def test_captions_are_literal_text(tmp_path, embeddings, traversal, dataset, caption):
    """Between two dollar signs matplotlib sees mathematics, and may fail at it."""
    quoted = copy.copy(dataset)
    quoted.records = [replace(one, safe_caption=caption, unsafe_caption=caption) for one in dataset.records]
    for draw in (plots.retrieved_images, plots.retrieved_texts):
        figure = draw(quoted, embeddings, traversal, [3], k=2)
        drawn = [text for axes in figure.axes for text in axes.texts]
        assert {text.get_text().replace("\n", " ") for text in drawn} == {caption}
        assert not any(text.get_parse_math() for text in drawn)
        plots.save(figure, tmp_path / "a.png")


def test_default_rows_are_spread(embeddings, traversal, dataset):
    figure = plots.retrieved_images(dataset, embeddings, traversal)
    captions = [texts(axes)[0].replace("\n", " ") for axes in figure.axes if axes.texts]
    assert captions == [dataset.records[row].unsafe_caption for row in (3, 9, 15, 21)]


def test_training_curves(tmp_path):
    log = RunLog(tmp_path)
    for step in (10, 20):
        log.write(
            "train", step, {"contrastive_a_loss": 3.0, "contrastive_b_loss": step, "curvature": 1 / step}
        )
        log.write("val", step, {"T->I R@1": step / 100, "distance S": 0.5, "entailment_a_loss": 2.0})
    log.close()
    losses, recalls, distances, curvature = plots.training_curves(tmp_path).axes
    assert [axes.get_xlabel() for axes in (losses, recalls, distances, curvature)] == ["step"] * 4
    lines = {
        line.get_label(): line.get_ydata() for axes in (losses, recalls, distances) for line in axes.lines
    }
    assert list(lines["contrastive, training"]) == [13.0, 23.0]
    assert list(lines["entailment, validation"]) == [2.0, 2.0]
    assert list(lines["T→I"]) == pytest.approx([10.0, 20.0])
    assert list(lines["safe text"]) == [0.5, 0.5]
    assert list(curvature.lines[0].get_ydata()) == [0.1, 0.05]


def luminance(colour):
    from matplotlib.colors import to_rgb

    return float(np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)))


def look(handle):
    """What is left of a legend's entry in grey: its lightness, and what tells it apart otherwise."""
    if hasattr(handle, "get_hatch") and not hasattr(handle, "get_offsets"):
        return luminance(handle.get_edgecolor()), ("hatch", handle.get_hatch() or "")
    if hasattr(handle, "get_marker"):
        dash = str(handle._dash_pattern) if handle.get_linestyle() != "None" else ""
        return luminance(handle.get_color()), ("line", dash, str(handle.get_marker()))
    (path,) = handle.get_paths()
    return luminance(handle.get_facecolor()[0]), ("points", path.vertices.tobytes())


def entries(figure):
    """Of each legend, its handles."""
    legends = [axes.get_legend() for axes in figure.axes if axes.get_legend()] + figure.legends
    return [legend.legend_handles for legend in legends]


def every_figure(tmp_path, embeddings, traversal):
    """The pictures with a legend, each with the number of entries of its legends."""
    generator = np.random.default_rng(0)
    samples = {
        kind: (generator.normal(0.5, 0.1, 40), generator.normal(0.7, 0.1, 40)) for kind in ("text", "image")
    }
    points = fit_operating_points(samples, data={}, model="m" * 64, probability="none")
    log = RunLog(tmp_path)
    log.write("train", 1, {"contrastive_a": 1.0, "entailment_a": 1.0, "curvature": 1.0})
    names = ("T->I R@1", "I->T R@1", "T*->I u I* R@1", "T*->I u I* (traversed) R@1")
    rows = dict.fromkeys([*names, *(f"distance {letter}" for letter in "SVUG")], 0.5)
    log.write("val", 1, {"contrastive_a": 1.0, "entailment_a": 1.0, **rows})
    log.close()
    yield plots.distance_histogram(embeddings, traversal, {"text": 0.6, "image": 0.8}), [8]
    yield plots.polar_view(embeddings), [4]
    yield plots.training_curves(tmp_path), [4, 4, 4]
    yield histograms(samples, points, traversal.bounds), [4, 4]
    yield curves(samples, points), [2, 2]


def test_everything_can_be_told_apart_in_grey(tmp_path, embeddings, traversal):
    for figure, counts in every_figure(tmp_path, embeddings, traversal):
        told = entries(figure)
        assert [len(handles) for handles in told] == counts
        for handles in told:
            looks = [look(handle) for handle in handles]
            for (light, shape), (other, another) in itertools.combinations(looks, 2):
                assert shape != another or abs(light - other) > 0.15, (shape, light, other)
            assert len({shape for _, shape in looks}) == len(looks), "shapes tell, whatever the colours"


def test_what_is_found_is_marked_by_shape():
    hits = tuple(
        Hit(
            place, Item(f"{place}", "text", f"caption {place}"), 0.1, Score("text", 0.5, None, decision, None)
        )
        for place, decision in enumerate(("safe", "unsafe", None))
    )
    answer = Answer(Score("text", 1.0, None, "unsafe", None), torch.zeros(2), 0.0, hits)
    shown = plots.found_sheet("a query", answer).axes[:3]
    assert [[line.get_marker() for line in axes.lines] for axes in shown] == [["o"], ["^"], []]
    assert [axes.spines["left"].get_linestyle() == "-" for axes in shown] == [True, False, True]
    assert [axes.get_xlim() for axes in shown] == [(0, 1)] * 3, "marks move no limits"
    items = [Labelled("a", "text", "x", False), Labelled("b", "text", "y", True)]
    titles = [axes.get_title(loc="left") for axes in mistakes(items, [0.1, 0.2], [0], [1]).axes]
    assert [title[0] for title in titles] == ["\u25cf", "\u25b2"]


def test_a_heat_map_says_the_sign_in_grey():
    shares = torch.zeros(4, 4)
    shares[:2, :2], shares[2:, 2:] = 1.0, -1.0
    figure = plots.heat_map(torch.rand(3, 4, 4), shares)
    (drawn,) = (one for axes in figure.axes for one in axes.collections if hasattr(one, "hatches"))
    towards, middle, away = drawn.get_paths()
    assert drawn.hatches == ["////", None, "..."]
    assert away.contains_point((0.2, 0.2))
    assert not away.contains_point((2.8, 2.8))
    assert towards.contains_point((2.8, 2.8))
    assert not middle.contains_point((0.2, 0.2))


def test_curves_of_nothing(tmp_path):
    with pytest.raises(ValueError, match="no record of training"):
        plots.training_curves(tmp_path)


@pytest.mark.slow
def test_saved_files(tmp_path, embeddings, traversal, dataset):
    paths = plots.save_plots(tmp_path / "new", dataset, embeddings, traversal)
    assert [path.stem for path in paths] == ["distances", "polar", "retrieved_images", "retrieved_texts"]
    for path in paths:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L"))
        assert min(pixels.shape) > 400
        assert (pixels < 255).mean() > 0.01


@pytest.mark.slow
def test_saved_files_of_texts_alone(tmp_path, embeddings, dataset):
    alone = Embeddings(None, None, embeddings["S"], embeddings["U"], CURV)
    paths = plots.save_plots(
        tmp_path,
        dataset,
        alone,
        Traversal(Bounds.from_dict(json.loads(json.dumps(fit_bounds(alone).to_dict())))),
    )
    assert [path.stem for path in paths] == ["distances", "polar"]


def test_colours_are_those_of_okabe_and_ito():
    palette = {"#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#000000"}
    assert {*plots.COLOURS.values(), plots.GREEN} <= palette
    assert len(set(plots.COLOURS.values())) == 4


def test_without_matplotlib(embeddings, monkeypatch):
    real = builtins.__import__

    def no_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    with pytest.raises(ImportError, match=r"hysac\[plot\]"):
        plots.polar_view(embeddings)
