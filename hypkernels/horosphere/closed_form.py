"""The Busemann function: value and gradients in closed form.

Rows are float64 ``(rows, D)``; per-row scalars keep a column, ``(rows, 1)``. With ``k = sqrt(c)``, the unit
vector ``w`` of the direction and ``t = k x.w``:

    P = k|x|    A = sqrt(1 + P^2)    L = k |x - (x.w) w|    h = A - t = (1 + L^2) / (A + t)

The Busemann function is ``log(h) / k``. It is computed as ``asinh(s) / k`` with ``s = (h - 1/h) / 2``, whose
factor ``h - 1`` is no difference of numbers next to 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hypkernels.pair_geometry import ratio, split_along
from hypkernels.scalar_functions import asinhc_slope
from hypkernels.wide import marked, repaired, resolved, unless, within


class Horosphere(NamedTuple):
    """That of each point: the scalars of the module's docstring, and ``w = of_x x + of_n n``.

    ``n`` is the direction's part across ``x`` and ``sine_sq`` that of the angle between the two. A direction
    of 0 counts as one across ``x``, whose gradient is 0.
    """

    c: Tensor
    of_x: Tensor
    of_n: Tensor
    sine_sq: Tensor
    A: Tensor
    L2: Tensor
    h: Tensor
    s: Tensor


@repaired()
def busemann(x: Tensor, direction: Tensor, c: Tensor) -> Tensor:
    return _value(_horosphere(*split_along(x, direction)[:4], c))


def _value(at: Horosphere) -> Tensor:
    return torch.asinh(at.s) / torch.sqrt(at.c)


busemann_by_sums = marked(lambda *numbers: _value(_horosphere(*numbers)))


def _horosphere(x_sq: Tensor, alpha: Tensor, alpha_minus_1: Tensor, n_sq: Tensor, c: Tensor) -> Horosphere:
    norm_sq = resolved(alpha * alpha * x_sq + n_sq, alpha)  # of the direction
    of_n = ratio(1.0, torch.sqrt(norm_sq))
    of_x = alpha * of_n
    sine_sq = torch.where(norm_sq == 0, 1.0, n_sq * of_n * of_n)
    P2 = c * x_sq
    A = torch.sqrt(1 + P2)
    t = torch.sqrt(c) * of_x * x_sq
    L2, A_minus_1, toward = P2 * sine_sq, P2 / (1 + A), alpha > 0
    beyond = within(P2, c * norm_sq)
    h = unless(beyond, torch.where(toward, (1 + L2) / (A + t), A - t))
    h_minus_1 = torch.where(toward, (L2 - (A_minus_1 + t)) / (A + t), A_minus_1 - t)
    s = h_minus_1 * (1 + h) / (2 * h)
    return Horosphere(c, of_x, of_n, sine_sq, A, L2, h, s)


@repaired(points=2)
def busemann_gradient(grad: Tensor, x: Tensor, direction: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients: by ``x``, ``(k x / A - w) / h``; by the direction, the part of ``-x / h`` across
    it.

    By ``c`` from ``1 - 1/(A h) = L^2 / (A h (1 + h^2)) + tanh(log(h))``: less the logarithm, it is a sum of
    terms of one sign wherever the value is negative, and elsewhere it cancels at a zero alone.
    """
    x_sq, alpha, alpha_minus_1, n_sq, n = split_along(x, direction)
    at = _horosphere(x_sq, alpha, alpha_minus_1, n_sq, c)
    of_x, of_n, A, h, s = at.of_x, at.of_n, at.A, at.h, at.s
    lateral, k, scale = torch.sign(n_sq), torch.sqrt(c), grad / h
    toward = (c * at.sine_sq - of_x * of_x) / (A * (k + of_x * A))
    radial = torch.where(of_x > 0, toward, k / A - of_x)
    by_x = (scale * radial * x).addcmul_(-scale * of_n * lateral, n)
    turn = scale * of_n
    by_direction = (-turn * at.sine_sq * x).addcmul_(turn * (of_x * x_sq) * of_n * lateral, n)
    excess = s * s * s * asinhc_slope(s.abs())  # tanh(kB) - kB
    return by_x, by_direction, grad * (at.L2 / ((1 + h * h) * A * h) + excess) / (2 * c * k)
