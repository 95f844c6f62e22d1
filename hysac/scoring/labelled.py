"""Labelled items, ``item, label`` and optionally ``modality`` and ``category``, or quadruplets as such."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hysac.data.formats import Row, first_few, read_rows
from hysac.data.images import SUFFIXES, ImageFile
from hysac.data.manifest import Quadruplet, load_manifest
from hysac.data.shards import is_shards, load_shards

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


def load_labelled(path: str, *, image_root: str | None = None) -> list[Labelled]:
    """The labelled items of a file, or the four of each quadruplet of a manifest or of shards.

    Args:
        path: with the columns ``item`` and ``label``, and optionally ``modality`` and ``category``. An item
            is an image where ``modality`` is ``image``, or without that column where its name ends as an
            image's does; else it is a text. Labels are those of :data:`LABELS`.
        image_root: what image paths are relative to; by default the file's folder.

    Raises:
        ValueError: a file without these columns and not of quadruplets, a label that is none, an empty item;
            names the rows.
        FileNotFoundError: no such file.
    """
    if is_shards(path):
        return _of_quadruplets(load_shards(path, progress=False).records)
    rows = read_rows(Path(path))
    columns = {column for row in rows for column in row.fields}
    if not {"item", "label"} <= columns:
        try:
            return _of_quadruplets(load_manifest(path, image_root=image_root).records)
        except ValueError as error:
            raise ValueError(
                f"{path} has no columns item and label, and holds no quadruplets: {error}"
            ) from error
    root = Path(path).parent if image_root is None else Path(image_root)
    found, faults = [], []
    for row in rows:
        try:
            found.append(_of_row(row, root))
        except ValueError as error:
            faults.append(f"{row.place} {error}")
    if faults:
        raise ValueError(f"{path}: {len(faults)} of {len(rows)} rows cannot be used: {first_few(faults)}")
    return found


def _of_row(row: Row, root: Path) -> Labelled:
    if row.fault is not None:
        raise ValueError(row.fault)
    item, label = row.fields.get("item"), str(row.fields.get("label", "")).strip().lower()
    if not isinstance(item, str) or not item.strip():
        raise ValueError("has no item")
    if label not in LABELS:
        raise ValueError(f"has the label {label!r}, which is none of {', '.join(LABELS)}")
    modality = row.fields.get("modality") or ("image" if Path(item).suffix.lower() in SUFFIXES else "text")
    if modality not in ("text", "image"):
        raise ValueError(f"has the modality {modality!r}, which is neither text nor image")
    content = root / item if modality == "image" else item
    return Labelled(row.place, modality, content, LABELS[label], str(row.fields.get("category") or ""))


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


def fingerprint(items: list[Labelled]) -> str:
    """A SHA-256 of the items' names, contents and labels, in order; images count by their file's name."""
    digest = hashlib.sha256()
    for item in items:
        content = item.content if isinstance(item.content, str) else Path(str(item.content)).name
        digest.update(repr((item.name, item.modality, content, item.is_unsafe, item.category)).encode())
    return digest.hexdigest()
