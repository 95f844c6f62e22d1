"""Manifest files as rows: JSON lines, JSON, CSV, TSV and Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_OPEN_QUOTE = (
    'a quote opens a cell and none closes it. A table has the quotes of CSV: a cell that starts with " ends '
    'with one, and within it " is written twice'
)


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


def read_rows(path: Path, suffix: str | None = None) -> list[Row]:
    """All rows of a manifest file, in its order; unreadable ones carry their ``fault``.

    Args:
        path: the file.
        suffix: what its name would end in, where it does not.

    Raises:
        ValueError: an unknown suffix, a file that is not UTF-8 or that has no rows to speak of.
        FileNotFoundError: no such file.
        ImportError: Parquet without pyarrow.
    """
    reader = READERS.get((suffix or path.suffix).lower())
    if reader is None:
        raise ValueError(
            f"{path}: a manifest's name ends in {', '.join(READERS)}; got {path.suffix or 'no suffix'!r}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"manifest {path} does not exist")
    try:
        return list(reader(path.read_bytes()))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _of_text(read: Callable[[str], Iterator[Row]]) -> Callable[[bytes], Iterator[Row]]:
    return lambda content: read(content.decode("utf-8-sig"))


def _json_lines(text: str) -> Iterator[Row]:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    for index, (number, line) in enumerate(lines):
        place = f"line {number}"
        try:
            yield _json_row(place, str(index), parse_json(line))
        except ValueError as error:
            yield Row(place, str(index), {}, fault=f"not valid JSON: {error}")


def _json_document(text: str) -> Iterator[Row]:
    """``{"data": {key: row}}``, ``{key: row}``, ``[row]``, splits side by side, or one row a line."""
    try:
        document = parse_json(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from _json_lines(text)
            return
        raise ValueError(f"not valid JSON: {error}") from error
    if isinstance(document, dict) and (splits := [name for name in _SPLITS if name in document]):
        yield from (row for name in splits for row in _split(name, document[name]))
        return
    rows = document.get("data", document) if isinstance(document, dict) else document
    if isinstance(rows, list):
        yield from (_json_row(f"row {index}", str(index), row) for index, row in enumerate(rows))
    elif isinstance(rows, dict) and all(isinstance(row, dict) for row in rows.values()):
        yield from (_json_row(f"entry {key!r}", key, row) for key, row in rows.items())
    else:
        raise ValueError('expected {"data": {key: row}}, {key: row}, [row, ...] or one row a line')


_SPLITS = ("ID_train_data", "ID_test_data", "OOD_test_data")
"""CoPro has its splits, lists of rows, beside its concepts and their synonyms."""


def _split(name: str, rows: object) -> Iterator[Row]:
    if not isinstance(rows, list):
        raise ValueError(f"{name} must be a list of rows, got {type(rows).__name__}")
    for index, row in enumerate(rows):
        yield _json_row(f"{name} {index}", f"{name}:{index}", row)


def _json_row(place: str, key: str, row: object) -> Row:
    if isinstance(row, dict):
        return Row(place, key, row)
    return Row(place, key, {}, fault=f"expected an object, got {type(row).__name__}")


def parse_json(text: str) -> Any:
    """The value of a JSON text whose objects have distinct keys.

    Raises:
        ValueError: it is not JSON, repeats a key or is nested beyond what Python's parser takes.
    """
    try:
        return json.loads(text, object_pairs_hook=_object_with_distinct_keys)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object_with_distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Plain ``json`` keeps the last of several equal keys, and so loses rows without a word."""
    made = dict(pairs)
    if len(made) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"repeated keys: {first_few(sorted(key for key, n in counts.items() if n > 1))}")
    return made


def _table(text: str) -> Iterator[Row]:
    """A table with a header; separated by tabs where the header has one, by commas otherwise.

    Quotes are those of CSV, as pandas and so open_clip read them: a cell that starts with ``"`` goes on to
    the next ``"`` that is not doubled, over separators and line breaks.
    """
    header_line = text.partition("\n")[0]
    delimiter = "\t" if "\t" in header_line else ","
    if delimiter not in header_line and ";" in header_line:
        raise ValueError(
            f"the header {header_line.strip()!r} has semicolons; a table is separated by tabs or commas"
        )
    rows = _cells(text, delimiter)
    _, header = next(rows, (1, []))
    if len(set(header)) < len(header):
        raise ValueError(f"repeated columns in the header: {', '.join(header)}")
    for index, (line, cells) in enumerate(rows):
        if len(cells) == len(header):
            yield Row(f"line {line}", str(index), dict(zip(header, cells, strict=True)))
        else:
            fault = f"has {len(cells)} cells where the header has {len(header)}"
            yield Row(f"line {line}", str(index), {}, fault=fault)


def _cells(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The last line of each row that is not empty, and its cells."""
    end = "\x1e"  # a line after the last one, which an open quote swallows
    while end in text:
        end += "\x1e"
    reader = csv.reader(io.StringIO(f"{text}\n{end}", newline=""), delimiter=delimiter)
    first = 1
    try:
        for cells in reader:
            if cells == [end]:
                return
            if cells and cells[-1].endswith(end):
                raise ValueError(f"line {first}: {_OPEN_QUOTE}")
            if cells:
                yield reader.line_num, cells
            first = reader.line_num + 1
    except csv.Error as error:
        reason = _OPEN_QUOTE if "field larger" in str(error) else error
        raise ValueError(f"line {first}: {reason}") from error


def _parquet(content: bytes) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ImportError("Parquet needs pyarrow: pip install 'hysac[parquet]'") from error
    try:
        rows = parquet.read_table(io.BytesIO(content)).to_pylist()
    except (ArrowException, OSError) as error:
        raise ValueError(f"not valid Parquet: {error}") from error
    yield from (Row(f"row {index}", str(index), row) for index, row in enumerate(rows))


def first_few(values: list[str], limit: int = 5) -> str:
    """The first ``limit`` of ``values``, and how many more there are."""
    more = len(values) - limit
    return ", ".join(values[:limit]) + (f" and {more} more" if more > 0 else "")


READERS: dict[str, Callable[[bytes], Iterator[Row]]] = {
    ".jsonl": _of_text(_json_lines),
    ".json": _of_text(_json_document),
    ".csv": _of_text(_table),
    ".tsv": _of_text(_table),
    ".parquet": _parquet,
}
"""The functions that make rows of a file's content, by its suffix."""
