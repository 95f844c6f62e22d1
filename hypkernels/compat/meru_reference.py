"""The published formulas of the MERU family with their clamps, for checkpoints that were scored with them.

The names, arguments and shapes are those of :mod:`hypkernels.compat.meru`, so that
``from hypkernels.compat import meru_reference as L`` is all that a model needs. Everything is plain PyTorch
in the points' dtype: it rounds, saturates and loses gradients where the published formulas do. With
``k = sqrt(c)``, ``t(x) = sqrt(1/c + |x|^2)``, ``clip(a, low, high)`` and ``e = eps``:

============================  ===========================================================================
``pairwise_inner``            ``x.y - t(x) t(y)``
``pairwise_dist``             ``acosh(clip(-c <x, y>, 1 + e, inf)) / k``
``exp_map0``                  ``sinh(clip(k|x|, e, asinh(2^15))) x / clip(k|x|, e, inf)``
``log_map0``                  ``acosh(clip(sqrt(1 + c|x|^2), 1 + e, inf)) x / clip(k|x|, e, inf)``
``half_aperture``             ``asin(clip(2 K / (k|x| + e), e - 1, 1 - e))``
``oxy_angle``                 ``acos(clip((t(y) + m t(x)) / (|x| s + e), e - 1, 1 - e))``, with
                              ``m = c <x, y>`` and ``s = sqrt(clip(m^2 - 1, e, inf))``
============================  ===========================================================================

In float32 ``1 + 1e-8`` is 1, so the default ``e`` clamps nothing at an ``acosh``, an ``acos`` or an ``asin``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hypkernels.compat.curvatures import beside_numbers, beside_vectors, of_factors
from hypkernels.translation import to_origin

_LARGEST_RAPIDITY = math.asinh(2.0**15)


def pairwise_inner(x: Tensor, y: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8) -> Tensor:
    """See the table of this module; shapes are those of :func:`hypkernels.compat.meru.pairwise_inner`."""
    c = beside_numbers(curv)
    return _products(x, y) - _products(_time(x, c).unsqueeze(-1), _time(y, c).unsqueeze(-1))


def pairwise_dist(x: Tensor, y: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8) -> Tensor:
    """See the table of this module; shapes are those of :func:`hypkernels.compat.meru.pairwise_dist`."""
    return _length(pairwise_inner(x, y, curv), beside_numbers(curv), eps)


def elementwise_inner(x: Tensor, y: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8) -> Tensor:
    """``x.y - t(x) t(y)`` of corresponding rows."""
    c = beside_numbers(curv)
    return (x * y).sum(-1) - _time(x, c) * _time(y, c)


def elementwise_dist(x: Tensor, y: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8) -> Tensor:
    """``acosh(clip(-c <x, y>, 1 + e, inf)) / k`` of corresponding rows."""
    return _length(elementwise_inner(x, y, curv), beside_numbers(curv), eps)


def exp_map0(x: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8) -> Tensor:
    """See the table of this module."""
    rapidity = beside_vectors(curv) ** 0.5 * _norm(x)
    return torch.sinh(rapidity.clamp(eps, _LARGEST_RAPIDITY)) * x / rapidity.clamp(min=eps)


def log_map0(x: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8) -> Tensor:
    """See the table of this module."""
    c = beside_vectors(curv)
    time = torch.sqrt(1 + c * (x**2).sum(-1, keepdim=True))
    return torch.acosh(time.clamp(min=1 + eps)) * x / (c**0.5 * _norm(x)).clamp(min=eps)


def half_aperture(
    x: Tensor, curv: float | Tensor = 1.0, min_radius: float = 0.1, eps: float = 1e-8
) -> Tensor:
    """See the table of this module."""
    size = _norm(x).squeeze(-1) * beside_numbers(curv) ** 0.5
    return torch.asin((2 * min_radius / (size + eps)).clamp(eps - 1, 1 - eps))


def oxy_angle(x: Tensor, y: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8) -> Tensor:
    """See the table of this module."""
    c = beside_numbers(curv)
    x_time, y_time = _time(x, c), _time(y, c)
    inner = (x * y).sum(-1) - x_time * y_time
    return _angle(_norm(x).squeeze(-1), x_time, y_time, c * inner, eps)


def pairwise_oxy_angle(x: Tensor, y: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8) -> Tensor:
    """:func:`oxy_angle` of every pair, ``(Bx, By)``."""
    x, y, c = torch.atleast_2d(x), torch.atleast_2d(y), beside_numbers(curv)
    x_time, y_time = _time(x, c).unsqueeze(-1), _time(y, c).unsqueeze(-1)
    inner = _products(x, y) - _products(x_time, y_time)
    return _angle(_norm(x), x_time, y_time.mT, c * inner, eps)


def oxy_angle_eval(x: Tensor, y: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8) -> Tensor:
    """Minus :func:`oxy_angle` of every pair, transposed: ``(By, Bx)``."""
    x, y, c = torch.atleast_2d(x), torch.atleast_2d(y), beside_numbers(curv)
    x_time, y_time = _time(x, c).unsqueeze(-1), _time(y, c).unsqueeze(-1)
    inner = _products(y, x) - _products(y_time, x_time)
    return -_angle(_norm(x).mT, x_time.mT, y_time, c * inner, eps)


def get_space_norm(x: Tensor) -> Tensor:
    """``|x|``, ``(..., 1)``."""
    return torch.sqrt((x**2).sum(-1, keepdim=True))


def get_distance_from_origin(x: Tensor, curv: float | Tensor = 1.0, eps: float = 0.0) -> Tensor:
    """``acosh(clip(k t(x), 1 + e, inf)) / k``, ``(..., 1)``."""
    c = beside_vectors(curv)
    return torch.acosh((c**0.5 * _time(x, beside_numbers(curv)).unsqueeze(-1)).clamp(min=1 + eps)) / c**0.5


def exp_map0_batch(x: Tensor, curv: float | Tensor, eps: float = 1e-8) -> Tensor:
    """:func:`exp_map0` of ``(B, N, D)`` with one curvature for each of ``N`` factors."""
    return exp_map0(x, curv, eps)


def log_map0_batch(x: Tensor, curv: float | Tensor, eps: float = 1e-8) -> Tensor:
    """:func:`log_map0` of ``(B, N, D)`` with one curvature for each of ``N`` factors."""
    return log_map0(x, curv, eps)


def pairwise_inner_batch(x: Tensor, y: Tensor, curv: float | Tensor, eps: float = 1e-8) -> Tensor:
    """:func:`pairwise_inner` within each factor, ``(N, B1, B2)``."""
    x, y, c = x.transpose(0, 1), y.transpose(0, 1), of_factors(curv, 1)
    return _products(x, y) - _products(_time(x, c).unsqueeze(-1), _time(y, c).unsqueeze(-1))


def pairwise_dist_batch(x: Tensor, y: Tensor, curv: float | Tensor, eps: float = 1e-8) -> Tensor:
    """:func:`pairwise_dist` within each factor, ``(N, B1, B2)``."""
    return _length(pairwise_inner_batch(x, y, curv), of_factors(curv, 2), eps)


def half_aperture_batch(
    x: Tensor, curv: float | Tensor, min_radius: float = 0.1, eps: float = 1e-8
) -> Tensor:
    """:func:`half_aperture` of ``(B, N, D)``, ``(N, B)``."""
    return half_aperture(x, of_factors(curv, 0), min_radius, eps).mT


def oxy_angle_batch(x: Tensor, y: Tensor, curv: float | Tensor, eps: float = 1e-8) -> Tensor:
    """:func:`oxy_angle` of ``(B, N, D)``, ``(N, B)``."""
    return oxy_angle(x, y, of_factors(curv, 0), eps).mT


def half_aperture_withroot(
    x: Tensor, root: Tensor, curv: float | Tensor = 1.0, min_radius: float = 0.1, eps: float = 1e-5
) -> Tensor:
    """:func:`half_aperture` after the isometry that moves ``root`` to the origin; published nowhere."""
    moved = to_origin(x, root, beside_numbers(curv)).to(x.dtype)
    return half_aperture(moved, curv, min_radius, eps)


def oxy_angle_withroot(
    x: Tensor, y: Tensor, root: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-5
) -> Tensor:
    """:func:`oxy_angle` after the isometry that moves ``root`` to the origin; published nowhere."""
    apexes, points = (to_origin(one, root, beside_numbers(curv)).to(x.dtype) for one in (x, y))
    return oxy_angle(apexes, points, curv, eps)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def _time(x: Tensor, c: float | Tensor) -> Tensor:
    return torch.sqrt(1 / c + (x**2).sum(-1))


def _products(x: Tensor, y: Tensor) -> Tensor:
    """A function of all pairs of rows; a vector is one row and drops its dimension."""
    return x @ (y.mT if y.dim() > 1 else y)


def _angle(norm: Tensor, x_time: Tensor, y_time: Tensor, minus_cosh: Tensor, eps: float) -> Tensor:
    across = torch.sqrt((minus_cosh**2 - 1).clamp(min=eps))
    cosine = (y_time + minus_cosh * x_time) / (norm * across + eps)
    return torch.acos(cosine.clamp(eps - 1, 1 - eps))


def _length(inner: Tensor, c: float | Tensor, eps: float) -> Tensor:
    return torch.acosh((-c * inner).clamp(min=1 + eps)) / c**0.5
