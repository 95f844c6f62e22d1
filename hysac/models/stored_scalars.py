"""The scalars of an embedding, and the pixel statistics, that a checkpoint of MERU or HyCoCLIP stores.

Such a checkpoint has ``curv``, ``visual_alpha``, ``textual_alpha`` and ``logit_scale`` (logarithms), and
``pixel_mean`` and ``pixel_std`` of pixels in [0, 1], beside towers of timm that open_clip does not have.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from hysac.models.model import SCALARS
from hysac.models.preprocessing import check_preprocessing
from hysac.models.weights import as_scalar, check_tensors, read_weights

logger = logging.getLogger(__name__)

_STATISTICS = {"mean": "pixel_mean", "std": "pixel_std"}
_WRAPPERS = re.compile(r"^((module|_orig_mod|model)\.)+")
_TIMM_TOWER = re.compile(r"^(visual\.(patch_embed|blocks|cls_token|pos_embed)|textual\.token_embed)\b")
_HUGGING_FACE_TOWER = re.compile(r"(^|\.)(vision|text)_model\.")


class StoredScalars(NamedTuple):
    """What a checkpoint stores besides its towers."""

    scalars: dict[str, Tensor]
    """The four of :data:`hysac.models.model.SCALARS`: 0-d logarithms."""
    statistics: dict[str, tuple[float, ...]]
    """``mean`` and ``std`` of the pixels, of open_clip's preprocessing."""


def has_timm_towers(names: Iterable[str]) -> bool:
    """Whether the tensors of a checkpoint are of MERU's kind of towers."""
    return any(_TIMM_TOWER.match(_WRAPPERS.sub("", name)) for name in names)


def read_stored_scalars(path: Path) -> StoredScalars:
    """Read the four scalars and the pixel statistics of a checkpoint of MERU or HyCoCLIP.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: one of the six is missing, is there twice, or is no finite number (of a deviation, no
            positive one); or the checkpoint is HySAC's, whose pixel statistics took no part in training.
    """
    weights = read_weights(path)
    if any(_HUGGING_FACE_TOWER.search(name) for name in weights):
        raise ValueError(
            f"{path} has towers under Hugging Face's names, as HySAC's checkpoint: its pixel_mean and "
            "pixel_std took no part in training. Convert that checkpoint itself"
        )
    found = _by_name(weights, path)
    check_tensors(found, str(path))
    cfg = {ours: tuple(found[theirs].flatten().tolist()) for ours, theirs in _STATISTICS.items()}
    check_preprocessing(cfg, str(path))
    scalars = {name: as_scalar(found[name], f"{path}: {name}") for name in SCALARS}
    read = ", ".join(f"{name} exp({value.item():.5g})" for name, value in scalars.items())
    logger.info("%s has %s", path, read)
    logger.info("%s has pixels of mean %s and std %s", path, *map(_rounded, cfg.values()))
    return StoredScalars(scalars, cfg)


def _rounded(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _by_name(weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The six tensors, whatever wrapped the model."""
    found: dict[str, Tensor] = {}
    for full_name, tensor in weights.items():
        name = _WRAPPERS.sub("", full_name)
        if name in (*SCALARS, *_STATISTICS.values()):
            if name in found:
                raise ValueError(f"{path} has several tensors {name}, such as {full_name}")
            found[name] = tensor
    if missing := [name for name in (*SCALARS, *_STATISTICS.values()) if name not in found]:
        raise ValueError(f"{path} must have curvature, factors and pixel statistics: no {', '.join(missing)}")
    return found
