"""Photographs of different sizes, modes and formats, through the command, with towers of real size."""

import json
import math
import shutil

import pytest
import skimage.data
from PIL import Image

from hysac import from_pretrained
from hysac.cli import main

pytestmark = pytest.mark.slow

PHOTOS = ("astronaut", "camera", "chelsea", "coffee", "rocket", "coins", "moon", "brick")
"""Colour and grey, between 303 x 384 and 640 x 427 pixels."""


def as_stored(image, index):
    """One file of each kind that collections of photographs hold."""
    if index % 4 == 0:
        return image.convert("RGB"), ".jpg"
    if index % 4 == 1:
        return image.convert("L"), ".jpeg"
    if index % 4 == 2:
        with_alpha = image.convert("RGB")
        with_alpha.putalpha(200)
        return with_alpha, ".png"
    return image.convert("P"), ".png"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    (folder / "images").mkdir()
    rows = []
    for index, name in enumerate(PHOTOS):
        photo = Image.fromarray(getattr(skimage.data, name)())
        safe, suffix = as_stored(photo, index)
        unsafe, unsafe_suffix = as_stored(photo.rotate(180).crop((0, 0, 200 + 10 * index, 250)), index + 1)
        row = {"id": name, "tag": "upside down", "safe_caption": name, "unsafe_caption": f"{name}, turned"}
        for key, image, ending in (("safe", safe, suffix), ("unsafe", unsafe, unsafe_suffix)):
            row[f"{key}_image"] = f"images/{name}-{key}{ending}"
            image.save(folder / row[f"{key}_image"])
        rows.append(row)
    path = folder / "photos.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_files_differ_in_size_mode_and_format(manifest):
    seen = set()
    for file in sorted((manifest.parent / "images").iterdir()):
        with Image.open(file) as image:
            seen.add((image.format, image.mode, image.size))
    assert {kind for kind, _, _ in seen} == {"JPEG", "PNG"}
    assert {mode for _, mode, _ in seen} == {"RGB", "L", "RGBA", "P"}
    assert len({size for _, _, size in seen}) > 4


@pytest.fixture
def logs(tmp_path):
    yield tmp_path / "runs"
    shutil.rmtree(tmp_path)  # two gigabytes


def test_train_and_evaluate(manifest, logs, capsys):
    common = ["--workers", "0", "--device", "cpu", "--batch-size", "4"]
    arguments = ["train", "--train-data", manifest, "--val-data", manifest, "--model", "ViT-B-32", *common]
    arguments += ["--epochs", "1", "--warmup", "0", "--log-every-n-steps", "1", "--keep-last", "1"]
    assert main([*map(str, arguments), "--logs", str(logs), "--name", "photos"]) == 0
    run = logs / "photos"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    assert len(losses) == 2
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert from_pretrained(run / "model").visual.image_size == (224, 224)

    arguments = ["evaluate", "--model-dir", run, "--val-data", manifest, *common]
    assert main([*map(str, arguments), "--ks", "1", "8"]) == 0
    assert "8 quadruplets" in capsys.readouterr().out
    report = json.loads((run / "model" / "evaluation.json").read_text())
    assert report["tag_sizes"] == {"upside down": 8}
    assert report["retrieval"]["T->I"]["R@8"] == 1.0
    assert all(0 <= recalls["R@1"] <= 1 for recalls in report["retrieval"].values())
