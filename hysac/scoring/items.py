"""The items to score that a command line names: files, folders, globs, manifests, shards, lines."""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hysac.data.formats import READERS, Row, first_few, read_rows
from hysac.data.images import NAMED_SUFFIXES, SUFFIXES, ShardMember
from hysac.data.shards import expand
from hysac.data.tar import Damage, entries

log = logging.getLogger(__name__)

IMAGE_COLUMNS = (
    *("image", "path", "file", "file_name", "filename", "filepath", "image_path"),
    *("safe_image", "unsafe_image"),
)
TEXT_COLUMNS = ("caption", "text", "prompt", "title", "description", "safe_caption", "unsafe_caption")
"""The columns of a manifest that are scored where none are named, in any case and with blanks around them."""

TEXT_SUFFIX = ".txt"


@dataclass(frozen=True)
class Item:
    """One thing to score.

    Attributes:
        name: unique among those of a call; a path, or where it stands.
        modality: ``"image"`` or ``"text"``.
        content: an image file or a text; None with a ``fault``.
        fault: why there is nothing to score.
    """

    name: str
    modality: str
    content: Path | ShardMember | str | None
    fault: str | None = None


def find_items(
    inputs: Sequence[str],
    *,
    texts: Sequence[str] = (),
    lines: Iterable[str] | None = None,
    text_files: Sequence[str] = (),
    first_text: int = 1,
    image_columns: Sequence[str] | None = None,
    text_columns: Sequence[str] | None = None,
    image_root: str | None = None,
) -> list[Item]:
    """The items that the arguments of a command name, in their order.

    Args:
        inputs: an image file; a folder, for the images in it and below; a glob; a text file, one caption a
            line; a manifest (JSON lines, JSON, CSV, TSV or Parquet); shards with images and ``.txt``
            captions; ``"-"`` for ``lines``.
        texts: captions themselves.
        lines: captions for ``"-"``.
        text_files: files of any name with one caption a line.
        first_text: the number in the name of the first of ``texts``.
        image_columns, text_columns: those of a manifest; by default the ones of usual names.
        image_root: the folder that the image paths of manifests start from; by default each manifest's own.

    What a folder has beside images and hidden files is left out, and logged.

    Raises:
        FileNotFoundError: nothing of that name.
        NotADirectoryError: ``image_root`` is not a folder.
        ValueError: a file of no such kind, a folder without images, a manifest without a known column, the
            same item twice.
    """
    items = [Item(f"text:{number}", "text", text) for number, text in enumerate(texts, start=first_text)]
    if image_root is not None and not Path(image_root).is_dir():
        raise NotADirectoryError(f"image_root {image_root} is not a folder")
    columns = Columns(image_columns, text_columns, None if image_root is None else Path(image_root))
    for name in inputs:
        items += _of_lines("-", lines or ()) if name == "-" else _of_input(name, columns)
    for name in text_files:
        items += _of_lines(name, _lines_of(Path(name)))
    items = [replace(item, name=printable(item.name)) for item in items]
    seen: set[str] = set()
    for item in items:
        if item.name in seen:
            raise ValueError(f"{item.name} is named twice")
        seen.add(item.name)
    return items


def printable(text: str) -> str:
    """A text that may contain a file's name; bytes of it that are not UTF-8 appear as ``\\udcff``."""
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class Columns:
    """Which columns of a manifest are scored, None for those of usual names; where its image paths start."""

    images: Sequence[str] | None = None
    texts: Sequence[str] | None = None
    root: Path | None = None

    def of(self, path: Path, rows: Sequence[Row]) -> list[tuple[str, str]]:
        """The (column, modality) pairs of a manifest.

        Raises:
            ValueError: a named column is missing, or none has a usual name.
        """
        there = list(dict.fromkeys(column for row in rows for column in row.fields))
        asked = [(column, "image") for column in self.images or ()]
        asked += [(column, "text") for column in self.texts or ()]
        if missing := [column for column, _ in asked if column not in there]:
            raise ValueError(f"{path} has no column {first_few(missing)}; it has {first_few(there, 20)}")
        if asked:
            return asked
        kinds = {**dict.fromkeys(IMAGE_COLUMNS, "image"), **dict.fromkeys(TEXT_COLUMNS, "text")}
        named = [(column, column.strip().lower()) for column in there]
        usual = [(column, kind) for name, kind in kinds.items() for column, plain in named if plain == name]
        if not usual:
            raise ValueError(
                f"{path} has none of the columns {', '.join(IMAGE_COLUMNS + TEXT_COLUMNS)}; it has "
                f"{first_few(there, 20)}. --image-column and --text-column name others"
            )
        return usual


def _of_input(name: str, columns: Columns) -> list[Item]:
    if name.endswith(".tar"):
        return [item for shard in expand(name) for item in _of_shard(shard)]
    path = Path(name)
    if path.is_dir():
        return _of_folder(path)
    if not os.path.lexists(path):
        found = sorted(glob.glob(name, recursive=True))
        if not found:
            is_pattern = glob.has_magic(name)
            raise FileNotFoundError(f"no file is named as {name}" if is_pattern else f"{name} does not exist")
        return [item for one in found if not Path(one).is_dir() for item in _of_file(Path(one), columns)]
    return _of_file(path, columns)


def _of_file(path: Path, columns: Columns) -> list[Item]:
    suffix = path.suffix.lower()
    if suffix in NAMED_SUFFIXES:
        return [Item(str(path), "image", path)]
    if suffix == TEXT_SUFFIX:
        return _of_lines(str(path), _lines_of(path))
    if suffix in READERS:
        return items_of_rows(path, read_rows(path), columns)
    kinds = (*SUFFIXES, TEXT_SUFFIX, *READERS, ".tar")
    raise ValueError(f"{path}: the name of what is scored ends in {', '.join(kinds)}")


def _of_folder(folder: Path) -> list[Item]:
    files = [
        Path(directory, name)
        for directory, folders, names in os.walk(folder)
        if folders.sort() is None  # in order, and so is what lies below
        for name in sorted(names)
        if not name.startswith(".")
    ]
    found, others = [], Counter[str]()
    for path in files:
        suffix = path.suffix.lower()
        if suffix in NAMED_SUFFIXES:
            found.append(path)
        else:
            others[suffix or "no suffix"] += 1
    if not found:
        raise ValueError(f"{folder} has no images, whose names end in {', '.join(SUFFIXES)}")
    if others:
        kinds = first_few([f"{count} {suffix}" for suffix, count in others.most_common()])
        log.info("%s: what is no image by its name is left out: %s", folder, kinds)
    return [Item(str(path), "image", path) for path in found]


def _lines_of(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def _of_lines(name: str, lines: Iterable[str]) -> list[Item]:
    texts = ((number, line.strip("\r\n")) for number, line in enumerate(lines, start=1))
    return [Item(f"{name}:{number}", "text", text) for number, text in texts if text.strip()]


def items_of_rows(path: Path, rows: Sequence[Row], columns: Columns | None = None) -> list[Item]:
    """The items of the rows of a manifest, from the named columns or else those with usual names.

    Raises:
        ValueError: there are no rows, or no such columns.
    """
    if not rows:
        raise ValueError(f"{path} has no rows")
    columns = columns or Columns()
    return list(_of_rows(path, rows, columns.of(path, rows), columns.root or path.parent))


def _of_rows(
    path: Path, rows: Sequence[Row], columns: Sequence[tuple[str, str]], root: Path
) -> Iterator[Item]:
    for row in rows:
        if row.fault is not None:
            yield Item(f"{path}:{row.place}", "text", None, row.fault)
            continue
        for column, modality in columns:
            cell = row.fields.get(column)
            name = f"{path}:{row.place}:{column}"
            if cell is None or cell == "":
                continue
            if not isinstance(cell, str):
                yield Item(name, modality, None, f"column {column} must be text, got {cell!r}")
            else:
                yield Item(name, modality, root / cell if modality == "image" else cell)


def _of_shard(shard: Path) -> Iterator[Item]:
    if not shard.is_file():
        raise FileNotFoundError(f"{shard} does not exist")
    for entry in entries(shard):
        if isinstance(entry, Damage):
            yield Item(f"{shard}:bytes {entry.begin} to {entry.end}", "image", None, entry.reason)
            continue
        name = entry.name.rpartition("/")[2]
        suffix = "." + name.rpartition(".")[2].lower()
        if name.startswith(".") or suffix not in (*NAMED_SUFFIXES, TEXT_SUFFIX):
            continue
        where, modality = f"{shard}:{entry.name}", "text" if suffix == TEXT_SUFFIX else "image"
        if entry.member is None:
            yield Item(where, modality, None, entry.fault)
        else:
            yield _of_member(where, modality, entry.member)


def _of_member(name: str, modality: str, member: ShardMember) -> Item:
    if modality == "image":
        return Item(name, modality, member)
    try:
        return Item(name, modality, member.read().decode("utf-8-sig").strip())
    except ValueError as error:  # of its size, too
        return Item(name, modality, None, str(error))
