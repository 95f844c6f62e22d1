"""open_clip's ClipLoss."""

from __future__ import annotations

from benchmarks.case import CONTRASTIVE, Inputs, Outputs, values
from benchmarks.providers.provider import Provider


def _contrastive(inputs: Inputs) -> Outputs:
    from open_clip.loss import ClipLoss

    x, y, _, scale = values(inputs, CONTRASTIVE)
    return (ClipLoss()(x, y, scale),)


PROVIDERS = (
    Provider(
        name="clip-loss-fp32",
        label="open_clip ClipLoss, fp32 (Euclidean)",
        note="CLIP's loss on inner products, no geometry; all logits in memory",
        programs={"contrastive_dist": _contrastive},
        computes="euclidean",
        package="open_clip",
        install="pip install open_clip_torch",
    ),
)
