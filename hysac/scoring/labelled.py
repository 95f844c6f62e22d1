"""Labelled items: a table, quadruplets, a public set of prompts, folders of safe and of unsafe ones."""

from __future__ import annotations

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from hysac.data.formats import READERS, Row, first_few, read_rows
from hysac.data.images import NAMED_SUFFIXES, ImageFile
from hysac.data.manifest import CAPTIONS, IMAGES, Quadruplet, check_text, manifest_of_rows
from hysac.data.prompt_sets import Layout, known_layouts, layout_of
from hysac.data.shards import holds_quadruplets, is_shards, load_shards
from hysac.scoring.items import IMAGE_COLUMNS, TEXT_COLUMNS, TEXT_SUFFIX, Columns, find_items, items_of_rows

LABELS: Mapping[str, bool] = {
    **dict.fromkeys(("unsafe", "1", "true", "yes", "nsfw", "harmful"), True),
    **dict.fromkeys(("safe", "0", "false", "no", "sfw", "harmless"), False),
}
"""What a label may be, in any case, and whether it means unsafe."""


@dataclass(frozen=True)
class Labelled:
    """An item and whether it is unsafe.

    Attributes:
        name: unique within its file.
        modality: ``"text"`` or ``"image"``.
        content: a text, or an image file.
        is_unsafe: its label.
        category: of what is unsafe, or "".
    """

    name: str
    modality: str
    content: str | ImageFile
    is_unsafe: bool
    category: str = ""


def load_labelled(path: str, *, image_root: str | None = None, label: bool | None = None) -> list[Labelled]:
    """The labelled items of a file, a folder, or the four of each quadruplet of a manifest or of shards.

    Args:
        path: with the columns ``item`` and ``label``, and optionally ``modality`` and ``category``. An item
            is an image where ``modality`` is ``image``, or without that column where its name ends as an
            image's does; else it is a text. ``prompt`` in place of ``item`` is a text in any case. Labels are
            those of :data:`LABELS`. Or prompts in the columns of a public set, see
            :data:`hysac.data.prompt_sets.LAYOUTS`. Or a folder with ``safe`` and ``unsafe`` in it, each a
            folder, or a file such as ``safe.txt``; a folder below ``unsafe`` is a category. With ``label``
            also what has no labels: an image, a folder, a text file with one caption a line, a manifest,
            shards. A glob is each of the tables and text files that it names, or all of its images.
        image_root: what image paths of a table are relative to; by default the table's folder.
        label: True for the unsafe items alone, False for the safe ones. Where ``path`` has no labels, all
            items have this one; the unsafe ones are of the category that its name tells, without suffix.

    Raises:
        ValueError: a file of no known columns, which names those that came and those expected; a label that
            is none, an empty item; names the rows. Or no item has the ``label``.
        FileNotFoundError: no such file.
        NotADirectoryError: ``image_root`` is not a folder.
    """
    if image_root is not None and not Path(image_root).is_dir():
        raise NotADirectoryError(f"image_root {image_root} is not a folder")
    if files := _named_by_glob(path):
        return [
            replace(item, name=f"{one}:{item.name}")
            for one in files
            for item in load_labelled(one, image_root=image_root, label=label)
        ]
    is_table = Path(path).suffix.lower() in READERS and not os.path.isdir(path)
    rows = read_rows(Path(path)) if is_table else None
    found = _labelled(path, rows, image_root)
    if found is None:
        return _unlabelled(path, rows, label, image_root)
    chosen = [item for item in found if label is None or item.is_unsafe == label]
    if not chosen:
        raise ValueError(f"{path} has no {'unsafe' if label else 'safe'} item")
    return chosen


def _named_by_glob(path: str) -> list[str]:
    """The tables and text files that a glob names; none where it names images, or is the name of a file.

    Raises:
        ValueError: it names other files, too.
    """
    if os.path.lexists(path):
        return []
    files = sorted(one for one in glob.glob(path, recursive=True) if not os.path.isdir(one))
    each = [one for one in files if Path(one).suffix.lower() in (*READERS, TEXT_SUFFIX)]
    if each and len(each) < len(files):
        raise ValueError(f"{path} names tables or texts and other files: name them apart")
    return each


def _labelled(path: str, rows: Sequence[Row] | None, image_root: str | None) -> list[Labelled] | None:
    """The items of data with labels; ``rows`` are those of a table. None for data without labels."""
    if rows is not None:
        return _of_table(path, rows, image_root)
    if os.path.isdir(path):
        return _of_folder(Path(path), image_root)
    if is_shards(path) and holds_quadruplets(path):
        return _of_quadruplets(load_shards(path, progress=False).records)
    return None


def _of_folder(folder: Path, image_root: str | None) -> list[Labelled] | None:
    """The items of ``safe`` and ``unsafe`` in a folder; None if either is missing."""
    entries = sorted(one for one in folder.iterdir() if one.stem.lower() in ("safe", "unsafe"))
    if len({entry.stem.lower() for entry in entries}) < 2:
        return None
    return [item for entry in entries for item in _of_entry(entry, image_root)]


def _of_entry(entry: Path, image_root: str | None) -> list[Labelled]:
    separator = "/" if entry.is_dir() else ":"
    found = []
    for item in load_labelled(str(entry), image_root=image_root, label=entry.stem.lower() == "unsafe"):
        place = item.name.removeprefix(f"{entry}{separator}")
        folder, below, _ = place.partition("/")
        category = folder if item.is_unsafe and entry.is_dir() and below else item.category
        found.append(replace(item, name=f"{entry.name}{separator}{place}", category=category))
    return found


def _of_table(path: str, rows: Sequence[Row], image_root: str | None) -> list[Labelled] | None:
    """The items of a table with labels; None if it has captions or images without labels."""
    columns = _columns(rows)
    root = None if image_root is None else Path(image_root)
    for item_column in ("item", "prompt"):
        if {item_column, "label"} <= set(columns):
            parse = partial(_of_row, root=root or Path(path).parent, column=item_column)
            return _rows_of(path, rows, parse)
    layout = layout_of(rows)
    if layout is not None:
        return _rows_of(path, rows, partial(_of_prompts, layout=layout))
    try:
        return _of_quadruplets(manifest_of_rows(Path(path), rows, image_root=root).records)
    except ValueError as error:
        if set(columns) & {*IMAGE_COLUMNS, *TEXT_COLUMNS} and not set(columns) & {*IMAGES, *CAPTIONS}:
            return None
        raise ValueError(
            f"{path} has the columns {', '.join(columns) or 'none'}: not item and label, and not those of a "
            f"known prompt set: {known_layouts()}; and it holds no quadruplets: {error}"
        ) from error


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row.fields))


def _unlabelled(
    path: str, rows: Sequence[Row] | None, label: bool | None, image_root: str | None
) -> list[Labelled]:
    if label is None and not (os.path.lexists(path) or glob.glob(path)):
        raise FileNotFoundError(f"{path} does not exist")
    if label is None:
        there = first_few(_columns(rows or ()), 20)
        raise ValueError(
            f"{path} has no labels: name it as safe or as unsafe items (--safe, --unsafe), or put it into a "
            "folder with safe and unsafe in it"
            + ("" if rows is None else f". A table with labels has the columns item and label, not {there}")
        )
    columns = Columns(root=None if image_root is None else Path(image_root))
    items = find_items([path]) if rows is None else items_of_rows(Path(path), rows, columns)
    if faults := [f"{item.name}: {item.fault}" for item in items if item.fault is not None]:
        raise ValueError(f"{len(faults)} of {len(items)} items cannot be read: {first_few(faults)}")
    source = Path(path).stem if label else ""
    return [
        Labelled(item.name, item.modality, item.content, label, source)
        for item in items
        if item.content is not None
    ]


def _rows_of(path: str, rows: Sequence[Row], parse: Callable[[Row], list[Labelled]]) -> list[Labelled]:
    found, faults = [], []
    for row in rows:
        try:
            if row.fault is not None:
                raise ValueError(row.fault)
            found += parse(row)
        except ValueError as error:
            faults.append(f"{row.place} {error}")
    if faults:
        raise ValueError(f"{path}: {len(faults)} of {len(rows)} rows cannot be used: {first_few(faults)}")
    return found


def _of_row(row: Row, root: Path, column: str) -> list[Labelled]:
    item, label = row.fields.get(column), str(row.fields.get("label", "")).strip().lower()
    if not isinstance(item, str) or not item.strip():
        raise ValueError(f"has no {column}")
    if label not in LABELS:
        raise ValueError(f"has the label {label!r}, which is none of {', '.join(LABELS)}")
    is_image = column == "item" and Path(item).suffix.lower() in NAMED_SUFFIXES
    modality = row.fields.get("modality") or ("image" if is_image else "text")
    if modality not in ("text", "image"):
        raise ValueError(f"has the modality {modality!r}, which is neither text nor image")
    content = root / item if modality == "image" else item
    category = str(row.fields.get("category") or "")
    return [Labelled(row.place, modality, content, LABELS[label], category)]


def _of_prompts(row: Row, layout: Layout) -> list[Labelled]:
    found = []
    for prompt in layout.prompts(row):
        check_text(prompt.column, prompt.text)
        name = f"{row.place}:{prompt.column}"
        found.append(Labelled(name, "text", prompt.text, prompt.is_unsafe, prompt.category))
    return found


def _of_quadruplets(records: tuple[Quadruplet, ...]) -> list[Labelled]:
    found = []
    for record in records:
        for is_unsafe, side in enumerate(("safe", "unsafe")):
            tag = record.tag or "" if is_unsafe else ""
            caption, image = (getattr(record, f"{side}_{kind}") for kind in ("caption", "image"))
            found.append(Labelled(f"{record.id}:{side}_caption", "text", caption, bool(is_unsafe), tag))
            if image is not None:
                found.append(Labelled(f"{record.id}:{side}_image", "image", image, bool(is_unsafe), tag))
    return found


def told_by_label(items: Sequence[Labelled]) -> str:
    """How many there are of each modality and label, as in ``300 safe texts``."""
    counts = Counter(f"{'unsafe' if item.is_unsafe else 'safe'} {item.modality}s" for item in items)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "none"


def fingerprint(items: list[Labelled]) -> str:
    """A SHA-256 of the items' names, contents and labels, in order; images count by their file's name."""
    digest = hashlib.sha256()
    for item in items:
        content = item.content if isinstance(item.content, str) else Path(str(item.content)).name
        digest.update(repr((item.name, item.modality, content, item.is_unsafe, item.category)).encode())
    return digest.hexdigest()
