"""Gradients beyond the range of their dtype, such as that of an angle at a point close to the origin.

An infinite component would destroy the direction of the gradient. So a row with a component beyond the
range is scaled as a whole: the direction stays, and the largest component is the largest number of the
dtype.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def copy_gradient(target: Tensor, rows: Tensor) -> None:
    """Round gradients by points, finite float64 rows ``(*batch, D)``, into ``target``."""
    target.copy_(rows)
    if target.dtype == torch.float64:
        return
    if target.device.type != "cpu" or not math.isfinite(target.sum(dtype=torch.float32).item()):
        target.copy_(saturated(rows, target.dtype))


def saturated(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Float64 rows, scaled where their largest component is beyond the range of ``dtype``."""
    limit = torch.finfo(dtype).max
    largest = rows.abs().amax(-1, keepdim=True)
    return torch.where(largest > limit, rows / largest * limit, rows)
