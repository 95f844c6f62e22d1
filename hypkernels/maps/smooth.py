"""Exponential and logarithmic maps as formulas that can be differentiated twice, smooth at the origin.

For derivatives of any order; see :mod:`hypkernels.smooth_geometry`. Arguments are those of
:mod:`hypkernels.maps.reference`, with points as float64 rows ``(rows, D)`` and scalars 0-d or ``(rows, 1)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hypkernels.pair_geometry import dot
from hypkernels.smooth_geometry import (
    NEAR_ORIGIN,
    asinhc_of_square,
    cosh_of_square,
    excess,
    in_units,
    large_exponent,
    sinhc_of_square,
    smooth_pair,
    smooth_split,
    wedge,
    where_safe,
)


def exp_map0(v: Tensor, c: Tensor) -> Tensor:
    return scaled_exp_map0(v, v.new_ones(()), c)


def scaled_exp_map0(x: Tensor, scale: Tensor, c: Tensor) -> Tensor:
    unit = large_exponent(c * dot(scale * x, scale * x))

    def formula(x: Tensor, scale: Tensor, c: Tensor) -> Tensor:
        v = scale * x
        return sinhc_of_square(c * dot(v, v), unit) * v

    return in_units(unit, formula, x, scale, c)


def log_map0(x: Tensor, c: Tensor) -> Tensor:
    return asinhc_of_square(c * dot(x, x)) * x


def exp_map(x: Tensor, v: Tensor, c: Tensor) -> Tensor:
    """``cosh(tau) x + sinhc(tau) v``

    Inward, where its terms cancel, collected along and across ``x``: for ``v = alpha x + n`` with
    ``alpha < 0`` the first part is ``x`` times the sum of ``(1 + alpha/tau) exp(tau) / 2`` and
    ``(1 - alpha/tau) exp(-tau) / 2``, where ``tau^2 - alpha^2 = c |n|^2 - (alpha/A)^2``.
    """
    unit = large_exponent(_tau_square(x, v, c))

    def formula(x: Tensor, v: Tensor, c: Tensor) -> Tensor:
        tau_sq, P2 = _tau_square(x, v, c), c * dot(x, x)
        S = sinhc_of_square(tau_sq, unit)
        outward = cosh_of_square(tau_sq, unit) * x + S * v
        inward = (dot(x, v) < 0) & (tau_sq >= 1) & (P2 >= NEAR_ORIGIN**2)
        split = smooth_split(x, v)
        alpha, tau = torch.where(inward, split.alpha, -1.0), where_safe(inward, torch.sqrt, tau_sq)
        excess = (c * dot(split.n, split.n) - alpha * alpha / (1 + P2)) / (tau * (tau - alpha))
        grown, shrunk = torch.exp(tau - unit), torch.exp(-tau - unit)
        along = excess * grown + (1 - alpha / tau) * shrunk
        return torch.where(inward, along / 2 * x + S * split.n, outward)

    return in_units(unit, formula, x, v, c)


def _tau_square(x: Tensor, v: Tensor, c: Tensor) -> Tensor:
    return c * (dot(v, v) + c * wedge(x, v).square) / (1 + c * dot(x, x))


def log_map(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """``f ((y - x) - z x)`` with ``f = kd / sinh(kd)``"""
    z = c * excess(smooth_pair(x, y, c))
    return asinhc_of_square(z * (z + 2)) * ((y - x) - z * x)
