"""BatchScorer as the batch function of Hugging Face datasets and of Ray Data, unchanged."""

import pickle

import numpy as np
import pytest
from scoring import CAPTIONS, calibrate, make_model, pictures

from hysac.scoring import BatchScorer, SafetyScorer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    directory = make_model(tmp_path_factory.mktemp("batches") / "model")
    calibrate(directory)
    return str(directory)


@pytest.fixture(scope="module")
def wanted(model_dir):
    return SafetyScorer.from_pretrained(model_dir)(texts=CAPTIONS)


def assert_scored(rows, wanted):
    assert [row["text"] for row in rows] == CAPTIONS
    for row, score in zip(rows, wanted, strict=True):
        assert row["safety_distance"] == pytest.approx(score.distance, rel=1e-5)
        assert row["safety_probability"] == pytest.approx(score.probability, rel=1e-3, abs=1e-6)
        assert row["safety_decision"] == score.decision
        assert row["safety_nearest_class"] == score.nearest_class


def test_a_batch(model_dir, wanted):
    scorer = pickle.loads(pickle.dumps(BatchScorer(model_dir, "text", batch_size=3)))
    batch = scorer({"text": np.array(CAPTIONS), "n": np.arange(4)})
    assert_scored([{name: column[i] for name, column in batch.items()} for i in range(4)], wanted)
    assert pickle.loads(pickle.dumps(scorer))._scorer is None, "a worker loads its own model"


def test_images(model_dir, tmp_path):
    paths = list(map(str, pictures(tmp_path)))
    batch = BatchScorer(model_dir, "path", "image", prefix="s_")({"path": paths})
    scores = SafetyScorer.from_pretrained(model_dir)(images=paths)
    np.testing.assert_allclose(batch["s_distance"], [score.distance for score in scores], rtol=1e-5)


def test_bad_arguments(model_dir):
    with pytest.raises(ValueError, match="modality must be 'text' or 'image', got 'video'"):
        BatchScorer(model_dir, "text", "video")
    with pytest.raises(ValueError, match="no column 'caption'; there are text"):
        BatchScorer(model_dir, "caption")({"text": CAPTIONS})


def test_hugging_face_datasets(model_dir, wanted):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    data = datasets.Dataset.from_dict({"text": CAPTIONS})
    assert_scored(data.map(BatchScorer(model_dir, "text"), batched=True, batch_size=2).to_list(), wanted)


def test_ray_data(model_dir, wanted):
    ray = pytest.importorskip("ray", reason="ray is not installed")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        data = ray.data.from_items([{"text": caption, "place": i} for i, caption in enumerate(CAPTIONS)])
        scored = data.map_batches(
            BatchScorer, fn_constructor_args=[model_dir, "text"], batch_size=2, concurrency=1
        )
        assert_scored(sorted(scored.take_all(), key=lambda row: row["place"]), wanted)
    finally:
        ray.shutdown()
