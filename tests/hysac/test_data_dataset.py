"""Data sets from files: items, batches, and the one entry point."""

import json
import logging
import pickle

import numpy as np
import open_clip
import pytest
import skimage.data
import torch
from open_clip.transform import image_transform
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader

from hysac.data import (
    QuadrupletDataset,
    ToyQuadruplets,
    collate,
    load_manifest,
    open_dataset,
    write_toy,
)

SIZE = 48
CONTEXT = 20
NAMES = ["astronaut", "chelsea", "coffee", "rocket"]
tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT)
preprocess = image_transform(SIZE, is_train=False)


def caption(kind, index):
    return f"the {kind} photograph of {NAMES[index]}"


@pytest.fixture
def folder(tmp_path):
    """A train split of four quadruplets whose image files differ in size, format and mode."""
    (tmp_path / "images").mkdir()
    converted = [("RGB", "png"), ("L", "jpg"), ("RGBA", "png"), ("CMYK", "jpg")]
    rows = []
    for index, (name, (mode, suffix)) in enumerate(zip(NAMES, converted, strict=True)):
        photo = Image.fromarray(getattr(skimage.data, name)()).resize((90 + 10 * index, 70))
        for kind, image in (("safe", photo), ("unsafe", photo.rotate(180))):
            image.convert(mode).save(tmp_path / f"images/{index}-{kind}.{suffix}")
        rows.append(
            {f"{kind}_image": f"images/{index}-{kind}.{suffix}" for kind in ("safe", "unsafe")}
            | {f"{kind}_caption": caption(kind, index) for kind in ("safe", "unsafe")}
            | {"id": f"row-{index}"}
            | ({"tag": "upside down"} if index else {})
        )
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


@pytest.fixture
def manifest(folder):
    return load_manifest(folder / "train.jsonl")


@pytest.fixture
def text_only(tmp_path):
    (tmp_path / "texts.csv").write_text("safe_caption,unsafe_caption\na cat,a hurt cat\na dog,a hurt dog\n")
    return load_manifest(tmp_path / "texts.csv")


def break_image(path):
    path.write_bytes(path.read_bytes()[:300])


def test_an_item_is_the_preprocessed_pair_and_its_tokens(folder, manifest):
    dataset = QuadrupletDataset(manifest, preprocess, tokenizer, progress=False)
    assert len(dataset) == 4
    assert dataset.has_images
    for index in range(4):
        item = dataset[index]
        assert item.keys() == {"image", "text", "tag", "id"}
        assert item["image"].shape == (2, 3, SIZE, SIZE)
        assert item["image"].dtype == torch.float32
        assert item["text"].dtype == torch.int64
        for side, kind in enumerate(("safe", "unsafe")):
            (path,) = (folder / "images").glob(f"{index}-{kind}.*")
            assert torch.equal(item["image"][side], preprocess(Image.open(path).convert("RGB")))
            assert torch.equal(item["text"][side], tokenizer([caption(kind, index)])[0])
        assert item["id"] == f"row-{index}"
        assert item["tag"] == ("upside down" if index else "")


def test_the_pictures_are_there_without_preprocessing(folder, manifest):
    dataset = QuadrupletDataset(manifest, preprocess, tokenizer, progress=False)
    safe, unsafe = dataset.images(0)
    assert np.array_equal(np.asarray(safe), np.asarray(Image.open(folder / "images/0-safe.png")))
    assert np.array_equal(np.asarray(unsafe), np.asarray(safe)[::-1, ::-1])


def test_indices_behave_as_a_list_does(manifest):
    dataset = QuadrupletDataset(manifest, preprocess, tokenizer, progress=False)
    assert dataset[-1]["id"] == "row-3"
    with pytest.raises(IndexError):
        dataset[4]


def test_a_text_only_item_has_no_image_and_needs_no_preprocessing(text_only):
    dataset = QuadrupletDataset(text_only, None, tokenizer)
    assert not dataset.has_images
    assert dataset[1].keys() == {"text", "tag", "id"}
    assert torch.equal(dataset[1]["text"], tokenizer(["a dog", "a hurt dog"]))
    with pytest.raises(ValueError, match="text-only"):
        dataset.images(0)
    assert "image" not in collate([dataset[0], dataset[1]])


def test_random_transforms_treat_the_two_images_independently(manifest):
    draws = []

    def draw(image):
        draws.append(torch.rand(()).item())
        return torch.full((3, 2, 2), draws[-1])

    item = QuadrupletDataset(manifest, draw, tokenizer, progress=False)[0]
    assert len(set(draws)) == 2
    assert item["image"][:, 0, 0, 0].tolist() == draws


def test_transforms_that_cannot_be_called_are_refused(manifest, text_only):
    with pytest.raises(TypeError, match="preprocess must be callable on a PIL image, got NoneType"):
        QuadrupletDataset(manifest, None, tokenizer, progress=False)
    for data in (manifest, text_only):
        with pytest.raises(TypeError, match="tokenizer must be callable on a list of captions, got str"):
            QuadrupletDataset(data, preprocess, "ViT-B-32", progress=False)


def test_broken_images_show_before_the_first_item(folder, manifest):
    break_image(folder / "images/2-unsafe.png")
    with pytest.raises(ValueError, match=r"row with id 'row-2': image .*2-unsafe\.png cannot be read"):
        QuadrupletDataset(manifest, preprocess, tokenizer, progress=False)


def test_skipping_fixes_length_and_order_before_the_first_item(folder, manifest, caplog):
    break_image(folder / "images/1-safe.jpg")
    with caplog.at_level(logging.WARNING):
        dataset = QuadrupletDataset(manifest, preprocess, tokenizer, "skip", progress=False)
        ids = [dataset[index]["id"] for index in range(len(dataset))]
    assert ids == ["row-0", "row-2", "row-3"]
    assert (len(dataset.manifest), dataset.manifest.skipped) == (3, 1)
    assert len(caplog.messages) == 1


def test_without_verification_a_broken_image_raises_in_its_turn(folder, manifest):
    break_image(folder / "images/2-unsafe.png")
    dataset = QuadrupletDataset(manifest, preprocess, tokenizer, verify=False)
    assert dataset[1]["id"] == "row-1"
    with pytest.raises(ValueError, match=r"row with id 'row-2': image .*2-unsafe\.png cannot be read"):
        dataset[2]
    with pytest.raises(ValueError, match="needs verify=True"):
        QuadrupletDataset(manifest, preprocess, tokenizer, "skip", verify=False)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_loader(manifest, workers):
    dataset = QuadrupletDataset(manifest, preprocess, tokenizer, progress=False)
    loader = DataLoader(dataset, batch_size=3, collate_fn=collate, num_workers=workers)
    first, last = loader
    assert first["image"].shape == (3, 2, 3, SIZE, SIZE)
    assert first["text"].shape == (3, 2, CONTEXT)
    assert first["tag"] == ["", "upside down", "upside down"]
    assert first["id"] + last["id"] == [f"row-{i}" for i in range(4)]
    items = [dataset[i] for i in range(4)]
    for key in ("image", "text"):
        assert torch.equal(torch.cat([first[key], last[key]]), torch.stack([item[key] for item in items]))


def test_data_sets_travel_to_spawned_workers(manifest):
    dataset = QuadrupletDataset(manifest, preprocess, tokenizer, progress=False)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[3]["image"], dataset[3]["image"])
    assert torch.equal(copy[3]["text"], dataset[3]["text"])


def test_collate_refuses_nothing_and_mixtures(manifest, text_only):
    with pytest.raises(ValueError, match="at least one item"):
        collate([])
    both = ConcatDataset(
        [
            QuadrupletDataset(text_only, None, tokenizer),
            QuadrupletDataset(manifest, preprocess, tokenizer, progress=False),
        ]
    )
    for mixture in ([both[0], both[2]], [both[2], both[0]]):
        with pytest.raises(ValueError, match="cannot mix"):
            collate(mixture)


# --- open_dataset -------------------------------------------------------------------------------------


def test_a_folder_has_one_manifest_a_split(folder):
    opened = open_dataset(folder, "train", preprocess, tokenizer, progress=False)
    assert [record.id for record in opened.records] == [f"row-{i}" for i in range(4)]
    (folder / "test.csv").write_text("safe_caption,unsafe_caption\na,b\n")
    assert not open_dataset(str(folder), "test", None, tokenizer).has_images
    with pytest.raises(FileNotFoundError, match=r"no manifest of split 'val': none of val\.jsonl, val\.json"):
        open_dataset(folder, "val", preprocess, tokenizer)
    (folder / "test.jsonl").touch()
    with pytest.raises(ValueError, match=r"several manifests of split 'test': test\.jsonl, test\.csv"):
        open_dataset(folder, "test", preprocess, tokenizer)


def test_a_file_is_taken_whole(folder):
    for split in ("train", "val"):
        opened = open_dataset(folder / "train.jsonl", split, preprocess, tokenizer, progress=False)
        assert len(opened) == 4
    with pytest.raises(FileNotFoundError, match="none"):
        open_dataset(folder / "none.jsonl", "train", preprocess, tokenizer)


def test_options_reach_the_manifest_and_the_images(folder):
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    renamed = [{"title" if k == "safe_caption" else k: v for k, v in row.items()} for row in rows]
    renamed[3]["title"] = " "
    (folder / "lists").mkdir()
    (folder / "lists/train.jsonl").write_text("\n".join(map(json.dumps, renamed)))
    break_image(folder / "images/0-safe.png")
    options = {"columns": {"safe_caption": "title"}, "image_root": folder, "progress": False}
    with pytest.raises(ValueError, match="line 4: safe_caption is empty"):
        open_dataset(folder / "lists", "train", preprocess, tokenizer, **options)
    opened = open_dataset(folder / "lists", "train", preprocess, tokenizer, on_error="skip", **options)
    assert [record.id for record in opened.records] == ["row-1", "row-2"]
    assert opened.manifest.skipped == 2
    (folder / "lists/train.jsonl").write_text("\n".join(map(json.dumps, renamed[:3])))
    assert len(open_dataset(folder / "lists", "train", preprocess, tokenizer, verify=False, **options)) == 3


def test_toy_is_the_name_of_the_drawn_set(tmp_path):
    opened = open_dataset("toy", "val", preprocess, tokenizer)
    assert isinstance(opened, ToyQuadruplets)
    assert [r.id for r in opened.records[:2]] == ["val-00000", "val-00001"]
    with pytest.raises(ValueError, match="not for the data set"):
        open_dataset("toy", "val", preprocess, tokenizer, columns={"tag": "kind"})
    with pytest.raises(ValueError, match="split must be one of train, val"):
        open_dataset("toy", "test", preprocess, tokenizer)


def test_the_written_toy_set_is_the_drawn_one(tmp_path):
    write_toy(tmp_path / "written", train_size=9, val_size=4, seed=3, progress=False)
    moved = (tmp_path / "written").rename(tmp_path / "moved")
    for split, size in (("train", 9), ("val", 4)):
        written = open_dataset(moved, split, preprocess, tokenizer, progress=False)
        drawn = ToyQuadruplets(split, size, 3, preprocess=preprocess, tokenizer=tokenizer)
        assert len(written) == len(drawn) == size
        for ours, theirs in zip(written, drawn, strict=True):
            assert torch.equal(ours["image"], theirs["image"])
            assert torch.equal(ours["text"], theirs["text"])
            assert (ours["tag"], ours["id"]) == (theirs["tag"], theirs["id"])
