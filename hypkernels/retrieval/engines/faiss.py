"""faiss: exhaustive, an HNSW graph, or inverted lists."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hypkernels.checks import check_choice
from hypkernels.retrieval.engines.memory import MemoryEngine
from hypkernels.retrieval.engines.packages import require
from hypkernels.retrieval.gallery import Gallery

INDEX = "index.faiss"
LIST_ROWS = 39  # of a list, at least: faiss warns of fewer
TRAINING_ROWS = 64  # of a list
LEAST_PROBES = 16


@dataclass(kw_only=True)
class Faiss(MemoryEngine):
    """faiss-cpu, extra ``engines-faiss``.

    Args:
        kind: ``"flat"`` compares all vectors; ``"hnsw"`` walks a graph; ``"ivf"`` reads the
            ``probes`` nearest of ``lists`` clusters.
        m, ef_construction, ef: of the graph: links of a node, and efforts of building and searching; ``ef``
            is at least the number of candidates.
        lists, probes: by default ``4 sqrt(N)`` lists of at least 39 points, and an eighth of them, at least
            16.
        threads: of building and searching. With one, the same points give the same index.
    """

    kind: str = "hnsw"
    m: int = 32
    ef_construction: int = 200
    ef: int = 200
    lists: int | None = None
    probes: int | None = None
    threads: int = 1

    name: ClassVar[str] = "faiss"
    package: ClassVar[str] = "faiss-cpu"
    metrics: ClassVar[tuple[str, ...]] = ("l2", "inner")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("kind", self.kind, ("flat", "hnsw", "ivf"))
        self._faiss = require("faiss", "engines-faiss")
        self._index: Any = None

    def _new(self, gallery: Gallery) -> None:
        count = len(gallery)
        lists = min(self.lists or max(1, min(int(4 * math.sqrt(count)), count // LIST_ROWS)), count)
        layout = {"flat": "IDMap2,Flat", "hnsw": f"HNSW{self.m},Flat", "ivf": f"IVF{lists},Flat"}[self.kind]
        inner = self._transform.metric == "inner"
        metric = self._faiss.METRIC_INNER_PRODUCT if inner else self._faiss.METRIC_L2
        self._index = self._faiss.index_factory(self._transform.width, layout, metric)
        if self.kind == "hnsw":
            self._index.hnsw.efConstruction = self.ef_construction
        elif self.kind == "ivf":
            step = max(1, count // (TRAINING_ROWS * lists))
            with self._threads():
                self._index.train(self._transform.items(gallery.points[::step].cpu()))

    def _put(self, slots: np.ndarray, vectors: np.ndarray) -> None:
        with self._threads():
            if self.kind == "hnsw":  # numbers its vectors as the table numbers its slots
                self._index.add(vectors)
            else:
                self._index.add_with_ids(vectors, slots)

    def _drop(self, slots: np.ndarray) -> None:
        if self.kind != "hnsw":  # a graph keeps its nodes: searches pass over those that are dead
            self._index.remove_ids(slots)

    def _nearest(self, vectors: np.ndarray, count: int) -> np.ndarray:
        with self._threads():
            return self._index.search(vectors, count, params=self._parameters(count))[1]

    def _parameters(self, count: int) -> Any:
        if self.kind == "hnsw":
            living = self._living() if len(self) < self._table.size else None
            return self._faiss.SearchParametersHNSW(efSearch=max(self.ef, count), sel=living)
        if self.kind == "ivf":
            return self._faiss.SearchParametersIVF(
                nprobe=self.probes or max(LEAST_PROBES, self._index.nlist // 8)
            )
        return None

    def _living(self) -> Any:
        self._bits = np.packbits(self._table.alive.numpy(), bitorder="little")  # faiss keeps no reference
        return self._faiss.IDSelectorBitmap(self._bits)

    def _write_index(self, folder: Path) -> None:
        self._faiss.write_index(self._index, str(folder / INDEX))

    def _read_index(self, folder: Path) -> None:
        self._index = self._faiss.read_index(str(folder / INDEX))

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """Set the number of threads within; faiss has one number for the whole process."""
        before = self._faiss.omp_get_max_threads()
        self._faiss.omp_set_num_threads(self.threads)
        try:
            yield
        finally:
            self._faiss.omp_set_num_threads(before)
