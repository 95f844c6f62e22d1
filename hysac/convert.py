"""The published HySAC checkpoint, and other CLIP weights under Hugging Face names, for open_clip.

The published file is a PEFT state dict: Hugging Face names with LoRA factors beside the weights. The result
has open_clip's names, the factors merged. Both key layouts of PEFT are read: since 0.7 an adapted weight is
``X.base_layer.weight``, before that it is ``X.weight``.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from open_clip import CLIP
from open_clip.model import set_model_preprocess_cfg
from open_clip.transform import PreprocessCfg
from safetensors.torch import load_file
from torch import Tensor

from hysac.model import HySAC
from hysac.safety import Bounds

HEAD_WIDTH = 64
"""Width of an attention head in every published CLIP; no tensor of a checkpoint tells it."""

_SCALARS = ("curv", "visual_alpha", "textual_alpha")
_UNUSED = re.compile(r"(^|\.)(pixel_mean|pixel_std|position_ids)$")
_PREFIX = re.compile(r"^(module\.)?((visual|textual)\.(base_model\.model\.)?(?=(vision|text|visual)_))?")
_LORA = re.compile(r"^(.*)\.lora_([AB])(?:\.\w+)?\.weight$")
_PATCHES = "vision_model.embeddings.patch_embedding"

_RENAMED = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "logit_scale": "logit_scale",
} | {
    f"{theirs}.{kind}": f"{ours}.{kind}"
    for theirs, ours in {
        "vision_model.pre_layrnorm": "visual.ln_pre",  # the misspelling is Hugging Face's
        "vision_model.post_layernorm": "visual.ln_post",
        "text_model.final_layer_norm": "ln_final",
    }.items()
    for kind in ("weight", "bias")
}
_TRANSPOSED = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}

_LAYER = re.compile(r"^(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)$")
_TOWER = {"vision": "visual.transformer", "text": "transformer"}
_IN_LAYER = {
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
}
_PACKED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


class ReferenceCheckpoint(NamedTuple):
    """A checkpoint under open_clip's names: ``{**state_dict, **scalars}`` is a HySAC state dict."""

    state_dict: dict[str, Tensor]
    """The towers and ``logit_scale``, as open_clip's ``CLIP`` names them."""
    scalars: dict[str, Tensor]
    """``curv``, ``visual_alpha``, ``textual_alpha``: 0-d logarithms; empty for a plain CLIP checkpoint."""
    bounds: Bounds | None
    """The published statistics of the distance to the origin."""


def load_reference_checkpoint(
    path: str | os.PathLike[str],
    *,
    lora_alpha: float = 1.0,
    bounds: str | os.PathLike[str] | None = None,
) -> ReferenceCheckpoint:
    """Read a published or trainer's HySAC checkpoint under open_clip's names.

    Args:
        path: ``.safetensors``, or a file of ``torch.save``, which is read without unpickling code. Flat, or
            with the weights under ``"model"``; with or without adapters.
        lora_alpha: numerator of the adapters' scaling ``alpha / r``, which the file does not hold.
        bounds: the JSON file of safety bounds that comes with the checkpoint.

    Raises:
        ValueError: a damaged file, or one with more than tensors; names that are not those of a CLIP model,
            unpaired adapters, or malformed bounds.
    """
    return ReferenceCheckpoint(
        *convert_state_dict(_read(Path(path)), lora_alpha=lora_alpha),
        None if bounds is None else Bounds.load(Path(bounds)),
    )


def from_reference(
    path: str | os.PathLike[str], *, lora_alpha: float = 1.0, device: str | torch.device = "cpu"
) -> HySAC:
    """The model of a published or trainer's HySAC checkpoint, float32 and in ``eval`` mode.

    Its architecture is inferred from the shapes: the published file is ``ViT-L-14-quickgelu``. Pass the
    model to :func:`hysac.save_pretrained` for a directory that loads without this conversion.

    Args:
        path: see :func:`load_reference_checkpoint`.
        lora_alpha: see :func:`load_reference_checkpoint`.
        device: where the model lives.

    Raises:
        ValueError: names or shapes that are not those of a CLIP model with HySAC's scalars.
    """
    state_dict, scalars, _ = load_reference_checkpoint(path, lora_alpha=lora_alpha)
    if set(scalars) != set(_SCALARS):
        raise ValueError(f"{os.fspath(path)} must hold {', '.join(_SCALARS)}, got {sorted(scalars)}")
    cfg = infer_model_cfg(state_dict)
    clip = CLIP(**cfg)
    set_model_preprocess_cfg(clip, asdict(PreprocessCfg(size=clip.visual.image_size)))
    model = HySAC.from_clip(clip, model_cfg=cfg)
    model.load_state_dict({**state_dict, **scalars})
    return model.to(device).eval()


def convert_state_dict(
    state_dict: Mapping[str, Tensor], *, lora_alpha: float = 1.0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rename a CLIP state dict from Hugging Face's names to open_clip's and merge its adapters.

    Args:
        state_dict: of HySAC, Safe-CLIP or a Hugging Face ``CLIPModel``, with or without PEFT's adapters.
        lora_alpha: numerator of the adapters' scaling ``alpha / r``.

    Returns:
        The state dict for open_clip's ``CLIP``, and HySAC's scalars as far as they are there.

    Raises:
        ValueError: a name that is not known, an adapter without its pair or its weight, or a missing one
            of the query, key and value projections.
    """
    if not (lora_alpha > 0 and math.isfinite(lora_alpha)):
        raise ValueError(f"lora_alpha must be positive and finite, got {lora_alpha}")
    weights = _merge_adapters(_canonical(state_dict), lora_alpha)
    scalars = {name: weights.pop(name).reshape(()) for name in _SCALARS if name in weights}
    _fold_patch_bias(weights)

    converted: dict[str, Tensor] = {}
    packed: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name, tensor in weights.items():
        layer = _LAYER.match(name)
        if name in _RENAMED:
            converted[_RENAMED[name]] = tensor
        elif name in _TRANSPOSED:
            converted[_TRANSPOSED[name]] = tensor.T.contiguous()
        elif layer and layer[3] in _IN_LAYER:
            tower, index, part, kind = layer.groups()
            converted[f"{_TOWER[tower]}.resblocks.{index}.{_IN_LAYER[part]}.{kind}"] = tensor
        elif layer and layer[3] in _PACKED:
            tower, index, part, kind = layer.groups()
            packed.setdefault(f"{_TOWER[tower]}.resblocks.{index}.attn.in_proj_{kind}", {})[part] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f"state_dict has {len(unknown)} names that are not of a CLIP model: {unknown[:3]}")
    for name, parts in packed.items():
        if len(parts) != len(_PACKED):
            raise ValueError(f"state_dict has only {', '.join(parts)} for {name}")
        converted[name] = torch.cat([parts[part] for part in _PACKED])
    return converted, scalars


def infer_model_cfg(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """open_clip's configuration of a converted CLIP with vision-transformer towers, from its shapes.

    Attention heads are 64 wide and the activation is QuickGELU, as in OpenAI's CLIP and what is
    fine-tuned from it.

    Raises:
        ValueError: a tensor that tells the architecture is missing.
    """
    try:
        _, _, _, patch_size = state_dict["visual.conv1.weight"].shape
        positions, vision_width = state_dict["visual.positional_embedding"].shape
        context_length, text_width = state_dict["positional_embedding"].shape
        vocab_size = state_dict["token_embedding.weight"].shape[0]
        embed_dim = state_dict["text_projection"].shape[1]
    except KeyError as missing:
        raise ValueError(f"state_dict is not of a CLIP with a vision transformer: no {missing}") from None
    return {
        "embed_dim": embed_dim,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": patch_size * math.isqrt(positions - 1),
            "layers": _count_layers(state_dict, "visual.transformer"),
            "width": vision_width,
            "patch_size": patch_size,
        },
        "text_cfg": {
            "context_length": context_length,
            "vocab_size": vocab_size,
            "width": text_width,
            "heads": text_width // HEAD_WIDTH,
            "layers": _count_layers(state_dict, "transformer"),
        },
    }


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
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


def _canonical(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's names, whatever wrapped the model, with adapters beside their weights."""
    return {
        _PREFIX.sub("", name).replace(".base_layer.", "."): tensor
        for name, tensor in state_dict.items()
        if not _UNUSED.search(name)
    }


def _merge_adapters(weights: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    factors: dict[str, dict[str, Tensor]] = {}
    merged = {}
    for name, tensor in weights.items():
        adapter = _LORA.match(name)
        if adapter:
            factors.setdefault(f"{adapter[1]}.weight", {})[adapter[2]] = tensor
        else:
            merged[name] = tensor
    for name, pair in factors.items():
        if set(pair) != {"A", "B"} or name not in merged:
            raise ValueError(f"state_dict has an incomplete adapter: {name} with lora_{', lora_'.join(pair)}")
        merged[name] = _merge(merged[name], pair["A"], pair["B"], alpha)
    return merged


def _merge(weight: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    """``W + alpha / r B A`` with float64 products; convolutions are matrices over flattened patches."""
    update = alpha / A.shape[0] * (B.flatten(1).double() @ A.flatten(1).double())
    return (weight + update.view_as(weight)).to(weight.dtype)


def _fold_patch_bias(weights: dict[str, Tensor]) -> None:
    """Move the patch embedding's bias into the positions of the patches, which it is added to.

    PEFT before 0.7 gives the adapted convolution a random bias that takes part in every forward pass; the
    class token does not pass the convolution, and open_clip's has no bias.
    """
    bias = weights.pop(f"{_PATCHES}.bias", None)
    if bias is not None:
        name = "vision_model.embeddings.position_embedding.weight"
        positions = weights[name]
        weights[name] = torch.cat([positions[:1], positions[1:] + bias])


def _count_layers(state_dict: Mapping[str, Tensor], tower: str) -> int:
    return sum(name.startswith(f"{tower}.") and name.endswith(".attn.in_proj_weight") for name in state_dict)
