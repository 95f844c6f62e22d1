"""PostgreSQL with the extension pgvector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hypkernels.checks import check_choice
from hypkernels.retrieval.engines.base import connection
from hypkernels.retrieval.engines.database import DatabaseEngine, Row
from hypkernels.retrieval.engines.packages import require

TYPES = {"float32": "vector", "float16": "halfvec"}
OPERATORS = {"l2": ("<->", "l2"), "cosine": ("<=>", "cosine"), "inner": ("<#>", "ip")}
WIDEST = {"float32": 2000, "float16": 4000}  # the widest vectors that pgvector indexes


@dataclass(kw_only=True)
class Pgvector(DatabaseEngine):
    """PostgreSQL and pgvector 0.8 or newer, extra ``engines-pgvector``.

    Args:
        url: of the database, as ``postgresql://user@host/name``. The extension ``vector`` is made where it is
            not, which the user must be allowed to.
        kind: ``"hnsw"``, or ``"flat"`` for no index: every row is compared.
        m, ef_construction, ef: of the graph: links of a node, and efforts; ``ef`` is at least the number of
            candidates, 1000 at most.
        settings: of the session, such as ``{"maintenance_work_mem": "2GB"}``: a graph that fits into it is
            built many times faster.
    """

    url: str = connection("")
    kind: str = "hnsw"
    m: int = 32
    ef_construction: int = 200
    ef: int = 200
    settings: dict[str, str] | None = None

    name: ClassVar[str] = "pgvector"
    package: ClassVar[str] = "pgvector"
    metrics: ClassVar[tuple[str, ...]] = tuple(OPERATORS)
    dtypes: ClassVar[tuple[str, ...]] = tuple(TYPES)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("kind", self.kind, ("hnsw", "flat"))
        if self.ef_construction < 2 * self.m:
            raise ValueError(
                f"ef_construction must be at least 2 * m = {2 * self.m}, got {self.ef_construction}"
            )
        psycopg = require("psycopg", "engines-pgvector")
        self._sql = require("psycopg.sql", "engines-pgvector")
        register_vector = require("pgvector.psycopg", "engines-pgvector").register_vector
        self._connection = psycopg.connect(self.url, autocommit=True)
        self._connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        register_vector(self._connection)
        for name, value in {"hnsw.iterative_scan": "strict_order", **(self.settings or {})}.items():
            self._connection.execute("SELECT set_config(%s, %s, false)", (name, value))

    def close(self) -> None:
        self._connection.close()

    def version(self) -> str:
        statement = (
            "SELECT extversion, current_setting('server_version') FROM pg_extension WHERE extname = 'vector'"
        )
        extension, server = self._run(statement).fetchone()
        return f"{extension}, PostgreSQL {server.split()[0]}"

    def __len__(self) -> int:
        return self._run("SELECT count(*) FROM {table}").fetchone()[0]

    def _exists(self) -> bool:
        return self._run("SELECT to_regclass({name})").fetchone()[0] is not None

    def _make(self, description: str) -> None:
        width = self._transform.width
        if self.kind == "hnsw" and width > WIDEST[self.dtype]:
            raise ValueError(f"pgvector indexes {WIDEST[self.dtype]} components of {self.dtype}, got {width}")
        with self._connection.transaction():
            self._run("DROP TABLE IF EXISTS {table}")
            self._run(
                f"CREATE TABLE {{table}} (id bigint PRIMARY KEY, point bytea NOT NULL, "
                f"vector {TYPES[self.dtype]}({width}) NOT NULL)"
            )
            self._run("ALTER TABLE {table} ALTER point SET STORAGE EXTERNAL")  # floats do not compress
            self._run("COMMENT ON TABLE {table} IS {text}", text=description)

    def _unmake(self) -> None:
        self._run("DROP TABLE {table}")

    def _description(self) -> str | None:
        return self._run("SELECT obj_description(to_regclass({name}), 'pg_class')").fetchone()[0]

    def _write_rows(self, ids: np.ndarray, vectors: np.ndarray, points: list[bytes]) -> None:
        copy = self._composed("COPY {table} (id, point, vector) FROM STDIN WITH (FORMAT BINARY)")
        with self._connection.cursor() as cursor, cursor.copy(copy) as rows:
            rows.set_types(["int8", "bytea", TYPES[self.dtype]])
            for row in zip(ids.tolist(), points, self._typed(vectors), strict=True):
                rows.write_row(row)

    def _finish(self) -> None:
        if self.kind == "hnsw":
            operators = f"{TYPES[self.dtype]}_{OPERATORS[self._transform.metric][1]}_ops"
            self._run(
                f"CREATE INDEX ON {{table}} USING hnsw (vector {operators}) "
                f"WITH (m = {self.m:d}, ef_construction = {self.ef_construction:d})"
            )
        self._run("ANALYZE {table}")

    def _remove(self, ids: np.ndarray) -> None:
        self._run("DELETE FROM {table} WHERE id = ANY(%s)", ids.tolist())

    def _present(self, ids: np.ndarray) -> np.ndarray:
        rows = self._run("SELECT id FROM {table} WHERE id = ANY(%s)", ids.tolist()).fetchall()
        return np.array([row[0] for row in rows], np.int64)

    def _nearest_rows(self, vectors: np.ndarray, count: int) -> Sequence[Sequence[Row]]:
        operator = OPERATORS[self._transform.metric][0]
        query = f"SELECT id, point FROM {{table}} ORDER BY vector {operator} %s LIMIT {count:d}"
        with self._connection.transaction():
            self._run(f"SET LOCAL hnsw.ef_search = {min(1000, max(self.ef, count)):d}")
            return [
                [Row(*row) for row in self._run(query, vector).fetchall()] for vector in self._typed(vectors)
            ]

    def _typed(self, vectors: np.ndarray) -> list[Any]:
        pgvector = require("pgvector", "engines-pgvector")
        kind = pgvector.HalfVector if self.dtype == "float16" else pgvector.Vector
        return [kind(vector) for vector in vectors]

    def _run(self, statement: str, *parameters: Any, **literals: str) -> Any:
        return self._connection.execute(
            self._composed(statement, **literals), parameters or None, binary=True
        )

    def _composed(self, statement: str, **literals: str) -> Any:
        """With the table's name, as an identifier and as a text, and other texts put in."""
        sql = self._sql
        texts = {name: sql.Literal(text) for name, text in literals.items()}
        return sql.SQL(statement).format(
            table=sql.Identifier(self.table), name=sql.Literal(self.table), **texts
        )
