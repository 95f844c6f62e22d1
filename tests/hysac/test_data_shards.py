"""Shards of webdataset: the same quadruplets as from a manifest, in any order, and faults by name."""

import io
import json
import logging
import pickle
import tarfile

import pytest
import torch
from PIL import Image

from hysac.cli import main
from hysac.data import load_image, load_manifest, load_shards, open_dataset, save_manifest, write_toy
from hysac.data.shards import expand


def preprocess(image):
    return torch.tensor(list(image.tobytes())).view(image.height, image.width, 3).permute(2, 0, 1) / 255


def tokenizer(captions):
    return torch.tensor([[len(caption)] for caption in captions])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(scope="module")
def records(folder):
    return load_manifest(write_toy(folder / "toy", train_size=7, val_size=1, progress=False)["train"]).records


def members(record, key):
    """Name and content of each member of a quadruplet."""
    return {
        f"{key}.safe.png": record.safe_image.read_bytes(),
        f"{key}.unsafe.png": record.unsafe_image.read_bytes(),
        f"{key}.safe.txt": record.safe_caption.encode(),
        f"{key}.unsafe.txt": f"{record.unsafe_caption}\n".encode(),
        f"{key}.json": json.dumps({"tag": record.tag, "anything": 1}).encode(),
    }


def write(path, contents):
    with tarfile.open(path, "w") as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return str(path)


@pytest.fixture(scope="module")
def shards(folder, records):
    for number, part in enumerate((records[:4], records[4:])):
        contents = {}
        for index, record in enumerate(part):
            contents |= members(record, f"some.folder/{index:04d}")
        write(folder / f"train-{number:02d}.tar", contents)
    return str(folder / "train-{00..01}.tar")


def test_the_quadruplets_are_those_of_the_manifest(shards, folder, records):
    read = open_dataset(shards, "train", preprocess, tokenizer, progress=False)
    wanted = open_dataset(folder / "toy" / "train.jsonl", "train", preprocess, tokenizer, progress=False)
    assert len(read) == len(wanted) == 7
    assert [record.id for record in read.records][:1] == ["train-00/some.folder/0000"]
    for index in (6, 0, 3, 5, 1, 2, 4):
        got, expected = read[index], wanted[index]
        assert torch.equal(got["image"], expected["image"])
        assert torch.equal(got["text"], expected["text"])
        assert got["tag"] == expected["tag"] == records[index].tag


def test_every_kind_of_image_and_no_images(folder, records):
    photo = Image.new("RGB", (8, 8), (200, 10, 10))
    contents = {"a.safe.txt": b"a", "a.unsafe.txt": b"b"}
    text_only = load_shards(write(folder / "text.tar", contents), progress=False)
    assert not text_only.has_images
    assert text_only.records[0].tag is None
    for suffix, file_format in (("jpg", "JPEG"), ("jpeg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")):
        file = io.BytesIO()
        photo.save(file, file_format)
        images = {f"a.{side}.{suffix}": file.getvalue() for side in ("safe", "unsafe")}
        (record,) = load_shards(write(folder / "one.tar", contents | images), progress=False).records
        red, green, blue = load_image(record.unsafe_image).getpixel((4, 4))
        assert red > 180
        assert max(green, blue) < 40


def test_shards_travel_to_workers(shards):
    manifest = pickle.loads(pickle.dumps(load_shards(shards, progress=False)))
    assert load_image(manifest.records[5].safe_image).size == (32, 32)


def test_ranges_keep_their_width_and_multiply():
    assert [str(path) for path in expand("a-{08..11}.tar")] == [
        "a-08.tar",
        "a-09.tar",
        "a-10.tar",
        "a-11.tar",
    ]
    assert [str(path) for path in expand("{0..1}/b-{2..3}.tar")] == [
        "0/b-2.tar",
        "0/b-3.tar",
        "1/b-2.tar",
        "1/b-3.tar",
    ]
    assert [str(path) for path in expand("c.tar")] == ["c.tar"]
    with pytest.raises(ValueError, match="ends before it starts"):
        expand("d-{3..2}.tar")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.unsafe.txt": None}, r"key '0' of .*\.tar: no member unsafe\.txt; there are json, safe\.png"),
        ({"0.safe.png": None}, "safe_image is empty: give both images"),
        ({"0.safe.txt": b" "}, "safe_caption is empty"),
        ({"0.safe.txt": b"\xff"}, r"0\.safe\.txt is not UTF-8"),
        ({"0.json": b"{"}, r"0\.json is not JSON"),
        ({"0.json": b'{"tag": 3}'}, "tag must be text, got 3"),
        ({"0.safe.jpg": b"x"}, r"several safe images: 0\.safe\.jpg, 0\.safe\.png"),
        ({"0.unsafe.png": b"x"}, r"image .*\.tar:0\.unsafe\.png cannot be read"),
    ],
)
def test_a_bad_quadruplet_is_named_and_can_be_skipped(folder, records, caplog, change, message):
    contents = {**members(records[0], "0"), **members(records[1], "1"), **change}
    path = write(
        folder / "bad.tar", {name: content for name, content in contents.items() if content is not None}
    )
    with pytest.raises(ValueError, match=message):
        open_dataset(path, "train", preprocess, tokenizer, progress=False)
    with caplog.at_level(logging.WARNING):
        left = open_dataset(path, "train", preprocess, tokenizer, on_error="skip", progress=False)
    assert [record.id for record in left.records] == ["bad/1"]
    assert left.manifest.skipped == 1
    assert "1 of 2 rows cannot be used" in caplog.text


def test_a_shard_that_is_cut_off_is_refused_wherever_it_is_cut(folder, records):
    path = folder / "cut.tar"
    write(path, {**members(records[0], "0"), **members(records[1], "1")})
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        ends = [member.offset for member in archive]
    for size in (0, 100, 512, 700, ends[5], ends[5] + 300, ends[6], ends[6] + 100, ends[-1] + 600):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut\.tar.* (is no tar archive|was cut off)"):
            load_shards(str(path), progress=False)


def test_other_refusals(folder, shards, records):
    with pytest.raises(FileNotFoundError, match=r"no file .*train-02\.tar \(1 of 3 are missing\)"):
        load_shards(str(folder / "train-{00..02}.tar"), progress=False)
    with pytest.raises(ValueError, match="no tar archive"):
        load_shards(write_text(folder / "text-file.tar", "hello " * 500), progress=False)
    with pytest.raises(ValueError, match="the manifest is empty"):
        load_shards(write(folder / "empty.tar", {}), progress=False)
    with tarfile.open(folder / "twice.tar", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("0.safe.txt"), io.BytesIO())
    with pytest.raises(ValueError, match=r"two members 0\.safe\.txt"):
        load_shards(str(folder / "twice.tar"), progress=False)
    with pytest.raises(ValueError, match="for manifests, not for shards"):
        open_dataset(shards, "train", preprocess, tokenizer, image_root=folder)
    with pytest.raises(ValueError, match="lie within shards"):
        save_manifest(load_shards(shards, progress=False), folder / "new.jsonl")


def write_text(path, text):
    path.write_text(text)
    return str(path)


def test_training_and_evaluation(shards, folder):
    common = ["--workers", "0", "--device", "cpu", "--batch-size", "3"]
    train = [
        "train",
        "--train-data",
        shards,
        "--val-data",
        shards,
        "--model",
        "hysac-toy",
        "--max-steps",
        "2",
    ]
    assert main([*train, *common, "--logs", str(folder / "runs"), "--name", "tar"]) == 0
    assert main(["evaluate", "--model-dir", str(folder / "runs" / "tar"), "--val-data", shards, *common]) == 0
    report = json.loads((folder / "runs" / "tar" / "model" / "evaluation.json").read_text())
    assert report["quadruplets"] == 7
