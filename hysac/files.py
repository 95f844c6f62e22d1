"""Replacing a file at once, so that a crash or a full disk never leaves a part of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_SUFFIX = ".tmp"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path``; on leaving without an error it takes the place of ``path``.

    The contents reach the disk before the name does. After an error, such as a full disk, ``path`` is as it
    was and the temporary file is gone; after a power cut or ``kill -9`` the temporary file may stay, see
    :func:`remove_leftovers`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_SUFFIX}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def remove_leftovers(directory: Path) -> None:
    """Remove the temporary files that killed processes left in ``directory``."""
    for path in directory.glob(f".*{_SUFFIX}"):
        path.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
