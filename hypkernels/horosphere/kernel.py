"""Triton kernels of the Busemann function.

Formulas of the scalars of a row, the same as in :mod:`hypkernels.horosphere.closed_form`; the kernels that
apply them to rows are those of :mod:`hypkernels.tritonlib.row_kernels`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from hypkernels.tritonlib.manifest import Variant
from hypkernels.tritonlib.pair_geometry import PairGradient, ratio
from hypkernels.tritonlib.row_kernels import (
    launch_backward,
    launch_forward,
    op_variants,
    pair_backward,
    pair_forward,
)
from hypkernels.tritonlib.rows import bounded
from hypkernels.tritonlib.scalar_math import asinh, asinhc_slope


class Horosphere(NamedTuple):
    """As in :mod:`hypkernels.horosphere.closed_form`."""

    of_x: tl.tensor
    of_n: tl.tensor
    sine_sq: tl.tensor
    L2: tl.tensor
    h: tl.tensor
    s: tl.tensor


@triton.jit
def _horosphere(pair):
    alpha, A = pair.alpha, pair.A
    norm_sq = alpha * alpha * pair.x_sq + pair.n_sq
    of_n = ratio(1.0, tl.sqrt(bounded(norm_sq)))
    of_x = alpha * of_n
    sine_sq = tl.where(norm_sq == 0.0, 1.0, pair.n_sq * of_n * of_n)
    t = tl.sqrt(pair.c) * of_x * pair.x_sq
    L2, A_minus_1, toward = pair.P2 * sine_sq, pair.P2 / (1.0 + A), alpha > 0.0
    divisor = tl.where(toward, A + t, 1.0)
    h = tl.where(toward, 1.0 + L2, A - t) / divisor
    h_minus_1 = tl.where(toward, L2 - (A_minus_1 + t), A_minus_1 - t) / divisor
    return Horosphere(of_x, of_n, sine_sq, L2, h, h_minus_1 * (1.0 + h) / (2.0 * h))


@triton.jit
def _value(pair, options):
    return asinh(_horosphere(pair).s) / tl.sqrt(pair.c)


@triton.jit
def _gradient(grad, pair, options):
    at = _horosphere(pair)
    of_x, of_n, A, h, c = at.of_x, at.of_n, pair.A, at.h, pair.c
    lateral, k, scale = tl.where(pair.n_sq > 0.0, 1.0, 0.0), tl.sqrt(c), grad / h
    toward = of_x > 0.0
    radial = tl.where(toward, c * at.sine_sq - of_x * of_x, k - of_x * A)
    radial = radial / (A * tl.where(toward, k + of_x * A, 1.0))
    turn = scale * of_n
    excess = at.s * at.s * at.s * asinhc_slope(tl.abs(at.s))
    return PairGradient(
        scale * radial,
        -turn * lateral,
        -turn * at.sine_sq,
        turn * (of_x * pair.x_sq) * of_n * lateral,
        grad * (at.L2 / ((1.0 + h * h) * A * h) + excess) / (2.0 * c * k),
    )


def busemann(x: Tensor, direction: Tensor, curv: Tensor) -> Tensor:
    return launch_forward(pair_forward, _value, (x, direction), curv)


def busemann_backward(grad: Tensor, x: Tensor, direction: Tensor, curv: Tensor) -> tuple[Tensor, ...]:
    return launch_backward(pair_backward, _gradient, grad, (x, direction), curv)


def aot_variants() -> Iterator[Variant]:
    yield from op_variants(__name__, "busemann", points=2)
