"""No engine at all: every point is compared, by :func:`hypkernels.retrieval.topk`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor

from hypkernels.retrieval.engines.memory import MemoryEngine
from hypkernels.retrieval.engines.transforms import Transform
from hypkernels.retrieval.gallery import Gallery
from hypkernels.retrieval.search import Neighbours, topk


@dataclass(kw_only=True)
class Exact(MemoryEngine):
    """The default: exact, for sets that are small enough to read all of them in each search.

    Ties come in the order in which the points were added. ``transform``, ``candidates`` and ``dtype`` have no
    effect.
    """

    name: ClassVar[str] = "exact"
    package: ClassVar[str] = "hysac"

    def _search(self, queries: Tensor, k: int, count: int) -> Neighbours:
        table = self._table
        deleted = None if count == table.size else ~table.alive
        distances, slots = topk(queries, table.points, k, self.curv, deny=deleted)
        return Neighbours(distances, table.ids[slots])

    def _measure(self, sample: Tensor, gallery: Gallery, k: int) -> None:
        self.recall = 1.0

    def _insert(self, ids: np.ndarray, points: Tensor) -> None:
        self._table.add(ids, points)

    def _check_range(self, form: Transform, radius: float) -> None: ...

    def _new(self, gallery: Gallery) -> None: ...

    def _put(self, slots: np.ndarray, vectors: np.ndarray) -> None: ...

    def _drop(self, slots: np.ndarray) -> None: ...

    def _nearest(self, vectors: np.ndarray, count: int) -> np.ndarray:
        raise NotImplementedError("nothing is proposed: all points are compared")

    def _write_index(self, folder: Path) -> None: ...

    def _read_index(self, folder: Path) -> None: ...
