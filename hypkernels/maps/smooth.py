"""Exponential and logarithmic maps as formulas that can be differentiated twice, smooth at the origin.

For derivatives of any order; see :mod:`hypkernels.smooth_geometry`. Arguments are those of
:mod:`hypkernels.maps.reference`, with points as float64 rows ``(rows, D)`` and scalars 0-d or ``(rows, 1)``.
"""

from __future__ import annotations

from torch import Tensor

from hypkernels.pair_geometry import dot
from hypkernels.smooth_geometry import (
    asinhc_of_square,
    cosh_of_square,
    sinhc_of_square,
    smooth_pair,
    wedge,
)


def exp_map0(v: Tensor, c: Tensor) -> Tensor:
    return sinhc_of_square(c * dot(v, v)) * v


def scaled_exp_map0(x: Tensor, scale: Tensor, c: Tensor) -> Tensor:
    return exp_map0(scale * x, c)


def log_map0(x: Tensor, c: Tensor) -> Tensor:
    return asinhc_of_square(c * dot(x, x)) * x


def exp_map(x: Tensor, v: Tensor, c: Tensor) -> Tensor:
    """``cosh(tau) x + sinhc(tau) v`` with ``tau^2 = c (|v|^2 + c |x|^2 |n|^2) / A^2``."""
    tau_sq = c * (dot(v, v) + c * wedge(x, v).square) / (1 + c * dot(x, x))
    return cosh_of_square(tau_sq) * x + sinhc_of_square(tau_sq) * v


def log_map(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """``f ((y - x) - z x)`` with ``f = kd / sinh(kd)``"""
    z = c * smooth_pair(x, y, c).M
    return asinhc_of_square(z * (z + 2)) * ((y - x) - z * x)
