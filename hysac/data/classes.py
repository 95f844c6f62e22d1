"""Images of known classes: a folder for each class, or a manifest with a column for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hysac.data.formats import first_few, read_rows
from hysac.data.images import SUFFIXES
from hysac.files import read_json


@dataclass(frozen=True)
class ClassImages:
    """Images and their classes.

    Attributes:
        images: image files.
        labels: of each image the index of its class.
        classes: as folders or cells name them, sorted.
        names: of each class what prompts call it, one name or several.
    """

    images: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]


def load_class_images(
    path: str | Path,
    *,
    names: Mapping[str, str | list[str]] | None = None,
    image_column: str = "image",
    class_column: str = "class",
    image_root: str | Path | None = None,
) -> ClassImages:
    """The images of a data set for classification.

    Args:
        path: a folder whose folders are the classes, with images in and below each; or a manifest with a
            column of image paths and one of classes.
        names: what prompts call the classes, by what the data calls them; by default the same, with spaces
            for underscores. All classes of the data must be there; others are classes without images.
        image_column, class_column: of a manifest.
        image_root: what image paths of a manifest are relative to; by default its folder.

    Raises:
        ValueError: images beside the folders of classes, no images, fewer than two classes, a column or a
            name that is missing, an empty cell; says what came and what was expected.
        FileNotFoundError: nothing of that name.
    """
    path = Path(path)
    if path.is_dir():
        found, classes = _of_folders(path)
    elif path.exists():
        root = path.parent if image_root is None else Path(image_root)
        found, classes = _of_manifest(path, image_column, class_column, root)
    else:
        raise FileNotFoundError(f"{path} does not exist")
    if not found:
        raise ValueError(f"{path} has no images, whose names end in {', '.join(SUFFIXES)}")
    if names is not None:
        if missing := sorted(classes - names.keys()):
            raise ValueError(f"names lacks {first_few(missing)}, which {path} has as classes")
        classes |= names.keys()
    if len(classes) < 2:
        raise ValueError(f"{path} has one class, {min(classes)!r}: there is nothing to tell it from")
    ordered = sorted(classes)
    place = {name: number for number, name in enumerate(ordered)}
    return ClassImages(
        images=tuple(image for image, _ in found),
        labels=tuple(place[name] for _, name in found),
        classes=tuple(ordered),
        names=tuple(_names_of(name, names) for name in ordered),
    )


def read_names(path: Path) -> dict[str, str | list[str]]:
    """Names of classes from a JSON object: ``{"n01440764": "tench", "n03207941": ["dishwasher", ...]}``.

    Raises:
        ValueError: something else; names the file and the entry.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise ValueError(f'{path} must hold {{"class": "name"}} or {{"class": ["name", ...]}}')
    for key, value in content.items():
        if not _is_name(value) and not (isinstance(value, list) and value and all(map(_is_name, value))):
            raise ValueError(f"{path}: the name of {key!r} must be a text or a list of texts, got {value!r}")
    return content


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _names_of(class_name: str, names: Mapping[str, str | list[str]] | None) -> tuple[str, ...]:
    if names is None:
        return (class_name.replace("_", " "),)
    found = names[class_name]
    return (found,) if isinstance(found, str) else tuple(found)


def _of_folders(folder: Path) -> tuple[list[tuple[Path, str]], set[str]]:
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    if beside := [entry.name for entry in entries if entry.suffix.lower() in SUFFIXES and entry.is_file()]:
        raise ValueError(
            f"{folder} has the images {first_few(beside)} beside the folders of its classes, so that their "
            "class is not known"
        )
    classes = [entry for entry in entries if entry.is_dir()]
    found = [
        (file, entry.name)
        for entry in classes
        for file in sorted(entry.rglob("*"))
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    ]
    return found, {entry.name for entry in classes}


def _of_manifest(
    path: Path, image_column: str, class_column: str, root: Path
) -> tuple[list[tuple[Path, str]], set[str]]:
    found, faults = [], []
    for row in read_rows(path):
        try:
            if row.fault is not None:
                raise ValueError(row.fault)
            image, class_name = (_cell(row.fields, column) for column in (image_column, class_column))
            found.append((root / image, class_name))
        except ValueError as error:
            faults.append(f"{row.place}: {error}")
    if faults:
        raise ValueError(f"{path}: {len(faults)} rows cannot be used: {first_few(faults)}")
    return found, {class_name for _, class_name in found}


def _cell(fields: Mapping[str, Any], column: str) -> str:
    if column not in fields:
        raise ValueError(f"no column {column!r}; the columns are {', '.join(fields) or 'none at all'}")
    value = fields[column]
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if not is_number and not (isinstance(value, str) and value.strip()):
        raise ValueError(f"column {column!r} must be text or an integer, got {value!r}")
    return str(value)
