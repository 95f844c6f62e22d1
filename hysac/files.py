"""Replacing a file at once, so that a crash or a full disk never leaves a part of one."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_SUFFIX = ".tmp"


@contextmanager
def replacing_path(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``; on leaving without an error it takes the place of ``path``.

    The contents reach the disk before the name does. After an error, such as a full disk, ``path`` is as it
    was and the temporary file is gone; after a power cut or ``kill -9`` the temporary file may stay, see
    :func:`remove_leftovers`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_SUFFIX}")
    try:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)  # safetensors would make it private
        yield temporary
        temporary.chmod(mode)
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """:func:`replacing_path`, opened for writing."""
    with replacing_path(path) as temporary, open(temporary, "wb") as file:
        yield file


def write_json(path: Path, content: Any) -> None:
    """Replace ``path`` by ``content`` as indented JSON."""
    with replacing(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: the file is not JSON; names it.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:  # not JSON, or not even text
        raise ValueError(f"{path} is not JSON: {error}") from None


def remove_leftovers(directory: Path) -> None:
    """Remove the temporary files that killed processes left in ``directory``."""
    for path in directory.glob(f".*{_SUFFIX}"):
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
