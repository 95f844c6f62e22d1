"""Gradients that a type cannot hold, such as that of an angle at a point close to the origin.

Infinities there would destroy what the gradient says. A row with a component beyond the range of its type is
scaled as a whole instead: the direction stays, and the largest component is the largest number of the type.
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
    """Float64 rows as they are, but for those whose largest component ``dtype`` does not hold."""
    limit = torch.finfo(dtype).max
    largest = rows.abs().amax(-1, keepdim=True)
    return torch.where(largest > limit, rows / largest * limit, rows)
