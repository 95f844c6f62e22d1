"""The pictures: labelled, complete, and of the numbers they claim to show."""

import builtins
import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import hypkernels as hk
from hysac import Bounds, Embeddings, Traversal, fit_bounds, plots
from hysac.data import ToyQuadruplets
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
    figure = plots.distance_histogram(embeddings, traversal)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "geodesic distance to the origin"
    assert axes.get_ylabel() == "share of the class, %"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [*plots.NAMES.values(), "bound of safe texts", "bound of safe images"]
    bars = [patches for patches in axes.containers if len(patches) == 60]
    assert len(bars) == 4
    for letter, patches in zip("SVUG", bars, strict=True):
        assert sum(bar.get_height() for bar in patches) == pytest.approx(100)
        mean = sum(bar.get_height() / 100 * (bar.get_x() + bar.get_width() / 2) for bar in patches)
        assert mean == pytest.approx(RADII[letter], rel=0.02)
    bounds = [line.get_xdata()[0] for line in axes.lines]
    assert bounds == pytest.approx([traversal.bounds["S"].avg, traversal.bounds["V"].avg])


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


def test_retrieved_texts(embeddings, traversal, dataset):
    figure = plots.retrieved_texts(dataset, embeddings, traversal, [5], k=2)
    record = dataset.records[5]
    found = [axes for axes in figure.axes if axes.texts]
    as_it_is, redirected = ([text.replace("\n", " ") for text in texts(axes)] for axes in found)
    assert as_it_is == [record.unsafe_caption, record.safe_caption]
    assert redirected == [record.safe_caption, record.unsafe_caption]
    assert found[1].texts[0].get_color() == plots.COLOURS["S"]


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


def test_curves_of_nothing(tmp_path):
    with pytest.raises(ValueError, match="no record of training"):
        plots.training_curves(tmp_path)


def test_saved_files(tmp_path, embeddings, traversal, dataset):
    paths = plots.save_plots(tmp_path / "new", dataset, embeddings, traversal)
    assert [path.stem for path in paths] == ["distances", "polar", "retrieved_images", "retrieved_texts"]
    for path in paths:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L"))
        assert min(pixels.shape) > 400
        assert (pixels < 255).mean() > 0.01


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
