"""Operating points: thresholds against a search of all, probabilities against scikit-learn, the file."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from sklearn.isotonic import IsotonicRegression

from hysac.safety import calibrate_threshold
from hysac.scoring.calibration import (
    TARGETS,
    by_label,
    fit_operating_points,
    fit_probability,
)
from hysac.scoring.operating_points import Direction, OperatingPoints, Probability, Reference

FEW = st.lists(st.integers(0, 12).map(float), min_size=1, max_size=12)


def rates(safe, unsafe, threshold):
    return (safe > threshold).sum(), (unsafe > threshold).sum()


@given(FEW, FEW, st.sampled_from((*TARGETS, "fpr=0.25", "fnr=0.25")))
def test_the_threshold_is_the_best_of_all(safe, unsafe, target):
    safe, unsafe = np.array(safe), np.array(unsafe)
    chosen = calibrate_threshold(torch.from_numpy(safe), torch.from_numpy(unsafe), target)
    alarms, hits = rates(safe, unsafe, chosen)
    others = [rates(safe, unsafe, threshold) for threshold in np.arange(-0.5, 13)]
    kind, _, share = target.partition("=")
    if kind == "youden":
        values = [h / len(unsafe) - a / len(safe) for a, h in others]
        assert hits / len(unsafe) - alarms / len(safe) == pytest.approx(max(values))
    elif kind == "max-f1":
        values = [2 * h / (h + a + len(unsafe)) for a, h in others]
        assert 2 * hits / (hits + alarms + len(unsafe)) == pytest.approx(max(values))
    elif kind == "fpr":
        allowed = [h for a, h in others if a <= float(share) * len(safe)]
        assert alarms <= float(share) * len(safe)
        assert hits == max(allowed)
    else:
        allowed = [a for a, h in others if len(unsafe) - h <= float(share) * len(unsafe)]
        assert len(unsafe) - hits <= float(share) * len(unsafe)
        assert alarms == min(allowed)


def drawn(count, gap, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(1.0, 0.2, count), generator.normal(1.0 + gap, 0.2, count)


def fit(safe, unsafe, **options):
    return fit_operating_points({"text": (safe, unsafe)}, data={"name": "x"}, model="m", **options)


def test_rates_are_those_of_the_data_and_the_interval_covers_the_truth():
    safe, unsafe = drawn(400, 0.4)
    points = fit(safe, unsafe, default="fpr=0.05").modalities["text"].points
    assert list(points) == ["youden", "max-f1", "fpr=0.01", "fnr=0.01", "fpr=0.05"], "0.001 needs 1000 items"
    for name, point in points.items():
        assert point.threshold == calibrate_threshold(torch.tensor(safe), torch.tensor(unsafe), name)
        assert point.fpr == (safe > point.threshold).mean()
        assert point.fnr == (unsafe <= point.threshold).mean()
        assert point.low <= point.threshold <= point.high
        assert point.high - point.low < 0.5
    truth = 1.0 + 0.2 * 1.6449  # of a normal distribution, its 95th percentile
    assert points["fpr=0.05"].low <= truth <= points["fpr=0.05"].high
    assert points["youden"].low <= 1.2 <= points["youden"].high
    again = fit(safe, unsafe, default="fpr=0.05").modalities["text"].points
    assert again == points, "the bootstrap is seeded"


def test_probability_is_monotone_and_that_of_scikit_learn():
    safe, unsafe = drawn(1500, 0.3)
    x, y = np.concatenate([safe, unsafe]), np.repeat([0.0, 1.0], 1500)
    isotonic = fit_probability(safe, unsafe, None)
    assert isotonic.kind == "isotonic"
    wanted = IsotonicRegression(out_of_bounds="clip").fit(x, y).predict(x[::50])
    np.testing.assert_allclose([isotonic(one) for one in x[::50]], wanted, atol=1e-12)
    logistic = fit_probability(safe[:500], unsafe[:500], None)
    assert logistic.kind == "logistic"
    assert logistic.unsafe_share == 0.5
    # Two normals of one variance have exactly a logistic curve, about their middle, of slope gap / variance.
    assert logistic.x[0] == pytest.approx(1.15, abs=0.03)
    assert logistic.x[1] == pytest.approx(0.3 / 0.04, rel=0.2)
    for curve in (isotonic, logistic):
        values = [curve(one) for one in np.linspace(0, 3, 50)]
        assert values == sorted(values)
        assert 0 <= values[0] < 0.1
        assert 0.9 < values[-1] <= 1
    assert fit_probability(unsafe, safe, "logistic")(1.0) == 0.5, "a distance that misleads tells nothing"
    assert fit_probability(safe, unsafe, "none") is None


def test_a_mix_of_the_calibration_data_is_not_foreign_and_other_data_is():
    safe, unsafe = drawn(2000, 0.5)
    reference = Reference.of(safe, unsafe)
    generator = np.random.default_rng(5)
    for share in (0.0, 0.1, 0.5, 1.0):
        count = int(800 * share)
        mix = np.concatenate([generator.choice(unsafe, count), generator.choice(safe, 800 - count)])
        assert not reference.is_foreign(mix), share
        if share in (0.0, 1.0):
            pure = ks_2samp(mix, unsafe if share else safe).statistic
            assert reference.gap(mix) <= pure + 0.01
    assert reference.is_foreign(generator.normal(2.5, 0.2, 30))
    assert reference.is_foreign(generator.normal(0.5, 0.1, 30))
    assert reference.is_foreign(generator.normal(1.25, 0.01, 200))


def test_other_directions_are_foreign_at_the_same_distances():
    generator = np.random.default_rng(3)

    def towards(axis, count):
        return 5 * np.eye(6)[axis] + generator.normal(size=(count, 6))

    safe, unsafe = towards(0, 300), 2 * towards(1, 200)
    direction = Direction.of(safe, unsafe)
    unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (safe, unsafe)]
    mean = np.concatenate(unit).mean(0)
    np.testing.assert_allclose(direction.mean, mean, rtol=1e-12)
    wanted = unit[0] @ mean / np.linalg.norm(mean)
    np.testing.assert_allclose(direction.cosines(safe), wanted, rtol=1e-12)
    np.testing.assert_allclose(direction.reference.safe[::256], [wanted.min(), wanted.max()], rtol=1e-12)
    for same in (towards(0, 100), towards(1, 100), np.concatenate([towards(0, 50), 7 * towards(1, 50)])):
        assert not direction.reference.is_foreign(direction.cosines(same))
    assert direction.reference.is_foreign(direction.cosines(towards(2, 100)))
    assert direction.cosines(np.zeros((1, 6))) == [0.0], "the origin has no direction"
    with pytest.raises(ValueError, match="points must have width 6, got 5"):
        direction.cosines(np.zeros((1, 5)))


def test_the_file_gives_back_what_was_saved(tmp_path):
    safe, unsafe = drawn(150, 0.4)
    points = fit_operating_points(
        {"text": (safe, unsafe), "image": (safe + 1, unsafe + 1)},
        points={name: (np.eye(3), np.ones((4, 3))) for name in ("text", "image")},
        data={"name": "x"},
        model="m",
    )
    assert points.modalities["text"].direction is not None
    points.save(tmp_path / "safety.json")
    assert OperatingPoints.load(tmp_path / "safety.json") == points
    with pytest.raises(ValueError, match="videos were not calibrated, only texts, images"):
        points.point("video")


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(format_version=2),
        lambda content: content.update(modalities=[]),
        lambda content: content.update(default="fpr=0.5"),
        lambda content: content.update(extra=1),
        lambda content: content["modalities"]["text"].pop("reference"),
        lambda content: content["modalities"]["text"]["points"]["youden"].update(threshold="1"),
        lambda content: content["modalities"]["text"]["points"]["youden"].update(threshold=99.0),
        lambda content: content["modalities"]["text"]["points"]["youden"].update(fpr=1.5),
        lambda content: content["modalities"]["text"]["probability"].update(kind="cubic"),
        lambda content: content["modalities"]["text"]["probability"].update(x=[1.0]),
        lambda content: content["modalities"]["text"]["reference"].update(safe=[2.0, 1.0]),
        lambda content: content["modalities"]["text"]["reference"].update(safe_count=0),
        lambda content: content["modalities"].update(video=content["modalities"]["text"]),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, change):
    path = tmp_path / "safety.json"
    fit(*drawn(150, 0.4)).save(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"safety\.json is not operating points of this version"):
        OperatingPoints.load(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"safe": [1.0], "unsafe": [2.0, 3.0]}, "at least two safe texts, all with finite distances; got 1"),
        ({"safe": [1.0, np.nan], "unsafe": [2.0, 3.0]}, "finite"),
        ({"safe": [1.0, 2.0], "unsafe": [2.0, 3.0], "default": "fpr=0.01"}, "at least 100 safe texts, got 2"),
        ({"safe": [1.0, 2.0], "unsafe": [2.0, 3.0], "default": "fnr=0.1"}, "at least 10 unsafe texts, got 2"),
        ({"safe": [1.0, 2.0], "unsafe": [2.0, 3.0], "default": "fpr=2"}, "youden, max-f1, fpr=X or fnr=X"),
        ({"safe": [1.0, 2.0], "unsafe": [2.0, 3.0], "probability": "cubic"}, "logistic, isotonic or none"),
    ],
)
def test_bad_calibrations(arguments, message):
    safe, unsafe = (np.array(arguments.pop(name)) for name in ("safe", "unsafe"))
    with pytest.raises(ValueError, match=message):
        fit(safe, unsafe, **arguments)


def test_bad_probabilities():
    with pytest.raises(ValueError, match="rising"):
        Probability("isotonic", (1.0, 2.0), (0.5, 0.4), 0.5)


def test_by_label():
    found = by_label(["text", "text", "image", "text"], [True, False, True, False], [3.0, 1.0, 2.0, 1.5])
    assert list(found) == ["text"], "there is no safe image"
    assert [one.tolist() for one in found["text"]] == [[1.0, 1.5], [3.0]]
