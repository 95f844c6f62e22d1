"""The definition, in plain differentiable PyTorch: the oracle of the tests, meant for float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hypkernels.pairwise import reference as pairwise

# How far apart two points are: the logits are minus this, times the scale.
GAPS: dict[str, Callable[..., Tensor]] = {
    "dist": pairwise.pairwise_dist,
    "sqdist": lambda x, y, curv: pairwise.pairwise_dist(x, y, curv) ** 2,
    "inner": lambda x, y, curv: -pairwise.pairwise_inner(x, y, curv),
    "angle": pairwise.pairwise_oxy_angle,
}


def contrastive_loss(
    x: Tensor,
    y: Tensor,
    curv: Tensor | float,
    logit_scale: Tensor | float,
    targets: Tensor | None = None,
    *,
    similarity: str = "dist",
    symmetric: bool = True,
) -> Tensor:
    """Loss of each row: the cross entropies of row ``i`` and, if symmetric, of column ``targets[i]``."""
    rows = torch.arange(x.shape[0], device=x.device)
    targets = rows if targets is None else targets
    scale = torch.as_tensor(logit_scale).to(x.device).expand(x.shape[0]).unsqueeze(-1)
    gap = GAPS[similarity]
    loss = F.cross_entropy(-scale * gap(x, y, curv), targets, reduction="none")
    if not symmetric:
        return loss
    columns = -scale * (gap(y, x, curv).mT if similarity == "angle" else gap(x, y, curv))
    return (loss + F.cross_entropy(columns.mT[targets], rows, reduction="none")) / 2
