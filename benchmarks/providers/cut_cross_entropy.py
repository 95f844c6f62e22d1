"""Cut Cross-Entropy (Wijmans et al., ICLR 2025) in its exact mode: no gradient is filtered away."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.providers.provider import Provider
from benchmarks.providers.two_calls import NOTE, two_calls


def _exact(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from cut_cross_entropy import LinearCrossEntropyImpl, linear_cross_entropy

    if hasattr(LinearCrossEntropyImpl, "CCE_EXACT"):
        return linear_cross_entropy(x, weight, targets, impl=LinearCrossEntropyImpl.CCE_EXACT)
    return linear_cross_entropy(x, weight, targets, filter_eps=None)


PROVIDERS = (
    Provider(
        name="cce-exact-bf16",
        label="cut-cross-entropy exact, bf16 (Euclidean)",
        note=NOTE + "; gradients are added in the order in which blocks finish",
        programs={"contrastive_dist": two_calls(_exact)},
        dtype=torch.bfloat16,
        products="bfloat16",
        computes="euclidean",
        tolerance=2e-2,
        package="cut_cross_entropy",
        needs_cuda=True,
    ),
)
