"""usearch: an HNSW graph, in single or half precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hypkernels.retrieval.engines.memory import MemoryEngine
from hypkernels.retrieval.engines.packages import require
from hypkernels.retrieval.gallery import Gallery

INDEX = "index.usearch"
METRICS = {"l2": "l2sq", "cosine": "cos", "inner": "ip"}
DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@dataclass(kw_only=True)
class Usearch(MemoryEngine):
    """usearch, extra ``engines-usearch``. Its own default is bfloat16, ours float32.

    Args:
        m, ef_construction, ef: of the graph: links of a node, and efforts; ``ef`` is at least the number of
            candidates.
        exhaustive: compare all vectors instead.
        threads: of building and searching. With one, the same points give the same graph.
    """

    m: int = 32
    ef_construction: int = 200
    ef: int = 200
    exhaustive: bool = False
    threads: int = 1

    name: ClassVar[str] = "usearch"
    package: ClassVar[str] = "usearch"
    metrics: ClassVar[tuple[str, ...]] = tuple(METRICS)
    dtypes: ClassVar[tuple[str, ...]] = tuple(DTYPES)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._usearch = require("usearch.index", "engines-usearch")
        self._index: Any = None

    def _new(self, gallery: Gallery) -> None:
        self._index = self._usearch.Index(
            ndim=self._transform.width,
            metric=METRICS[self._transform.metric],
            dtype=DTYPES[self.dtype],
            connectivity=self.m,
            expansion_add=self.ef_construction,
            expansion_search=self.ef,
        )

    def _put(self, slots: np.ndarray, vectors: np.ndarray) -> None:
        self._index.add(slots, vectors, threads=self.threads)

    def _drop(self, slots: np.ndarray) -> None:
        self._index.remove(slots)

    def _nearest(self, vectors: np.ndarray, count: int) -> np.ndarray:
        self._index.expansion_search = max(self.ef, count)
        found = self._index.search(vectors, count, exact=self.exhaustive, threads=self.threads)
        keys, counts = (
            (found.keys, found.counts) if vectors.shape[0] > 1 else (found.keys[None], [len(found)])
        )
        missing = np.arange(count) >= np.asarray(counts)[:, None]
        slots = np.full((len(vectors), count), -1, np.int64)
        slots[:, : keys.shape[1]] = keys
        return np.where(missing, -1, slots)

    def _write_index(self, folder: Path) -> None:
        self._index.save(str(folder / INDEX))

    def _read_index(self, folder: Path) -> None:
        self._index = self._usearch.Index.restore(str(folder / INDEX))
