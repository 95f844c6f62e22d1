"""CLIP's symmetric loss from a fused linear cross entropy: one call for the rows, one for the columns."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.case import CONTRASTIVE, Inputs, Outputs, Program, values


def two_calls(linear_cross_entropy: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Program:
    """A program from ``linear_cross_entropy(inputs, weight, targets)``, the mean over the rows."""

    def contrastive(inputs: Inputs) -> Outputs:
        x, y, _, scale = values(inputs, CONTRASTIVE)
        targets = torch.arange(len(x), device=x.device)
        rows = linear_cross_entropy((scale * x.float()).to(x.dtype), y, targets)
        columns = linear_cross_entropy((scale * y.float()).to(y.dtype), x, targets)
        return (0.5 * (rows + columns),)

    return contrastive


NOTE = "CLIP's loss on inner products, no geometry; called once for each direction"
