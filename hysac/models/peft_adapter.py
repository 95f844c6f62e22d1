"""Adapters that PEFT has trained and saved, folded into a model's weights."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hysac.models.convert import IN_LAYER, PACKED, UNUSED_ADAPTER, adapter_update, check_factors, logger
from hysac.models.weights import adapter_config_beside, check_tensors, read_weights

Tower = Literal["visual", "text"]
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")

_FACTOR = re.compile(r"^(?:base_model\.model\.)*(.+)\.lora_([AB])(?:\.\w+)?\.weight$")
_LAYER = re.compile(r"^(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)$")
_PLAIN = {
    "vision_model.embeddings.patch_embedding": ("visual.conv1.weight", False),
    "visual_projection": ("visual.proj", True),
    "text_projection": ("text_projection", True),
}
_UNSUPPORTED = {
    "use_dora": "DoRA",
    "modules_to_save": "modules saved whole",
    "layer_replication": "repeated layers",
}


# Ways to begin with factors that leave the base as it is.
_UNCHANGED_BASE = (True, False, None, "gaussian", "eva", "orthogonal")


class _Place(NamedTuple):
    """A tensor of the model, its row block of three if it is one, and whether it is stored transposed."""

    name: str
    block: int | None = None
    transposed: bool = False


@torch.no_grad()
def merge_adapter(
    model: nn.Module, directory: str | os.PathLike[str], *, tower: Tower | None = None
) -> nn.Module:
    """Fold an adapter directory of PEFT into ``model``, in place: the outputs of base and adapter.

    Modules may have open_clip's names or Hugging Face's, of the whole model or of a tower. Adapters of
    ``attn.out_proj`` under open_clip's names took no part in training, and are left out with a warning.

    Args:
        model: an open_clip (or HySAC) model without adapters of :func:`hysac.add_lora`.
        directory: of ``adapter_model.safetensors`` and ``adapter_config.json``, which tells the scaling.
        tower: ``"visual"`` or ``"text"``, if the adapter is of a tower by itself, whose names do not tell.

    Returns:
        ``model``.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: an adapter of another kind, or of modules or shapes that the model does not have. Nothing
            is changed then.
    """
    directory = Path(directory)
    config = _checked_config(directory)
    file = next((directory / name for name in ADAPTER_FILES if (directory / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{directory} has no adapter: none of {', '.join(ADAPTER_FILES)}")
    if any(parametrize.is_parametrized(module) for module in model.modules()):
        raise ValueError("model has adapters already; merge_lora folds them in")
    tensors = read_weights(file)
    check_tensors(tensors, str(file))
    updates = [
        (place, _turned(adapter_update(module, pair, None, config), place, config))
        for module, pair in _pairs(tensors, file).items()
        if (place := _place(module, model, tower)) is not None
    ]
    parameters = dict(model.named_parameters())
    targets = [(_target(parameters, place, update, file), update) for place, update in updates]
    for target, update in targets:
        target.copy_((target.double() + update.to(target.device).view_as(target)).to(target.dtype))
    return model


def _checked_config(directory: Path) -> Mapping[str, Any]:
    config = adapter_config_beside(directory)
    if config is None:
        raise FileNotFoundError(f"{directory} has no adapter_config.json, which tells the adapter's scaling")
    if config.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"{directory}: peft_type must be LORA, got {config['peft_type']!r}")
    start = config.get("init_lora_weights", True)
    if start not in _UNCHANGED_BASE:
        raise ValueError(
            f"{directory} was trained from a changed base (init_lora_weights {start!r}), which is not here"
        )
    for key, what in _UNSUPPORTED.items():
        if config.get(key):
            raise ValueError(f"{directory} has {what} ({key}), which cannot be folded in")
    return config


def _pairs(tensors: Mapping[str, Tensor], file: Path) -> dict[str, dict[str, Tensor]]:
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found = _FACTOR.match(name)
        if found is None:
            raise ValueError(f"{file}: {name} is no factor of an adapter")
        pair = pairs.setdefault(found[1], {})
        if found[2] in pair:
            raise ValueError(f"{file} has several adapters of {found[1]}")
        pair[found[2]] = tensor
    for module, pair in pairs.items():
        if set(pair) != {"A", "B"}:
            raise ValueError(f"{file}: {module} has lora_{', lora_'.join(pair)} alone")
        check_factors(module, pair, str(file))
    return pairs


def _turned(update: Tensor, place: _Place, config: Mapping[str, Any]) -> Tensor:
    return update.T if place.transposed != bool(config.get("fan_in_fan_out")) else update


def _place(module: str, model: nn.Module, tower: Tower | None) -> _Place | None:
    """The place of a module's weight; None for a module that is left out."""
    own_text = "text." if hasattr(model, "text") else ""
    if tower is not None and module.startswith(("encoder.", "embeddings.")):
        module = f"{'vision' if tower == 'visual' else 'text'}_model.{module}"
    layer = _LAYER.match(module)
    if layer is not None:
        kind, index, part = layer.groups()
        stack = (
            f"visual.transformer.resblocks.{index}"
            if kind == "vision"
            else f"{own_text}transformer.resblocks.{index}"
        )
        if part in IN_LAYER:
            return _Place(f"{stack}.{IN_LAYER[part]}.weight")
        if part in PACKED:
            return _Place(f"{stack}.attn.in_proj_weight", PACKED.index(part))
    if module in _PLAIN:
        name, transposed = _PLAIN[module]
        return _Place(f"{own_text if name == 'text_projection' else ''}{name}", None, transposed)
    if UNUSED_ADAPTER.search(module):
        logger.warning(
            "the adapter of %s is left out: open_clip's attention does not call that module", module
        )
        return None
    prefix = {"visual": "visual.", "text": own_text, None: ""}[tower]
    return _Place(f"{prefix}{module}.weight")


def _target(parameters: Mapping[str, Tensor], place: _Place, update: Tensor, file: Path) -> Tensor:
    parameter = parameters.get(place.name)
    if parameter is None:
        raise ValueError(f"{file} has an adapter of {place.name}, which the model does not have")
    target = parameter if place.block is None else parameter.chunk(3)[place.block]
    if update.numel() != target.numel() or update.shape[0] != target.shape[0]:
        raise ValueError(
            f"{file} has an adapter of {tuple(update.shape)} for {place.name} of {tuple(target.shape)}"
        )
    return target
