"""Argument checks of the engines, by name and before any work."""

from __future__ import annotations

from numbers import Integral

import numpy as np
from torch import Tensor

from hypkernels.checks import check_points
from hypkernels.retrieval.problem import first_not_finite


def check_points_of(name: str, points: Tensor, width: int) -> Tensor:
    """Points ``(n, D)`` of the index's width with finite rows; returned on the CPU and detached."""
    check_points(name, points)
    if points.dim() != 2 or points.shape[1] != width:
        raise ValueError(f"{name} must have shape (n, {width}), the index's width, got {tuple(points.shape)}")
    points = points.detach().cpu()
    check_finite(name, points)
    return points


def check_finite(name: str, rows: Tensor, first: int = 0) -> None:
    """``first`` is the number of the first row."""
    row = first_not_finite(rows)
    if row is not None:
        raise ValueError(f"{name} must be finite, row {first + row} is not")


def check_count(name: str, value: int) -> int:
    """An integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return int(value)


def as_ids(ids: object, count: int | None = None) -> np.ndarray:
    """Ids as int64 ``(n,)``: distinct integers of at least 0."""
    array = np.asarray(ids.detach().cpu() if isinstance(ids, Tensor) else ids)
    if array.size == 0 and array.ndim == 1:
        array = array.astype(np.int64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"ids must be integers of shape (n,), got {array.dtype} of {array.shape}")
    if count is not None and len(array) != count:
        raise ValueError(f"ids must be one for each of the {count} points, got {len(array)}")
    if len(array) and (array.min() < 0 or array.max() > np.iinfo(np.int64).max):
        raise ValueError(f"ids must be from 0 to 2**63 - 1, got {array.min()} to {array.max()}")
    distinct, counts = np.unique(array, return_counts=True)
    if len(distinct) < len(array):
        raise ValueError(f"ids must be distinct, {distinct[counts > 1][0]} is there more than once")
    return array.astype(np.int64)
