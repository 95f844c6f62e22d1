"""Liger's fused linear cross entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.providers.provider import Provider
from benchmarks.providers.two_calls import NOTE, two_calls


def _fused(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss()(weight, x, targets)


PROVIDERS = (
    Provider(
        name="liger-bf16",
        label="Liger fused linear CE, bf16 (Euclidean)",
        note=NOTE + "; logits are rounded to bfloat16, gradients are computed in the forward pass",
        programs={"contrastive_dist": two_calls(_fused)},
        dtype=torch.bfloat16,
        products="bfloat16",
        computes="euclidean",
        tolerance=2e-2,
        package="liger_kernel",
        needs_cuda=True,
    ),
)
