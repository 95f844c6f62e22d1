"""LanceDB: a folder, or a bucket, of columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hypkernels.checks import check_choice
from hypkernels.retrieval.engines.base import connection
from hypkernels.retrieval.engines.database import DatabaseEngine, Row
from hypkernels.retrieval.engines.packages import require

METRICS = {"l2": "l2", "cosine": "cosine", "inner": "dot"}
LEAST_ROWS = 256  # LanceDB indexes no fewer
LIST_ROWS = 5000  # of a list (LanceDB's partition)
HEADER_KEY = b"hypkernels"


@dataclass(kw_only=True)
class Lancedb(DatabaseEngine):
    """LanceDB, extra ``engines-lancedb``.

    Args:
        uri: a folder, or a bucket as ``s3://bucket/folder``.
        kind: ``"hnsw"``, a graph in each of the lists; ``"ivf"``, the lists alone; ``"flat"`` for no index.
            Fewer than 256 rows get none, and rows added later are compared one by one.
        m, ef_construction, ef: of the graph.
        lists, probes: by default lists of 5000 rows, of which a search reads all.
    """

    uri: str = connection("")
    kind: str = "hnsw"
    m: int = 32
    ef_construction: int = 200
    ef: int = 200
    lists: int | None = None
    probes: int | None = None

    name: ClassVar[str] = "lancedb"
    package: ClassVar[str] = "lancedb"
    metrics: ClassVar[tuple[str, ...]] = tuple(METRICS)
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float16")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("kind", self.kind, ("hnsw", "ivf", "flat"))
        if not self.uri:
            raise ValueError("uri must name the folder, or bucket, of the database")
        self._lancedb = require("lancedb", "engines-lancedb")
        self._arrow = require("pyarrow", "engines-lancedb")
        self._database = self._lancedb.connect(str(self.uri))
        self._rows: Any = None

    def close(self) -> None: ...

    def __len__(self) -> int:
        return self._rows.count_rows()

    def _exists(self) -> bool:
        try:
            self._database.open_table(self.table)
        except ValueError:
            return False
        return True

    def _make(self, description: str) -> None:
        arrow = self._arrow
        numbers = {"float32": arrow.float32(), "float16": arrow.float16()}[self.dtype]
        columns = {
            "id": arrow.int64(),
            "point": arrow.binary(),
            "vector": arrow.list_(numbers, self._transform.width),
        }
        schema = arrow.schema(columns, metadata={HEADER_KEY: description})
        self._rows = self._database.create_table(self.table, schema=schema, mode="overwrite")

    def _unmake(self) -> None:
        self._database.drop_table(self.table)

    def _description(self) -> str | None:
        if not self._exists():
            return None
        self._rows = self._database.open_table(self.table)
        return (self._rows.schema.metadata or {}).get(HEADER_KEY, b"{}").decode()

    def _write_rows(self, ids: np.ndarray, vectors: np.ndarray, points: list[bytes]) -> None:
        arrow = self._arrow
        numbers = arrow.array(vectors.astype(self.dtype).ravel())
        columns = [
            arrow.array(ids),
            arrow.array(points, arrow.binary()),
            arrow.FixedSizeListArray.from_arrays(numbers, vectors.shape[1]),
        ]
        self._rows.add(arrow.table(columns, schema=self._rows.schema))

    def _finish(self) -> None:
        if self.kind == "flat" or len(self) < LEAST_ROWS:
            return
        common = {"distance_type": METRICS[self._transform.metric], "num_partitions": self._lists()}
        if self.kind == "ivf":
            config = self._lancedb.index.IvfFlat(**common)
        else:
            config = self._lancedb.index.HnswFlat(**common, m=self.m, ef_construction=self.ef_construction)
        self._rows.create_index("vector", config=config)

    def _remove(self, ids: np.ndarray) -> None:
        self._rows.delete(_among(ids))

    def _present(self, ids: np.ndarray) -> np.ndarray:
        if not len(ids):
            return ids
        return self._rows.search().where(_among(ids)).select(["id"]).to_arrow()["id"].to_numpy()

    def _nearest_rows(self, vectors: np.ndarray, count: int) -> Sequence[Sequence[Row]]:
        found = []
        for vector in vectors:
            search = self._rows.search(vector).distance_type(METRICS[self._transform.metric]).limit(count)
            search = search.nprobes(self.probes or self._lists()).ef(max(self.ef, count))
            rows = search.select(["id", "point", "_distance"]).to_arrow()
            found.append(
                [Row(*row) for row in zip(rows["id"].to_pylist(), rows["point"].to_pylist(), strict=True)]
            )
        return found

    def _lists(self) -> int:
        return self.lists or -(-len(self) // LIST_ROWS)


def _among(ids: np.ndarray) -> str:
    return f"id IN ({', '.join(map(str, ids.tolist()))})"
