"""Engines that keep the rows: an id, the vector, and the point itself as bytes, which re-ranking reads."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hypkernels.retrieval.engines.base import Candidates, Engine, connection, read_header
from hypkernels.retrieval.gallery import Gallery

NAME = 63  # characters of a table's name


class Row(NamedTuple):
    id: int
    point: bytes


@dataclass(kw_only=True)
class DatabaseEngine(Engine):
    """A table, or collection, of a database.

    Its description holds the index's header without the recall. :meth:`save` writes the header alone, and
    :meth:`load` takes the arguments that say where the database is, and refuses a table that was built anew.

    Args:
        table: its name, of letters, digits and underscores.
        replace: whether :meth:`build` may take the place of a table that this object did not make.
    """

    table: str = "points"
    replace: bool = connection(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.table.isidentifier() and self.table.isascii() and len(self.table) <= NAME):
            raise ValueError(
                f"table must be letters, digits and underscores, up to {NAME}, got {self.table!r}"
            )
        self._mine = False

    @abstractmethod
    def _exists(self) -> bool: ...

    @abstractmethod
    def _make(self, description: str) -> None:
        """An empty table in place of what was there."""

    @abstractmethod
    def _unmake(self) -> None:
        """Drop the table, which exists."""

    @abstractmethod
    def _description(self) -> str | None:
        """The description that :meth:`_make` was given; None if there is no such table."""

    @abstractmethod
    def _write_rows(self, ids: np.ndarray, vectors: np.ndarray, points: list[bytes]) -> None: ...

    @abstractmethod
    def _nearest_rows(self, vectors: np.ndarray, count: int) -> Sequence[Sequence[Row]]:
        """The nearest rows of each query."""

    def drop(self) -> None:
        """Drop the table with its rows, if it exists."""
        self._form = None
        if self._exists():
            self._unmake()

    def _prepare(self, gallery: Gallery) -> None:
        if not (self.replace or self._mine) and self._exists():
            raise ValueError(
                f"there is a table {self.table!r}: take another name, or replace=True to drop it"
            )
        super()._prepare(gallery)

    def _finish(self) -> None: ...

    def _create(self, gallery: Gallery) -> None:
        self._make(json.dumps(self._header()))
        self._mine = True

    def _insert(self, ids: np.ndarray, points: Tensor) -> None:
        self._write_rows(ids, self._transform.items(points), to_bytes(points))

    def _candidates(self, vectors: np.ndarray, count: int) -> Candidates:
        """Each point once, in the order of ids."""
        found = self._nearest_rows(vectors, count)
        points = {row.id: row.point for rows in found for row in rows}
        ids = sorted(points)
        place = {one: i for i, one in enumerate(ids)}
        rows = torch.full((len(found), max(map(len, found))), -1)
        for query, of_query in enumerate(found):
            rows[query, : len(of_query)] = torch.tensor(
                [place[row.id] for row in of_query], dtype=torch.int64
            )
        data = b"".join(points[one] for one in ids)
        return Candidates(from_bytes(data, self._width, self._points_dtype), torch.tensor(ids), rows)

    def _in_memory(self) -> bool:
        """Whether the rows vanish with this object."""
        return False

    def _write(self, folder: Path) -> None:
        if self._in_memory():
            raise ValueError("the rows are in memory only: build the index where it can stay")
        self._check_description(self._header())

    def _read(self, folder: Path) -> None:
        header = read_header(folder)
        del header["recall"]
        self._check_description(header)
        self._mine = True

    def _check_description(self, header: dict[str, Any]) -> None:
        text = self._description()
        if text is None:
            raise ValueError(f"there is no table {self.table!r}")
        if json.loads(text)["build"] != header["build"]:
            raise ValueError(
                f"the table {self.table!r} was built anew by another: load or build this index again"
            )


def to_bytes(points: Tensor) -> list[bytes]:
    """The bytes of each row, in the machine's byte order."""
    rows = points.contiguous().view(torch.uint8).numpy()
    return [row.tobytes() for row in rows]


def from_bytes(data: bytes, width: int, dtype: torch.dtype) -> Tensor:
    """The points ``(n, width)`` of :func:`to_bytes`."""
    if not data:
        return torch.empty(0, width, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(-1, width)
