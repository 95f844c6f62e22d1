"""The optimizer's parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

Schedule = Literal["cosine", "const"]


def make_optimizer(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; vectors and scalars are not decayed.

    A bias, a norm's gain, the curvature, the alphas and the temperature all have fewer than two dimensions.

    Raises:
        ValueError: nothing in ``model`` is trainable.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("the model has no trainable parameters")
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=lr,
        betas=betas,
        eps=eps,
        fused=True,
    )


def learning_rate(step: int, *, peak: float, warmup: int, total: int, schedule: Schedule = "cosine") -> float:
    """The learning rate of one step, ``0 <= step < total``.

    It rises linearly to ``peak`` over the first ``warmup`` steps, then follows half a cosine towards 0, or
    stays (``"const"``).
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "const":
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
