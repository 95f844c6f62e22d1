"""Galleries of points: tensors, arrays and files, read in pieces."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from typing import TypeAlias, Union

import numpy as np
import torch
from torch import Tensor

from hypkernels.checks import check_points
from hypkernels.retrieval.files import map_file, of_array

PIECE_BYTES = 64 << 20
# The size of a piece of points on a GPU, which need no copy: a search waits for the device once a piece.
_DEVICE_PIECE_BYTES = 512 << 20


class Gallery:
    """``N`` points of width ``D`` that are read a piece at a time. Made by :func:`open_gallery`.

    Attributes:
        points: all of them, ``(N, D)``, a view of the source; a file takes memory only where it is read.
    """

    def __init__(self, points: Tensor, mapped: mmap.mmap | None = None) -> None:
        self.points = points
        self._mapped = mapped

    def __len__(self) -> int:
        return self.points.shape[0]

    def __repr__(self) -> str:
        kind = "a file" if self._mapped is not None else "memory"
        return f"Gallery({len(self)} x {self.width} {self.dtype} in {kind})"

    @property
    def width(self) -> int:
        return self.points.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.points.dtype

    @property
    def device(self) -> torch.device:
        return self.points.device

    def pieces(self, limit: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """The first row of each piece, and its rows, of at most ``limit`` bytes or one row.

        By default that is 64 MiB, or 512 MiB of points on a GPU. A file's rows leave memory again when the
        next piece is asked for.
        """
        if limit is None:
            limit = PIECE_BYTES if self.device.type == "cpu" else _DEVICE_PIECE_BYTES
        step = max(1, limit // (self.width * self.points.element_size()))
        for start in range(0, len(self), step):
            yield start, self.points[start : start + step]
            self.release()

    def first(self, count: int) -> Gallery:
        """The first ``count`` points, from 1 to all of them, for files that grow."""
        if not 1 <= count <= len(self):
            raise ValueError(f"count must be from 1 to the gallery's {len(self)} items, got {count}")
        return Gallery(self.points[:count], self._mapped)

    def take(self, indices: Tensor) -> Tensor:
        """A copy of some rows."""
        return self.points[indices]

    def release(self) -> None:
        """Give a file's pages back to the system, which may keep them in its cache."""
        if self._mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)


Source: TypeAlias = Union[Gallery, Tensor, np.ndarray, str, "os.PathLike[str]"]


def open_gallery(source: Source, name: str | None = None) -> Gallery:
    """A gallery of a tensor, an array, or a file, which is mapped and not read.

    Args:
        source: a tensor or NumPy array ``(N, D)``, float64, float32 or float16, a tensor also bfloat16; or
            the path of an ``.npy`` or ``.safetensors`` file of such a matrix. A gallery comes back itself.
        name: of the tensor in a ``.safetensors`` file; not needed where there is only one.

    Raises:
        FileNotFoundError: no such file.
        TypeError, ValueError: not a matrix of points, no points, an unsupported dtype, a file that is none of
            these or ends before its points do.
    """
    if isinstance(source, Gallery):
        return source
    mapped = None
    if isinstance(source, (str, os.PathLike)):
        points, mapped = map_file(source, name)
    elif name is not None:
        raise ValueError(f"name is of .safetensors files, got {name!r} for {type(source).__name__}")
    elif isinstance(source, np.ndarray):
        points = of_array(source)
    elif isinstance(source, Tensor):
        points = source.detach()
    else:
        raise TypeError(
            f"gallery must be a tensor, a NumPy array, a path or a Gallery, got {type(source).__name__}"
        )
    check_points("gallery", points)
    if points.dim() != 2 or not len(points):
        raise ValueError(f"gallery must have shape (N, D) with N >= 1, got {tuple(points.shape)}")
    return Gallery(points, mapped)
