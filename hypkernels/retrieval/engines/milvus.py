"""Milvus: a server, or milvus-lite in a file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hypkernels.checks import check_choice
from hypkernels.retrieval.engines.base import connection
from hypkernels.retrieval.engines.database import DatabaseEngine, Row
from hypkernels.retrieval.engines.packages import require

METRICS = {"l2": "L2", "cosine": "COSINE", "inner": "IP"}
TEXT_BYTES = 65535
BATCH = 1000  # rows of an insertion
PROPERTY = "hypkernels"


@dataclass(kw_only=True)
class Milvus(DatabaseEngine):
    """Milvus, extra ``engines-milvus``.

    Args:
        uri: of a server, as ``http://host:19530``, or the path of a file ending in ``.db`` for milvus-lite.
        token: of a server that asks for one.
        kind: ``"hnsw"``, or ``"flat"`` for comparing all vectors.
        m, ef_construction, ef: of the graph: links of a node, and efforts; ``ef`` is at least the number of
            candidates.
    """

    uri: str = connection("")
    token: str = connection("")
    kind: str = "hnsw"
    m: int = 32
    ef_construction: int = 200
    ef: int = 200

    name: ClassVar[str] = "milvus"
    package: ClassVar[str] = "pymilvus"
    metrics: ClassVar[tuple[str, ...]] = tuple(METRICS)
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float16")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("kind", self.kind, ("hnsw", "flat"))
        if not self.uri:
            raise ValueError("uri must be a server's, or the path of a file ending in .db")
        self._milvus = require("pymilvus", "engines-milvus")
        self._client = self._milvus.MilvusClient(str(self.uri), token=self.token)

    def version(self) -> str:
        return f"{super().version()}, {self._client.get_server_version().replace('_lite-', '-lite ')}"

    def close(self) -> None:
        self._client.close()

    def __len__(self) -> int:
        rows = self._client.query(
            self.table, filter="", output_fields=["count(*)"], consistency_level="Strong"
        )
        return rows[0]["count(*)"]

    def _exists(self) -> bool:
        return self._client.has_collection(self.table)

    def _make(self, description: str) -> None:
        bytes_of_point = self._width * self._points_dtype.itemsize
        if 4 * -(-bytes_of_point // 3) > TEXT_BYTES:
            raise ValueError(f"Milvus holds points of {3 * TEXT_BYTES // 4} bytes, got {bytes_of_point}")
        types = self._milvus.DataType
        vectors = {"float32": types.FLOAT_VECTOR, "float16": types.FLOAT16_VECTOR}[self.dtype]
        schema = self._client.create_schema(auto_id=False)
        schema.add_field("id", types.INT64, is_primary=True)
        schema.add_field("vector", vectors, dim=self._transform.width)
        schema.add_field("point", types.VARCHAR, max_length=TEXT_BYTES)
        index = self._client.prepare_index_params()
        effort = {"M": self.m, "efConstruction": self.ef_construction} if self.kind == "hnsw" else {}
        index.add_index(
            "vector", index_type=self.kind.upper(), metric_type=METRICS[self._transform.metric], params=effort
        )
        if self._exists():
            self._unmake()
        self._client.create_collection(
            self.table, schema=schema, index_params=index, properties={PROPERTY: description}
        )

    def _unmake(self) -> None:
        self._client.drop_collection(self.table)

    def _description(self) -> str | None:
        if not self._exists():
            return None
        self._client.load_collection(self.table)
        return self._client.describe_collection(self.table)["properties"].get(PROPERTY, "{}")

    def _write_rows(self, ids: np.ndarray, vectors: np.ndarray, points: list[bytes]) -> None:
        texts = [base64.b64encode(point).decode() for point in points]
        vectors = vectors.astype(self.dtype)
        rows = [
            {"id": one, "vector": vector, "point": text}
            for one, vector, text in zip(ids.tolist(), vectors, texts, strict=True)
        ]
        for start in range(0, len(rows), BATCH):
            self._client.insert(self.table, rows[start : start + BATCH])

    def _finish(self) -> None:
        """Wait until the index is used: milvus-lite reports it as finished before that."""
        self._client.flush(self.table)
        self._client.release_collection(self.table)
        self._client.load_collection(self.table)

    def _remove(self, ids: np.ndarray) -> None:
        self._client.delete(self.table, ids=ids.tolist())

    def _present(self, ids: np.ndarray) -> np.ndarray:
        if not len(ids):
            return ids
        found = self._client.get(self.table, ids.tolist(), output_fields=["id"], consistency_level="Strong")
        return np.array([row["id"] for row in found], np.int64)

    def _nearest_rows(self, vectors: np.ndarray, count: int) -> Sequence[Sequence[Row]]:
        effort = {"ef": max(self.ef, count)} if self.kind == "hnsw" else {}
        answers = self._client.search(
            self.table,
            list(vectors.astype(self.dtype)),
            limit=count,
            output_fields=["point"],
            search_params={"params": effort},
            consistency_level="Strong",
        )
        return [[_row(hit) for hit in hits] for hits in answers]


def _row(hit: Any) -> Row:
    return Row(hit["id"], base64.b64decode(hit["entity"]["point"]))
