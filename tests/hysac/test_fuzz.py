"""Every reader, given damaged files: it returns, or raises what it documents, in bounded time.

``HYSAC_EXAMPLES=12500 pytest tests/hysac/test_fuzz.py`` is a hundred thousand files.
"""

import contextlib
import json
import math
import os
import random
import shutil
import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import hysac
from hysac.data import load_image, load_manifest, load_shards, save_manifest, write_toy
from hysac.models.convert import load_reference_checkpoint
from hysac.models.hub import model_card
from hysac.models.model_config import read_model_cfg
from hysac.models.preprocessing import preprocessing_beside
from hysac.models.pretrained import read_curvature
from hysac.models.weights import adapter_config_beside, architecture_beside
from hysac.safety import Bounds
from hysac.training.checkpoint import Checkpoint, CheckpointError

EXAMPLES = int(os.environ.get("HYSAC_EXAMPLES", "60"))
SECONDS = 5.0  # of one file; a whole one takes milliseconds


def mutated(content, rng):
    """One to three damages: of bits, of pieces, of whole blocks, and of characters that formats heed."""
    content = bytearray(content)
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(len(content) + 1)
        size = rng.choice((1, 2, 16, 512))
        match rng.randrange(7):
            case 0 if content:
                content[place % len(content)] ^= 1 << rng.randrange(8)
            case 1:
                del content[place:]
            case 2:
                del content[place : place + size]
            case 3:
                content[place:place] = rng.randbytes(size)
            case 4:
                content[place : place + size] = bytes(len(content[place : place + size]))
            case 5:
                content[place:place] = content[max(0, place - size) : place] * rng.choice((1, 3, 50))
            case 6:
                content[place:place] = rng.choice(
                    (b'"', b"{", b"[" * 3000, b"\t", b"\\ud83d", b"1e999", b"-1", b"\xff")
                )
    return bytes(content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def toy(folder):
    return write_toy(folder / "toy", train_size=3, val_size=2, progress=False)["train"]


def manifest(folder, toy, suffix):
    rows = [json.loads(line) for line in toy.read_text().splitlines()]
    path = folder / f"data{suffix}"
    if suffix == ".jsonl":
        path.write_text(toy.read_text())
    elif suffix == ".json":
        path.write_text(json.dumps({"data": {row["id"]: row for row in rows}}))
    elif suffix == ".visu.json":
        path.write_text(json.dumps({str(i): {"safe": "a", "nsfw": "b", "tag": "c"} for i in range(3)}))
    else:
        delimiter = "\t" if suffix == ".tsv" else ","
        lines = [rows[0].keys(), *(row.values() for row in rows)]
        path.write_text("\n".join(delimiter.join(f'"{cell}"' for cell in line) for line in lines))
    return path


def image(folder, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
    path = folder / f"image{suffix}"
    Image.fromarray(pixels).save(path)
    return path


def shard(folder, toy):
    import tarfile

    with tarfile.open(folder / "data.tar", "w") as archive:
        for number, record in enumerate(load_manifest(toy).records):
            for side, file, caption in (
                ("safe", record.safe_image, record.safe_caption),
                ("unsafe", record.unsafe_image, record.unsafe_caption),
            ):
                archive.add(file, f"{number}.{side}.png")
                text = folder / "caption.txt"
                text.write_text(caption)
                archive.add(text, f"{number}.{side}.txt")
    return folder / "data.tar"


def checkpoint(folder):
    path = folder / "step-00000001.pt"
    Checkpoint(
        1, {"lr": 0.1}, {"w": torch.ones(3, 4)}, {"state": {0: torch.ones(2)}}, {}, [{}], {"best": None}
    ).save(path)
    return path


def weights(folder, suffix):
    tensors = {"text_projection.weight": torch.ones(4, 3), "logit_scale": torch.tensor(1.0)}
    path = folder / f"weights{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    return path


def bounds(folder):
    path = folder / "bounds.json"
    path.write_text(
        json.dumps({c: {"low_05": 0.4, "avg": 0.5, "up_95": 0.6} for c in "SVUG"} | {"curv": 0.7})
    )
    return path


MANIFESTS = (".jsonl", ".json", ".visu.json", ".csv", ".tsv")
IMAGES = (".png", ".jpg", ".webp", ".bmp", ".gif", ".tif")


def files(folder, toy):
    """A whole file, what reads it, and the errors that its documentation names."""
    for suffix in MANIFESTS:
        yield manifest(folder, toy, suffix), load_manifest, (ValueError,)
    for suffix in IMAGES:
        yield image(folder, suffix), load_image, (ValueError,)
    yield shard(folder, toy), lambda path: load_shards(str(path), progress=False), (ValueError,)
    yield checkpoint(folder), Checkpoint.load, (CheckpointError,)
    for suffix in (".safetensors", ".pt"):
        yield weights(folder, suffix), load_reference_checkpoint, (ValueError,)
    yield bounds(folder), Bounds.load, (ValueError,)


KINDS = (*MANIFESTS, *IMAGES, ".tar", "checkpoint", ".safetensors", ".pt", "bounds")


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_read_or_refused(folder, toy, kind):
    whole, read, errors = list(files(folder, toy))[KINDS.index(kind)]
    content, rng = whole.read_bytes(), random.Random(kind)
    path = folder / f"damaged{''.join(whole.suffixes)}"
    for _ in range(max(1, EXAMPLES // 2)):
        path.write_bytes(mutated(content, rng))
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(*errors):
                read(path)
        assert time.perf_counter() - began < SECONDS


ODD = (None, True, 0, -1, 10**400, math.nan, math.inf, 1e-400, "", "x", "\ud83d", [], [[]], {}, {"x": None})
EVALUATION = {
    "quadruplets": 3,
    "curv": 1.0,
    "safety": {
        "classification": {"text": dict.fromkeys(("auc", "accuracy", "fpr", "fnr", "threshold"), 0.5)}
    },
    "retrieval": {"T->I": {"R@1": 0.5}},
}
TRANSFORMERS = {
    "model_type": "clip",
    "vision_config": {"hidden_act": "gelu", "num_attention_heads": 2, "layer_norm_eps": 1e-5},
    "text_config": {"hidden_act": "gelu", "num_attention_heads": 2},
}
PREPROCESSOR = {
    **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"), True),
    "size": {"shortest_edge": 32},
    "crop_size": {"height": 32, "width": 32},
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
ADAPTER = {
    "peft_type": "LORA",
    "lora_alpha": 8,
    "use_rslora": False,
    "alpha_pattern": {"fc1": 2},
    "rank_pattern": {"fc2": 2},
}
JSON_FILES = {
    "config.json": (TRANSFORMERS, architecture_beside),
    "preprocessor_config.json": (PREPROCESSOR, lambda file: preprocessing_beside(file, (32, 32))),
    "adapter_config.json": (ADAPTER, adapter_config_beside),
    "open_clip_config.json": (None, read_model_cfg),
    "hysac_config.json": (None, lambda file: read_curvature(file.parent)),
    "bounds.json": ({"V": {"low_05": 0.4, "avg": 0.5, "up_95": 0.6, "max": 0.7}, "curv": 1.0}, None),
    "evaluation.json": (EVALUATION, None),
}


def changed(content):
    """The JSON value with each part in turn replaced by odd ones, and left out."""
    yield from ODD
    keys = content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in keys:
        for value in changed(content[key]):
            copy = json.loads(json.dumps(content))
            copy[key] = value
            yield copy
        if isinstance(content, dict):
            yield {other: value for other, value in content.items() if other != key}


@pytest.mark.parametrize("name", JSON_FILES)
def test_odd_json_is_read_or_refused_by_its_file(folder, name):
    home = folder / f"model of {name}"
    hysac.save_pretrained(hysac.create_model("hysac-toy"), home)
    content, read = JSON_FILES[name]
    content = json.loads((home / name).read_text()) if content is None else content
    refused = 0
    for odd in (content, *changed(content)):
        (home / name).write_text(json.dumps(odd))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model_card(home, "me/toy", licence="mit") if read is None else read(home / name)
        except ValueError as error:
            assert odd is not content
            assert name in str(error)  # noqa: PT017
            refused += 1
    assert refused > len(ODD)


@pytest.mark.parametrize("verify", [True, False])
def test_a_damaged_model_directory_is_read_or_refused(folder, verify):
    """Of each file in turn; with checksums nothing but the whole directory is read."""
    whole = folder / f"model-{verify}"
    hysac.save_pretrained(hysac.create_model("hysac-toy"), whole)
    names = [path.name for path in whole.iterdir() if verify or path.name != "SHA256SUMS"]
    rng = random.Random(0)
    damaged = folder / f"damaged-{verify}"
    for index in range(max(5, EXAMPLES // 8)):
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(whole, damaged)
        path = damaged / names[index % len(names)]
        content = path.read_bytes()
        path.write_bytes(mutated(content[:4096], rng) + content[4096:])
        same = path.read_bytes() == content
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                hysac.from_pretrained(damaged, verify=verify)
            except (ValueError, FileNotFoundError):
                continue
        assert same or not verify or path.name == "SHA256SUMS"


def test_a_manifest_is_written_back_as_it_was_read(folder, toy):
    """What a reader lets through, the writer keeps."""
    whole, rng = manifest(folder, toy, ".jsonl").read_bytes(), random.Random(1)
    path = folder / "mutated.jsonl"
    for _ in range(EXAMPLES):
        path.write_bytes(mutated(whole, rng))
        try:
            read = load_manifest(path)
        except ValueError:
            continue
        save_manifest(read, folder / "again.jsonl")
        assert load_manifest(folder / "again.jsonl").records == read.records
