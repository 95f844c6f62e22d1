"""Triton kernels of the row-wise inner product and distances.

Formulas of the scalars of a row, the same as in :mod:`hypkernels.distance.closed_form`; the kernels that
apply them to rows are those of :mod:`hypkernels.tritonlib.row_kernels`.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from hypkernels.tritonlib.manifest import Variant
from hypkernels.tritonlib.pair_geometry import along_z, ratio
from hypkernels.tritonlib.row_kernels import (
    launch_backward,
    launch_forward,
    norm_backward,
    norm_forward,
    op_variants,
    pair_backward,
    pair_forward,
)
from hypkernels.tritonlib.scalar_math import asinh, asinhc, asinhc_slope


@triton.jit
def inner(pair, options):
    return -(1.0 + pair.z) / pair.c


@triton.jit
def inner_gradient(grad, pair, options):
    by_curv = grad * (pair.A / pair.B + pair.B / pair.A) / (2.0 * pair.c * pair.c)
    return along_z(pair, -grad / pair.c, by_curv)


@triton.jit
def dist(pair, options):
    return 2.0 / tl.sqrt(pair.c) * asinh(tl.sqrt(0.5 * pair.z))


@triton.jit
def dist_gradient(grad, pair, options):
    c, A, B = pair.c, pair.A, pair.B
    k, sinh = tl.sqrt(c), tl.sqrt(pair.z * (pair.z + 2.0))
    h = tl.sqrt(0.5 * pair.z)
    excess = -h * h * h * asinhc_slope(h)
    B_minus_A = (pair.alpha_minus_1 * (pair.alpha + 1.0) * pair.P2 + pair.N2) / (A + B)
    radial = ratio(B_minus_A * B_minus_A, 2.0 * A * B * sinh)
    return along_z(pair, grad * ratio(1.0 / k, sinh), -grad * (excess + radial) / (c * k))


@triton.jit
def _dist0(x_norm, c, options):
    return asinhc(tl.sqrt(c) * x_norm) * x_norm


@triton.jit
def _dist0_gradient(grad, x_norm, c, options):
    s = tl.sqrt(c) * x_norm
    scale = grad * ratio(1.0, x_norm * tl.sqrt(1.0 + s * s))
    return scale, grad * x_norm * x_norm * x_norm * asinhc_slope(s) / 2.0


def elementwise_inner(x: Tensor, y: Tensor, curv: Tensor) -> Tensor:
    return launch_forward(pair_forward, inner, (x, y), curv)


def elementwise_inner_backward(grad: Tensor, x: Tensor, y: Tensor, curv: Tensor) -> tuple[Tensor, ...]:
    return launch_backward(pair_backward, inner_gradient, grad, (x, y), curv)


def elementwise_dist(x: Tensor, y: Tensor, curv: Tensor) -> Tensor:
    return launch_forward(pair_forward, dist, (x, y), curv)


def elementwise_dist_backward(grad: Tensor, x: Tensor, y: Tensor, curv: Tensor) -> tuple[Tensor, ...]:
    return launch_backward(pair_backward, dist_gradient, grad, (x, y), curv)


def dist0(x: Tensor, curv: Tensor) -> Tensor:
    return launch_forward(norm_forward, _dist0, (x,), curv)


def dist0_backward(grad: Tensor, x: Tensor, curv: Tensor) -> tuple[Tensor, ...]:
    return launch_backward(norm_backward, _dist0_gradient, grad, (x,), curv)


def aot_variants() -> Iterator[Variant]:
    yield from op_variants(__name__, "elementwise_inner", points=2)
    yield from op_variants(__name__, "elementwise_dist", points=2)
    yield from op_variants(__name__, "dist0", points=1)
