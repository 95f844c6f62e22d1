"""PyTorch's own chunked linear cross entropy, where the installed version has it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.providers.provider import Provider
from benchmarks.providers.two_calls import NOTE, two_calls


def _chunked(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    options: Any = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(x, weight, targets, options=options)


def _refusal(device: torch.device) -> str | None:
    available = hasattr(F, "linear_cross_entropy") and hasattr(torch.nn, "LinearCrossEntropyOptions")
    return None if available else f"PyTorch {torch.__version__} has no linear_cross_entropy"


def _provider(precision: str, dtype: torch.dtype, tolerance: float, needs_cuda: bool) -> Provider:
    return Provider(
        name=f"linear-cross-entropy-{precision}",
        label=f"torch linear_cross_entropy, {precision} (Euclidean)",
        note=NOTE + ", in chunks; gradients are computed in the forward pass",
        programs={"contrastive_dist": two_calls(_chunked)},
        dtype=dtype,
        products=str(dtype).removeprefix("torch."),
        computes="euclidean",
        tolerance=tolerance,
        needs_cuda=needs_cuda,
        refusal=_refusal,
    )


PROVIDERS = (
    _provider("fp32", torch.float32, 2e-3, needs_cuda=False),
    _provider("bf16", torch.bfloat16, 2e-2, needs_cuda=True),
)
