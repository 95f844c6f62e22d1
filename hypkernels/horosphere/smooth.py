"""The Busemann function as a formula that can be differentiated twice.

For derivatives of any order; see :mod:`hypkernels.smooth_geometry`. Arguments are those of
:mod:`hypkernels.horosphere.reference`, with points as float64 rows ``(rows, D)``, the curvature 0-d or
``(rows, 1)`` and results ``(rows, 1)``. By a direction of 0 derivatives are 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hypkernels.pair_geometry import dot
from hypkernels.smooth_geometry import asinhc_of_square, smooth_split, where_safe


def busemann(x: Tensor, direction: Tensor, c: Tensor) -> Tensor:
    """``m asinhc(k m)`` with ``k m = (h - 1/h) / 2``, see :mod:`hypkernels.horosphere.closed_form`.

    Near the origin ``m`` is ``-x.w``, whose derivatives by ``c`` are those of what is added to it.
    """
    split, k, x_sq = smooth_split(direction, x), torch.sqrt(c), dot(x, x)
    along, across_sq = _along(x, direction, split.n, split.alpha), dot(split.n, split.n)
    A, toward = torch.sqrt(1 + c * x_sq), along > 0
    radial, positive = k * x_sq / (1 + A), torch.where(toward, along, 0.0)
    B = A + k * positive
    h = torch.where(toward, (1 + c * across_sq) / B, A - k * along)
    h_minus_1 = torch.where(toward, (k * across_sq - (radial + along)) / B, radial - along)  # over k
    m = h_minus_1 - k * h_minus_1 * h_minus_1 / (2 * h)
    return m * asinhc_of_square(c * m * m)


def _along(x: Tensor, direction: Tensor, n: Tensor, alpha: Tensor) -> Tensor:
    """``x.w`` for ``x = alpha direction + n``, whose derivative by the direction is made of ``n``.

    Of ``x`` the constant part along ``w`` is taken off, whose product with ``w`` is ``1 - |w - w0|^2 / 2``
    times its length, where ``w0`` is ``w`` as a constant.
    """
    norm_sq = dot(direction, direction)
    w = direction * torch.where(norm_sq > 0, where_safe(norm_sq > 0, torch.rsqrt, norm_sq), 0.0)
    turn, length = w - w.detach(), (alpha * torch.sqrt(norm_sq.detach())).detach()
    return dot(n.detach() + (x - x.detach()), w) + length * (1 - dot(turn, turn) / 2)
