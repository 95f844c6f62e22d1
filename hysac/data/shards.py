"""Quadruplets in webdataset shards: tar files, read in place and in any order.

A quadruplet is the members that share a key, ``KEY.safe.jpg KEY.unsafe.jpg KEY.safe.txt KEY.unsafe.txt`` and
optionally ``KEY.json`` with a ``tag``. Only the headers and the captions are read at first; an image is read
from its place in the shard when its turn comes. So shards have a length, an order and an exact continuation,
as manifests have, which a stream does not.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from hysac.data.formats import first_few, parse_json
from hysac.data.images import SUFFIXES, ShardMember
from hysac.data.manifest import Manifest, OnError, Quadruplet, settle
from hysac.data.tar import Damage, Entry, entries

logger = logging.getLogger(__name__)

_CAPTIONS = ("safe.txt", "unsafe.txt")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def is_shards(spec: str) -> bool:
    """Whether ``spec`` names tar files rather than a manifest."""
    return spec.endswith(".tar")


def holds_quadruplets(spec: str) -> bool:
    """Whether a member of the shards has the name of a quadruplet's, as ``KEY.safe.jpg``.

    Raises:
        FileNotFoundError: a shard that is not there.
        ValueError: a file that is no tar archive or was cut off.
    """
    names = (entry.name for shard in _existing(spec) for entry in entries(shard) if isinstance(entry, Entry))
    ends = (name.rpartition("/")[2].partition(".")[2].lower() for name in names)
    return any(end.startswith(("safe.", "unsafe.")) for end in ends)


def load_shards(spec: str, *, on_error: OnError = "raise", progress: bool = True) -> Manifest:
    """Index the quadruplets of one or more shards; their ids are ``SHARD/KEY``.

    Args:
        spec: a local ``.tar`` file, or several: ``train-{0000..0012}.tar``; the numbers keep their width.
        on_error: ``"raise"``, or ``"skip"`` keys that are no quadruplet and damage between members, with one
            warning that counts and names them. A shard that is missing or cut off always raises.
        progress: show a progress bar.

    Suffixes are those of all images that :func:`hysac.data.load_image` reads, in upper or lower case. Members
    whose name starts with a dot (those of macOS) or is ``__NAME__`` are not read; other members that no
    quadruplet has are counted and named in one message. Hard links are followed.

    Raises:
        FileNotFoundError: a shard that is not there.
        ValueError: a file that is no tar archive or was cut off; damage between members, by its offset; keys
            that lack a member or have one that is no file; no quadruplet.
    """
    shards = _existing(spec)
    records: list[Quadruplet] = []
    faults: list[tuple[str, str]] = []
    passed_over: Counter[str] = Counter()
    total = 0
    for shard in tqdm(shards, desc="index shards", unit="shard", disable=not progress):
        samples, damages = _samples(shard)
        faults += [(f"bytes {one.begin} to {one.end} of {shard}", one.reason) for one in damages]
        total += len(samples) + len(damages)
        for key, members in samples.items():
            try:
                records.append(_quadruplet(f"{shard.stem}/{key}", members))
                passed_over.update(name for name in members if not _is_known(name))
            except ValueError as error:
                faults.append((f"key {key!r} of {shard}", str(error)))
    if passed_over:
        counts = [f".{name} ({count})" for name, count in sorted(passed_over.items())]
        logger.info("%s: members that no quadruplet has are passed over: %s", spec, first_few(counts))
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


def _existing(spec: str) -> list[Path]:
    shards = expand(spec)
    if missing := [str(path) for path in shards if not path.is_file()]:
        raise FileNotFoundError(f"{spec}: no file {missing[0]} ({len(missing)} of {len(shards)} are missing)")
    return shards


def _samples(shard: Path) -> tuple[dict[str, dict[str, Entry]], list[Damage]]:
    """The members of each key by what follows its first dot, in lower case; and what is damaged."""
    samples: dict[str, dict[str, Entry]] = {}
    damages = []
    for entry in entries(shard):
        if isinstance(entry, Damage):
            damages.append(entry)
            continue
        folder, _, name = entry.name.rpartition("/")
        if name.startswith(".") or (name.startswith("__") and name.endswith("__")):
            continue
        key, _, suffix = name.partition(".")
        key = f"{folder}/{key}" if folder else key
        parts = samples.setdefault(key, {})
        if suffix.lower() in parts:
            raise ValueError(f"{shard} has two members {entry.name}")
        parts[suffix.lower()] = entry
    return samples, damages


def _quadruplet(id: str, members: Mapping[str, Entry]) -> Quadruplet:
    safe_image, unsafe_image = (_image(members, side) for side in ("safe", "unsafe"))
    safe_caption, unsafe_caption = (_caption(members, name) for name in _CAPTIONS)
    return Quadruplet(id, safe_image, unsafe_image, safe_caption, unsafe_caption, _tag(members))


def _image(members: Mapping[str, Entry], side: str) -> ShardMember | None:
    found = [name for name in members if name.startswith(f"{side}.") and name not in _CAPTIONS]
    known = sorted(name for name in found if _is_known(name))
    if found and not known:
        raise ValueError(f"{members[found[0]].name} is no image that is read, one of {', '.join(SUFFIXES)}")
    if len(known) > 1:
        raise ValueError(f"several {side} images: {', '.join(members[name].name for name in known)}")
    return _file(members[known[0]]) if known else None


def _caption(members: Mapping[str, Entry], name: str) -> str:
    if name not in members:
        raise ValueError(f"no member {name}; there are {', '.join(sorted(members))}")
    return _text(members[name])


def _tag(members: Mapping[str, Entry]) -> str | None:
    if "json" not in members:
        return None
    try:
        fields = parse_json(_text(members["json"]))
    except ValueError as error:
        raise ValueError(f"{members['json'].name} is not JSON: {error}") from None
    tag = fields.get("tag") if isinstance(fields, dict) else None
    if tag is not None and not isinstance(tag, str):
        raise ValueError(f"{members['json'].name}: tag must be text, got {tag!r}")
    return tag or None


def _text(entry: Entry) -> str:
    try:
        return _file(entry).read().decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{entry.name} is not UTF-8 text: {error}") from error


def _file(entry: Entry) -> ShardMember:
    if entry.member is None:
        raise ValueError(f"{entry.name} {entry.fault}")
    return entry.member


def _is_known(name: str) -> bool:
    """Whether a quadruplet has such a member: ``safe.jpg``, ``unsafe.txt``, ``json``."""
    side, dot, suffix = name.partition(".")
    return name == "json" or name in _CAPTIONS or (side in ("safe", "unsafe") and dot + suffix in SUFFIXES)
