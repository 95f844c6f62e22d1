"""All members of a tar file; damage is reported, not skipped.

Python's ``tarfile`` takes a damaged header, or zeros between members, for the end of the archive.
"""

from __future__ import annotations

import tarfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from hysac.data.images import ShardMember

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20


class Entry(NamedTuple):
    """A member, or why it cannot be read."""

    name: str
    member: ShardMember | None
    fault: str = ""


class Damage(NamedTuple):
    """Bytes of an archive that belong to no member."""

    begin: int
    end: int
    reason: str


def entries(shard: Path) -> Iterator[Entry | Damage]:
    """Files of a tar archive in order; if archives were concatenated, those of all of them.

    A hard link is the member that it links to. Folders are left out.

    Raises:
        ValueError: the file is no tar archive, or was cut off.
    """
    size = shard.stat().st_size
    with open(shard, "rb") as file:
        begin = 0
        while begin < size:
            end = yield from _archive(shard, file, begin)
            if size < end + _BLOCK:  # of zeros, which ends an archive
                raise ValueError(f"{shard} is no tar archive, or was cut off: unexpected end of data")
            begin = _after_zeros(file, end, size)
            if begin == end:
                begin = _next_header(file, end + _BLOCK, size)
                yield Damage(end, begin, "no header of a member, and no end of the archive")
    if size == 0:
        raise ValueError(f"{shard} is no tar archive, or was cut off: it is empty")


def _archive(shard: Path, file: BinaryIO, begin: int) -> Generator[Entry, None, int]:
    """The members from ``begin``; returns where the first block is that is no header."""
    file.seek(begin)
    found: dict[str, ShardMember] = {}
    end = begin
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                if info.size < 0 or archive.offset <= end:
                    raise tarfile.ReadError(f"member {info.name!r} ends before it starts")
                end = archive.offset
                entry = _entry(shard, info, found)
                if entry is not None:
                    yield entry
            return archive.offset
    except Exception as error:  # of headers that contradict themselves tarfile raises more than its own
        if isinstance(error, tarfile.ReadError) and end > begin and "end of data" not in str(error):
            return end
        raise ValueError(f"{shard} is no tar archive, or was cut off: {error}") from error


def _entry(shard: Path, info: tarfile.TarInfo, found: dict[str, ShardMember]) -> Entry | None:
    if info.isdir():
        return None
    if info.islnk():
        target = found.get(info.linkname)
        if target is None:
            return Entry(info.name, None, f"is a hard link to {info.linkname!r}, which is not before it")
        member = ShardMember(shard, info.name, target.offset, target.size)
    elif info.issparse():
        return Entry(info.name, None, "is a sparse file")
    elif info.isreg():
        member = ShardMember(shard, info.name, info.offset_data, info.size)
    else:
        kind = "a symbolic link" if info.issym() else f"of type {info.type!r}"
        return Entry(info.name, None, f"is {kind}, no file")
    found[info.name] = member
    return Entry(info.name, member)


def _after_zeros(file: BinaryIO, begin: int, size: int) -> int:
    """The block of the first byte that is not 0."""
    file.seek(begin)
    while begin < size:
        chunk = file.read(_CHUNK)
        rest = chunk.lstrip(b"\0")
        if rest:
            return (begin + len(chunk) - len(rest)) // _BLOCK * _BLOCK
        begin += len(chunk)
    return size


def _next_header(file: BinaryIO, begin: int, size: int) -> int:
    """The next block that is a header by its checksum."""
    file.seek(begin)
    while begin < size:
        chunk = file.read(_CHUNK)
        for start in range(0, len(chunk), _BLOCK):
            block = chunk[start : start + _BLOCK]
            # The magic comes first: of millions of blocks of images none has to be parsed.
            if block[257:262] == b"ustar" and _is_header(block):
                return begin + start
        begin += len(chunk)
    return size


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True
