"""hnswlib: an HNSW graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hypkernels.retrieval.engines.memory import MemoryEngine
from hypkernels.retrieval.engines.packages import require
from hypkernels.retrieval.gallery import Gallery

INDEX = "index.hnswlib"


@dataclass(kw_only=True)
class Hnswlib(MemoryEngine):
    """hnswlib, extra ``engines-hnswlib``.

    Args:
        m, ef_construction, ef: of the graph: links of a node, and efforts; ``ef`` is at least the number of
            candidates.
        threads: of building and searching. With one, the same points give the same graph.
    """

    m: int = 32
    ef_construction: int = 200
    ef: int = 200
    threads: int = 1

    name: ClassVar[str] = "hnswlib"
    package: ClassVar[str] = "hnswlib"
    metrics: ClassVar[tuple[str, ...]] = ("l2", "cosine", "inner")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._hnswlib = require("hnswlib", "engines-hnswlib")
        self._index: Any = None

    def _new(self, gallery: Gallery) -> None:
        self._index = self._empty()
        self._index.init_index(len(gallery), ef_construction=self.ef_construction, M=self.m)

    def _put(self, slots: np.ndarray, vectors: np.ndarray) -> None:
        if self._table.size > self._index.max_elements:
            self._index.resize_index(max(self._table.size, 2 * self._index.max_elements))
        self._index.add_items(vectors, slots, num_threads=self.threads)

    def _drop(self, slots: np.ndarray) -> None:
        for slot in slots.tolist():
            self._index.mark_deleted(slot)

    def _nearest(self, vectors: np.ndarray, count: int) -> np.ndarray:
        """As many as the graph finds for every query: hnswlib returns no rows of different lengths."""
        self._index.set_ef(max(self.ef, count))
        while True:
            try:
                return self._index.knn_query(vectors, count, num_threads=self.threads)[0].astype(np.int64)
            except RuntimeError:
                if count == 1:
                    raise
                count //= 2

    def _write_index(self, folder: Path) -> None:
        self._index.save_index(str(folder / INDEX))

    def _read_index(self, folder: Path) -> None:
        self._index = self._empty()
        self._index.load_index(str(folder / INDEX))

    def _empty(self) -> Any:
        space = {"l2": "l2", "cosine": "cosine", "inner": "ip"}[self._transform.metric]
        return self._hnswlib.Index(space=space, dim=self._transform.width)
