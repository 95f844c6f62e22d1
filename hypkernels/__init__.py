"""Exact, fused Lorentz-model hyperbolic geometry for PyTorch."""

from hypkernels.backend import use_backend
from hypkernels.lorentz import (
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
)

__all__ = [
    "EntailmentConeLoss",
    "LorentzContrastiveLoss",
    "contrastive_loss",
    "contrastive_losses",
    "dist0",
    "elementwise_dist",
    "elementwise_inner",
    "entailment_loss",
    "exp_map",
    "exp_map0",
    "half_aperture",
    "log_map",
    "log_map0",
    "oxy_angle",
    "pairwise_dist",
    "pairwise_inner",
    "pairwise_oxy_angle",
    "scaled_exp_map0",
    "use_backend",
]
