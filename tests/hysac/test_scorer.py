"""SafetyScorer: what it takes, what it answers, and that it never calls safe what it does not know."""

import numpy as np
import pytest
import torch
from PIL import Image
from scoring import CAPTIONS, calibrate, make_model, pictures

import hysac
from hysac.data.text import text_windows
from hysac.scoring import SafetyScorer


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("scorer") / "model")


@pytest.fixture(scope="module")
def scorer(model_dir):
    return SafetyScorer.from_pretrained(model_dir, batch_size=2)


def test_distances_are_those_of_the_model(scorer, tmp_path):
    paths = pictures(tmp_path)
    transform = hysac.transforms(scorer.model)[1]
    with torch.no_grad():
        model = scorer.model.eval()
        images = model.encode_image(
            torch.stack([transform(Image.open(path)) for path in paths]), normalize=True
        )
        texts = model.encode_text(scorer.tokenizer(CAPTIONS), normalize=True)
        wanted = [*hysac.unsafe_score(images, model.curvature), *hysac.unsafe_score(texts, model.curvature)]
    scores = scorer(images=paths, texts=CAPTIONS)
    assert [score.modality for score in scores] == ["image"] * 3 + ["text"] * 4
    np.testing.assert_allclose([score.distance for score in scores], wanted, rtol=1e-5)
    assert len({round(score.distance, 6) for score in scores}) == 7
    for score in scores:
        assert score.probability is None
        assert score.decision is None
        safe, unsafe = {"text": (0.2, 2.0), "image": (0.4, 4.0)}[score.modality]
        nearest = "safe" if abs(score.distance - safe) <= abs(score.distance - unsafe) else "unsafe"
        assert score.nearest_class == f"{nearest} {score.modality}"


def test_every_form_of_an_image_has_one_score(scorer, tmp_path):
    (path,) = pictures(tmp_path, 1)
    image = Image.open(path)
    scores = scorer(images=[path, str(path), image, np.asarray(image)])
    np.testing.assert_allclose([score.distance for score in scores], scores[0].distance, rtol=1e-6)


def test_the_farthest_window_of_a_long_text_counts(scorer):
    room = scorer.tokenizer.context_length - 2
    text = " ".join(["a small red house by the sea"] * room + ["and a green tree"])
    windows = text_windows(scorer.tokenizer, text)
    assert len(windows) > scorer.batch_size
    with torch.no_grad():
        points = scorer.model.eval().encode_text(windows, normalize=True)
    wanted = hysac.unsafe_score(points, scorer.model.curvature).max()
    long, short = scorer(texts=[text, "a cat"])
    np.testing.assert_allclose(long.distance, wanted.item(), rtol=1e-5)
    np.testing.assert_allclose(short.distance, scorer(texts=["a cat"])[0].distance, rtol=1e-5)


@pytest.mark.slow
def test_the_threshold_decides(model_dir):
    distances = [score.distance for score in SafetyScorer.from_pretrained(model_dir)(texts=CAPTIONS)]
    middle = float(np.median(distances))
    points = calibrate(model_dir, text=middle, spread=1e-4)
    for name in (None, "max-f1", "fpr=0.01"):
        calibrated = SafetyScorer.from_pretrained(model_dir, threshold=name)
        threshold = points.point("text", name).threshold
        scores = calibrated(texts=CAPTIONS)
        assert {score.decision for score in scores} == {"safe", "unsafe"}
        for score, distance in zip(scores, distances, strict=True):
            assert score.decision == ("unsafe" if distance > threshold else "safe")
            assert 0 <= score.probability <= 1
        ordered = sorted(scores, key=lambda score: score.distance)
        assert ordered[0].probability < 0.1
        assert ordered[-1].probability > 0.9
    with pytest.raises(ValueError, match=r"no threshold 'fpr=0\.5'; there are youden, "):
        SafetyScorer.from_pretrained(model_dir, threshold="fpr=0.5")
    uncalibrated = SafetyScorer.from_pretrained(model_dir, calibrated=False)
    assert uncalibrated(texts=["a"])[0].decision is None
    (model_dir / "safety.json").unlink()
    with pytest.raises(ValueError, match="no threshold 'youden': the model was not calibrated"):
        SafetyScorer.from_pretrained(model_dir, threshold="youden")


@pytest.mark.slow
def test_thresholds_of_other_weights_are_refused(tmp_path):
    first, second = make_model(tmp_path / "first"), make_model(tmp_path / "second", seed=1)
    calibrate(first)
    (first / "safety.json").rename(second / "safety.json")
    with pytest.raises(ValueError, match=r"safety\.json was made for other weights"):
        SafetyScorer.from_pretrained(second)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_no_score(model_dir, value):
    calibrate(model_dir)
    try:
        scorer = SafetyScorer.from_pretrained(model_dir)
    finally:
        (model_dir / "safety.json").unlink()
    with torch.no_grad():
        scorer.model.token_embedding.weight.fill_(value)
    with pytest.raises(FloatingPointError, match="the distance of text 0 is"):
        scorer(texts=CAPTIONS)
    with pytest.raises(FloatingPointError):
        scorer.judge("text", value)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({}, ValueError, "give images, texts or both"),
        ({"texts": "a dog"}, TypeError, "texts must be a sequence of items, got one str"),
        ({"images": np.zeros((4, 4, 3), np.uint8)}, TypeError, "images must be a sequence"),
        ({"texts": [3]}, TypeError, "a text must be a string, got int"),
        ({"texts": [" "]}, ValueError, "a text is empty"),
        ({"texts": ["a" * 10_001]}, ValueError, "10001 characters"),
        ({"texts": ["\ud83d"]}, ValueError, "text"),
        ({"images": [b"a"]}, TypeError, "an image must be a path"),
        ({"images": [np.zeros((4, 4, 3))]}, TypeError, r"8-bit pixels.*float64 \(4, 4, 3\)"),
        ({"images": [np.zeros((4, 4, 2), np.uint8)]}, TypeError, r"8-bit pixels.*\(4, 4, 2\)"),
        ({"images": ["gone.png"]}, ValueError, r"gone\.png does not exist"),
    ],
)
def test_bad_items(scorer, call, error, message):
    with pytest.raises(error, match=message):
        scorer(**call)


def test_nothing_has_no_scores(scorer):
    assert scorer(images=[], texts=[]) == []
