"""Qdrant: a server, or the client's local mode."""

from __future__ import annotations

import base64
import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hypkernels.retrieval.engines.base import connection
from hypkernels.retrieval.engines.database import DatabaseEngine, Row
from hypkernels.retrieval.engines.packages import require

BATCH = 256  # rows of an upload
POLL_SECONDS = 0.2


@dataclass(kw_only=True)
class Qdrant(DatabaseEngine):
    """Qdrant, extra ``engines-qdrant``.

    Args:
        url: of a server, as ``http://host:6333``; or
        path: a folder for the client's local mode, which compares all vectors and needs no server, and stores
            some 40 points a second, pickled: open no folder that you would not run. In memory where neither
            is given.
        api_key: of a server that asks for one.
        m, ef_construction, ef: of the server's graph: links of a node, and efforts; ``ef`` is at least the
            number of candidates.
    """

    url: str | None = connection()
    path: str | None = connection()
    api_key: str | None = connection()
    m: int = 32
    ef_construction: int = 200
    ef: int = 200

    name: ClassVar[str] = "qdrant"
    package: ClassVar[str] = "qdrant-client"
    metrics: ClassVar[tuple[str, ...]] = ("l2", "cosine", "inner")
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float16")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.url is not None and self.path is not None:
            raise ValueError("url and path are alternatives, got both")
        qdrant = require("qdrant_client", "engines-qdrant")
        self._models = qdrant.models
        where = {"url": self.url, "path": self.path, "api_key": self.api_key}
        given = {name: value for name, value in where.items() if value is not None}
        self._client = qdrant.QdrantClient(**given) if given else qdrant.QdrantClient(":memory:")

    def _in_memory(self) -> bool:
        return self.url is None and self.path is None

    def close(self) -> None:
        self._client.close()

    def __len__(self) -> int:
        return self._client.count(self.table, exact=True).count

    def _exists(self) -> bool:
        return self._client.collection_exists(self.table)

    def _make(self, description: str) -> None:
        models = self._models
        distances = {"l2": "EUCLID", "cosine": "COSINE", "inner": "DOT"}
        if self._exists():
            self._unmake()
        self._client.create_collection(
            self.table,
            vectors_config=models.VectorParams(
                size=self._transform.width,
                distance=models.Distance[distances[self._transform.metric]],
                datatype=models.Datatype[self.dtype.upper()],
            ),
            hnsw_config=models.HnswConfigDiff(m=self.m, ef_construct=self.ef_construction),
            metadata=json.loads(description),
        )

    def _unmake(self) -> None:
        self._client.delete_collection(self.table)

    def _description(self) -> str | None:
        return json.dumps(self._client.get_collection(self.table).config.metadata) if self._exists() else None

    def _write_rows(self, ids: np.ndarray, vectors: np.ndarray, points: list[bytes]) -> None:
        for start in range(0, len(ids), BATCH):
            part = slice(start, start + BATCH)
            batch = self._models.Batch(
                ids=ids[part].tolist(),
                vectors=vectors[part].tolist(),
                payloads=[{"point": base64.b64encode(point).decode()} for point in points[part]],
            )
            self._client.upsert(self.table, batch, wait=True)

    def _finish(self) -> None:
        """Wait for the index: a server builds it after the upload, and compares all rows until then."""
        while self._client.get_collection(self.table).status != self._models.CollectionStatus.GREEN:
            time.sleep(POLL_SECONDS)

    def _remove(self, ids: np.ndarray) -> None:
        self._client.delete(self.table, self._models.PointIdsList(points=ids.tolist()), wait=True)

    def _present(self, ids: np.ndarray) -> np.ndarray:
        found = self._client.retrieve(self.table, ids.tolist(), with_payload=False)
        return np.array([one.id for one in found], np.int64)

    def _nearest_rows(self, vectors: np.ndarray, count: int) -> Sequence[Sequence[Row]]:
        parameters = self._models.SearchParams(hnsw_ef=max(self.ef, count))
        requests = [
            self._models.QueryRequest(query=vector, limit=count, with_payload=True, params=parameters)
            for vector in vectors.tolist()
        ]
        with warnings.catch_warnings():  # local mode warns that it ignores the effort
            warnings.filterwarnings("ignore", "Local mode performs exact")
            answers = self._client.query_batch_points(self.table, requests)
        return [[_row(point) for point in answer.points] for answer in answers]


def _row(point: Any) -> Row:
    return Row(point.id, base64.b64decode(point.payload["point"]))
