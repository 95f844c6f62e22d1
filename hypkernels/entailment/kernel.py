"""Triton kernels of the entailment loss: angle, aperture, hinge and its options in one launch.

Formulas of the scalars of a row, the same as in :mod:`hypkernels.entailment.closed_form`; the kernels that
apply them to rows are those of :mod:`hypkernels.tritonlib.row_kernels`.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from hypkernels.cone.closed_form import moderate
from hypkernels.cone.kernel import angle, angle_gradient, aperture, aperture_slope
from hypkernels.tritonlib.manifest import Variant
from hypkernels.tritonlib.pair_geometry import PairGradient, ratio
from hypkernels.tritonlib.row_kernels import (
    launch_backward,
    launch_forward,
    op_variants,
    pair_backward,
    pair_forward,
)


@triton.jit
def _outside(theta, pair, options):
    """How far a point at the angle ``theta`` is outside its apex's cone, in radians; negative inside."""
    aperture_scale, min_radius, margin, _ = options
    return theta - aperture_scale * aperture(tl.sqrt(pair.P2), min_radius) + margin


@triton.jit
def _loss(pair, options):
    theta = angle(pair, options)
    return tl.maximum(_outside(theta, pair, options), 0.0) + options[3] * theta


@triton.jit
def _loss_gradient(grad, pair, options):
    aperture_scale, min_radius, _, leak = options
    hinge = tl.where(_outside(angle(pair, options), pair, options) > 0.0, grad, 0.0)
    turn = angle_gradient(hinge + leak * grad, pair, options)
    slope = -aperture_scale * hinge * aperture_slope(tl.sqrt(pair.P2), min_radius)
    return PairGradient(
        turn.x_by_x + pair.c * ratio(slope, pair.P2),
        turn.x_by_n,
        turn.y_by_x,
        turn.y_by_n,
        turn.curv + slope / (2.0 * pair.c),
    )


def entailment_loss(
    apex: Tensor,
    point: Tensor,
    curv: Tensor,
    aperture_scale: float,
    min_radius: float,
    margin: float,
    leak: float,
) -> Tensor:
    options = (aperture_scale, moderate(min_radius), margin, leak)
    return launch_forward(pair_forward, _loss, (apex, point), curv, *options)


def entailment_loss_backward(
    grad: Tensor,
    apex: Tensor,
    point: Tensor,
    curv: Tensor,
    aperture_scale: float,
    min_radius: float,
    margin: float,
    leak: float,
) -> tuple[Tensor, ...]:
    options = (aperture_scale, moderate(min_radius), margin, leak)
    return launch_backward(pair_backward, _loss_gradient, grad, (apex, point), curv, *options)


def aot_variants() -> Iterator[Variant]:
    yield from op_variants(__name__, "entailment_loss", points=2, options=(1.0, 0.1, 0.0, 0.0))
