"""A HySAC model as a directory of safetensors and JSON; nothing in it is ever unpickled.

::

    open_clip_model.safetensors   the towers and logit_scale, under open_clip's names
    open_clip_config.json         open_clip's architecture and preprocessing
    hysac.safetensors             curv, visual_alpha, textual_alpha (logarithms, float32)
    hysac_config.json             the format's version and curv_init
    bounds.json                   optional: calibrated safety bounds

Stock open_clip loads the towers: ``open_clip.create_model("local-dir:DIRECTORY")``.
"""

from __future__ import annotations

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

from hysac.files import read_json, replacing_path, write_json
from hysac.lora import merged_state_dict
from hysac.model import SCALARS, HySAC
from hysac.safety import Bounds

TOWERS_FILE = "open_clip_model.safetensors"
TOWERS_CONFIG = "open_clip_config.json"
SCALARS_FILE = "hysac.safetensors"
SETTINGS_FILE = "hysac_config.json"
BOUNDS_FILE = "bounds.json"

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
        ValueError: the configuration is not known.
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

    _write_tensors(directory / TOWERS_FILE, towers)
    write_json(directory / TOWERS_CONFIG, {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg})
    _write_tensors(directory / SCALARS_FILE, scalars)
    write_json(directory / SETTINGS_FILE, settings)
    if bounds is not None:
        bounds.save(directory / BOUNDS_FILE)
    return directory


def is_model_directory(directory: Path) -> bool:
    """Whether ``directory`` holds a HySAC model rather than a plain open_clip one."""
    return (directory / SETTINGS_FILE).is_file()


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


def check_files(directory: Path) -> None:
    """Refuse a model directory with a missing or damaged file, before open_clip takes one for another.

    Raises:
        FileNotFoundError, ValueError: names the file.
    """
    for name in (TOWERS_CONFIG, TOWERS_FILE, SCALARS_FILE):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory} is an incomplete HySAC model: no {name}")
    read_json(directory / TOWERS_CONFIG)
    for name in (TOWERS_FILE, SCALARS_FILE):
        try:
            with safe_open(directory / name, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{directory / name} is damaged or incomplete: {error}") from error


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


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    with replacing_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"format": "pt"})
        except SafetensorError as error:  # its name for a full disk
            raise OSError(f"cannot write {path}: {error}") from error
