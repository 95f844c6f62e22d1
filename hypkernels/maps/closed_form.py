"""Exponential and logarithmic maps: values and gradients in closed form.

Rows are float64 ``(rows, D)``; per-row scalars keep a column, ``(rows, 1)``.
With ``t = sqrt(c) |v|``: ``exp_map0(v) = sinhc(t) v`` and ``log_map0(x) = asinhc(t) x``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hypkernels.scalar_functions import asinhc, asinhc_slope, sinhc, sinhc_slope


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _radial_gradient(
    grad: Tensor, v: Tensor, c: Tensor, value: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient of ``v -> f(sqrt(c)|v|) v`` from ``value = f`` and ``slope = f'(t)/t``."""
    alignment = slope * _dot(v, grad)
    return value * grad + c * alignment * v, 0.5 * alignment * _dot(v, v)


def exp_map0(v: Tensor, c: Tensor) -> Tensor:
    return sinhc(torch.sqrt(c * _dot(v, v))) * v


def exp_map0_gradient(grad: Tensor, v: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    t = torch.sqrt(c * _dot(v, v))
    return _radial_gradient(grad, v, c, sinhc(t), sinhc_slope(t))


def log_map0(x: Tensor, c: Tensor) -> Tensor:
    return asinhc(torch.sqrt(c * _dot(x, x))) * x


def log_map0_gradient(grad: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sqrt(c * _dot(x, x))
    return _radial_gradient(grad, x, c, asinhc(s), asinhc_slope(s))
