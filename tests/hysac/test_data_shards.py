"""Shards of webdataset: the same quadruplets as from a manifest, in any order, and faults by name."""

import io
import json
import logging
import os
import pickle
import tarfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hysac.cli import main
from hysac.data import images, load_image, load_manifest, load_shards, open_dataset, save_manifest, write_toy
from hysac.data.images import FORMATS
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
    formats = {suffix: name for name, suffixes in FORMATS.items() for suffix in suffixes}
    for suffix, file_format in {**formats, ".JPG": "JPEG", ".Png": "PNG", ".TIF": "TIFF"}.items():
        file = io.BytesIO()
        photo.save(file, file_format)
        images = {f"a.{side}{suffix}": file.getvalue() for side in ("safe", "unsafe")}
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
        ({"0.safe.png": None, "0.safe.heic": b"x"}, r"0\.safe\.heic is no image that is read, one of \.jpg,"),
        ({"0.json": b'{"tag": "a", "tag": "b"}'}, r"0\.json is not JSON: repeated keys: tag"),
        ({"0.json": b"[" * 100_000}, r"0\.json is not JSON: it is nested too deeply"),
        ({"0.json": b'{"tag": "\\ud83d"}'}, r"tag has '\\ud83d' at character 0, half of a surrogate pair"),
        ({"0.safe.txt": b"cat " * 2501}, r"safe_caption has 10003 characters, more than 10000"),
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


def tar_of(records, folder, name):
    path = folder / name
    return write(path, {k: v for i, record in enumerate(records) for k, v in members(record, str(i)).items()})


def ids(path, **options):
    return [record.id.rpartition("/")[2] for record in load_shards(path, progress=False, **options).records]


@pytest.mark.parametrize("header", [5, 7, 12, 19])
def test_a_damaged_header_hides_nothing(folder, records, caplog, header):
    path = folder / "flipped.tar"
    tar_of(records[:4], folder, path.name)
    with tarfile.open(path) as archive:
        offset = archive.getmembers()[header].offset
    content = bytearray(path.read_bytes())
    content[offset + 3] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"bytes {offset} to \d+ of .*flipped\.tar: no header of a member"):
        load_shards(str(path), progress=False)
    with caplog.at_level(logging.WARNING):
        left = ids(str(path), on_error="skip")
    # The fifth member of a quadruplet is its tag, which it may do without.
    damaged = header // 5
    assert left == [str(i) for i in range(4) if i != damaged or header % 5 == 4]
    assert f"bytes {offset} to" in caplog.text


def test_zeros_between_members_end_nothing(folder, records):
    path = folder / "zeros.tar"
    tar_of(records[:4], folder, path.name)
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        offsets = [member.offset for member in archive]
    for blocks in (1, 2, 4100):
        for place in (offsets[0], offsets[5], offsets[7], offsets[19]):
            path.write_bytes(whole[:place] + bytes(512 * blocks) + whole[place:])
            if place:
                assert ids(str(path)) == ["0", "1", "2", "3"]
    path.write_bytes(whole + bytes(51_200))
    assert ids(str(path)) == ["0", "1", "2", "3"]


def test_archives_one_after_the_other_are_read_to_the_end(folder, records):
    parts = []
    for number in range(3):
        contents = {k: v for i in (0, 1) for k, v in members(records[2 * number + i], f"{number}{i}").items()}
        write(folder / "part.tar", contents)
        parts.append((folder / "part.tar").read_bytes())
    (folder / "all.tar").write_bytes(b"".join(parts))
    assert ids(str(folder / "all.tar")) == ["00", "01", "10", "11", "20", "21"]
    (folder / "all.tar").write_bytes(b"".join(parts) + 200 * b"rubbish")
    with pytest.raises(ValueError, match=r"bytes \d+ to \d+ of .*all\.tar: no header of a member"):
        load_shards(str(folder / "all.tar"), progress=False)
    (folder / "all.tar").write_bytes(b"".join(parts)[:-12_000])
    with pytest.raises(ValueError, match="was cut off"):
        load_shards(str(folder / "all.tar"), progress=False)


def test_hidden_members_are_left_and_others_counted(folder, records, caplog):
    extra = {"__meta__": b"x", "._0.safe.png": b"x", ".DS_Store": b"x", "0.cls": b"1", "1.cls": b"2"}
    contents = {**members(records[0], "0"), **members(records[1], "1"), **extra}
    with caplog.at_level(logging.INFO):
        assert ids(write(folder / "extra.tar", contents)) == ["0", "1"]
    assert "members that no quadruplet has are passed over: .cls (2)" in caplog.text


def test_links_are_followed_or_named(folder, records):
    path = folder / "links.tar"

    def linked(kind, target):
        with tarfile.open(path, "w") as archive:
            for name, content in members(records[0], "0").items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                if name == "0.unsafe.png":
                    info.type, info.linkname, info.size, content = kind, target, 0, b""
                archive.addfile(info, io.BytesIO(content))
        return str(path)

    (record,) = load_shards(linked(tarfile.LNKTYPE, "0.safe.png"), progress=False).records
    assert record.unsafe_image.read() == record.safe_image.read() != b""
    for kind, target, message in (
        (
            tarfile.LNKTYPE,
            "1.safe.png",
            r"0\.unsafe\.png is a hard link to '1\.safe\.png', which is not before",
        ),
        (tarfile.SYMTYPE, "0.safe.png", r"0\.unsafe\.png is a symbolic link, no file"),
        (tarfile.FIFOTYPE, "", r"0\.unsafe\.png is of type b'6', no file"),
    ):
        with pytest.raises(ValueError, match=message):
            load_shards(linked(kind, target), progress=False)


def test_a_member_too_large_for_memory_is_refused(folder, records, monkeypatch):
    path = tar_of(records[:1], folder, "large.tar")
    manifest = load_shards(path, progress=False)
    monkeypatch.setattr(images, "MAX_MEMBER_BYTES", 40)
    with pytest.raises(ValueError, match=r"large\.tar:0\.safe\.png has \d+ bytes, more than 40"):
        load_image(manifest.records[0].safe_image)


def mutated(whole, offsets, draw):
    """A tar file with one damage of the kinds that files meet."""
    content = bytearray(whole)
    place = draw(st.sampled_from(offsets)) + draw(st.integers(0, 511))
    match draw(st.sampled_from(["flip", "zero", "cut", "drop", "double", "insert"])):
        case "flip":
            content[place] ^= 1 << draw(st.integers(0, 7))
        case "zero":
            content[place - place % 512 : place - place % 512 + 512] = bytes(512)
        case "cut":
            del content[place:]
        case "drop":
            del content[place - place % 512 : place - place % 512 + 512]
        case "double":
            content[place - place % 512 : place - place % 512] = content[place - place % 512 :]
        case "insert":
            content[place - place % 512 : place - place % 512] = draw(st.binary(min_size=512, max_size=512))
    return bytes(content)


@settings(max_examples=int(os.environ.get("HYSAC_EXAMPLES", "150")), deadline=None)
@given(data=st.data())
def test_a_damaged_tar_loses_nothing_in_silence(folder, records, data):
    """Either an error, or every quadruplet; skipping tells what it left out, and keeps what is untouched."""
    path = folder / "mutated.tar"
    if not (folder / "sound.tar").exists():
        tar_of(records[:3], folder, "sound.tar")
    with tarfile.open(folder / "sound.tar") as archive:
        offsets = [member.offset for member in archive]
    path.write_bytes(mutated((folder / "sound.tar").read_bytes(), offsets, data.draw))
    whole = load_or_fault(path)
    if isinstance(whole, ValueError):
        assert "mutated.tar" in str(whole)
        left = load_or_fault(path, on_error="skip")
        assert isinstance(left, ValueError) or left.skipped > 0
    else:
        assert len(whole) >= 3


def load_or_fault(path, **options):
    try:
        return load_shards(str(path), progress=False, **options)
    except ValueError as fault:
        return fault


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


@pytest.mark.slow
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
