"""Exponential and logarithmic maps: values and gradients in closed form.

Rows are float64 ``(rows, D)``; per-row scalars keep a column, ``(rows, 1)``.
At the origin, with ``t = sqrt(c) |v|``: ``exp_map0(v) = sinhc(t) v`` and ``log_map0(x) = asinhc(t) x``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hypkernels.pair_geometry import dot, norm, pair_geometry, scaled_norm, split_along
from hypkernels.scalar_functions import asinhc, asinhc_slope, sinhc, sinhc_slope
from hypkernels.wide import EXPONENTS, repaired, unless, within


@repaired()
def exp_map0(v: Tensor, c: Tensor) -> Tensor:
    return _exp_map0(v, c)


@repaired(points=1)
def exp_map0_gradient(grad: Tensor, v: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    v_norm, t, S = _exponent(v, c)
    return _radial_gradient(grad, v, dot(v, grad), v_norm, c, S, sinhc_slope(t))


@repaired()
def scaled_exp_map0(x: Tensor, scale: Tensor, c: Tensor) -> Tensor:
    return _exp_map0(scale * x, c)


@repaired(points=1)
def scaled_exp_map0_gradient(
    grad: Tensor, x: Tensor, scale: Tensor, c: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by ``x``, scale and ``c``; along ``x`` the exponential map stretches by ``cosh``."""
    v = scale * x
    v_norm, t, S = _exponent(v, c)
    x_grad = dot(x, grad)
    within(x_grad.abs(), smallest=0.0)
    by_v, by_c = _radial_gradient(grad, v, scale * x_grad, v_norm, c, S, sinhc_slope(t))
    return scale * by_v, torch.cosh(t) * x_grad, by_c


def _exp_map0(v: Tensor, c: Tensor) -> Tensor:
    return _exponent(v, c)[-1] * v


def _exponent(v: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``|v|``, ``t = sqrt(c) |v|`` and ``sinhc(t)``."""
    v_norm = norm(v)
    t = torch.sqrt(c) * v_norm
    t = unless(within(t, **EXPONENTS), t)
    return v_norm, t, sinhc(t)


@repaired()
def log_map0(x: Tensor, c: Tensor) -> Tensor:
    return asinhc(scaled_norm(norm(x), c)) * x


@repaired(points=1)
def log_map0_gradient(grad: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    x_norm = norm(x)
    s = scaled_norm(x_norm, c)
    return _radial_gradient(grad, x, dot(x, grad), x_norm, c, asinhc(s), asinhc_slope(s))


def _radial_gradient(
    grad: Tensor, v: Tensor, v_grad: Tensor, v_norm: Tensor, c: Tensor, value: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient of ``v -> f(sqrt(c)|v|) v`` from ``value = f``, ``slope = f'(t)/t`` and ``v.grad``."""
    alignment = slope * v_grad
    return (value * grad).addcmul_(c * alignment, v), 0.5 * alignment * v_norm * v_norm


class Tangent(NamedTuple):
    """``v = alpha x + n`` tangent at ``x``, with ``P2 = c|x|^2`` and ``A2 = 1 + P2``.

    ``along_sq`` and ``across_sq`` are ``c`` times the squared Lorentz norms of its two parts, and ``tau`` is
    ``sqrt(c)`` times that of ``v``.
    """

    n: Tensor
    alpha: Tensor
    P2: Tensor
    A2: Tensor
    along_sq: Tensor
    across_sq: Tensor
    tau: Tensor
    cosh: Tensor


def _tangent(x: Tensor, v: Tensor, c: Tensor) -> Tangent:
    x_sq, alpha, _, n_sq, n = split_along(x, v)
    P2, across_sq = c * x_sq, c * n_sq
    A2 = 1 + P2
    along_sq = alpha * alpha * P2 / A2
    tau = torch.sqrt(along_sq + across_sq)
    cosh = torch.cosh(tau)
    beyond = within(cosh, P2)
    return Tangent(n, alpha, P2, A2, along_sq, across_sq, unless(beyond, tau), unless(beyond, cosh))


@repaired()
def exp_map(x: Tensor, v: Tensor, c: Tensor) -> Tensor:
    """``cosh(tau) x + sinhc(tau) v``, collected along and across ``x``."""
    tangent = _tangent(x, v, c)
    S = sinhc(tangent.tau)
    outward = tangent.cosh + tangent.alpha * S
    along = torch.where(tangent.alpha < 0, _inward(tangent, S), outward)
    return (along * x).addcmul_(S * torch.sign(tangent.across_sq), tangent.n)


def _inward(tangent: Tangent, S: Tensor) -> Tensor:
    """``cosh(tau) + alpha sinhc(tau)`` for ``alpha < 0``, without the cancellation of its two terms.

    Straight inward it is ``sinh(rho - tau) / P`` with ``P = sinh(rho)``; the part across ``x`` adds the
    rest. For long vectors it is computed as a multiple of ``cosh(tau)``, since a rounding of ``tau``
    changes that.
    """
    P, A, tau, cosh = torch.sqrt(tangent.P2), torch.sqrt(tangent.A2), tangent.tau, tangent.cosh
    inward, across_sq = torch.sqrt(tangent.along_sq), tangent.across_sq
    detour = A * S * across_sq / (tau + inward)
    short = (torch.sinh(torch.asinh(P) - tau) + detour) / P
    excess = (tangent.A2 * (across_sq / (tau * tau)) - 1) / (tangent.P2 + P * A * (inward / tau))
    return torch.where(tau < 20, short, cosh * excess - tangent.alpha / tau / (2 * cosh))


@repaired(points=2)
def exp_map_gradient(grad: Tensor, x: Tensor, v: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From ``d tau^2 = 2c p (dv - beta dx)`` with ``p = v - beta x`` and ``beta = c (x.v) / A^2``."""
    tangent = _tangent(x, v, c)
    tau, A2 = tangent.tau, tangent.A2
    S = sinhc(tau)
    slope = (S * dot(x, grad) + sinhc_slope(tau) * dot(v, grad)) / 2
    beta = tangent.alpha * tangent.P2 / A2
    p = (tangent.alpha / A2 * x).addcmul_(torch.sign(tangent.across_sq), tangent.n)
    grad_v = (S * grad).addcmul_(2 * c * slope, p)
    grad_x = (tangent.cosh * grad).addcmul_(-2 * c * slope * beta, p)
    return grad_x, grad_v, slope * (tangent.across_sq + tangent.along_sq / A2) / c


@repaired()
def log_map(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """``f (y - cosh(kd) x)`` with ``f = kd / sinh(kd)``, collected along and across ``x``."""
    pair, n = pair_geometry(x, y, c)
    f = asinhc(pair.sinh)
    return (f * pair.A * pair.W * x).addcmul_(f * torch.sign(pair.N2), n)


@repaired(points=2)
def log_map_gradient(grad: Tensor, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    pair, n = pair_geometry(x, y, c)
    A, B, W, z = pair.A, pair.B, pair.W, pair.z
    f, slope = asinhc(pair.sinh), (1 + z) * asinhc_slope(pair.sinh)
    x_grad = dot(x, grad)
    by_z = slope * (A * W * x_grad + dot(n, grad)) - f * x_grad
    u = pair.z_direction(1.0, x, n)
    grad_x = (-f * (1 + z) * grad).addcmul_(-by_z * c / A, u)
    grad_y = (f * grad).addcmul_(by_z * c / B, u)
    return grad_x, grad_y, by_z * pair.z_by_c()
