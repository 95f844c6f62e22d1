"""Weights of other programs, and the JSON beside them: read without running code, and checked."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from open_clip.transform import PreprocessCfg
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hysac.files import read_json

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# Of a directory, in the order in which transformers looks for them.
_IN_DIRECTORY = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # by Pillow's number


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, or of a directory of transformers: one file or several with an index.

    ``.safetensors``, else a file of ``torch.save``, which is read without unpickling code: flat, or with the
    weights under ``"model"`` or ``"state_dict"``.

    Raises:
        FileNotFoundError: there is no such file, or none of a known name in the directory.
        ValueError: a damaged file, one with more than tensors, or an index that its files contradict.
    """
    if not path.is_dir():
        return dict(_read_file(path))
    found = next((path / name for name in _IN_DIRECTORY if (path / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{path} has no weights: none of {', '.join(_IN_DIRECTORY)}")
    return _read_sharded(found) if found.suffix == ".json" else dict(_read_file(found))


def check_tensors(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that are no floating numbers, or not all finite.

    Raises:
        ValueError: names the source and the tensor.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATING:
            raise ValueError(
                f"{source}: {name} must be float64, float32, bfloat16 or float16, got {tensor.dtype}"
            )
        if not tensor.is_meta and not bool(tensor.isfinite().all()):
            count = int((~tensor.isfinite()).sum())
            raise ValueError(f"{source}: {name} has {count} of {tensor.numel()} numbers that are not finite")


class Architecture(NamedTuple):
    """What the shapes of a CLIP's tensors do not tell; None where it is not known."""

    quick_gelu: bool | None = None
    vision_heads: int | None = None
    text_heads: int | None = None


def architecture_beside(path: Path) -> Architecture:
    """That of the ``config.json`` of a Hugging Face ``CLIPModel`` in or beside ``path``, if there is one.

    Raises:
        ValueError: activations or a layer norm that open_clip's towers do not have.
    """
    file = _beside(path, "config.json")
    config = read_json(file) if file.is_file() else None
    if not isinstance(config, dict) or config.get("model_type") != "clip":
        return Architecture()
    towers = {name: config.get(f"{name}_config") or {} for name in ("vision", "text")}
    # What is not there has the value that transformers gives it.
    activations = {name: tower.get("hidden_act", "quick_gelu") for name, tower in towers.items()}
    if len(set(activations.values())) > 1 or activations["text"] not in ("quick_gelu", "gelu"):
        raise ValueError(f"{file}: hidden_act must be quick_gelu or gelu in both towers, got {activations}")
    for name, tower in towers.items():
        if not math.isclose(tower.get("layer_norm_eps", 1e-5), 1e-5):
            raise ValueError(
                f"{file}: layer_norm_eps of {name}_config must be 1e-05, got {tower['layer_norm_eps']}"
            )
    return Architecture(
        activations["text"] == "quick_gelu",
        towers["vision"].get("num_attention_heads", 12),
        towers["text"].get("num_attention_heads", 8),
    )


def preprocessing_beside(path: Path, size: int | tuple[int, int]) -> dict[str, Any]:
    """open_clip's preprocessing, from the ``preprocessor_config.json`` in or beside ``path`` if there is one.

    Raises:
        ValueError: another image size than the model's, a mean or deviation that is no three numbers, or an
            interpolation that open_clip does not have.
    """
    cfg: dict[str, Any] = {"size": size}
    file = _beside(path, "preprocessor_config.json")
    stored = read_json(file) if file.is_file() else None
    if isinstance(stored, dict):
        cfg |= {ours: tuple(stored[theirs]) for ours, theirs in _STATISTICS.items() if theirs in stored}
        crop = stored.get("crop_size", stored.get("size"))
        side = crop.get("height", crop.get("shortest_edge")) if isinstance(crop, dict) else crop
        if side is not None and (side, side) != (size if isinstance(size, tuple) else (size, size)):
            raise ValueError(f"{file}: images of {side} pixels, where the model has {size}")
        if "resample" in stored:
            if stored["resample"] not in _INTERPOLATIONS:
                raise ValueError(
                    f"{file}: resample must be one of {_INTERPOLATIONS}, got {stored['resample']!r}"
                )
            cfg["interpolation"] = _INTERPOLATIONS[stored["resample"]]
    check_preprocessing(cfg, str(file))
    return cfg


_STATISTICS = {"mean": "image_mean", "std": "image_std"}


def check_preprocessing(cfg: Mapping[str, Any], source: str) -> None:
    """Refuse a mean or a deviation that makes no numbers of pixels.

    Raises:
        ValueError: names the source and what is wrong.
    """
    for name in _STATISTICS:
        values = cfg.get(name, getattr(PreprocessCfg, name))
        is_triple = isinstance(values, list | tuple) and len(values) == 3
        if not is_triple or not all(_is_finite(value) for value in values):
            raise ValueError(f"{source}: {name} of the pixels must be three finite numbers, got {values!r}")
        if name == "std" and not all(value > 0 for value in values):
            raise ValueError(f"{source}: std of the pixels must be positive, got {values!r}")


def adapter_config_beside(path: Path) -> dict[str, Any] | None:
    """The ``adapter_config.json`` of PEFT in or beside ``path``, if there is one."""
    file = _beside(path, "adapter_config.json")
    if not file.is_file():
        return None
    config = read_json(file)
    if not isinstance(config, dict) or not _is_finite(config.get("lora_alpha", 8)):
        raise ValueError(f"{file} is no configuration of adapters: lora_alpha must be a number")
    return config


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _beside(path: Path, name: str) -> Path:
    return path / name if path.is_dir() else path.parent / name


def _read_sharded(index: Path) -> dict[str, Tensor]:
    places = read_json(index)
    places = places.get("weight_map") if isinstance(places, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index} has no weight_map from tensors to files")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise ValueError(f"{index} names {name!r}, which is not a file beside it")
        found = _read_file(index.parent / name)
        tensors |= {key: tensor for key, tensor in found.items() if places.get(key) == name}
    if missing := sorted(places.keys() - tensors.keys()):
        raise ValueError(f"{index}: {len(missing)} tensors are not in their files, such as {missing[0]}")
    return tensors


def _read_file(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"{os.fspath(path)} does not exist") from None
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or incomplete: {error}") from error
    except Exception as error:  # a damaged file raises half a dozen types
        raise ValueError(
            f"{path} is no file of weights alone: damaged, incomplete, or with objects besides tensors, "
            "which are not unpickled"
        ) from error
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path} does not hold a state dict of tensors")
    return content
