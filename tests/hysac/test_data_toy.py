"""The drawn data set: reproducible, disjoint, truthful about what is in its pictures."""

import dataclasses
import hashlib
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.functional import to_tensor

from hysac.data import ToyQuadruplets, write_toy
from hysac.data.scenes import ATTRIBUTES, COLOURS, HAZARD_PHRASES, HAZARDS, MARK_RADIUS, SIZE
from hysac.data.toy import DEFAULT_SIZES, MAX_SIZES, SCENES, _render, make_scenes

tokenizer = open_clip.SimpleTokenizer(context_length=24)
FINGERPRINT = """
import hashlib
from hysac.data.toy import _render, make_scenes
for split in ("val", "train"):
    words = repr([(s.safe_caption, s.unsafe_caption, s.hazard) for s in make_scenes(split, 40, 7)])
    print(split, hashlib.sha256(_render(split, 40, 7).tobytes() + words.encode()).hexdigest())
"""


def toy(split="train", size=60, seed=0):
    return ToyQuadruplets(split, size, seed, preprocess=to_tensor, tokenizer=tokenizer)


def attributes(scene):
    return tuple(getattr(scene, name) for name in ATTRIBUTES)


def difference(scene):
    safe, unsafe = scene.render().astype(int)
    return np.abs(unsafe - safe).max(axis=-1)


scenes = st.builds(
    lambda split, index, seed: make_scenes(split, 200, seed)[index],
    st.sampled_from(["train", "val"]),
    st.integers(0, 199),
    st.sampled_from([0, 1, 2**32 - 1]),
)


def test_items_are_pairs_of_pictures_and_captions():
    dataset = toy(size=12)
    assert dataset.pixels.shape == (12, 2, SIZE, SIZE, 3)
    assert dataset.pixels.dtype == np.uint8
    for index, scene in enumerate(dataset.scenes):
        item = dataset[index]
        assert item["image"].shape == (2, 3, SIZE, SIZE)
        assert item["image"].dtype == torch.float32
        assert torch.equal(item["text"], tokenizer([scene.safe_caption, scene.unsafe_caption]))
        assert (item["tag"], item["id"]) == (scene.hazard, f"train-{index:05d}")
        for side in (0, 1):
            assert torch.equal(item["image"][side], to_tensor(Image.fromarray(dataset.pixels[index, side])))
            assert np.array_equal(np.asarray(dataset.images(index)[side]), dataset.pixels[index, side])
    assert dataset[-1]["id"] == "train-00011"
    with pytest.raises(IndexError):
        dataset[12]


@pytest.mark.slow
def test_the_default_sizes():
    assert len(toy("train", None)) == DEFAULT_SIZES["train"] == 2048
    assert len(toy("val", None)) == DEFAULT_SIZES["val"] == 256


@pytest.mark.slow
def test_the_pictures_are_the_same_in_every_process_and_order():
    run = subprocess.run([sys.executable, "-c", FINGERPRINT], capture_output=True, text=True, check=True)
    elsewhere = dict(line.split() for line in run.stdout.splitlines())
    for split in ("train", "val"):
        part = make_scenes(split, 40, 7)
        words = repr([(s.safe_caption, s.unsafe_caption, s.hazard) for s in part]).encode()
        backwards = [scene.render() for scene in reversed(part)]
        pixels = np.stack(backwards[::-1])
        assert hashlib.sha256(pixels.tobytes() + words).hexdigest() == elsewhere[split]


def test_the_pictures_are_the_same_when_made_again():
    first = toy(size=40, seed=7)
    _render.cache_clear()
    make_scenes.cache_clear()
    toy("val", 40, 7)
    again = toy(size=40, seed=7)
    assert again.scenes == first.scenes
    assert again.pixels is not first.pixels
    assert np.array_equal(again.pixels, first.pixels)


def test_a_larger_set_begins_with_the_smaller_one():
    small, large = toy(size=20), toy(size=50)
    assert large.scenes[:20] == small.scenes
    assert np.array_equal(large.pixels[:20], small.pixels)


def test_a_seed_is_another_choice_of_scenes():
    one, two = make_scenes("train", 200, 0), make_scenes("train", 200, 1)
    assert len(set(map(attributes, one)) & set(map(attributes, two))) < 20
    val = make_scenes("val", 200, 0)
    jitters = {scene.jitter for part in (one, two, val) for scene in part}
    assert len(jitters) == 600


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_every_scene_occurs_once_in_one_split(seed):
    train, val = (make_scenes(split, MAX_SIZES[split], seed) for split in ("train", "val"))
    assert set(map(attributes, train)) | set(map(attributes, val)) == set(
        itertools.product(*ATTRIBUTES.values())
    )
    assert len(train) + len(val) == SCENES == 10080
    for part in (train, val):
        captions = [c for scene in part for c in (scene.safe_caption, scene.unsafe_caption)]
        assert len(set(captions)) == len(captions)


@pytest.mark.slow
def test_every_hazard_and_every_attribute_occurs_in_every_split():
    for split in ("train", "val"):
        dataset = toy(split, None)
        tags = [record.tag for record in dataset.records]
        counts = [tags.count(tag) for tag in HAZARDS]
        assert max(counts) - min(counts) <= 1
        assert {record.tag for record in dataset.records[: len(HAZARDS)]} == set(HAZARDS)
        for name, values in ATTRIBUTES.items():
            assert {getattr(scene, name) for scene in dataset.scenes} == set(values)
        assert {(s.hazard, s.phrase) for s in dataset.scenes} == {
            (hazard, number) for hazard in HAZARDS for number in range(len(HAZARD_PHRASES[hazard]))
        }


@pytest.mark.slow
def test_captions_fit_the_context_and_name_what_is_there():
    for scene in make_scenes("train", 2048, 0):
        for name in ATTRIBUTES:
            assert getattr(scene, name) in scene.safe_caption
        assert scene.unsafe_caption.startswith(scene.safe_caption)
        assert scene.unsafe_caption.endswith(HAZARD_PHRASES[scene.hazard][scene.phrase])
    roomy = open_clip.SimpleTokenizer(context_length=77)
    lengths = (roomy([s.unsafe_caption for s in make_scenes("train", MAX_SIZES["train"], 0)]) != 0).sum(-1)
    assert lengths.max() <= 24
    phrases = [phrase for several in HAZARD_PHRASES.values() for phrase in several]
    assert HAZARD_PHRASES.keys() == HAZARDS.keys()
    assert len(set(phrases)) == len(phrases)


@settings(max_examples=150, deadline=None)
@given(scene=scenes)
def test_the_unsafe_picture_differs_where_the_mark_is_and_nowhere_else(scene):
    changed = difference(scene)
    x, y = scene.mark_centre
    rows, columns = np.nonzero(changed)
    assert columns.min() >= np.floor(x - MARK_RADIUS) >= 0
    assert columns.max() < np.ceil(x + MARK_RADIUS) <= SIZE
    assert rows.min() >= np.floor(y - MARK_RADIUS) >= 0
    assert rows.max() < np.ceil(y + MARK_RADIUS) <= SIZE
    assert (changed > 40).sum() >= 15  # the mark can be seen


@settings(max_examples=40, deadline=None)
@given(scene=scenes)
def test_every_hazard_has_a_mark_of_its_own(scene):
    marked = [dataclasses.replace(scene, hazard=hazard, phrase=0).render() for hazard in HAZARDS]
    for (safe, one), (same, other) in itertools.combinations(marked, 2):
        assert np.array_equal(safe, same)
        assert (np.abs(one.astype(int) - other).max(axis=-1) > 40).sum() >= 15


@settings(max_examples=40, deadline=None)
@given(scene=scenes)
def test_a_change_of_any_attribute_can_be_seen(scene):
    for name, values in ATTRIBUTES.items():
        pictures = [dataclasses.replace(scene, **{name: value}).render()[0].astype(int) for value in values]
        for one, other in itertools.combinations(pictures, 2):
            assert (np.abs(one - other).max(axis=-1) > 25).sum() >= 8, name


def test_the_thing_has_the_colour_of_its_caption():
    for scene in make_scenes("train", 200, 0):
        x = slice(2, 30)
        near = np.abs(scene.render()[0][8:30, x].astype(int) - COLOURS[scene.colour]).max(axis=-1) <= 8
        assert near.sum() >= 2, scene.safe_caption


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "split must be one of train, val, got 'test'"),
        ({"size": 0}, r"size must be in 1\.\.8064 for split 'train', got 0"),
        ({"split": "val", "size": 2017}, r"size must be in 1\.\.2016 for split 'val', got 2017"),
        ({"seed": -1}, "seed must be in 0"),
        ({"seed": 2**32}, "seed must be in 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        toy(**arguments)


def test_transforms_that_cannot_be_called_are_refused():
    with pytest.raises(TypeError, match="preprocess"):
        ToyQuadruplets("val", 2, preprocess=None, tokenizer=tokenizer)
    with pytest.raises(TypeError, match="tokenizer"):
        ToyQuadruplets("val", 2, preprocess=to_tensor, tokenizer=None)


def test_the_shared_pixels_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        toy(size=2).pixels[0] = 0


def test_writing_gives_png_files_and_manifests(tmp_path, capsys):
    manifests = write_toy(tmp_path / "toy", train_size=7, val_size=3, seed=5, progress=False)
    assert capsys.readouterr().err == ""
    assert manifests == {split: tmp_path / f"toy/{split}.jsonl" for split in ("train", "val")}
    rows = [json.loads(line) for line in manifests["train"].read_text().splitlines()]
    assert len(rows) == 7
    drawn = toy(size=7, seed=5)
    for index, row in enumerate(rows):
        for side, kind in enumerate(("safe", "unsafe")):
            with Image.open(tmp_path / "toy" / row[f"{kind}_image"]) as image:
                assert image.format == "PNG"
                assert np.array_equal(np.asarray(image), drawn.pixels[index, side])
        assert row["safe_caption"] == drawn.scenes[index].safe_caption
        assert row["tag"] == drawn.scenes[index].hazard


def test_writing_replaces_nothing(tmp_path):
    (tmp_path / "val.jsonl").write_text("mine")
    with pytest.raises(FileExistsError, match=r"val\.jsonl"):
        write_toy(tmp_path, train_size=2, val_size=2, progress=False)
    assert os.listdir(tmp_path) == ["val.jsonl"]
    assert (tmp_path / "val.jsonl").read_text() == "mine"
    with pytest.raises(ValueError, match="size must be"):
        write_toy(tmp_path / "new", train_size=2, val_size=0)
    assert not (tmp_path / "new").exists()
