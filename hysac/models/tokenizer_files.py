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

from hysac.files import json_bytes
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
        ImportError: transformers is not installed, which makes the files of a name, and of a directory of
            another program.
        ValueError: the tokenizer has no ``tokenizer.json``.
        OSError: there is no such tokenizer, or it cannot be reached.
    """
    if os.path.isdir(source) and _is_complete(Path(source)):
        return _contents(Path(source))
    tokenizer = auto_tokenizer().from_pretrained(source)
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        contents = _contents(Path(folder))
        if TOKENIZER_FILE not in contents:
            raise ValueError(
                f"the tokenizer {source!r} has no {TOKENIZER_FILE}, and cannot be saved with a model"
            )
        # Some keep paths of the machine that they were made on, which nothing reads.
        config = JSONObject.read(Path(folder) / TOKENIZER_CONFIG).content
        inner = {key: value for key, value in config.items() if not _names_others(key, value)}
        return contents | {TOKENIZER_CONFIG: json_bytes(inner)}


def _contents(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in tokenizer_files(directory)}


def _is_complete(directory: Path) -> bool:
    """Whether the tokenizer in a directory is as :func:`check_tokenizer` wants it."""
    try:
        check_tokenizer(directory, str(directory))
    except ValueError:
        return False
    return True


def _names_others(key: str, value: object) -> bool:
    """Whether a setting names code, or a file, outside of the directory."""
    return bool(value) and (key == "auto_map" or key.endswith("_file"))


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
            if _names_others(key, value):
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
