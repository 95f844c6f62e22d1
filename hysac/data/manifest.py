"""Quadruplets of safe and unsafe images and captions, and the files that list them."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from hysac.data.formats import Row, first_few, read_rows
from hysac.data.images import ImageFile, load_image

OnError = Literal["raise", "skip"]
CAPTIONS = ("safe_caption", "unsafe_caption")
IMAGES = ("safe_image", "unsafe_image")
FIELDS = (*IMAGES, *CAPTIONS, "tag", "id")
"""The columns of a manifest; ``tag`` and ``id`` are optional, the images all or nothing."""

COCO_FOLDERS = ("train2017", "val2017", "test2017")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Quadruplet:
    """A safe image and caption and their unsafe counterparts.

    Attributes:
        id: unique within its manifest.
        safe_image, unsafe_image: image files, or members of a shard; both None for text-only data.
        safe_caption, unsafe_caption: not blank.
        tag: the category of what is unsafe, or None.

    Raises:
        ValueError: an empty id, a blank caption, or one image without the other.
    """

    id: str
    safe_image: ImageFile | None
    unsafe_image: ImageFile | None
    safe_caption: str
    unsafe_caption: str
    tag: str | None = None

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("id is empty")
        for field in CAPTIONS:
            if not getattr(self, field).strip():
                raise ValueError(f"{field} is empty")
        if (self.safe_image is None) != (self.unsafe_image is None):
            missing = IMAGES[0] if self.safe_image is None else IMAGES[1]
            raise ValueError(f"{missing} is empty: give both images, or none for text-only data")

    @property
    def images(self) -> tuple[ImageFile, ...]:
        """The safe and the unsafe image, or nothing for text-only data."""
        return tuple(path for path in (self.safe_image, self.unsafe_image) if path is not None)


@dataclass(frozen=True)
class Manifest:
    """A list of quadruplets, either all with images or all without.

    Attributes:
        records: at least one quadruplet, with distinct ids.
        skipped: how many rows ``on_error="skip"`` has left out.

    Raises:
        ValueError: no records, repeated ids, or images in some records only.
    """

    records: tuple[Quadruplet, ...]
    skipped: int = 0

    def __post_init__(self) -> None:
        if not self.records:
            raise ValueError("the manifest is empty")
        counts = Counter(record.id for record in self.records)
        if repeated := [repr(id_) for id_, count in counts.items() if count > 1]:
            raise ValueError(f"ids must be unique, these are repeated: {first_few(repeated)}")
        first = self.records[0]
        if odd := next((r for r in self.records if bool(r.images) != bool(first.images)), None):
            with_, without = (odd, first) if odd.images else (first, odd)
            raise ValueError(
                f"row with id {without.id!r} has no images but the one with id {with_.id!r} has; "
                "give images to every row or to none"
            )

    def __len__(self) -> int:
        return len(self.records)

    @property
    def has_images(self) -> bool:
        """False for text-only data."""
        return bool(self.records[0].images)


def load_manifest(
    path: str | os.PathLike[str],
    *,
    columns: Mapping[str, str] | None = None,
    image_root: str | os.PathLike[str] | None = None,
    on_error: OnError = "raise",
) -> Manifest:
    """Read a manifest file: JSON lines (``.jsonl``), JSON (``.json``), CSV or TSV with a header.

    The columns are ``safe_image``, ``unsafe_image``, ``safe_caption`` and ``unsafe_caption``, optionally
    ``tag`` and ``id`` (by default the row's index, from 0, or its key in a JSON object); others are ignored.
    Without image columns the data is text-only. Image files are not opened: see :func:`verify_images`.

    Rows with ``safe`` and ``nsfw`` instead of these columns are taken for ViSU: the two captions, with the
    category ``tag``. Given an ``image_root``, the safe image is COCO's ``000000<coco_id>.jpg`` (12 digits) in
    ``train2017``, ``val2017`` or ``test2017`` below it, and the unsafe image is ``nsfw_im_path``. Without
    ``image_root`` ViSU is text-only, as its public part is.

    Args:
        path: the manifest, UTF-8. JSON is ``{"data": {key: row}}``, ``{key: row}``, ``[row, ...]`` or one row
            a line. A table is separated by tabs if its header has a tab, by commas otherwise.
        columns: the file's own column for a field, where it differs: open_clip's names are ``{"safe_image":
            "filepath", "safe_caption": "title", "unsafe_image": "unsafe_filepath", "unsafe_caption":
            "unsafe_title"}``.
        image_root: the folder that relative image paths start from, by default the manifest's own.
        on_error: what to do about rows that cannot be used (invalid JSON, missing columns, blank captions,
            an image ViSU names that is not there): ``"raise"``, or ``"skip"`` them, with one warning that
            counts and names them. What concerns the file as a whole is always raised.

    Raises:
        ValueError: an unknown suffix, field or ``on_error``; a file that is not valid; no usable rows;
            unusable rows; repeated ids; images in some rows only. The message names the file and the rows.
        FileNotFoundError: no such file.
        NotADirectoryError: ``image_root`` is not a folder.
    """
    path = Path(path)
    _check_on_error(on_error)
    _check_columns(columns)
    root = None if image_root is None else Path(image_root)
    if root is not None and not root.is_dir():
        raise NotADirectoryError(f"image_root {root} is not a folder")
    rows = read_rows(path)
    if not rows:
        raise ValueError(f"{path}: the manifest is empty")
    parse = _choose_layout(rows, columns, path.parent, root)
    records, faults = [], []
    for row in rows:
        try:
            if row.fault is not None:
                raise ValueError(row.fault)
            records.append(parse(row))
        except ValueError as error:
            faults.append((row.place, str(error)))
    settle(str(path), faults, len(rows), on_error)
    try:
        return Manifest(tuple(records), skipped=len(faults))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def save_manifest(manifest: Manifest, path: str | os.PathLike[str]) -> None:
    """Write a manifest as JSON lines, image paths relative to its folder, for :func:`load_manifest`.

    Raises:
        ValueError: the name does not end in ``.jsonl``, or images lie within shards.
    """
    path = Path(path)
    if path.suffix.lower() != ".jsonl":
        raise ValueError(f"a manifest is written as .jsonl, got {path}")
    if not all(isinstance(image, Path) for record in manifest.records for image in record.images):
        raise ValueError("a manifest names image files; these images lie within shards")
    with path.open("w", encoding="utf-8") as file:
        for record in manifest.records:
            values = {field: getattr(record, field) for field in ("id", *IMAGES, *CAPTIONS, "tag")}
            for field in IMAGES:
                if values[field] is not None:
                    values[field] = Path(os.path.relpath(values[field], path.parent)).as_posix()
            present = {field: value for field, value in values.items() if value is not None}
            file.write(json.dumps(present, ensure_ascii=False) + "\n")


def verify_images(manifest: Manifest, *, on_error: OnError = "raise", progress: bool = True) -> Manifest:
    """Decode every image once, so that a broken one shows before training and not in the middle of it.

    What is left has a fixed length and order: indices, shuffles and resumed runs agree from then on. Keep the
    result with :func:`save_manifest` to pay for the check once.

    Args:
        manifest: text-only manifests come back as they are.
        on_error: ``"raise"``, or ``"skip"`` quadruplets with an unreadable image, with one warning that
            counts and names them.
        progress: show a progress bar.

    Returns:
        The manifest without the skipped quadruplets, which are added to its count.

    Raises:
        ValueError: images are missing or broken, named by row and path; or none is left.
    """
    _check_on_error(on_error)
    if not manifest.has_images:
        return manifest
    paths = list(dict.fromkeys(path for record in manifest.records for path in record.images))
    broken = _find_unreadable(paths, progress)
    faults = [
        (f"row with id {record.id!r}", broken[path])
        for record in manifest.records
        for path in record.images
        if path in broken
    ]
    good = tuple(record for record in manifest.records if broken.keys().isdisjoint(record.images))
    settle("images", faults, len(manifest), on_error)
    return replace(manifest, records=good, skipped=manifest.skipped + len(manifest) - len(good))


def _find_unreadable(paths: Sequence[ImageFile], progress: bool) -> dict[ImageFile, str]:
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        reasons = pool.map(_why_unreadable, paths)
        bar = tqdm(reasons, total=len(paths), desc="check images", unit="image", disable=not progress)
        return {path: reason for path, reason in zip(paths, bar, strict=True) if reason is not None}
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt does not wait for the images that are left


def _why_unreadable(path: ImageFile) -> str | None:
    try:
        load_image(path)
    except ValueError as error:
        return str(error)
    return None


def _choose_layout(
    rows: Sequence[Row], columns: Mapping[str, str] | None, folder: Path, image_root: Path | None
) -> Callable[[Row], Quadruplet]:
    names = next((row.fields.keys() for row in rows if row.fault is None), {}.keys())
    if columns is None and {"safe", "nsfw"} <= names and names.isdisjoint(IMAGES + CAPTIONS):
        if image_root is None:
            return _parse_visu_text
        return partial(_parse_visu, root=image_root, coco=_list_coco(image_root))
    return partial(_parse_plain, columns=columns or {}, root=image_root or folder)


def _parse_plain(row: Row, columns: Mapping[str, str], root: Path) -> Quadruplet:
    name = {field: columns.get(field, field) for field in FIELDS}
    expected = {field for field in FIELDS if field in CAPTIONS or field in columns}
    if any(field in columns or name[field] in row.fields for field in IMAGES):
        expected |= set(IMAGES)
    for field in FIELDS:
        if field in expected and name[field] not in row.fields:
            existing = ", ".join(map(repr, row.fields))
            raise ValueError(
                f"no column {name[field]!r} for {field}; the columns are {existing or 'none at all'}"
            )
    cells = {field: _cell(row, name[field]) for field in FIELDS}
    safe_image, unsafe_image = (root / cells[field] if cells[field] else None for field in IMAGES)
    return Quadruplet(
        id=cells["id"] or row.key,
        safe_image=safe_image,
        unsafe_image=unsafe_image,
        safe_caption=cells["safe_caption"],
        unsafe_caption=cells["unsafe_caption"],
        tag=cells["tag"] or None,
    )


def _parse_visu_text(row: Row) -> Quadruplet:
    return Quadruplet(
        id=row.key,
        safe_image=None,
        unsafe_image=None,
        safe_caption=_cell(row, "safe"),
        unsafe_caption=_cell(row, "nsfw"),
        tag=_cell(row, "tag") or None,
    )


def _parse_visu(row: Row, root: Path, coco: Mapping[str, Path]) -> Quadruplet:
    coco_id, unsafe_image = _cell(row, "coco_id"), _cell(row, "nsfw_im_path")
    if not coco_id or not unsafe_image:
        raise ValueError("images need coco_id and nsfw_im_path; without image_root the captions load alone")
    name = f"{coco_id:0>12}.jpg"
    if name not in coco:
        raise ValueError(f"safe image {name} is in none of {', '.join(COCO_FOLDERS)} below {root}")
    return replace(_parse_visu_text(row), safe_image=coco[name], unsafe_image=root / unsafe_image)


def _cell(row: Row, column: str) -> str:
    """A cell as text; "" where it is absent or null."""
    value: Any = row.fields.get(column)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"column {column!r} must be text, got {type(value).__name__} {value!r}")


def _list_coco(root: Path) -> dict[str, Path]:
    """COCO's image files by name, from one listing of each folder instead of a look-up per row."""
    folders = [root / name for name in COCO_FOLDERS if (root / name).is_dir()]
    if not folders:
        raise ValueError(f"image_root {root} has none of the folders {', '.join(COCO_FOLDERS)}")
    return {name: folder / name for folder in folders for name in os.listdir(folder)}


def settle(source: str, faults: Sequence[tuple[str, str]], total: int, on_error: OnError) -> None:
    """Raise or report ``(place, fault)`` pairs; equal faults are told once, with their places."""
    if not faults:
        return
    places: dict[str, list[str]] = {}
    for place, fault in faults:
        places.setdefault(fault, []).append(place)
    details = [f"{first_few(where)}: {fault}" for fault, where in places.items()]
    rows = len({place for place, _ in faults})
    summary = f"{source}: {rows} of {total} rows cannot be used\n  " + "\n  ".join(details[:10])
    if len(details) > 10:
        summary += f"\n  and {len(details) - 10} more reasons"
    if on_error == "raise" or rows == total:
        raise ValueError(summary)
    logger.warning("%s\n  These rows are skipped.", summary)


def _check_on_error(on_error: str) -> None:
    if on_error not in ("raise", "skip"):
        raise ValueError(f'on_error must be "raise" or "skip", got {on_error!r}')


def _check_columns(columns: Mapping[str, str] | None) -> None:
    if columns is None:
        return
    if unknown := sorted(columns.keys() - set(FIELDS)):
        raise ValueError(
            f"columns maps unknown fields {', '.join(unknown)}; the fields are {', '.join(FIELDS)}"
        )
    repeated = [column for column, count in Counter(columns.values()).items() if count > 1]
    if repeated:
        raise ValueError(f"columns takes several fields from the same column: {', '.join(repeated)}")
