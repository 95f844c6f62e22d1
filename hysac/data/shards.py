"""Quadruplets in webdataset shards: tar files, read in place and in any order.

A quadruplet is the members that share a key, ``KEY.safe.jpg KEY.unsafe.jpg KEY.safe.txt KEY.unsafe.txt`` and
optionally ``KEY.json`` with a ``tag``. Only the headers and the captions are read at first; an image is read
from its place in the shard when its turn comes. So shards have a length, an order and an exact continuation,
as manifests have, which a stream does not.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tqdm import tqdm

from hysac.data.images import ShardMember
from hysac.data.manifest import Manifest, OnError, Quadruplet, settle

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def is_shards(spec: str) -> bool:
    """Whether ``spec`` names tar files rather than a manifest."""
    return spec.endswith(".tar")


def load_shards(spec: str, *, on_error: OnError = "raise", progress: bool = True) -> Manifest:
    """Index the quadruplets of one or more shards; their ids are ``SHARD/KEY``.

    Args:
        spec: a local ``.tar`` file, or several: ``train-{0000..0012}.tar``; the numbers keep their width.
        on_error: ``"raise"``, or ``"skip"`` keys that are no quadruplet, with one warning that counts and
            names them. A shard that is missing or cut off always raises.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: a shard that is not there.
        ValueError: a file that is no tar archive or was cut off; keys that lack a member; no quadruplet.
    """
    shards = expand(spec)
    if missing := [str(path) for path in shards if not path.is_file()]:
        raise FileNotFoundError(f"{spec}: no file {missing[0]} ({len(missing)} of {len(shards)} are missing)")
    records: list[Quadruplet] = []
    faults: list[tuple[str, str]] = []
    total = 0
    for shard in tqdm(shards, desc="index shards", unit="shard", disable=not progress):
        for key, members in _samples(shard).items():
            total += 1
            try:
                records.append(_quadruplet(f"{shard.stem}/{key}", members))
            except ValueError as error:
                faults.append((f"key {key!r} of {shard}", str(error)))
    settle(spec, faults, total, on_error)
    try:
        return Manifest(tuple(records), skipped=len(faults))
    except ValueError as error:
        raise ValueError(f"{spec}: {error}") from error


def expand(spec: str) -> list[Path]:
    """The files that a name with ``{0000..0012}`` stands for, in order.

    Raises:
        ValueError: a range that ends before it starts.
    """
    found = _RANGE.search(spec)
    if found is None:
        return [Path(spec)]
    first, last = found.groups()
    if int(first) > int(last):
        raise ValueError(f"{spec}: the range {found[0]} ends before it starts")
    names = (f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1))
    return [path for name in names for path in expand(spec[: found.start()] + name + spec[found.end() :])]


def _samples(shard: Path) -> dict[str, dict[str, ShardMember]]:
    """The members of each key by what follows its first dot."""
    samples: dict[str, dict[str, ShardMember]] = {}
    for member in _members(shard):
        folder, _, name = member.name.rpartition("/")
        key, _, suffix = name.partition(".")
        key = f"{folder}/{key}" if folder else key
        parts = samples.setdefault(key, {})
        if suffix in parts:
            raise ValueError(f"{shard} has two members {member.name}")
        parts[suffix] = member
    return samples


def _members(shard: Path) -> Iterator[ShardMember]:
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if member.isreg():
                    yield ShardMember(shard, member.name, member.offset_data, member.size)
            if shard.stat().st_size < archive.offset + tarfile.BLOCKSIZE:  # of zeros, which ends an archive
                raise tarfile.ReadError("unexpected end of data")
    except tarfile.TarError as error:
        raise ValueError(f"{shard} is no tar archive, or was cut off: {error}") from error


def _quadruplet(id: str, members: Mapping[str, ShardMember]) -> Quadruplet:
    safe_image, unsafe_image = (_image(members, side) for side in ("safe", "unsafe"))
    safe_caption, unsafe_caption = (_caption(members, side) for side in ("safe", "unsafe"))
    return Quadruplet(id, safe_image, unsafe_image, safe_caption, unsafe_caption, _tag(members))


def _image(members: Mapping[str, ShardMember], side: str) -> ShardMember | None:
    found = [members[name] for suffix in IMAGE_SUFFIXES if (name := f"{side}.{suffix}") in members]
    if len(found) > 1:
        raise ValueError(f"several {side} images: {', '.join(member.name for member in found)}")
    return found[0] if found else None


def _caption(members: Mapping[str, ShardMember], side: str) -> str:
    name = f"{side}.txt"
    if name not in members:
        raise ValueError(f"no member {name}; there are {', '.join(sorted(members))}")
    return _text(members[name])


def _tag(members: Mapping[str, ShardMember]) -> str | None:
    if "json" not in members:
        return None
    try:
        fields = json.loads(_text(members["json"]))
    except json.JSONDecodeError as error:
        raise ValueError(f"{members['json'].name} is not JSON: {error}") from None
    tag = fields.get("tag") if isinstance(fields, dict) else None
    if tag is not None and not isinstance(tag, str):
        raise ValueError(f"{members['json'].name}: tag must be text, got {tag!r}")
    return tag or None


def _text(member: ShardMember) -> str:
    try:
        return member.read().decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{member.name} is not UTF-8 text: {error}") from error
