"""The files beside exported graphs, with which they can be used without PyTorch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from open_clip.model import get_model_preprocess_cfg
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import PreprocessCfg
from open_clip.utils import to_2tuple

from hysac.data.manifest import MAX_CAPTION
from hysac.models.model import HySAC
from hysac.models.model_config import read_model_cfg
from hysac.models.pretrained import TOWERS_CONFIG
from hysac.models.tokenizer_files import TOKENIZER_FILE, tokenizer_files
from hysac.scoring.scorer import SafetyScorer

FORMAT_VERSION = 1
DESCRIPTION_FILE = "export.json"


def describe_images(model: HySAC) -> dict[str, Any]:
    """How an image becomes ``pixels``: upright 8-bit RGB, resized, cropped, ``(pixel / 255 - mean) / std``.

    ``resize_mode`` is open_clip's: ``shortest`` resizes the shorter side and crops the centre, ``longest``
    the longer side and pads with ``fill_color``, ``squash`` both. ``interpolation`` is Pillow's.
    """
    cfg = PreprocessCfg(**get_model_preprocess_cfg(model))
    size = to_2tuple(cfg.size)
    # In this case open_clip ignores the setting, and is bicubic.
    is_keeping_ratio = cfg.resize_mode == "shortest" and size[0] != size[1]
    bilinear = cfg.interpolation == "bilinear" and not is_keeping_ratio
    return {**asdict(cfg), "size": size, "interpolation": "bilinear" if bilinear else "bicubic"}


def write_tokenizer(scorer: SafetyScorer, directory: Path, out: Path) -> dict[str, Any]:
    """How a text becomes ``tokens``; the files for it are written to ``out``.

    open_clip's own BPE becomes a ``tokenizer.json``, which the package ``tokenizers`` reads in any
    language. A text is first cleaned as ``clean`` says. Its tokens come in windows of
    ``context_length``, each of which overlaps the one before by half or more, between ``start`` and
    ``end``, and filled with 0. For another tokenizer the files are those of the model.

    Raises:
        ValueError: the tokenizer drops tokens at random.
    """
    tokenizer = scorer.tokenizer
    text_cfg = read_model_cfg(directory / TOWERS_CONFIG)["text_cfg"]
    settings = text_cfg.get("tokenizer_kwargs") or {}
    told = {"context_length": tokenizer.context_length, "max_characters": MAX_CAPTION}
    if not isinstance(tokenizer, SimpleTokenizer):
        names = tokenizer_files(directory)
        for name in names:
            (out / name).write_bytes((directory / name).read_bytes())
        return {"tokenizer": "transformers", "settings": settings, "files": names, **told}
    if tokenizer.reduction_fn is not None:
        raise ValueError(
            f"{directory}: the tokenizer's reduction_mask drops tokens at random, which no export can repeat"
        )
    (out / TOKENIZER_FILE).write_text(json.dumps(_as_tokenizers(tokenizer)) + "\n")
    return {
        "tokenizer": "open_clip",
        "clean": settings.get("clean", "lower"),
        "start": tokenizer.sot_token_id,
        "end": tokenizer.eot_token_id,
        **told,
    }


def _as_tokenizers(tokenizer: SimpleTokenizer) -> dict[str, Any]:
    """open_clip's BPE in the format of the package ``tokenizers``; no spelling is a special token."""
    words = {
        "type": "Split",
        "pattern": {"Regex": f"(?i:{tokenizer.pat.pattern})"},
        "behavior": "Removed",
        "invert": True,
    }
    as_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [words, as_bytes]},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": tokenizer.encoder,
            "merges": [list(pair) for pair in merges],
        },
    }
