# mypy: allow-untyped-defs, allow-incomplete-defs
"""Distances, inner products and angles of the pairs of a tile, in float32.

All are functions of ``z = cosh(k d) - 1 = (A B - 1) - c x.y`` with ``A = 1 + h_x``, ``B = 1 + h_y``, or of

    lateral = P Q - c x.y,   radial = 2 sinh^2((b - a)/2),   z = lateral + radial

``product`` is ``x.y`` of the points as they are; then ``z = h_x B + h_y - c x.y``. If ``CENTRED`` it is
``u.v`` with ``u = k x - P o_x``, ``v = k y - Q o_y`` and any two directions ``o_x`` and ``o_y``; then
``lateral = t_x Q + P t_y - u.v`` with the tilts ``t``. All scalars of points are explained in
:class:`~hypkernels.tritonlib.pair_tiles.Points`.

Shapes: products and results are ``(rows, columns)``; scalars of rows are ``(rows, 1)``, those of columns
``(1, columns)``.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from hypkernels.tritonlib.pair_tiles import log2, minus

DIST, SQDIST, INNER, ANGLE_AT_X, ANGLE_AT_Y = (tl.constexpr(i) for i in range(5))

# Write these to the right of a tensor: the interpreter of Triton 3.8 computes with a constant on the
# left wrongly.
LN2 = tl.constexpr(0.6931471805599453)
_LOG2E = tl.constexpr(1.4426950408889634)
_ROOT_2 = tl.constexpr(1.4142135623730951)
HALF_PI = tl.constexpr(1.5707963267948966)
# The rounding of a dot product, in units of the norms: closer points coincide.
_COINCIDENT = tl.constexpr(16 * 2.0**-23)
# Up to this distance, with curvature -1, the series in ``z`` are right to rounding.
NEAR_REACH = tl.constexpr(0.5)
# The least ``z``, for points that all are the origin.
TINY = tl.constexpr(1e-37)


class Gradient(NamedTuple):
    """The gradient by each pair's ``-c x.y`` and by ``log c``; for angles also the points' own terms.

    Except for angles, ``curv`` lacks ``weight radial^2 / 2A``, which is added once a row, with the row's
    ``A``.
    """

    weight: tl.tensor
    radial: tl.tensor
    curv: tl.tensor
    x: tl.tensor
    y: tl.tensor


@triton.jit
def gap_of_pairs(
    product, x, y, c, near, FORMULA: tl.constexpr, CENTRED: tl.constexpr, INLINE_PTX: tl.constexpr
):
    """Distances in bits, ``d / ln 2``; angles in radians."""
    spread = spread_of_pairs(product, x, y, c, FORMULA, CENTRED)
    return gap_of_spread(spread, near, FORMULA, INLINE_PTX)


@triton.jit
def spread_of_pairs(product, x, y, c, FORMULA: tl.constexpr, CENTRED: tl.constexpr):
    """Angles, or ``z``, of which the other gaps are increasing functions."""
    if FORMULA == ANGLE_AT_X:
        return angle_of_pairs(product, x, y, c, CENTRED)
    if FORMULA == ANGLE_AT_Y:
        return angle_of_pairs(product, y, x, c, CENTRED)
    return separation(product, x, y, c, CENTRED)


@triton.jit
def gap_of_spread(spread, near, FORMULA: tl.constexpr, INLINE_PTX: tl.constexpr):
    if FORMULA >= ANGLE_AT_X:
        return spread
    if FORMULA == INNER:
        return 1.0 + spread
    distance = distance_in_bits(spread, near, INLINE_PTX)
    return distance * distance if FORMULA == SQDIST else distance


@triton.jit
def own_terms(gradient, weight, product, x, y, c, FORMULA: tl.constexpr, CENTRED: tl.constexpr):
    """The weights of the points themselves (own terms), from ``weight``, the rounded matrix."""
    if FORMULA < ANGLE_AT_X:
        return weight * (1.0 + y.height), weight * (1.0 + x.height)
    kept = tl.where(gradient.weight == 0.0, 1.0, weight / gradient.weight)
    lateral, extent = lateral_part(product, x, y, c, CENTRED)
    at_apex = weight * (extent - lateral)
    if FORMULA == ANGLE_AT_X:
        return tl.fma(gradient.x, kept, at_apex), gradient.y * kept
    return gradient.x * kept, tl.fma(gradient.y, kept, at_apex)


@triton.jit
def separation(product, x, y, c, CENTRED: tl.constexpr):
    """``z``, never 0: its slopes are finite."""
    if CENTRED:
        _, _, z, _ = lateral_radial(product, x, y, c, CENTRED)
    else:
        z = tl.fma(product, minus(c), tl.fma(x.height, 1.0 + y.height, y.height))
    return tl.maximum(z, TINY, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def distance_in_bits(z, near, INLINE_PTX: tl.constexpr):
    """The distance in bits; by a series where all points are ``near``, since ``1 + z`` rounds ``z`` there."""
    if near:
        series = tl.fma(z, tl.fma(z, tl.fma(z, -63 / 90112, 35 / 18432), -5 / 896), 3 / 160)
        series = tl.fma(z, tl.fma(z, series, -1 / 12), 1.0)
        distance = tl.sqrt(z) * series * (_ROOT_2 * _LOG2E)
    else:
        distance = log2((1.0 + z) + tl.sqrt(sinh_squared(z)), INLINE_PTX)
    return distance


@triton.jit
def sinh_squared(z):
    return tl.fma(z, 1.0 + z, z)


@triton.jit
def near_excess(z):
    """``u / tanh(u) - 1`` for half the distance ``u``."""
    series = tl.fma(z, tl.fma(z, tl.fma(z, -4 / 9009, 4 / 3465), -1 / 315), 1 / 105)
    return z * tl.fma(z, tl.fma(z, series, -1 / 30), 1 / 6)


@triton.jit
def lateral_radial(product, apex, other, c, CENTRED: tl.constexpr):
    """``P Q - c x.y``, ``2 sinh((b - a) / 2)``, ``z`` and ``P Q``."""
    lateral, extent = lateral_part(product, apex, other, c, CENTRED)
    chord = (other.growth - apex.growth) * apex.shrink * other.shrink
    return lateral, chord, tl.fma(0.5 * chord, chord, lateral), extent


@triton.jit
def lateral_part(product, apex, other, c, CENTRED: tl.constexpr):
    extent = apex.norm * other.norm
    if CENTRED:
        lateral = tl.fma(apex.norm, other.tilt, tl.fma(apex.tilt, other.norm, -product))
    else:
        lateral = tl.fma(product, -c, extent)
    return tl.maximum(lateral, 0.0, propagate_nan=tl.PropagateNan.ALL), extent


@triton.jit
def angle_of_pairs(product, apex, other, c, CENTRED: tl.constexpr):
    lateral, chord, z, extent = lateral_radial(product, apex, other, c, CENTRED)
    sinh_between = chord * tl.sqrt(tl.fma(0.25 * chord, chord, 1.0))
    along = tl.fma(-(1.0 + apex.height), lateral, apex.norm * sinh_between)
    across = tl.sqrt(lateral) * tl.sqrt(_opposite(lateral, extent))
    angle = tl.where(apex.norm == 0.0, HALF_PI, _atan2(across, along))
    return tl.where(z <= extent * _COINCIDENT, 0.0, angle)


@triton.jit
def angle_gradient(product, by_gap, apex, other, c, CENTRED: tl.constexpr, RESOLUTION: tl.constexpr):
    """The gradient of an angle; ``x`` is of the apex, and lacks ``weight c x.y`` and the division by
    norms, which are done once for each point."""
    lateral, chord, z, extent = lateral_radial(product, apex, other, c, CENTRED)
    sinh_between = chord * tl.sqrt(tl.fma(0.25 * chord, chord, 1.0))
    gram = extent - lateral
    floor = extent * RESOLUTION
    floored = tl.maximum(z, floor, propagate_nan=tl.PropagateNan.ALL)
    per_z = tl.where(floored == 0.0, 0.0, by_gap / floored)
    per_z_plus_2 = 1.0 / (floored + 2.0)
    opposite = _opposite(lateral, extent)
    width = tl.sqrt(tl.maximum(lateral, floor)) * tl.sqrt(tl.maximum(opposite, floor))
    across = tl.sqrt(lateral) * tl.sqrt(opposite)
    apex_A, other_A = 1.0 + apex.height, 1.0 + other.height
    turn = per_z * (tl.fma(other.norm, sinh_between, other_A * lateral) * per_z_plus_2)
    turn_other = per_z * (
        (z * (gram * per_z_plus_2)) + (apex.norm * (other.norm - apex.norm) - lateral) * per_z_plus_2
    )
    return Gradient(
        weight=tl.where(width == 0.0, 0.0, turn / width),
        radial=chord,
        curv=-0.5 * turn * (across / apex_A) / other_A,
        x=per_z * ((1.0 + z) * per_z_plus_2) * across / apex_A,
        y=tl.where(width == 0.0, 0.0, turn_other / width),
    )


@triton.jit
def _opposite(lateral, extent):
    """``P Q + c x.y``"""
    return tl.maximum(2.0 * extent - lateral, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _atan2(y, x):
    """``atan2(y, x)`` for ``y >= 0``; ``atan2(0, 0)`` is 0."""
    size = tl.abs(x)
    larger = tl.maximum(size, y, propagate_nan=tl.PropagateNan.ALL)
    smaller = tl.minimum(size, y, propagate_nan=tl.PropagateNan.ALL)
    t = tl.where(larger == 0.0, 0.0, smaller / larger)
    w = t * t
    series = tl.fma(w, -0.0018775620265, 0.0112576363608)
    series = tl.fma(w, series, -0.0317505523562)
    series = tl.fma(w, series, 0.0584578439593)
    series = tl.fma(w, series, -0.0842763110991)
    series = tl.fma(w, series, 0.1095836237069)
    series = tl.fma(w, series, -0.1426489204168)
    series = tl.fma(w, series, 0.1999853253364)
    series = tl.fma(w, series, -0.3333329260349)
    angle = tl.fma(t * w, series, t)
    angle = tl.where(y > size, -angle + HALF_PI, angle)
    return tl.where(x < 0.0, -angle + 2.0 * HALF_PI, angle)
