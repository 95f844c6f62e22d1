"""Replacing files at once, so that a crash or a full disk never leaves a partial file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_SUFFIX = ".tmp"


@contextmanager
def replacing_paths(paths: Sequence[Path], first: Callable[[], None] | None = None) -> Iterator[list[Path]]:
    """Temporary files beside ``paths``; on leaving without an error they take their places, one by one.

    All contents reach the disk before the first name does. After an error, such as a full disk, ``paths`` are
    as they were and the temporary files are gone; after a power cut or ``kill -9`` these may stay, see
    :func:`remove_leftovers`.

    Args:
        paths: the files.
        first: called when all contents have reached the disk, before the first name does.

    Raises:
        OSError: one of ``paths`` is a directory, or a file cannot be written.
    """
    for path in paths:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a directory, where a file is to be written")
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = [path.with_name(f".{path.name}.{os.getpid()}{_SUFFIX}") for path in paths]
    try:
        modes = [_touch(file) for file in temporary]
        yield temporary
        for file, mode in zip(temporary, modes, strict=True):
            file.chmod(mode)
            sync(file)
        if first is not None:
            first()
        for file, path in zip(temporary, paths, strict=True):
            os.replace(file, path)
    except BaseException:
        for file in temporary:
            file.unlink(missing_ok=True)
        raise
    for parent in {path.parent for path in paths}:
        sync(parent)


def _touch(path: Path) -> int:
    """Create a file, and return the mode that the umask gives it; safetensors would make it private."""
    path.touch()
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary directory beside ``path``, which on leaving without an error takes that place, whole.

    After an error it is gone, and ``path`` is as it was.

    Args:
        path: of a directory that does not exist yet, or is empty.

    Raises:
        FileExistsError: the path exists.
        OSError: it cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists, and is no empty directory")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_SUFFIX}")
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(path.parent)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """:func:`replacing_paths` of one file, opened for writing."""
    with replacing_paths([path]) as [temporary], open(temporary, "wb") as file:
        yield file


def json_bytes(content: Any) -> bytes:
    """``content`` as indented JSON."""
    return (json.dumps(content, indent=2) + "\n").encode()


def write_json(path: Path, content: Any) -> None:
    """Replace ``path`` by ``content`` as indented JSON."""
    with replacing(path) as file:
        file.write(json_bytes(content))


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


def sums(files: Mapping[str, Path]) -> bytes:
    """The SHA-256 of files, as ``sha256sum`` writes it, each under the name that it is to have."""
    return "".join(f"{sha256_of(path)}  {name}\n" for name, path in files.items()).encode()


def check_sums(path: Path) -> None:
    """Compare files with the checksums of :func:`sums`; without a file of checksums all pass.

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
        if sha256_of(file) != digest:
            raise ValueError(
                f"{file} is not what was saved: its SHA-256 differs from that in {path.name}; it is damaged "
                "or was changed (verify=False, --no-verify, loads it all the same)"
            )


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def remove_leftovers(directory: Path) -> None:
    """Remove the temporary files that killed processes left in ``directory``."""
    for path in directory.glob(f".*{_SUFFIX}"):
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file or a folder's list of files has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
