"""SQLite with the extension sqlite-vec, which compares all vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hypkernels.retrieval.engines.base import connection
from hypkernels.retrieval.engines.database import DatabaseEngine, Row
from hypkernels.retrieval.engines.packages import require

MOST = 4096  # neighbours that sqlite-vec returns for a query


@dataclass(kw_only=True)
class SqliteVec(DatabaseEngine):
    """sqlite-vec, extra ``engines-sqlite-vec``; with apsw, since Python's SQLite may refuse extensions.

    Args:
        path: of the database's file. An index in memory cannot be saved.
    """

    path: str = connection(":memory:")

    name: ClassVar[str] = "sqlite-vec"
    package: ClassVar[str] = "sqlite-vec"
    metrics: ClassVar[tuple[str, ...]] = ("l2", "cosine")

    def __post_init__(self) -> None:
        super().__post_init__()
        extension = require("sqlite_vec", "engines-sqlite-vec").loadable_path()
        self._connection = require("apsw", "engines-sqlite-vec").Connection(str(self.path))
        self._connection.enable_load_extension(True)
        self._connection.load_extension(extension)
        self._connection.enable_load_extension(False)

    def _in_memory(self) -> bool:
        return self.path == ":memory:"

    def close(self) -> None:
        self._connection.close()

    def __len__(self) -> int:
        return self._run("SELECT count(*) FROM {table}")[0][0]

    def _exists(self) -> bool:
        return bool(self._run("SELECT 1 FROM sqlite_master WHERE name = ?", self.table))

    def _make(self, description: str) -> None:
        columns = f"vector float[{self._transform.width}] distance_metric={self._transform.metric}"
        with self._connection:
            self._unmake()
            self._run(
                f"CREATE VIRTUAL TABLE {{table}} USING vec0(id integer primary key, {columns}, +point blob)"
            )
            self._run("CREATE TABLE {table}_about (header text)")
            self._run("INSERT INTO {table}_about VALUES (?)", description)

    def _unmake(self) -> None:
        self._run("DROP TABLE IF EXISTS {table}")
        self._run("DROP TABLE IF EXISTS {table}_about")

    def _description(self) -> str | None:
        return self._run("SELECT header FROM {table}_about")[0][0] if self._exists() else None

    def _write_rows(self, ids: np.ndarray, vectors: np.ndarray, points: list[bytes]) -> None:
        rows = zip(ids.tolist(), (vector.tobytes() for vector in vectors), points, strict=True)
        with self._connection:
            self._connection.executemany(
                f"INSERT INTO {self.table} (id, vector, point) VALUES (?, ?, ?)", rows
            )

    def _remove(self, ids: np.ndarray) -> None:
        with self._connection:
            self._connection.executemany(
                f"DELETE FROM {self.table} WHERE id = ?", [(one,) for one in ids.tolist()]
            )

    def _present(self, ids: np.ndarray) -> np.ndarray:
        found = [one for one in ids.tolist() if self._run("SELECT 1 FROM {table} WHERE id = ?", one)]
        return np.array(found, np.int64)

    def _nearest_rows(self, vectors: np.ndarray, count: int) -> Sequence[Sequence[Row]]:
        statement = "SELECT id, point FROM {table} WHERE vector MATCH ? AND k = ?"
        return [[Row(*row) for row in self._run(statement, v.tobytes(), min(count, MOST))] for v in vectors]

    def _run(self, statement: str, *parameters: Any) -> list[Any]:
        return self._connection.execute(statement.replace("{table}", self.table), parameters).fetchall()
