"""The preprocessing of images: from the settings of transformers to those of open_clip."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from open_clip.transform import PreprocessCfg

from hysac.json_object import JSONObject, is_number, shown
from hysac.models.weights import beside

_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # by Pillow's number
_KNOWN_STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}
_CHOICES = {
    "mode": ("RGB",),
    "interpolation": ("bicubic", "bilinear", "random"),
    "resize_mode": ("shortest", "longest", "squash"),
}


def preprocessing_beside(path: Path, size: tuple[int, int]) -> dict[str, Any]:
    """open_clip's preprocessing, from that of transformers in or beside ``path`` if it is there.

    That is ``preprocessor_config.json``, or ``image_processor`` of ``processor_config.json``. What it does
    not say is as open_clip has it. Pixels that are not normalised have mean 0 and deviation 1; those that are
    not divided by 255 have both divided by it instead.

    Args:
        path: weights of transformers, or a directory of them.
        size: height and width of the model's images.

    Raises:
        ValueError: names the file and the key: a value of another kind than transformers writes, or a step,
            an image size or an interpolation that open_clip's preprocessing for this model does not have; or
            the two files differ.
    """
    single, several = beside(path, "preprocessor_config.json"), beside(path, "processor_config.json")
    found = [_preprocessing(JSONObject.read(single), size, single)] if single.is_file() else []
    if several.is_file() and "image_processor" in (whole := JSONObject.read(several)):
        found.append(_preprocessing(whole.object("image_processor"), size, several))
    if len(found) == 2 and found[0] != found[1]:
        raise ValueError(f"{single} and {several.name} differ: {found[0]} and {found[1]}")
    return found[0] if found else {"size": size}


def _preprocessing(stored: JSONObject, size: tuple[int, int], file: Path) -> dict[str, Any]:
    for step in stored.content.keys() - _KNOWN_STEPS:
        if step.startswith("do_") and stored.get(step):
            stored.refuse(step, "false: open_clip's preprocessing has no such step")
    cfg: dict[str, Any] = {"size": size, **_resizing(stored, size), **_statistics(stored, file)}
    if "resample" in stored:
        number = stored.get("resample")
        if not _is_integer(number) or number not in _INTERPOLATIONS:
            stored.refuse("resample", f"one of {_INTERPOLATIONS}")
        cfg["interpolation"] = _INTERPOLATIONS[number]
    return cfg


def check_preprocessing(cfg: Mapping[str, Any], source: str) -> None:
    """Refuse a preprocessing that open_clip does not have, or whose pixels are not finite.

    Raises:
        ValueError: names the source, the key and what is wrong.
    """
    for name in ("mean", "std"):
        values = cfg.get(name, getattr(PreprocessCfg, name))
        is_triple = isinstance(values, list | tuple) and len(values) == 3
        if not is_triple or not all(map(is_number, values)):
            raise ValueError(
                f"{source}: {name} of the pixels must be three finite numbers, got {shown(values)}"
            )
        if name == "std" and not all(value > 0 for value in values):
            raise ValueError(f"{source}: std of the pixels must be positive, got {shown(values)}")
    for name, choices in _CHOICES.items():
        if name in cfg and cfg[name] not in choices:
            raise ValueError(
                f"{source}: {name} of the images must be one of {', '.join(choices)}, got {shown(cfg[name])}"
            )
    if not _is_size(cfg.get("size", 1)):
        raise ValueError(f"{source}: size must be one or two positive integers, got {shown(cfg['size'])}")
    if not _is_integer(cfg.get("fill_color", 0)):
        raise ValueError(f"{source}: fill_color must be an integer, got {shown(cfg['fill_color'])}")


def _is_size(value: object) -> bool:
    sides = value if isinstance(value, list | tuple) and len(value) == 2 else (value,)
    return all(_is_integer(side) and side > 0 for side in sides)


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and is_number(value)


def _resizing(stored: JSONObject, size: tuple[int, int]) -> dict[str, str]:
    """The resizing of transformers as one of open_clip's two ways, to exactly ``size``."""
    height, width = size
    if not stored.flag("do_resize", True):
        stored.refuse("do_resize", "true: open_clip resizes every image")
    crops = stored.flag("do_center_crop", True)
    if crops and "crop_size" in stored and _sides(stored, "crop_size") != size:
        stored.refuse("crop_size", f"that of the model's images, {height} x {width}")
    shape = stored.get("size")
    if isinstance(shape, dict) and "height" in shape:
        if _sides(stored, "size") != size:
            stored.refuse("size", f"that of the model's images, {height} x {width}")
        return {"resize_mode": "squash"}
    if not crops:
        stored.refuse("do_center_crop", "true where size is not the height and width of the model's images")
    if "size" in stored and (_shortest_edge(stored),) * 2 != size:
        stored.refuse("size", f"the shorter side of the model's images of {height} x {width}")
    return {"resize_mode": "shortest"}


def _sides(stored: JSONObject, key: str) -> tuple[int, int]:
    """Height and width; one integer stands for both."""
    if not isinstance(stored.get(key), dict):
        return (stored.whole(key),) * 2
    return stored.object(key).whole("height"), stored.object(key).whole("width")


def _shortest_edge(stored: JSONObject) -> int:
    if not isinstance(stored.get("size"), dict):
        return stored.whole("size")
    return stored.object("size").whole("shortest_edge")


def _statistics(stored: JSONObject, file: Path) -> dict[str, tuple[float, ...]]:
    """Mean and deviation for pixels in [0, 1], from those for the range of transformers' pixels."""
    cfg: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    if stored.flag("do_normalize", True):
        cfg = {name: stored.get(f"image_{name}", getattr(PreprocessCfg, name)) for name in cfg}
    check_preprocessing(cfg, str(file))
    factor = stored.positive("rescale_factor", 1 / 255) if stored.flag("do_rescale", True) else 1.0
    largest = 1.0 if abs(255 * factor - 1) < 1e-9 else 255 * factor
    return {name: tuple(value / largest for value in values) for name, values in cfg.items()}
