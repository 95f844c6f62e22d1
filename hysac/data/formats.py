"""Manifest files as rows: JSON lines, JSON, CSV and TSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One row of a manifest file.

    Attributes:
        place: where it stands in the file, for messages.
        key: its identifier unless it has a column for one.
        fields: its cells by column name; empty where the row cannot be read.
        fault: why it cannot be read, or None.
    """

    place: str
    key: str
    fields: dict[str, Any]
    fault: str | None = None


def read_rows(path: Path) -> list[Row]:
    """All rows of a manifest file, in its order; unreadable ones carry their ``fault``.

    Raises:
        ValueError: an unknown suffix, a file that is not UTF-8 or that has no rows to speak of.
        FileNotFoundError: no such file.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"{path}: a manifest's name ends in {', '.join(READERS)}; got {path.suffix or 'no suffix'!r}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"manifest {path} does not exist")
    try:
        return list(reader(path.read_bytes().decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _json_lines(text: str) -> Iterator[Row]:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    for index, (number, line) in enumerate(lines):
        place = f"line {number}"
        try:
            yield _json_row(place, str(index), _parse_json(line))
        except ValueError as error:
            yield Row(place, str(index), {}, fault=f"not valid JSON: {error}")


def _json_document(text: str) -> Iterator[Row]:
    """``{"data": {key: row}}``, ``{key: row}``, ``[row]``, or one row a line."""
    try:
        document = _parse_json(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from _json_lines(text)
            return
        raise ValueError(f"not valid JSON: {error}") from error
    rows = document.get("data", document) if isinstance(document, dict) else document
    if isinstance(rows, list):
        yield from (_json_row(f"row {index}", str(index), row) for index, row in enumerate(rows))
    elif isinstance(rows, dict) and all(isinstance(row, dict) for row in rows.values()):
        yield from (_json_row(f"entry {key!r}", key, row) for key, row in rows.items())
    else:
        raise ValueError('expected {"data": {key: row}}, {key: row}, [row, ...] or one row a line')


def _json_row(place: str, key: str, row: object) -> Row:
    if isinstance(row, dict):
        return Row(place, key, row)
    return Row(place, key, {}, fault=f"expected an object, got {type(row).__name__}")


def _parse_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object_with_distinct_keys)


def _object_with_distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Plain ``json`` keeps the last of several equal keys, and so loses rows without a word."""
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError(f"repeated keys: {first_few(sorted({key for key in keys if keys.count(key) > 1}))}")
    return dict(pairs)


def _table(text: str) -> Iterator[Row]:
    """A table with a header; separated by tabs where the header has one, by commas otherwise."""
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise ValueError(f"repeated columns in the header: {', '.join(header)}")
        for index, cells in enumerate(cells for cells in reader if cells):
            place = f"line {reader.line_num}"
            if len(cells) == len(header):
                yield Row(place, str(index), dict(zip(header, cells, strict=True)))
            else:
                fault = f"has {len(cells)} cells where the header has {len(header)}"
                yield Row(place, str(index), {}, fault=fault)
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error


def first_few(values: list[str], limit: int = 5) -> str:
    """The first ``limit`` of ``values``, and how many more there are."""
    more = len(values) - limit
    return ", ".join(values[:limit]) + (f" and {more} more" if more > 0 else "")


READERS: dict[str, Callable[[str], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json_document,
    ".csv": _table,
    ".tsv": _table,
}
