"""Exact, fused Lorentz-model hyperbolic geometry for PyTorch."""

from hypkernels.lorentz import exp_map0, log_map0

__all__ = ["exp_map0", "log_map0"]
