"""A HySAC model as a directory of safetensors and JSON; nothing in it is ever unpickled.

::

    open_clip_model.safetensors   the towers and logit_scale, under open_clip's names
    open_clip_config.json         open_clip's architecture and preprocessing
    hysac.safetensors             curv, visual_alpha, textual_alpha (logarithms, float32)
    hysac_config.json             the format's version and curv_init
    bounds.json                   optional: calibrated safety bounds
    SHA256SUMS                    checksums of the first four, for ``sha256sum -c``, too

Stock open_clip loads the towers: ``open_clip.create_model("local-dir:DIRECTORY")``.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from open_clip import CLIP, CustomTextCLIP
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, get_model_preprocess_cfg
from open_clip.transform import PreprocessCfg
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hysac.files import check_sums, read_json, replacing_path, write_json, write_sums
from hysac.lora import merged_state_dict
from hysac.model import SCALARS, HySAC
from hysac.preprocessing import check_preprocessing
from hysac.safety import Bounds
from hysac.weights import check_tensors

TOWERS_FILE = "open_clip_model.safetensors"
TOWERS_CONFIG = "open_clip_config.json"
SCALARS_FILE = "hysac.safetensors"
SETTINGS_FILE = "hysac_config.json"
BOUNDS_FILE = "bounds.json"
SUMS_FILE = "SHA256SUMS"
FILES = (TOWERS_FILE, TOWERS_CONFIG, SCALARS_FILE, SETTINGS_FILE)

RUN_MODEL = "model"
"""The kept model of a training run, within it."""

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

    Attached LoRA adapters are written merged; ``model`` itself does not change. Each file is replaced at
    once: a crash leaves the old file or the new one, never a part.

    Args:
        model: a HySAC model, not wrapped by DDP or ``torch.compile``.
        directory: created if it does not exist.
        bounds: calibrated safety bounds, written as ``bounds.json``.
        model_cfg: open_clip's configuration, for a model that :func:`hysac.create_model` did not make.

    Returns:
        The directory.

    Raises:
        TypeError: ``model`` is not a HySAC model.
        ValueError: the configuration is not known, or a weight is not finite.
        OSError: the disk is full or not writable; the files there before are intact.
    """
    if not isinstance(model, HySAC):
        raise TypeError(f"model must be a HySAC model, got {type(model).__name__}")
    model_cfg = model.model_cfg if model_cfg is None else model_cfg
    if model_cfg is None:
        raise ValueError("model_cfg is needed: the model was not made by hysac.create_model")

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    towers = {name: tensor.cpu().contiguous() for name, tensor in merged_state_dict(model).items()}
    scalars = {name: towers.pop(name) for name in ADDED_SCALARS}
    preprocess_cfg = asdict(PreprocessCfg(**get_model_preprocess_cfg(model)))
    settings = {"format_version": FORMAT_VERSION, "curv_init": model.curv_init}
    check_tensors(_floating(towers | scalars), "model")

    _write_tensors(directory / TOWERS_FILE, towers)
    write_json(directory / TOWERS_CONFIG, {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg})
    _write_tensors(directory / SCALARS_FILE, scalars)
    write_json(directory / SETTINGS_FILE, settings)
    write_sums(directory / SUMS_FILE, FILES)
    if bounds is not None:
        bounds.save(directory / BOUNDS_FILE, drop_classes=True)  # those before were of other weights
    return directory


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
    raise FileNotFoundError(f"{directory} is not a HySAC model: no {SETTINGS_FILE}")


def read_curv_init(directory: Path) -> float:
    """The centre of the curvature's range, which no tensor holds.

    Raises:
        ValueError: another format version, or no such number.
    """
    path = directory / SETTINGS_FILE
    settings = read_json(path)
    if not isinstance(settings, dict) or settings.get("format_version") != FORMAT_VERSION:
        version = settings.get("format_version") if isinstance(settings, dict) else None
        raise ValueError(f"{path}: format_version must be {FORMAT_VERSION}, got {version!r}")
    curv_init = settings.get("curv_init")
    if isinstance(curv_init, bool) or not isinstance(curv_init, int | float):
        raise ValueError(f"{path}: curv_init must be a number, got {curv_init!r}")
    return float(curv_init)


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
    _check_config(directory / TOWERS_CONFIG)
    for name in (TOWERS_FILE, SCALARS_FILE):
        try:
            with safe_open(directory / name, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{directory / name} is damaged or incomplete: {error}") from error


def _check_config(path: Path) -> None:
    """Refuse what open_clip would run, fetch or pass over.

    Raises:
        ValueError: names the file and the key.
    """
    config = read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get("model_cfg"), dict):
        raise ValueError(f"{path} has no model_cfg")
    _check_keys(path, "", config, {"model_cfg", "preprocess_cfg"})
    model_cfg = config["model_cfg"]
    of_model = {name for kind in (CLIP, CustomTextCLIP) for name in inspect.signature(kind).parameters}
    _check_keys(path, "model_cfg.", model_cfg, of_model | {"custom_text"})
    for name, kind in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        tower = model_cfg.get(name)
        if not isinstance(tower, dict):
            raise ValueError(f"{path}: model_cfg.{name} must be an object, got {tower!r}")
        _check_keys(path, f"model_cfg.{name}.", tower, {field.name for field in fields(kind)})
        for key in _FETCHED & tower.keys():
            if tower[key]:
                raise ValueError(
                    f"{path}: model_cfg.{name}.{key} = {tower[key]!r} is fetched from a network; a local "
                    "directory holds its whole model"
                )
        _check_keys(
            path, f"model_cfg.{name}.tokenizer_kwargs.", tower.get("tokenizer_kwargs") or {}, _TOKENIZER
        )
    preprocess_cfg = config.get("preprocess_cfg", {})
    _check_keys(path, "preprocess_cfg.", preprocess_cfg, {field.name for field in fields(PreprocessCfg)})
    check_preprocessing(preprocess_cfg, str(path))


# Names of a hub, and switches that load weights from one.
_FETCHED = {"hf_model_name", "hf_tokenizer_name", "timm_model_pretrained"}
# Arguments of a tokenizer that are values; others can name files and code.
_TOKENIZER = {"clean", "reduction_mask", "additional_special_tokens", "strip_sep_token", "language"}


def _check_keys(path: Path, place: str, content: Mapping[str, Any], known: set[str]) -> None:
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: {place.rstrip('.')} must be an object, got {content!r}")
    if unknown := sorted(content.keys() - known):
        raise ValueError(f"{path} has {place}{unknown[0]}, which is no setting that hysac knows")


@torch.no_grad()
def load_scalars(model: HySAC, directory: Path) -> None:
    """Fill the four scalars from a model directory, in float32 also where the towers are narrower."""
    scalars = load_file(directory / SCALARS_FILE)
    if set(scalars) != set(ADDED_SCALARS):
        raise ValueError(
            f"{directory / SCALARS_FILE} must hold {', '.join(ADDED_SCALARS)}, got {sorted(scalars)}"
        )
    with safe_open(directory / TOWERS_FILE, framework="pt") as towers:
        scalars["logit_scale"] = towers.get_tensor("logit_scale")
    for name, value in scalars.items():
        getattr(model, name).copy_(value.reshape(()))
    check_tensors(_floating(model.state_dict()), str(directory))


def _floating(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without counters, as those of batch normalisation."""
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    with replacing_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"format": "pt"})
        except SafetensorError as error:  # its name for a full disk
            raise OSError(f"cannot write {path}: {error}") from error
