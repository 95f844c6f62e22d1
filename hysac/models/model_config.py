"""``open_clip_config.json`` of a model directory. What would run code, fetch or be ignored is refused."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from open_clip import CLIP, CustomTextCLIP
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.transform import PreprocessCfg

from hysac.json_object import JSONObject, is_number, shown
from hysac.models.preprocessing import check_preprocessing

# Names of a hub, and switches that load weights from one.
_FETCHED = {"hf_model_name", "timm_model_pretrained"}
# Arguments of a tokenizer that are values; others can name files and code.
_TOKENIZER = {"clean", "reduction_mask", "additional_special_tokens", "strip_sep_token", "language"}
# Settings that count something, and cannot be 0.
_SIZES = {"embed_dim", "width", "head_width", "heads", "layers", "patch_size", "image_size"} | {
    "context_length",
    "vocab_size",
    "mlp_ratio",
}


def read_model_cfg(path: Path) -> dict[str, Any]:
    """The ``model_cfg`` of a file; its settings must be known, and of the types that open_clip
    documents.

    Raises:
        ValueError: names the file and the key.
    """
    config = JSONObject.read(path)
    if "model_cfg" not in config:
        raise ValueError(f"{path} has no model_cfg")
    _check_keys(path, "", config, {"model_cfg", "preprocess_cfg"})
    model_cfg = config.object("model_cfg")
    of_model = {
        name: hint
        for kind in (CLIP, CustomTextCLIP)
        for name, hint in get_type_hints(kind.__init__).items()
        if name not in ("cast_dtype", "vision_cfg", "text_cfg", "return")
    } | {"custom_text": bool}
    _check_settings(path, model_cfg, "model_cfg.", of_model, {"vision_cfg", "text_cfg"})
    if "embed_dim" not in model_cfg:
        model_cfg.refuse("embed_dim", "an integer")
    for name, kind in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        if model_cfg.get(name) is None:
            model_cfg.refuse(name, "an object")
        _check_tower(path, f"model_cfg.{name}.", model_cfg.object(name), kind)
    preprocess_cfg = config.object("preprocess_cfg")
    _check_keys(path, "preprocess_cfg.", preprocess_cfg, {field.name for field in fields(PreprocessCfg)})
    check_preprocessing(preprocess_cfg.content, str(path))
    return model_cfg.content


def _check_tower(path: Path, place: str, tower: JSONObject, kind: type) -> None:
    hints = get_type_hints(kind)  # open_clip's own files have null, too, for what a tower does not read
    _check_settings(path, tower, place, {name: hint | None for name, hint in hints.items()})
    if "eps" in tower.object("norm_kwargs"):
        tower.object("norm_kwargs").positive("eps")
    for key in _FETCHED:
        if tower.get(key):
            raise ValueError(
                f"{path}: {place}{key} = {shown(tower.get(key))} is fetched from a network; "
                "a local directory holds its whole model"
            )
    if "tokenizer_kwargs" in tower and tower.get("tokenizer_kwargs") is None:
        tower.refuse("tokenizer_kwargs", "an object")
    _check_keys(path, f"{place}tokenizer_kwargs.", tower.object("tokenizer_kwargs"), _TOKENIZER)


def _check_settings(
    path: Path, content: JSONObject, place: str, hints: Mapping[str, Any], others: set[str] | None = None
) -> None:
    _check_keys(path, place, content, hints.keys() | (others or set()))
    for key in content.content.keys() & hints.keys():
        value = content.get(key)
        if not _is_of(value, hints[key]):
            content.refuse(key, _words(hints[key]))
        sides = value if isinstance(value, list) else [value]
        if key in _SIZES and any(side is not None and side <= 0 for side in sides):
            content.refuse(key, "positive")


def _check_keys(path: Path, place: str, content: JSONObject, known: set[str]) -> None:
    if unknown := sorted(content.content.keys() - known):
        raise ValueError(f"{path} has {place}{unknown[0]}, which is no setting that hysac knows")


def _is_of(value: object, hint: Any) -> bool:
    """Whether a JSON value has the type of a hint; a list counts as a tuple, an integer as a float."""
    if get_origin(hint) in (Union, types.UnionType):
        return any(_is_of(value, option) for option in get_args(hint))
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        return isinstance(value, list) and len(value) == len(kinds) and all(map(_is_of, value, kinds))
    if hint in (int, float):
        return is_number(value) and isinstance(value, int | hint)
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    """A type hint as JSON names it."""
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(map(_words, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"{len(get_args(hint))} integers"
    names = {
        int: "an integer",
        float: "a finite number",
        bool: "true or false",
        str: "a text",
        dict: "an object",
    }
    return names.get(hint, "null")
