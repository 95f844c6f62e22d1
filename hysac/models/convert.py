"""The published HySAC checkpoint, and other CLIP weights under Hugging Face's or open_clip's names.

The published file is a PEFT state dict: Hugging Face names with LoRA factors beside the weights. The result
has open_clip's names, the factors merged. Both key layouts of PEFT are read: since 0.7 an adapted weight is
``X.base_layer.weight``, before that it is ``X.weight``.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from open_clip import CLIP
from open_clip.model import set_model_preprocess_cfg
from open_clip.transform import PreprocessCfg
from torch import Tensor

from hysac.models.model import CURVATURE_RANGE, HySAC
from hysac.models.preprocessing import preprocessing_beside
from hysac.models.stored_scalars import has_timm_towers, read_stored_scalars
from hysac.models.weights import (
    Architecture,
    adapter_config_beside,
    architecture_beside,
    as_scalar,
    check_tensors,
    read_weights,
)
from hysac.safety import Bounds

logger = logging.getLogger(__name__)

HEAD_WIDTH = 64
"""Width of an attention head in every published CLIP; it cannot be read off a checkpoint's tensors."""

_LARGEST_LOGARITHM = 80.0
"""The largest logarithm of a curvature whose range is within float32."""

_SCALARS = ("curv", "visual_alpha", "textual_alpha")
_UNUSED = re.compile(r"(^|\.)(pixel_mean|pixel_std|position_ids)$")
_PREFIX = re.compile(
    r"^((module|_orig_mod|base_model\.model)\.)*"
    r"((visual|textual)\.(base_model\.model\.)?(?=(vision|text|visual)_))?"
)
_LORA = re.compile(r"^(.*)\.lora_([AB])(?:\.(\w+))?\.weight$")
_OF_OPEN_CLIP = ("visual.transformer.resblocks.", "transformer.resblocks.")
UNUSED_ADAPTER = re.compile(r"resblocks\.\d+\.attn\.out_proj$")
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
IN_LAYER = {
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
}
PACKED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


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
    lora_alpha: float | None = None,
    adapter: str | None = None,
    bounds: str | os.PathLike[str] | None = None,
) -> ReferenceCheckpoint:
    """Read a checkpoint of HySAC or of a plain CLIP under open_clip's names.

    Args:
        path: ``.safetensors``, or a file of ``torch.save``, which is read without unpickling code. Flat, or
            with the weights under ``"model"`` or ``"state_dict"``, as open_clip's trainer writes; with or
            without adapters. Or a directory of a Hugging Face ``CLIPModel``, its weights in one file or
            several.
        lora_alpha: numerator of the adapters' scaling ``alpha / r``, which the file does not hold; by
            default that of PEFT's ``adapter_config.json`` beside it, where rsLoRA and alphas of single
            modules are read, too; without that file 1, as HySAC was trained with.
        adapter: the name of the adapter to merge, where there are several.
        bounds: the JSON file of safety bounds that comes with the checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a damaged file, or one with more than tensors; names or shapes that are not those of a
            CLIP model, numbers that are not finite, unpaired adapters or several, malformed bounds, or JSON
            beside it with other values than transformers or PEFT writes.
    """
    path = Path(path)
    weights = read_weights(path)
    if has_timm_towers(weights):
        raise ValueError(
            f"{path} has towers of timm, as checkpoints of MERU and HyCoCLIP: they cannot be converted. "
            "scalars_from (--scalars-from) reads its curvature, factors and pixel statistics for another CLIP"
        )
    check_tensors({name: one for name, one in weights.items() if not _UNUSED.search(name)}, str(path))
    converted = convert_state_dict(
        weights, lora_alpha=lora_alpha, adapter=adapter, adapter_config=adapter_config_beside(path)
    )
    return ReferenceCheckpoint(*converted, None if bounds is None else Bounds.load(Path(bounds)))


def from_reference(
    path: str | os.PathLike[str],
    *,
    lora_alpha: float | None = None,
    adapter: str | None = None,
    quick_gelu: bool | None = None,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    scalars_from: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
) -> HySAC:
    """The model of a checkpoint of HySAC or of a plain CLIP, float32 and in ``eval`` mode.

    Its architecture is inferred from the shapes: the published file is ``ViT-L-14-quickgelu``. The
    activation and the heads are read from a ``config.json`` of transformers beside the file, or else
    assumed, and logged. Pass the model to :func:`hysac.save_pretrained` for a directory that loads
    without this conversion.

    A plain CLIP has no curvature and no factors of the features: it gets those of a model before training,
    and the temperature, too, which was trained for cosines; or all four of ``scalars_from``.

    Args:
        path, lora_alpha, adapter: see :func:`load_reference_checkpoint`.
        quick_gelu: whether the activation is QuickGELU, as in OpenAI's models; assumed if nothing tells.
        vision_heads, text_heads: attention heads; assumed 64 wide if nothing tells.
        scalars_from: a checkpoint of MERU or HyCoCLIP, for a ``path`` without scalars of its own: the model
            gets its curvature, its factors, its temperature, and the mean and deviation of its pixels.
        device: where the model lives.

    Raises:
        ValueError: names or shapes that are not those of a CLIP model, only some of HySAC's scalars, or what
            ``scalars_from`` stores is incomplete, ambiguous or out of range.
    """
    path = Path(path)
    stored = None if scalars_from is None else read_stored_scalars(Path(scalars_from))
    state_dict, scalars, _ = load_reference_checkpoint(path, lora_alpha=lora_alpha, adapter=adapter)
    if scalars and set(scalars) != set(_SCALARS):
        raise ValueError(f"{path} must hold {', '.join(_SCALARS)}, got {sorted(scalars)}")
    if scalars and stored:
        raise ValueError(f"{path} has scalars of its own: scalars_from must be None, got {scalars_from}")
    cfg = infer_model_cfg(state_dict, *_architecture(path, quick_gelu, vision_heads, text_heads))
    clip = CLIP(**cfg)
    preprocessing = preprocessing_beside(path, clip.visual.image_size)
    if stored:
        scalars, preprocessing = stored.scalars, preprocessing | stored.statistics
    set_model_preprocess_cfg(clip, asdict(PreprocessCfg(**preprocessing)))
    model = HySAC.from_clip(clip, model_cfg=cfg, curv_init=_centre_of_range(scalars))
    if not scalars:
        logger.info("%s has no curvature and factors of features: those of a model before training", path)
        scalars = {name: getattr(model, name).detach() for name in (*_SCALARS, "logit_scale")}
    try:
        model.load_state_dict({**state_dict, **scalars})
    except RuntimeError as error:
        reason = shorten(str(error), 400, placeholder=" ...")  # it may list every tensor
        raise ValueError(f"{path} is not of a CLIP with vision-transformer towers: {reason}") from error
    _tell_of_bounds(model)
    return model.to(device).eval()


def _tell_of_bounds(model: HySAC) -> None:
    """Warn of stored scalars that the model replaces by the bounds of their ranges."""
    for name, (low, high) in model.scalar_ranges.items():
        value = getattr(model, name).item()
        bound = min(max(value, low), high)
        if abs(value - bound) > 1e-4:  # some store a bound with four digits
            logger.warning("%s is exp(%.6g), used as the bound of its range, exp(%.6g)", name, value, bound)


def _architecture(
    path: Path, quick_gelu: bool | None, vision_heads: int | None, text_heads: int | None
) -> Architecture:
    """The architecture as the caller gives it, or else as a file beside the weights does."""
    told, beside = Architecture(quick_gelu, vision_heads, text_heads), architecture_beside(path)
    known = beside._replace(**{name: one for name, one in told._asdict().items() if one is not None})
    assumed = [name for name, value in known._asdict().items() if value is None]
    if assumed:
        logger.info(
            "%s: nothing tells %s; assumed are QuickGELU and heads %d wide, as in OpenAI's models",
            path,
            ", ".join(assumed),
            HEAD_WIDTH,
        )
    return known


def _centre_of_range(scalars: Mapping[str, Tensor]) -> float:
    """The centre of the curvature's range: 1, or the stored curvature if that is out of 1's range."""
    if "curv" not in scalars:
        return 1.0
    logarithm = scalars["curv"].item()
    if abs(logarithm) > _LARGEST_LOGARITHM:
        raise ValueError(f"curv must be the logarithm of a curvature, got {logarithm:.6g}")
    curvature = math.exp(logarithm)
    return 1.0 if 0.999 / CURVATURE_RANGE <= curvature <= 1.001 * CURVATURE_RANGE else curvature


def convert_state_dict(
    state_dict: Mapping[str, Tensor],
    *,
    lora_alpha: float | None = None,
    adapter: str | None = None,
    adapter_config: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rename a CLIP state dict to open_clip's names and merge its adapters.

    Args:
        state_dict: of HySAC, Safe-CLIP or a Hugging Face ``CLIPModel``, with or without PEFT's adapters; or
            of open_clip's ``CLIP`` already, whose ``logit_bias`` is dropped. Prefixes of wrappers
            (``module.``, ``_orig_mod.``, PEFT's) are removed.
        lora_alpha: numerator of the adapters' scaling ``alpha / r``; by default the configuration's, or 1.
        adapter: the name of the adapter to merge, where there are several.
        adapter_config: PEFT's configuration of the adapters.

    Returns:
        The state dict for open_clip's ``CLIP``, and HySAC's scalars as far as they are there.

    Raises:
        ValueError: a name that is not known, an adapter without its pair or its weight, several adapters, a
            missing one of the query, key and value projections, or shapes that do not fit.
    """
    if lora_alpha is not None and not (lora_alpha > 0 and math.isfinite(lora_alpha)):
        raise ValueError(f"lora_alpha must be positive and finite, got {lora_alpha}")
    weights = _merge_adapters(_canonical(state_dict), lora_alpha, adapter, adapter_config)
    scalars = {name: as_scalar(weights.pop(name), name) for name in _SCALARS if name in weights}
    if "logit_scale" in weights:
        weights["logit_scale"] = as_scalar(weights["logit_scale"], "logit_scale")
    if any(name.startswith(_OF_OPEN_CLIP) for name in weights):
        if weights.pop("logit_bias", None) is not None:
            logger.info("logit_bias is dropped: one bias for all logits cancels in HySAC's losses")
        return weights, scalars
    _fold_patch_bias(weights)

    converted: dict[str, Tensor] = {}
    packed: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name, tensor in weights.items():
        layer = _LAYER.match(name)
        if name in _RENAMED:
            converted[_RENAMED[name]] = tensor
        elif name in _TRANSPOSED:
            _shape(weights, name, 2)
            converted[_TRANSPOSED[name]] = tensor.T.contiguous()
        elif layer and layer[3] in IN_LAYER:
            tower, index, part, kind = layer.groups()
            converted[f"{_TOWER[tower]}.resblocks.{index}.{IN_LAYER[part]}.{kind}"] = tensor
        elif layer and layer[3] in PACKED:
            tower, index, part, kind = layer.groups()
            packed.setdefault(f"{_TOWER[tower]}.resblocks.{index}.attn.in_proj_{kind}", {})[part] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f"state_dict has {len(unknown)} names that are not of a CLIP model: {unknown[:3]}")
    for name, parts in packed.items():
        if len(parts) != len(PACKED):
            raise ValueError(f"state_dict has only {', '.join(parts)} for {name}")
        shapes = {tuple(part.shape) for part in parts.values()}
        if len(shapes) > 1 or () in shapes:
            raise ValueError(f"state_dict has parts of {name} that do not fit, of shapes {sorted(shapes)}")
        converted[name] = torch.cat([parts[part] for part in PACKED])
    return converted, scalars


def infer_model_cfg(
    state_dict: Mapping[str, Tensor],
    quick_gelu: bool | None = None,
    vision_heads: int | None = None,
    text_heads: int | None = None,
) -> dict[str, Any]:
    """open_clip's configuration of a converted CLIP with vision-transformer towers, from its shapes.

    Args:
        state_dict: of open_clip's ``CLIP``.
        quick_gelu: whether the activation is QuickGELU; by default it is, as in OpenAI's CLIP and what is
            fine-tuned from it.
        vision_heads, text_heads: attention heads; by default they are 64 wide, as there.

    Raises:
        ValueError: a tensor that tells the architecture is missing or of another shape, or heads that do not
            divide a width.
    """
    _, channels, patch_size, patch_width = _shape(state_dict, "visual.conv1.weight", 4)
    positions, vision_width = _shape(state_dict, "visual.positional_embedding", 2)
    context_length, text_width = _shape(state_dict, "positional_embedding", 2)
    vocab_size, _ = _shape(state_dict, "token_embedding.weight", 2)
    _, embed_dim = _shape(state_dict, "text_projection", 2)
    if (channels, patch_width) != (3, patch_size):
        raise ValueError(
            "visual.conv1.weight must be of square patches of 3 channels, got "
            f"{channels} channels of {patch_size} x {patch_width}"
        )
    grid = math.isqrt(positions - 1)
    if grid == 0 or grid**2 != positions - 1:
        raise ValueError(
            "visual.positional_embedding must have 1 row for the class and n x n for the patches, "
            f"got {positions} rows"
        )
    vision_heads = _heads("vision_heads", vision_heads, vision_width)
    text_heads = _heads("text_heads", text_heads, text_width)
    head_width = vision_width // vision_heads
    return {
        "embed_dim": embed_dim,
        "quick_gelu": True if quick_gelu is None else quick_gelu,
        "vision_cfg": {
            "image_size": patch_size * grid,
            "layers": _count_layers(state_dict, "visual.transformer"),
            "width": vision_width,
            "patch_size": patch_size,
            **({} if head_width == HEAD_WIDTH else {"head_width": head_width}),
            **_mlp_ratio(state_dict, "visual.transformer", vision_width),
        },
        "text_cfg": {
            "context_length": context_length,
            "vocab_size": vocab_size,
            "width": text_width,
            "heads": text_heads,
            "layers": _count_layers(state_dict, "transformer"),
            **_mlp_ratio(state_dict, "transformer", text_width),
        },
    }


def _canonical(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's names, whatever wrapped the model, with adapters beside their weights."""
    return {
        _PREFIX.sub("", name).replace(".base_layer.", "."): tensor
        for name, tensor in state_dict.items()
        if not _UNUSED.search(name)
    }


def _merge_adapters(
    weights: dict[str, Tensor], alpha: float | None, adapter: str | None, config: Mapping[str, Any] | None
) -> dict[str, Tensor]:
    factors: dict[str, dict[str, dict[str, Tensor]]] = {}  # by the adapter's name and its module
    merged = {}
    for name, tensor in weights.items():
        found = _LORA.match(name)
        if found:
            module, factor, of = found.groups()
            factors.setdefault(of or "default", {}).setdefault(module, {})[factor] = tensor
        else:
            merged[name] = tensor
    if adapter is not None and adapter not in factors:
        raise ValueError(f"there is no adapter {adapter!r}; there are {', '.join(factors) or 'none'}")
    if adapter is None and len(factors) > 1:
        raise ValueError(
            f"there are {len(factors)} adapters, {', '.join(factors)}; adapter (--adapter) chooses one"
        )
    chosen = next(iter(factors.values()), {}) if adapter is None else factors[adapter]
    if chosen and alpha is None and config is None:
        logger.info("lora_alpha is not known and taken for 1, as HySAC was trained with")
    unused = [module for module in chosen if UNUSED_ADAPTER.search(module)]
    if unused:
        logger.warning(
            "%d adapters of attn.out_proj are left out: open_clip's attention reads that weight directly, so "
            "that they took no part in training either",
            len(unused),
        )
    for module, pair in chosen.items():
        name = f"{module}.weight"
        if set(pair) != {"A", "B"} or name not in merged:
            raise ValueError(f"state_dict has an incomplete adapter: {name} with lora_{', lora_'.join(pair)}")
        check_factors(module, pair, "state_dict")
        if module not in unused:
            update = adapter_update(module, pair, alpha, config)
            weight = merged[name]
            if weight.dim() < 2 or update.shape != weight.flatten(1).shape:
                raise ValueError(
                    f"state_dict has an adapter of {tuple(update.shape)} for {name} of {tuple(weight.shape)}"
                )
            merged[name] = (weight + update.view_as(weight)).to(weight.dtype)
    return merged


def check_factors(module: str, pair: Mapping[str, Tensor], source: str) -> None:
    """Refuse factors whose product is not defined.

    Raises:
        ValueError: names the source and the module.
    """
    A, B = pair["A"], pair["B"]
    if min(A.dim(), B.dim()) < 2 or A.shape[0] == 0 or B.flatten(1).shape[1] != A.shape[0]:
        shapes = f"{tuple(A.shape)} and {tuple(B.shape)}"
        raise ValueError(f"{source}: factors of {module} do not fit, {shapes}")


def adapter_update(
    module: str, pair: Mapping[str, Tensor], alpha: float | None, config: Mapping[str, Any] | None
) -> Tensor:
    """``scaling B A`` in float64; convolutions are matrices over flattened patches."""
    A, B = (pair[factor].flatten(1).double() for factor in "AB")
    return _adapter_scaling(module, A.shape[0], alpha, config) * (B @ A)


def _adapter_scaling(module: str, r: int, alpha: float | None, config: Mapping[str, Any] | None) -> float:
    """``alpha / r``, of rsLoRA ``alpha / sqrt(r)``; PEFT's patterns give some modules an own alpha."""
    if config is None:
        return (1.0 if alpha is None else alpha) / r
    own = config.get("lora_alpha", 8) if alpha is None else alpha
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            own = value
            break
    return own / (math.sqrt(r) if config.get("use_rslora") else r)


def _fold_patch_bias(weights: dict[str, Tensor]) -> None:
    """Move the patch embedding's bias into the positions of the patches, which it is added to.

    PEFT before 0.7 gives the adapted convolution a random bias that takes part in every forward pass; the
    class token does not pass the convolution, and open_clip's has no bias.
    """
    bias = weights.pop(f"{_PATCHES}.bias", None)
    if bias is not None:
        name = "vision_model.embeddings.position_embedding.weight"
        _, width = _shape(weights, name, 2)
        if bias.shape != (width,):
            raise ValueError(f"{_PATCHES}.bias must have shape ({width},), got {tuple(bias.shape)}")
        positions = weights[name]
        weights[name] = torch.cat([positions[:1], positions[1:] + bias])


def _heads(name: str, heads: int | None, width: int) -> int:
    if heads is None:
        if width % HEAD_WIDTH:
            raise ValueError(f"{name} must be given: a width of {width} is not divided by {HEAD_WIDTH}")
        return width // HEAD_WIDTH
    if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1 or width % heads:
        raise ValueError(f"{name} must divide the width {width}, got {heads!r}")
    return heads


def _shape(state_dict: Mapping[str, Tensor], name: str, dims: int) -> tuple[int, ...]:
    """The shape of a tensor from which the architecture is read."""
    if name not in state_dict:
        raise ValueError(f"state_dict is not of a CLIP with a vision transformer: no {name}")
    shape = tuple(state_dict[name].shape)
    if len(shape) != dims or 0 in shape:
        raise ValueError(f"{name} must have {dims} dimensions, none of them 0, got shape {shape}")
    return shape


def _mlp_ratio(state_dict: Mapping[str, Tensor], tower: str, width: int) -> dict[str, float]:
    """The setting for the ratio of the layers' hidden width, unless it is open_clip's default of 4."""
    name = f"{tower}.resblocks.0.mlp.c_fc.weight"
    hidden = _shape(state_dict, name, 2)[0] if name in state_dict else 4 * width
    return {} if hidden == 4 * width else {"mlp_ratio": mlp_ratio(hidden, width)}


def mlp_ratio(hidden: int, width: int) -> float:
    """The ratio from which open_clip's ``int(width * ratio)`` makes ``hidden``, not one less."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _count_layers(state_dict: Mapping[str, Tensor], tower: str) -> int:
    return sum(name.startswith(f"{tower}.") and name.endswith(".attn.in_proj_weight") for name in state_dict)
