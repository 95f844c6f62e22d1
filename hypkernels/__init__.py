"""Exact, fused Lorentz-model hyperbolic geometry for PyTorch."""

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
)

__all__ = [
    "dist0",
    "elementwise_dist",
    "elementwise_inner",
    "exp_map",
    "exp_map0",
    "half_aperture",
    "log_map",
    "log_map0",
    "oxy_angle",
]
