"""classify-eval: rates against counts, areas against scikit-learn, categories, mistakes, pictures."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scoring import calibrate, make_model, pictures
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from hysac.cli import main
from hysac.evaluation.classification import (
    average_precision,
    classification_report,
    roc,
    worst_mistakes,
)
from hysac.models.pretrained import model_directory
from hysac.plots.classification import reliability
from hysac.scoring import OperatingPoints, SafetyScorer
from hysac.scoring.labelled import Labelled

FEW = st.lists(st.integers(0, 9).map(float), min_size=1, max_size=20).map(np.array)


@given(FEW, FEW)
def test_areas_are_those_of_scikit_learn(safe, unsafe):
    labels = np.repeat([0, 1], [len(safe), len(unsafe)])
    values = np.concatenate([safe, unsafe])
    assert average_precision(safe, unsafe) == pytest.approx(average_precision_score(labels, values))
    alarms, hits = roc(safe, unsafe)
    wanted = roc_curve(labels, values, drop_intermediate=False)
    np.testing.assert_allclose(alarms, wanted[0])
    np.testing.assert_allclose(hits, wanted[1])


def labelled(distances, unsafe, categories, modality="text"):
    items = [
        Labelled(str(i), modality, f"text {i}", one, category)
        for i, (one, category) in enumerate(zip(unsafe, categories, strict=True))
    ]
    return items, list(distances)


def test_rates_by_threshold_and_category(tmp_path):
    points = calibrate(make_model(tmp_path / "model"), text=1.0)
    generator = np.random.default_rng(0)
    unsafe = generator.random(300) < 0.4
    distances = generator.normal(1.0, 0.1, 300) + 0.1 * unsafe
    categories = np.where(unsafe, generator.choice(["fire", "weapon", ""], 300), "")
    items, values = labelled(distances, unsafe.tolist(), categories)
    report = classification_report(items, values, points)
    assert list(report) == ["text"]
    text = report["text"]
    assert (text["safe"], text["unsafe"]) == ((~unsafe).sum(), unsafe.sum())
    assert text["auc"] == pytest.approx(roc_auc_score(unsafe, distances))
    for name, at in text["thresholds"].items():
        limit = points.point("text", name).threshold
        assert at == {
            "threshold": limit,
            "fpr": (distances[~unsafe] > limit).mean(),
            "fnr": (distances[unsafe] <= limit).mean(),
        }
    limit = points.point("text").threshold
    assert list(text["categories"]) == ["fire", "weapon"]
    for name, of in text["categories"].items():
        mine = distances[categories == name]
        assert of["unsafe"] == len(mine)
        assert of["fnr"] == (mine <= limit).mean()
        everything = np.concatenate([distances[~unsafe], mine])
        assert of["auc"] == pytest.approx(
            roc_auc_score(np.arange(len(everything)) >= (~unsafe).sum(), everything)
        )
    without = classification_report(items, values, None)["text"]
    assert without["thresholds"] == {}
    assert "fnr" not in without["categories"]["fire"]
    with pytest.raises(ValueError, match="no modality has safe and unsafe items"):
        classification_report(items[:1], values[:1], None)


def test_the_worst_mistakes_come_first():
    items, values = labelled([1.0, 3.0, 2.0, 0.5, 2.5], [False, False, False, True, True], [""] * 5)
    assert worst_mistakes(items, values, "text", 2) == ([1, 2], [3, 4])
    assert worst_mistakes(items, values, "image", 2) == ([], [])


def test_reliability_of_a_calibrated_curve():
    generator = np.random.default_rng(0)
    told = generator.random(20_000)
    unsafe = generator.random(20_000) < told
    x, y = reliability(told[~unsafe], told[unsafe], lambda value: value)
    np.testing.assert_allclose(x, y, atol=0.03)
    assert len(x) == 10


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    model = make_model(tmp_path / "model")
    paths = pictures(tmp_path / "data", 6)
    rows = [f"{path.name},{number % 2},{'fire' if number % 2 else ''}" for number, path in enumerate(paths)]
    rows += [f"a dog {number},{number % 2},{'storm' if number % 2 else ''}" for number in range(40)]
    data = tmp_path / "data" / "test.csv"
    data.write_text("\n".join(["item,label,category", *rows]))
    middle = np.median(
        [one.distance for one in SafetyScorer.from_pretrained(model)(texts=["a dog 1", "a dog 2"])]
    )
    points = calibrate(model, text=float(middle))
    arguments = [
        "classify-eval",
        "--model-dir",
        str(model),
        "--data",
        str(data),
        "--device",
        "cpu",
        "--workers",
        "0",
    ]
    assert main([*arguments, "--plots", str(tmp_path / "plots")]) == 0
    told = capsys.readouterr().out
    assert "texts: 20 safe, 20 unsafe" in told
    assert "images: 3 safe, 3 unsafe" in told
    content = json.loads((model_directory(model) / "classification.json").read_text())
    at = content["modalities"]["text"]["thresholds"]["youden"]
    assert at["threshold"] == points.point("text").threshold
    scores = SafetyScorer.from_pretrained(model)(texts=[f"a dog {number}" for number in range(40)])
    assert at["fpr"] == np.mean([one.decision == "unsafe" for one in scores[::2]])
    assert at["fnr"] == np.mean([one.decision == "safe" for one in scores[1::2]])
    assert set(content["modalities"]["image"]["categories"]) == {"fire"}
    drawn = {path.name for path in (tmp_path / "plots").iterdir()}
    assert drawn == {"classification.png", "histograms.png", "worst_images.png", "worst_texts.png"}


def test_the_data_of_the_calibration_is_told(tmp_path, capsys):
    model = make_model(tmp_path / "model")
    data = tmp_path / "data.csv"
    data.write_text("\n".join(["item,label", *(f"a dog {number},{number % 2}" for number in range(20))]))
    common = ["--model-dir", str(model), "--data", str(data), "--device", "cpu"]
    assert main(["calibrate", *common]) == 0
    assert main(["classify-eval", *common]) == 0
    assert "the data that the thresholds were fitted to" in capsys.readouterr().err
    assert OperatingPoints.load(model / "safety.json").data["items"] == 20
