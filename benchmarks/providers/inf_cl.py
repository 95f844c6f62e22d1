"""Inf-CL, the fused contrastive loss of Cheng et al. (arXiv 2410.17243)."""

from __future__ import annotations

from benchmarks.case import CONTRASTIVE, Inputs, Outputs, values
from benchmarks.providers.provider import Provider

_HEAD = 256


def _contrastive(inputs: Inputs) -> Outputs:
    from inf_cl import cal_flash_loss

    x, y, _, scale = values(inputs, CONTRASTIVE)
    head = min(_HEAD, x.shape[-1])
    rows = cal_flash_loss(x, y, scale=scale, head_dim=head)
    columns = cal_flash_loss(y, x, scale=scale, head_dim=head)
    return (0.5 * (rows + columns).mean(),)


PROVIDERS = (
    Provider(
        name="inf-cl",
        label="Inf-CL, fp32 (Euclidean)",
        note="CLIP's loss on inner products, no geometry; called once for each direction; TF32 products",
        programs={"contrastive_dist": _contrastive},
        products="tf32",
        computes="euclidean",
        tolerance=1e-2,
        package="inf_cl",
        needs_cuda=True,
    ),
)
