"""Functions of one real variable that PyTorch lacks, for the closed forms: nothing cancels at zero."""

from __future__ import annotations

from collections.abc import Sequence
from math import factorial

import torch
from torch import Tensor

# The series up to the term that is below 1e-17 of the sum, at the argument where the series ends.
_SINHC_SLOPE_TERMS = [(2 * j + 2) / factorial(2 * j + 3) for j in range(13)]
_ATANH_EXCESS_TERMS = [1 / (2 * j + 3) for j in range(20)]

# This number and all smaller ones equal their hyperbolic sines.
_TINY = 1e-100


def horner(argument: Tensor, terms: Sequence[float]) -> Tensor:
    """``terms[0] + terms[1] * argument + terms[2] * argument**2 + ...``"""
    total = torch.full_like(argument, terms[-1])
    for term in reversed(terms[:-1]):
        total = total.mul_(argument).add_(term)
    return total


def sinhc(t: Tensor) -> Tensor:
    """``sinh(t) / t`` for ``t >= 0``, 1 at zero."""
    t = t.clamp(min=_TINY)
    return torch.sinh(t) / t


def sinhc_slope(t: Tensor) -> Tensor:
    """``sinhc'(t) / t = (cosh(t) - sinhc(t)) / t**2``, 1/3 at zero."""
    t2 = t * t
    return torch.where(t < 2, horner(t2.clamp(max=4), _SINHC_SLOPE_TERMS), (torch.cosh(t) - sinhc(t)) / t2)


def asinhc(s: Tensor) -> Tensor:
    """``asinh(s) / s`` for ``s >= 0``, 1 at zero."""
    s = s.clamp(min=_TINY)
    return torch.asinh(s) / s


def asinhc_slope(s: Tensor) -> Tensor:
    """``asinhc'(s) / s = (1/sqrt(1 + s**2) - asinhc(s)) / s**2``, -1/3 at zero."""
    w = s * s / (1 + s * s)
    near = -horner(w.clamp(max=0.15), _ATANH_EXCESS_TERMS) * (1 - w) * torch.sqrt(1 - w)
    return torch.where(w < 0.15, near, (torch.rsqrt(1 + s * s) - asinhc(s)) / (s * s))


def tanh_deficit(h: Tensor, tanh_sq: Tensor) -> Tensor:
    """``h - tanh(h)`` for ``h >= 0``, given ``tanh(h)**2``: in the precision of its arguments."""
    switch, terms = (0.05, 13) if h.dtype == torch.float64 else (0.2, 10)

    def series(tanh_sq: Tensor) -> Tensor:
        return torch.sqrt(tanh_sq) * tanh_sq * horner(tanh_sq, _ATANH_EXCESS_TERMS[:terms])

    near, deficit = tanh_sq < switch, h - torch.sqrt(tanh_sq)
    if h.device.type == "cpu":  # a GPU would have to wait for the number of those near
        return deficit.masked_scatter_(near, series(tanh_sq[near]))
    return torch.where(near, series(tanh_sq.clamp(max=switch)), deficit)
