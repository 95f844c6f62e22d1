"""Row-wise inner product and distances as formulas that can be differentiated twice.

For derivatives of any order; see :mod:`hypkernels.smooth_geometry`. Arguments are those of
:mod:`hypkernels.distance.reference`, with points as float64 rows ``(rows, D)``, the curvature 0-d or
``(rows, 1)`` and results ``(rows, 1)``. A distance of 0 has derivatives of 0.
"""

from __future__ import annotations

from torch import Tensor

from hypkernels.pair_geometry import dot
from hypkernels.smooth_geometry import asinhc_of_square, excess, smooth_pair, sqrt_or_0


def elementwise_inner(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return -(1 / c + excess(smooth_pair(x, y, c)))


def elementwise_dist(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """``2 h asinhc(k h)`` with ``k h = sinh(kd/2)``"""
    h_sq = excess(smooth_pair(x, y, c)) / 2
    return 2 * sqrt_or_0(h_sq) * asinhc_of_square(c * h_sq)


def dist0(x: Tensor, c: Tensor) -> Tensor:
    x_sq = dot(x, x)
    return sqrt_or_0(x_sq) * asinhc_of_square(c * x_sq)
