"""Weights of other programs, and the JSON beside them: read without running code, and checked."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hysac.files import read_json
from hysac.json_object import JSONObject, shown

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# Of a directory, in the order in which transformers looks for them.
_IN_DIRECTORY = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


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


def as_scalar(tensor: Tensor, name: str) -> Tensor:
    """A tensor of one element, 0-d.

    Raises:
        ValueError: it has another number of elements; says ``name``.
    """
    if tensor.numel() != 1:
        raise ValueError(f"{name} must have one element, got shape {tuple(tensor.shape)}")
    return tensor.reshape(())


class Architecture(NamedTuple):
    """What the shapes of a CLIP's tensors do not tell; None where it is not known."""

    quick_gelu: bool | None = None
    vision_heads: int | None = None
    text_heads: int | None = None


def architecture_beside(path: Path) -> Architecture:
    """That of the ``config.json`` of a Hugging Face ``CLIPModel`` in or beside ``path``, if there is one.

    Raises:
        ValueError: names the file and the key: a value of another kind than transformers writes, or
            activations or a layer norm that open_clip's towers do not have.
    """
    file = beside(path, "config.json")
    if not file.is_file():
        return Architecture()
    config = JSONObject.read(file)
    if config.get("model_type") != "clip":
        return Architecture()
    towers = {name: config.object(f"{name}_config") for name in ("vision", "text")}
    # What is not there has the value that transformers gives it.
    activations = [tower.get("hidden_act", "quick_gelu") for tower in towers.values()]
    if activations not in (["quick_gelu"] * 2, ["gelu"] * 2):
        got = dict(zip(towers, activations, strict=True))
        raise ValueError(f"{file}: hidden_act must be quick_gelu or gelu in both towers, got {shown(got)}")
    for tower in towers.values():
        if not math.isclose(tower.number("layer_norm_eps", 1e-5), 1e-5):
            tower.refuse("layer_norm_eps", "1e-05")
    return Architecture(
        activations[0] == "quick_gelu",
        towers["vision"].whole("num_attention_heads", 12),
        towers["text"].whole("num_attention_heads", 8),
    )


def adapter_config_beside(path: Path) -> dict[str, Any] | None:
    """The ``adapter_config.json`` of PEFT in or beside ``path``, if there is one.

    Raises:
        ValueError: names the file and the key whose value is of another kind than PEFT writes, or the
            pattern that is no regular expression.
    """
    file = beside(path, "adapter_config.json")
    if not file.is_file():
        return None
    config = JSONObject.read(file)
    config.positive("lora_alpha", 8)
    for key in ("use_rslora", "use_dora", "fan_in_fan_out"):
        config.flag(key, False)
    alphas, ranks = config.object("alpha_pattern"), config.object("rank_pattern")
    for pattern in alphas.content:
        alphas.positive(pattern)
    for pattern in ranks.content:
        ranks.whole(pattern)
    for key, patterns in (("alpha_pattern", alphas), ("rank_pattern", ranks)):
        for pattern in patterns.content:
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(
                    f"{file}: {key} has {shown(pattern)}, which is no regular expression: {error}"
                ) from None
    return config.content


def beside(path: Path, name: str) -> Path:
    """The file ``name`` in the directory ``path``, or beside the file ``path``."""
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
