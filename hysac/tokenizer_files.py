"""The tokenizer of a model directory.

open_clip's own BPE comes with open_clip, and needs no file. One of Hugging Face, where the model's
configuration names one (``text_cfg.hf_tokenizer_name``), is saved with the model, and read from there alone.
"""

from __future__ import annotations

import os
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hysac.json_object import JSONObject

PATTERNS = (
    "tokenizer*",
    "vocab*",
    "merges*",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
)
"""Names of a tokenizer's files; nothing else of a tokenizer is saved, fetched or uploaded."""

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"


def tokenizer_files(directory: Path) -> list[str]:
    """Names of the tokenizer's files in a directory."""
    return sorted(
        path.name
        for path in directory.iterdir()
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in PATTERNS)
    )


def read_tokenizer(source: str) -> dict[str, bytes]:
    """The files of a Hugging Face tokenizer by their names.

    Args:
        source: a directory with its files, or a name of the hub.

    Raises:
        ImportError: transformers is not installed, which makes the files of a name.
        ValueError: the tokenizer has no ``tokenizer.json``.
        OSError: there is no such tokenizer, or it cannot be reached.
    """
    if os.path.isdir(source):
        check_tokenizer(Path(source), source)
        return {name: (Path(source) / name).read_bytes() for name in tokenizer_files(Path(source))}
    tokenizer = auto_tokenizer().from_pretrained(source)
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        names = tokenizer_files(Path(folder))
        if TOKENIZER_FILE not in names:
            raise ValueError(
                f"the tokenizer {source!r} has no {TOKENIZER_FILE}, and cannot be saved with a model"
            )
        return {name: (Path(folder) / name).read_bytes() for name in names}


def check_tokenizer(directory: Path, name: str) -> None:
    """Refuse a directory without the tokenizer that its model names, or one that needs more than its files.

    Args:
        directory: of the model.
        name: of the tokenizer.

    Raises:
        ValueError: names the file.
    """
    for file in (TOKENIZER_FILE, TOKENIZER_CONFIG):
        if not (directory / file).is_file():
            raise ValueError(
                f"{directory} has no {file}, and its open_clip_config.json names the tokenizer {name!r}, "
                "which would be fetched from a network; a local directory holds its whole model"
            )
    for file in (TOKENIZER_CONFIG, "config.json"):  # transformers looks for code in both
        if not (directory / file).is_file():
            continue
        config = JSONObject.read(directory / file)
        for key, value in config.content.items():
            if value and (key == "auto_map" or key.endswith("_file")):
                raise ValueError(
                    f"{directory / file} has {key}, which names code or files outside of the model"
                )
    JSONObject.read(directory / TOKENIZER_FILE)


def auto_tokenizer() -> Any:
    """transformers' ``AutoTokenizer``.

    Raises:
        ImportError: transformers is not installed; names the extra that does.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ImportError(
            "the model has a tokenizer of Hugging Face, which needs transformers: pip install 'hysac[hf]'"
        ) from error
    return AutoTokenizer
