"""Engines whose index is in this process's memory. Points and index are numbered by *slots*."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hypkernels.retrieval.engines.base import Candidates, Engine
from hypkernels.retrieval.gallery import Gallery

POINTS = "points.safetensors"


class Table:
    """Points and ids by slot, in the order they came. The slot of a deleted point stays unused."""

    def __init__(self, points: Tensor, ids: Tensor, alive: Tensor) -> None:
        self._points, self._ids, self._alive = points, ids, alive
        self.size = len(ids)
        slots = alive.nonzero()[:, 0]
        self.slots = dict(zip(ids[slots].tolist(), slots.tolist(), strict=True))

    @classmethod
    def empty(cls, width: int, dtype: torch.dtype) -> Table:
        return cls(
            torch.empty(0, width, dtype=dtype),
            torch.empty(0, dtype=torch.int64),
            torch.empty(0, dtype=torch.bool),
        )

    @property
    def points(self) -> Tensor:
        return self._points[: self.size]

    @property
    def ids(self) -> Tensor:
        return self._ids[: self.size]

    @property
    def alive(self) -> Tensor:
        return self._alive[: self.size]

    def add(self, ids: np.ndarray, points: Tensor) -> np.ndarray:
        """The slots that the points got."""
        start, self.size = self.size, self.size + len(ids)
        if self.size > len(self._ids):
            capacity = max(self.size, 2 * len(self._ids))
            self._points, self._ids, self._alive = (
                _grown(one, start, capacity) for one in (self._points, self._ids, self._alive)
            )
        self.points[start:], self.ids[start:], self.alive[start:] = points, torch.from_numpy(ids), True
        slots = np.arange(start, self.size)
        self.slots.update(zip(ids.tolist(), slots.tolist(), strict=True))
        return slots

    def remove(self, ids: np.ndarray) -> np.ndarray:
        """The slots that the points had."""
        slots = np.array([self.slots.pop(one) for one in ids.tolist()], np.int64)
        self._alive[slots] = False
        return slots

    def save(self, path: Path) -> None:
        save_file({"points": self.points, "ids": self.ids, "alive": self.alive}, path)

    @classmethod
    def load(cls, path: Path) -> Table:
        return cls(**load_file(path))


@dataclass(kw_only=True)
class MemoryEngine(Engine):
    """A deleted point keeps its memory until the index is built anew."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._table = Table.empty(1, torch.float32)

    def __len__(self) -> int:
        return len(self._table.slots)

    def close(self) -> None: ...

    def drop(self) -> None: ...

    def _finish(self) -> None: ...

    @abstractmethod
    def _new(self, gallery: Gallery) -> None:
        """An empty index for these points."""

    @abstractmethod
    def _put(self, slots: np.ndarray, vectors: np.ndarray) -> None: ...

    @abstractmethod
    def _drop(self, slots: np.ndarray) -> None: ...

    @abstractmethod
    def _nearest(self, vectors: np.ndarray, count: int) -> np.ndarray:
        """The slots of the nearest points, ``(Q, m)``; -1 for none."""

    @abstractmethod
    def _write_index(self, folder: Path) -> None: ...

    @abstractmethod
    def _read_index(self, folder: Path) -> None: ...

    def _create(self, gallery: Gallery) -> None:
        self._table = Table.empty(self._width, self._points_dtype)
        self._new(gallery)

    def _insert(self, ids: np.ndarray, points: Tensor) -> None:
        self._put(self._table.add(ids, points), self._transform.items(points))

    def _remove(self, ids: np.ndarray) -> None:
        self._drop(self._table.remove(ids))

    def _present(self, ids: np.ndarray) -> np.ndarray:
        return np.array([one for one in ids.tolist() if one in self._table.slots], np.int64)

    def _candidates(self, vectors: np.ndarray, count: int) -> Candidates:
        rows = torch.from_numpy(self._nearest(vectors, count).astype(np.int64))
        return Candidates(self._table.points, self._table.ids, rows)

    def _write(self, folder: Path) -> None:
        self._table.save(folder / POINTS)
        self._write_index(folder)

    def _read(self, folder: Path) -> None:
        self._table = Table.load(folder / POINTS)
        self._read_index(folder)


def _grown(rows: Tensor, used: int, capacity: int) -> Tensor:
    larger = rows.new_empty(capacity, *rows.shape[1:])
    larger[:used] = rows[:used]
    return larger
