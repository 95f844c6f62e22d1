"""Quadruplets of safe and unsafe images and captions, and the files that list them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NoReturn

from tqdm import tqdm

from hysac.data.formats import Row, first_few, read_rows
from hysac.data.images import MAX_PIXELS, ImageFile, ShardMember, load_image
from hysac.data.prompt_sets import Layout, layout_of
from hysac.files import replacing

OnError = Literal["raise", "skip"]
CAPTIONS = ("safe_caption", "unsafe_caption")
IMAGES = ("safe_image", "unsafe_image")
FIELDS = (*IMAGES, *CAPTIONS, "tag", "id")
"""The columns of a manifest; ``tag`` and ``id`` are optional, the images all or nothing."""

MAX_CAPTION = 10_000
"""The most characters of a caption; a longer text is likely a whole file."""

COCO_FOLDERS = ("train2017", "val2017", "test2017")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Quadruplet:
    """A safe image and caption and their unsafe counterparts.

    Attributes:
        id: unique within its manifest.
        safe_image, unsafe_image: image files, or members of a shard; both None for text-only data.
        safe_caption, unsafe_caption: not blank, up to 10,000 characters.
        tag: the category of what is unsafe, or None.

    Raises:
        ValueError: an empty id, a blank caption, text that no file can hold (half of a surrogate pair), or
            one image without the other.
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
        for field in ("id", *CAPTIONS, "tag"):
            check_text(field, getattr(self, field) or "")
        for field in CAPTIONS:
            check_caption(field, getattr(self, field))
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
    allow_outside_root: bool = False,
) -> Manifest:
    """Read a manifest file: JSON lines (``.jsonl``), JSON (``.json``), CSV or TSV with a header, Parquet.

    The columns are ``safe_image``, ``unsafe_image``, ``safe_caption`` and ``unsafe_caption``, optionally
    ``tag`` and ``id`` (by default the row's index, from 0, or its key in a JSON object); others are ignored.
    Without image columns the data is text-only. Image files are not opened: see :func:`verify_images`.

    Rows with ``safe`` and ``nsfw`` instead of these columns are taken for ViSU: the two captions, with the
    category ``tag``. Given an ``image_root``, the safe image is COCO's ``000000<coco_id>.jpg`` (12 digits) in
    ``train2017``, ``val2017`` or ``test2017`` below it, and the unsafe image is ``nsfw_im_path``. Without
    ``image_root`` ViSU is text-only, as its public part is. Pairs of prompts in the columns of another
    public set (:data:`hysac.data.prompt_sets.LAYOUTS`) are text-only data, too.

    Args:
        path: the manifest, UTF-8. JSON is ``{"data": {key: row}}``, ``{key: row}``, ``[row, ...]`` or one row
            a line. A table is separated by tabs if its header has a tab, by commas otherwise, and quoted as
            pandas reads it: a cell that starts with ``"`` ends with one, and has ``""`` for one within.
        columns: the file's own column for a field, where it differs: open_clip's names are ``{"safe_image":
            "filepath", "safe_caption": "title", "unsafe_image": "unsafe_filepath", "unsafe_caption":
            "unsafe_title"}``.
        image_root: the folder that relative image paths start from, by default the manifest's own.
        on_error: what to do about rows that cannot be used (invalid JSON, missing columns, blank captions,
            an image ViSU names that is not there): ``"raise"``, or ``"skip"`` them, with one warning that
            counts and names them. What concerns the file as a whole is always raised.
        allow_outside_root: whether images may lie outside ``image_root``. A manifest of others could
            otherwise name any file of this machine.

    Raises:
        ValueError: an unknown suffix, field or ``on_error``; a file that is not valid; no usable rows;
            unusable rows; repeated ids; images in some rows only. The message names the file and the rows.
        FileNotFoundError: no such file.
        NotADirectoryError: ``image_root`` is not a folder.
        ImportError: Parquet without pyarrow, the extra ``parquet``.
    """
    _check_on_error(on_error)
    _check_columns(columns)
    root = None if image_root is None else Path(image_root)
    if root is not None and not root.is_dir():
        raise NotADirectoryError(f"image_root {root} is not a folder")
    path = Path(path)
    return manifest_of_rows(
        path,
        read_rows(path),
        columns=columns,
        image_root=root,
        on_error=on_error,
        allow_outside_root=allow_outside_root,
    )


def manifest_of_rows(
    path: Path,
    rows: Sequence[Row],
    *,
    columns: Mapping[str, str] | None = None,
    image_root: Path | None = None,
    on_error: OnError = "raise",
    allow_outside_root: bool = False,
) -> Manifest:
    """:func:`load_manifest` of rows that :func:`~hysac.data.formats.read_rows` has read from ``path``.

    Raises:
        ValueError: what it raises for rows.
    """
    if not rows:
        raise ValueError(f"{path}: the manifest is empty")
    root = _Root(path.parent if image_root is None else image_root, allow_outside_root)
    parse = _choose_layout(path, rows, columns, root, image_root)
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

    Of images that lie elsewhere than below its folder, the paths start with ``..``: they are read again with
    ``allow_outside_root``.

    Raises:
        ValueError: the name does not end in ``.jsonl``, images lie within shards, or a path is no UTF-8. The
            file that was there before is intact.
    """
    path = Path(path)
    if path.suffix.lower() != ".jsonl":
        raise ValueError(f"a manifest is written as .jsonl, got {path}")
    if not all(isinstance(image, Path) for record in manifest.records for image in record.images):
        raise ValueError("a manifest names image files; these images lie within shards")
    with replacing(path) as file:
        for record in manifest.records:
            values = {field: getattr(record, field) for field in ("id", *IMAGES, *CAPTIONS, "tag")}
            for field in IMAGES:
                if values[field] is not None:
                    values[field] = Path(os.path.relpath(values[field], path.parent)).as_posix()
                    check_text(field, values[field])
            present = {field: value for field, value in values.items() if value is not None}
            file.write((json.dumps(present, ensure_ascii=False) + "\n").encode())


def fingerprint(records: Sequence[Quadruplet]) -> str:
    """A digest of the records in their order: ids, texts, tags, and names and sizes of images.

    The folders of the images do not matter.
    """
    digest = hashlib.sha256()
    for record in records:
        images = [(Path(image.name).name, _size_of(image)) for image in record.images]
        fields = (record.id, record.safe_caption, record.unsafe_caption, record.tag, images)
        digest.update(json.dumps(fields).encode())
    return digest.hexdigest()[:16]


def _size_of(image: ImageFile) -> int | None:
    if isinstance(image, ShardMember):
        return image.size
    return image.stat().st_size if image.is_file() else None


def verify_images(
    manifest: Manifest,
    *,
    on_error: OnError = "raise",
    progress: bool = True,
    max_pixels: int | None = MAX_PIXELS,
) -> Manifest:
    """Decode every image once, so that a broken one shows before training and not in the middle of it.

    What is left has a fixed length and order: indices, shuffles and resumed runs agree from then on. Keep the
    result with :func:`save_manifest` to pay for the check once.

    Args:
        manifest: text-only manifests come back as they are.
        on_error: ``"raise"``, or ``"skip"`` quadruplets with an unreadable image, with one warning that
            counts and names them.
        progress: show a progress bar.
        max_pixels: see :func:`load_image`.

    Returns:
        The manifest without the skipped quadruplets, which are added to its count.

    Raises:
        ValueError: images are missing or broken, named by row and path; or none is left.
    """
    _check_on_error(on_error)
    if not manifest.has_images:
        return manifest
    paths = list(dict.fromkeys(path for record in manifest.records for path in record.images))
    broken = _find_unreadable(paths, progress, max_pixels)
    faults = [
        (f"row with id {record.id!r}", broken[path])
        for record in manifest.records
        for path in record.images
        if path in broken
    ]
    good = tuple(record for record in manifest.records if broken.keys().isdisjoint(record.images))
    settle("images", faults, len(manifest), on_error)
    return replace(manifest, records=good, skipped=manifest.skipped + len(manifest) - len(good))


def _find_unreadable(
    paths: Sequence[ImageFile], progress: bool, max_pixels: int | None
) -> dict[ImageFile, str]:
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        reasons = pool.map(partial(_why_unreadable, max_pixels=max_pixels), paths)
        bar = tqdm(reasons, total=len(paths), desc="check images", unit="image", disable=not progress)
        return {path: reason for path, reason in zip(paths, bar, strict=True) if reason is not None}
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt does not wait for the images that are left


def _why_unreadable(path: ImageFile, max_pixels: int | None) -> str | None:
    try:
        load_image(path, max_pixels=max_pixels)
    except ValueError as error:
        return str(error)
    return None


class _Root:
    """The folder that a manifest's image paths start from and, unless ``allows_outside``, stay in."""

    def __init__(self, folder: Path, allows_outside: bool) -> None:
        self._folder = folder
        self._real = folder.resolve()
        self._allows_outside = allows_outside
        self._is_inside = cache(self._folder_is_inside)  # many images lie in few folders

    def file(self, name: str) -> Path:
        if "\0" in name:
            raise ValueError(f"{name!r} is no path")
        path = self._folder / name
        if self._allows_outside:
            return path
        if Path(name).is_absolute() or ".." in Path(name).parts:
            self._refuse(name)
        try:
            real = _resolved(path) if path.is_symlink() else path
            inside = self._is_inside(real.parent)
        except (OSError, RuntimeError) as error:  # a name that is too long, links in a circle
            raise ValueError(f"{name[:80]!r} is no path: {error}"[:400]) from None
        if not inside:
            self._refuse(name)
        return path

    def _folder_is_inside(self, folder: Path) -> bool:
        return _resolved(folder).is_relative_to(self._real)

    def _refuse(self, name: str) -> NoReturn:
        raise ValueError(
            f"image {name!r} lies outside of {self._folder}, or may; name the folder of all images as "
            "image_root, or allow_outside_root (--allow-outside-root)"
        )


def _resolved(path: Path) -> Path:
    real = path.resolve()
    if real.is_symlink():  # Python 3.13 gives a link where older ones raise
        raise OSError("its links lead in a circle")
    return real


def _choose_layout(
    path: Path,
    rows: Sequence[Row],
    columns: Mapping[str, str] | None,
    root: _Root,
    image_root: Path | None,
) -> Callable[[Row], Quadruplet]:
    names = next((row.fields.keys() for row in rows if row.fault is None), {}.keys())
    if columns is None and {"safe", "nsfw"} <= names and names.isdisjoint(IMAGES + CAPTIONS):
        if image_root is None:
            return _parse_visu_text
        return partial(_parse_visu, root=root, folder=image_root, coco=_list_coco(image_root))
    layout = layout_of(rows) if columns is None and names.isdisjoint(IMAGES + CAPTIONS) else None
    if layout is not None:
        if not layout.is_paired:
            raise ValueError(
                f"{path} has the columns of {layout.name}, whose prompts have no counterparts: it holds no "
                "quadruplets, but labelled data, for classify-eval, calibrate and unsafe-eval"
            )
        return partial(_parse_pair, layout=layout)
    return partial(_parse_plain, columns=columns or {}, root=root)


def _parse_plain(row: Row, columns: Mapping[str, str], root: _Root) -> Quadruplet:
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
    safe_image, unsafe_image = (root.file(cells[field]) if cells[field] else None for field in IMAGES)
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


def _parse_pair(row: Row, layout: Layout) -> Quadruplet:
    prompts = {prompt.is_unsafe: prompt for prompt in layout.prompts(row)}
    return Quadruplet(
        id=row.key,
        safe_image=None,
        unsafe_image=None,
        safe_caption=prompts[False].text if False in prompts else "",
        unsafe_caption=prompts[True].text if True in prompts else "",
        tag=(prompts[True].category if True in prompts else "") or None,
    )


def _parse_visu(row: Row, root: _Root, folder: Path, coco: Mapping[str, str]) -> Quadruplet:
    coco_id, unsafe_image = _cell(row, "coco_id"), _cell(row, "nsfw_im_path")
    if not coco_id or not unsafe_image:
        raise ValueError("images need coco_id and nsfw_im_path; without image_root the captions load alone")
    name = f"{coco_id:0>12}.jpg"
    if name not in coco:
        raise ValueError(f"safe image {name} is in none of {', '.join(COCO_FOLDERS)} below {folder}")
    safe, unsafe = root.file(coco[name]), root.file(unsafe_image)
    return replace(_parse_visu_text(row), safe_image=safe, unsafe_image=unsafe)


def _cell(row: Row, column: str) -> str:
    """A cell as text; "" where it is absent or null."""
    value: Any = row.fields.get(column)
    if value is None:
        return ""
    if isinstance(value, str):
        check_text(column, value)
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"column {column!r} must be text, got {type(value).__name__} {value!r}")


def _list_coco(root: Path) -> dict[str, str]:
    """The paths of COCO's image files by name, from one listing of each folder and no look-up per row."""
    folders = [root / name for name in COCO_FOLDERS if (root / name).is_dir()]
    if not folders:
        raise ValueError(f"image_root {root} has none of the folders {', '.join(COCO_FOLDERS)}")
    return {name: f"{folder.name}/{name}" for folder in folders for name in os.listdir(folder)}


def settle(source: str, faults: Sequence[tuple[str, str]], total: int, on_error: OnError) -> None:
    """Raise or report ``(place, fault)`` pairs; equal faults are named once, with their places."""
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


def check_caption(name: str, caption: str) -> None:
    """Refuse a text that is blank, or too long to be a caption.

    Raises:
        ValueError: says which.
    """
    if not caption.strip():
        raise ValueError(f"{name} is empty")
    if len(caption) > MAX_CAPTION:
        raise ValueError(f"{name} has {len(caption)} characters, more than {MAX_CAPTION}")


def check_text(name: str, text: str) -> None:
    """Refuse text that UTF-8 cannot encode: JSON's escapes can spell half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} has {text[error.start]!r} at character {error.start}, half of a surrogate pair, "
            "which is no text"
        ) from None


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
