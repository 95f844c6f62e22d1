"""A HySAC model as a directory of safetensors and JSON; nothing in it is ever unpickled.

::

    open_clip_model.safetensors   the towers and logit_scale, under open_clip's names
    open_clip_config.json         open_clip's architecture and preprocessing
    hysac.safetensors             curv, visual_alpha, textual_alpha (logarithms, float32)
    hysac_config.json             the format's version and curv_init
    tokenizer.json and others     the tokenizer, if it is one of Hugging Face; open_clip's own needs no file
    SHA256SUMS                    checksums of all these, for ``sha256sum -c``, too
    bounds.json                   optional: calibrated safety bounds
    safety.json                   optional: thresholds, which ``hysac calibrate`` fits
    evaluation.json               optional: what ``hysac evaluate`` measured

Stock open_clip loads the towers and the tokenizer: ``open_clip.create_model("local-dir:DIRECTORY")``.
"""

from __future__ import annotations

import filecmp
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from open_clip.model import get_model_preprocess_cfg
from open_clip.transform import PreprocessCfg
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hysac.files import check_sums, json_bytes, replacing_paths, sums
from hysac.json_object import JSONObject, shown
from hysac.models.lora import merged_state_dict
from hysac.models.model import CURVATURE_RANGE, SCALARS, HySAC
from hysac.models.model_config import read_model_cfg
from hysac.models.tokenizer_files import check_tokenizer, read_tokenizer, tokenizer_files
from hysac.models.weights import as_scalar, check_tensors
from hysac.safety import Bounds

logger = logging.getLogger(__name__)

TOWERS_FILE = "open_clip_model.safetensors"
TOWERS_CONFIG = "open_clip_config.json"
SCALARS_FILE = "hysac.safetensors"
SETTINGS_FILE = "hysac_config.json"
BOUNDS_FILE = "bounds.json"
SAFETY_FILE = "safety.json"
EVALUATION_FILE = "evaluation.json"
SUMS_FILE = "SHA256SUMS"
FILES = (TOWERS_FILE, TOWERS_CONFIG, SCALARS_FILE, SETTINGS_FILE)

RUN_MODEL, RUN_SETTINGS, RUN_RECORDS = "model", "config.json", "metrics.jsonl"
"""Within a training run: its kept model, its settings, and what it recorded."""

FORMAT_VERSION = 1
ADDED_SCALARS = tuple(name for name in SCALARS if name != "logit_scale")


def save_pretrained(
    model: HySAC,
    directory: str | os.PathLike[str],
    *,
    bounds: Bounds | None = None,
    model_cfg: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``model`` as a directory that :func:`hysac.from_pretrained` and stock open_clip read.

    Attached LoRA adapters are written merged; ``model`` itself does not change. All files are written before
    the first takes its place: a full disk leaves the directory as it was. Existing bounds and evaluations
    stay if the weights are the same; those of other weights become ``bounds.old.json`` and
    ``evaluation.old.json``, with a warning. Files of an earlier tokenizer are replaced or removed.

    Args:
        model: a HySAC model, not wrapped by DDP or ``torch.compile``.
        directory: created if it does not exist.
        bounds: calibrated safety bounds, written as ``bounds.json`` in place of earlier ones.
        model_cfg: open_clip's configuration, for a model that :func:`hysac.create_model` did not make.

    Returns:
        The directory.

    Raises:
        TypeError: ``model`` is not a HySAC model.
        ValueError: the configuration is not known, a weight is not finite, or ``model`` is sharded.
        ImportError: the model's tokenizer is one of Hugging Face, and transformers is not installed.
        OSError: the disk is full or not writable, or that tokenizer cannot be reached; the files there before
            are intact.
    """
    if not isinstance(model, HySAC):
        raise TypeError(f"model must be a HySAC model, got {type(model).__name__}")
    if hasattr(model.curv, "to_local"):
        raise ValueError(
            "model is sharded, and no process has all of it: load its whole state dict into a plain model "
            "and save that, as docs/parallel.md shows"
        )
    model_cfg = model.model_cfg if model_cfg is None else model_cfg
    if model_cfg is None:
        raise ValueError("model_cfg is needed: the model was not made by hysac.create_model")

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    towers = {name: tensor.cpu().contiguous() for name, tensor in merged_state_dict(model).items()}
    scalars = {name: towers.pop(name) for name in ADDED_SCALARS}
    check_tensors(_floating(towers | scalars), "model")
    preprocess_cfg = asdict(PreprocessCfg(**get_model_preprocess_cfg(model)))
    settings = {"format_version": FORMAT_VERSION, "curv_init": model.curv_init}
    contents = {
        TOWERS_CONFIG: json_bytes({"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}),
        SETTINGS_FILE: json_bytes(settings),
        **_tokenizer(model, model_cfg),
    }
    summed = (TOWERS_FILE, SCALARS_FILE, *contents)
    if bounds is not None:
        contents[BOUNDS_FILE] = json_bytes(bounds.to_dict())
    names = (TOWERS_FILE, SCALARS_FILE, *contents, SUMS_FILE)
    new: dict[str, Path] = {}
    targets = [directory / name for name in names]
    with replacing_paths(targets, first=lambda: _clear(directory, new)) as paths:
        new.update(zip(names, paths, strict=True))
        _write_tensors(new[TOWERS_FILE], towers)
        _write_tensors(new[SCALARS_FILE], scalars)
        for name, content in contents.items():
            new[name].write_bytes(content)
        new[SUMS_FILE].write_bytes(sums({name: new[name] for name in summed}))
    return directory


def _tokenizer(model: HySAC, model_cfg: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of the model's tokenizer: none for open_clip's own."""
    name = model_cfg["text_cfg"].get("hf_tokenizer_name")
    return read_tokenizer(model.tokenizer_source or name) if name else {}


def _clear(directory: Path, new: Mapping[str, Path]) -> None:
    """Remove the files of the earlier model that are not replaced."""
    _set_aside(directory, new)
    if (directory / SUMS_FILE).is_file():
        lines = (directory / SUMS_FILE).read_text(errors="replace").splitlines()
        saved = {line.partition("  ")[2] for line in lines}
        for name in tokenizer_files(directory):  # transformers would read those of two tokenizers
            if name in saved and name not in new:
                (directory / name).unlink()


def _set_aside(directory: Path, new: Mapping[str, Path]) -> None:
    """Rename results of other weights, so that they are not taken for results of the new ones."""
    measured = [name for name in (BOUNDS_FILE, SAFETY_FILE, EVALUATION_FILE) if (directory / name).is_file()]
    if not measured or all(_is_same(directory / name, new[name]) for name in FILES):
        return
    for name in measured:
        if name not in new:
            kept = directory / name.replace(".json", ".old.json")
            os.replace(directory / name, kept)
            logger.warning("%s is of the weights before: it is now %s", directory / name, kept.name)


def _is_same(old: Path, new: Path) -> bool:
    return old.is_file() and filecmp.cmp(old, new, shallow=False)


def is_model_directory(directory: Path) -> bool:
    """Whether ``directory`` holds a HySAC model rather than a plain open_clip one."""
    return (directory / SETTINGS_FILE).is_file()


def model_directory(directory: Path) -> Path:
    """``directory``, or the model of a training run.

    Raises:
        FileNotFoundError: neither holds a HySAC model.
    """
    for place in (directory, directory / RUN_MODEL):
        if is_model_directory(place):
            return place
    if not directory.exists():
        raise FileNotFoundError(f"{directory} does not exist")
    raise FileNotFoundError(f"{directory} is not a HySAC model: no {SETTINGS_FILE}, also not in {RUN_MODEL}/")


def read_curv_init(directory: Path) -> float:
    """The centre of the curvature's range, which no tensor holds.

    Raises:
        ValueError: another format version, or no such number.
    """
    settings = JSONObject.read(directory / SETTINGS_FILE)
    version = settings.get("format_version")
    if isinstance(version, bool) or version != FORMAT_VERSION:
        settings.refuse("format_version", str(FORMAT_VERSION))
    return settings.positive("curv_init")


def check_files(directory: Path, *, verify: bool = True) -> None:
    """Refuse a model directory with a missing or damaged file, before open_clip takes one for another.

    Args:
        directory: the model directory.
        verify: whether to compare its files with their checksums, where it has some.

    Raises:
        FileNotFoundError, ValueError: names the file.
    """
    for name in (TOWERS_CONFIG, TOWERS_FILE, SCALARS_FILE):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory} is an incomplete HySAC model: no {name}")
    if verify:
        check_sums(directory / SUMS_FILE)
    model_cfg = read_model_cfg(directory / TOWERS_CONFIG)
    if tokenizer := model_cfg["text_cfg"].get("hf_tokenizer_name"):
        check_tokenizer(directory, tokenizer)
    for name in (TOWERS_FILE, SCALARS_FILE):
        try:
            with safe_open(directory / name, framework="pt") as file:
                tensors = len(file.keys())
        except SafetensorError as error:
            raise ValueError(f"{directory / name} is damaged or incomplete: {error}") from error
        if name == TOWERS_FILE:
            _check_layers(directory / TOWERS_CONFIG, model_cfg, tensors)


def _check_layers(path: Path, model_cfg: Mapping[str, Any], tensors: int) -> None:
    """Refuse more layers than there are tensors: making them could take for ever."""
    for tower in ("vision_cfg", "text_cfg"):
        layers = model_cfg[tower].get("layers") or 0
        if max(layers if isinstance(layers, list) else [layers]) > tensors:
            raise ValueError(
                f"{path}: model_cfg.{tower}.layers must be at most {tensors}, the number of tensors in "
                f"{TOWERS_FILE}, got {shown(layers)}"
            )


@torch.no_grad()
def load_scalars(model: HySAC, directory: Path) -> None:
    """Fill the four scalars from a model directory, in float32 also where the towers are narrower."""
    scalars = _read_scalars(directory)
    with safe_open(directory / TOWERS_FILE, framework="pt") as towers:
        scalars["logit_scale"] = as_scalar(towers.get_tensor("logit_scale"), "logit_scale")
    for name, value in scalars.items():
        getattr(model, name).copy_(value)
    check_tensors(_floating(model.state_dict()), str(directory))


def read_curvature(directory: Path) -> float:
    """The curvature of the model in a directory: the stored one, within its range.

    Raises:
        ValueError: names the file that is damaged or has other tensors.
    """
    centre, width = math.log(read_curv_init(directory)), math.log(CURVATURE_RANGE)
    return math.exp(min(max(_read_scalars(directory)["curv"].item(), centre - width), centre + width))


def _read_scalars(directory: Path) -> dict[str, Tensor]:
    path = directory / SCALARS_FILE
    scalars = load_file(path)
    if set(scalars) != set(ADDED_SCALARS):
        raise ValueError(f"{path} must hold {', '.join(ADDED_SCALARS)}, got {sorted(scalars)}")
    check_tensors(scalars, str(directory))
    return {name: as_scalar(value, f"{path}: {name}") for name, value in scalars.items()}


def _floating(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without counters, such as those of batch normalisation."""
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:  # its name for a full disk
        raise OSError(f"cannot write {path}: {error}") from error
