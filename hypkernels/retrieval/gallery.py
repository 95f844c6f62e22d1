"""Galleries of points: tensors, arrays and files, read in pieces."""

from __future__ import annotations

import os
from typing import Any

import torch

Source = Any  # a tensor, a NumPy array or memory map, a path, or a Gallery


class Gallery:
    """``N`` points of width ``D`` that are read a piece at a time: ``len(gallery)``, ``width``, ``dtype``.

    ``gallery.rows(start, stop)`` is a tensor of these rows, without a copy where the source is in memory or
    mapped; ``gallery.pieces()`` yields ``(start, rows)``; ``gallery.take(ids)`` copies single rows.
    """

    width: int
    dtype: torch.dtype

    def __len__(self) -> int:
        raise NotImplementedError


def open_gallery(source: Source | str | os.PathLike[str], name: str | None = None) -> Gallery:
    """A gallery of a tensor, an array, or a file, which is mapped and not read.

    Args:
        source: a tensor or NumPy array ``(N, D)``, float64, float32 or float16, a tensor also bfloat16; or
            the path of an ``.npy`` or ``.safetensors`` file of such a matrix.
        name: of the tensor in a ``.safetensors`` file; not needed where there is only one.

    Raises:
        TypeError, ValueError: not a matrix of points, an unsupported dtype, a file that is none of these or
            ends before its points do.
    """
    raise NotImplementedError
