"""Exact, fused Lorentz-model hyperbolic geometry for PyTorch.

A point is its space components ``x``, shape ``(..., D)``; ``curv`` is the positive ``c`` of the
sectional curvature ``-c``::

    x = hk.exp_map0(features, curv)  # sinh(sqrt(c)|v|) / (sqrt(c)|v|) * v
    loss = hk.contrastive_loss(x, y, curv, s)  # InfoNCE on logits -s d(x_i, y_j)

What works under which transform of PyTorch:

| transform | row-wise, `entailment_loss` | pairwise | contrastive, `HySACLoss` |
| --- | --- | --- | --- |
| `backward`; `grad`, `vjp`, `jacrev` of `torch.func` | yes | yes | yes |
| `vmap`, `vmap(grad)` | yes | yes | yes |
| `jvp`, `jacfwd`, `linearize`, dual levels | slower | slower | refused |
| `create_graph`, `hessian`, any order | slower | slower | refused |
| checkpointing, saved tensor hooks | yes | yes | yes |
| `compile(fullgraph=True)`, changing floats | yes | yes | yes |
| `torch.func` derivatives in a compiled function | slower | slower | refused |

``slower`` differentiates a formula in plain float64 PyTorch instead of the closed-form gradient. It
serves norms, scales and curvatures that are 0 or from ``2**-160`` to ``2**160``, and refuses others by a
``ValueError``. A compiled function cannot read values: it returns NaN for those others and for a
``curv`` that is not positive and finite. In a compiled function reverse derivatives of exponentials that
float64 does not hold may be NaN, too. ``refused`` is a ``NotImplementedError`` that names the function.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from hypkernels.backend import use_backend
from hypkernels.lorentz import (
    busemann,
    dist0,
    elementwise_dist,
    elementwise_inner,
    exp_map,
    exp_map0,
    half_aperture,
    log_map,
    log_map0,
    oxy_angle,
    pairwise_dist,
    pairwise_inner,
    pairwise_oxy_angle,
    scaled_exp_map0,
)
from hypkernels.losses import (
    EntailmentConeLoss,
    LorentzContrastiveLoss,
    contrastive_loss,
    contrastive_losses,
    entailment_loss,
    entailment_losses,
    ring_contrastive_losses,
)

if TYPE_CHECKING:
    from hypkernels import compat as compat
    from hypkernels import conventions as conventions
    from hypkernels import objectives as objectives
    from hypkernels import portable as portable
    from hypkernels import retrieval as retrieval
    from hypkernels import row_losses as row_losses

__all__ = [
    "EntailmentConeLoss",
    "LorentzContrastiveLoss",
    "busemann",
    "contrastive_loss",
    "contrastive_losses",
    "dist0",
    "elementwise_dist",
    "elementwise_inner",
    "entailment_loss",
    "entailment_losses",
    "exp_map",
    "exp_map0",
    "half_aperture",
    "log_map",
    "log_map0",
    "oxy_angle",
    "pairwise_dist",
    "pairwise_inner",
    "pairwise_oxy_angle",
    "ring_contrastive_losses",
    "scaled_exp_map0",
    "use_backend",
]

_MODULES = ("compat", "conventions", "objectives", "portable", "retrieval", "row_losses")

if not TYPE_CHECKING:

    def __getattr__(name: str) -> ModuleType:
        """Import a module with other public names when it is first used, as in ``hk.retrieval.topk``."""
        if name in _MODULES:
            return importlib.import_module(f"hypkernels.{name}")
        raise AttributeError(f"module 'hypkernels' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
