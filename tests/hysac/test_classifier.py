"""Zero-shot classification by distance, beside open_clip's of unit vectors."""

import open_clip
import pytest
import torch
from test_model import LENGTH, VOCAB, distances, images, lifted, make_model, spread_scalars

import hysac

CLASSNAMES = ["red paper", "green paper", "blue paper", "a boat", "a cat"]
TEMPLATES = ["a photo of {}.", lambda name: f"much {name} and nothing else"]


def tokenizer(texts):
    """Tokens that depend on every character."""
    rows = [[1 + sum(map(ord, text[at::LENGTH])) % (VOCAB - 2) for at in range(LENGTH)] for text in texts]
    tokens = torch.tensor(rows)
    tokens[:, -1] = VOCAB - 1
    return tokens


@pytest.fixture(scope="module")
def model():
    return spread_scalars(make_model()).eval()


@pytest.fixture(scope="module")
def classifier(model):
    return hysac.build_zero_shot_classifier(model, tokenizer, CLASSNAMES, TEMPLATES, 2)


def test_a_class_is_the_lifted_mean_of_its_prompts(model, classifier):
    assert classifier.points.shape == (5, 12)
    with torch.no_grad():
        for name, point in zip(CLASSNAMES, classifier.points, strict=True):
            mean = model.encode_text(tokenizer([TEMPLATES[0].format(name), TEMPLATES[1](name)])).mean(0)
            torch.testing.assert_close(point.double(), lifted(mean, 0.7, 0.4), rtol=1e-5, atol=1e-7)


def test_all_classes_at_once_are_the_same(model, classifier):
    at_once = hysac.build_zero_shot_classifier(model, tokenizer, CLASSNAMES, TEMPLATES, None)
    torch.testing.assert_close(at_once.points, classifier.points, rtol=1e-5, atol=1e-7)


def test_logits_are_distances(model, classifier):
    with torch.no_grad():
        points = model.encode_image(images(6), normalize=True)
    wanted = -31 * distances(points, classifier.points, 0.4)
    torch.testing.assert_close(classifier(points).double(), wanted, rtol=1e-5, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(classifier(points), classifier(points).float())


def test_unit_vectors_of_open_clips_function_are_caught(model, classifier):
    theirs = open_clip.build_zero_shot_classifier(model, tokenizer, CLASSNAMES, TEMPLATES[:1])
    for matrix in (theirs, theirs.T):
        with pytest.raises(
            ValueError, match=r"are unit vectors, as of open_clip\.build_zero_shot_classifier"
        ):
            hysac.ZeroShotClassifier(matrix, 1.0)
    with pytest.raises(TypeError, match=r"for @: 'Tensor' and 'ZeroShotClassifier'"):
        torch.ones(2, 12) @ classifier


def test_arguments_of_a_classifier():
    model = make_model()
    for change, error, message in (
        ({"model": torch.nn.Linear(2, 2)}, TypeError, "must be a HySAC model, got Linear"),
        ({"classnames": []}, ValueError, "classnames must be a sequence with at least one entry"),
        ({"templates": "a {}."}, ValueError, "templates must be a sequence"),
        ({"num_classes_per_batch": 0}, ValueError, "num_classes_per_batch must be at least 1 or None"),
    ):
        arguments = {"model": model, "tokenizer": None, "classnames": ["a"], "templates": ["{}"]} | change
        with pytest.raises(error, match=message):
            hysac.build_zero_shot_classifier(**arguments)
    with pytest.raises(ValueError, match=r"points must have shape \(C, D\)"):
        hysac.ZeroShotClassifier(torch.ones(3), 1.0)
