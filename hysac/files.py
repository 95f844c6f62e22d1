"""Replacing a file at once, so that a crash or a full disk never leaves a part of one."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
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
    except RecursionError:
        raise ValueError(f"{path} is not JSON that can be read: it is nested too deeply") from None


def check_writable(path: Path) -> None:
    """Refuse a file that could not be written, before the work whose result it is to hold.

    Raises:
        OSError: names the file.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory, where a file is to be written")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error


def write_sums(path: Path, names: Sequence[str]) -> None:
    """Replace ``path`` by the SHA-256 of the files ``names`` beside it, as ``sha256sum`` writes it."""
    with replacing(path) as file:
        for name in names:
            file.write(f"{_sha256(path.parent / name)}  {name}\n".encode())


def check_sums(path: Path) -> None:
    """Compare files with what :func:`write_sums` wrote; without such a file nothing is known, and passes.

    Raises:
        ValueError: names the file that differs, or a line that names none beside ``path``.
    """
    if not path.is_file():
        return
    for line in path.read_text(errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or Path(name).name != name or len(name) > 255:
            raise ValueError(f"{path} has the line {line[:330]!r}, which is no checksum of a file beside it")
        file = path.parent / name
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist, and {path.name} names it")
        if _sha256(file) != digest:
            raise ValueError(
                f"{file} is not what was saved: its SHA-256 differs from that in {path.name}; it is damaged "
                "or was changed (verify=False, --no-verify, loads it all the same)"
            )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
