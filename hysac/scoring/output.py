"""Scores as a table: CSV or JSON lines, which an interrupted run continues, or Parquet."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from hysac.data.formats import read_rows
from hysac.files import read_json, replacing, replacing_paths, write_json
from hysac.scoring.streaming import Scored

COLUMNS = ("item", "modality", "distance", "probability", "decision", "nearest_class", "error")
FORMATS = (".csv", ".jsonl", ".parquet")
PART = ".part"
"""The suffix of an output until all items are scored."""


def check_output(path: Path) -> None:
    """Refuse a table of an unknown format, or one whose library is missing.

    Raises:
        ValueError: another suffix than those of :data:`FORMATS`.
        ImportError: Parquet without pyarrow.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: the name of an output ends in {', '.join(FORMATS)}")
    if path.suffix.lower() == ".parquet":
        _pyarrow()


def rows_of(scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """Rows with :data:`COLUMNS`; what is not known is None."""
    rows = []
    for item, score, fault in scored:
        values = {} if score is None else vars(score)
        row = dict.fromkeys(COLUMNS) | {"item": item.name, "modality": item.modality, "error": fault}
        rows.append(row | {name: value for name, value in values.items() if name in row})
    return rows


class Table:
    """Writes rows beside ``path``, and moves them there once all are written; call :meth:`begin` first.

    Until then rows for Parquet are JSON lines. ``PATH.part.json`` says with what the rows were made.

    Args:
        path: ending in one of :data:`FORMATS`.
        resume: keep the rows that an interrupted run has left in ``PATH.part``.

    Attributes:
        done: the items that are there already, with their rows.

    Raises:
        ValueError: rows of an interrupted run that are not to be kept, or cannot be read.
    """

    def __init__(self, path: Path, *, resume: bool = False) -> None:
        check_output(path)
        self.path, self.part = path, path.with_name(path.name + PART)
        self._told = self.part.with_name(self.part.name + ".json")
        self._is_parquet = path.suffix.lower() == ".parquet"
        self._suffix = ".jsonl" if self._is_parquet else path.suffix.lower()
        self._file: IO[str]
        self.done: dict[str, dict[str, Any]] = {}
        if self.part.exists():
            if not resume:
                raise ValueError(
                    f"{self.part} holds scores of a run that did not end: go on with --resume, or remove it"
                )
            self.done = self._read_part()

    def begin(self, made_with: Mapping[str, Any]) -> None:
        """Write the kept rows anew, without a line that a killed run did not finish.

        Raises:
            ValueError: it was made with something else.
        """
        if self.part.exists():
            before = read_json(self._told) if self._told.is_file() else None
            if before != made_with:
                raise ValueError(
                    f"{self.part} holds scores of another model, or of other settings: remove it"
                )
        write_json(self._told, made_with)
        with replacing_paths([self.part]) as [temporary]:
            header = _csv_line(COLUMNS) if self._suffix == ".csv" else ""
            temporary.write_text(header + "".join(map(self._line, self.done.values())), encoding="utf-8")
        self._file = open(self.part, "a", encoding="utf-8", newline="")  # noqa: SIM115 - until close

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        self._file.write("".join(map(self._line, rows)))
        self._file.flush()

    def close(self) -> None:
        """Put the table in its place."""
        os.fsync(self._file.fileno())
        self._file.close()
        if self._is_parquet:
            _write_parquet(self.path, list(self._read_part().values()))
            self.part.unlink()
        else:
            os.replace(self.part, self.path)
        self._told.unlink()

    def _line(self, row: dict[str, Any]) -> str:
        if self._suffix == ".jsonl":
            return json.dumps(row, ensure_ascii=False) + "\n"
        return _csv_line(["" if row[name] is None else row[name] for name in COLUMNS])

    def _read_part(self) -> dict[str, dict[str, Any]]:
        whole, line_break, _ = self.part.read_bytes().rpartition(b"\n")
        with replacing(self.part) as file:
            file.write(whole + line_break)
        rows = read_rows(self.part, self._suffix)
        if any(row.fault is not None or set(row.fields) != set(COLUMNS) for row in rows):
            raise ValueError(f"{self.part} holds no scores: remove it")
        done = ({name: None if cell == "" else cell for name, cell in row.fields.items()} for row in rows)
        return {str(fields["item"]): fields for fields in done}


def _csv_line(cells: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet needs pyarrow: pip install 'hysac[parquet]'") from error
    return pyarrow


def _write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    pyarrow = _pyarrow()
    kinds = {"distance": pyarrow.float64(), "probability": pyarrow.float64()}
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in COLUMNS])
    with replacing_paths([path]) as [temporary]:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema=schema), temporary)
