"""NGT: a graph with a tree."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hypkernels.retrieval.engines.memory import MemoryEngine
from hypkernels.retrieval.engines.packages import require
from hypkernels.retrieval.gallery import Gallery

INDEX = "index.ngt"
SLOTS = "slots.npy"
ALL_EDGES = 0


@dataclass(kw_only=True)
class Ngt(MemoryEngine):
    """NGT, extra ``engines-ngt``.

    NGT has a ``Lorentz`` metric, but its Python package does not offer it, and it misses stored points.

    Args:
        edges: of a node when it is added.
        epsilon: how far beyond its farthest result a search looks.
    """

    edges: int = 20
    epsilon: float = 0.1

    name: ClassVar[str] = "ngt"
    package: ClassVar[str] = "ngt"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._ngtpy = require("ngtpy", "engines-ngt")
        self._folder: Any = None
        self._index: Any = None
        self._slots = np.empty(0, np.int64)  # the slot of each of NGT's ids, which NGT reuses

    def _new(self, gallery: Gallery) -> None:
        path = self._new_folder() / INDEX
        self._ngtpy.create(str(path), self._transform.width, edge_size_for_creation=self.edges)
        self._open(path)
        self._slots = np.empty(0, np.int64)

    def _put(self, slots: np.ndarray, vectors: np.ndarray) -> None:
        own = np.array([self._index.insert(vector) for vector in vectors.astype(np.float64)])
        if own.max() >= len(self._slots):
            self._slots = np.pad(self._slots, (0, own.max() + 1 - len(self._slots)), constant_values=-1)
        self._slots[own] = slots
        self._index.build_index(num_threads=1)

    def _drop(self, slots: np.ndarray) -> None:
        for own in np.flatnonzero(np.isin(self._slots, slots)).tolist():
            self._index.remove(own)
            self._slots[own] = -1

    def _nearest(self, vectors: np.ndarray, count: int) -> np.ndarray:
        slots = np.full((len(vectors), count), -1, np.int64)
        for row, vector in enumerate(vectors):
            own = self._index.search(
                vector, count, epsilon=self.epsilon, edge_size=ALL_EDGES, with_distance=False
            )
            slots[row, : len(own)] = self._slots[own]
        return slots

    def _write_index(self, folder: Path) -> None:
        self._index.save()
        shutil.rmtree(folder / INDEX, ignore_errors=True)
        shutil.copytree(Path(self._folder.name) / INDEX, folder / INDEX)
        np.save(folder / SLOTS, self._slots)

    def _read_index(self, folder: Path) -> None:
        path = self._new_folder() / INDEX
        shutil.copytree(folder / INDEX, path)
        self._open(path)
        self._slots = np.load(folder / SLOTS)

    def _new_folder(self) -> Path:
        """A temporary folder for NGT's index, removed with the engine."""
        self._index = None
        self._folder = tempfile.TemporaryDirectory(prefix="ngt-")
        return Path(self._folder.name)

    def _open(self, path: Path) -> None:
        self._index = self._ngtpy.Index(str(path), log_disabled=True)
