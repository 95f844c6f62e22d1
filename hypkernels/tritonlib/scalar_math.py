"""Functions of one float64 value for Triton kernels, named as in :mod:`hypkernels.scalar_functions`.

Built on ``exp``, ``log`` and ``sqrt`` alone, which every target compiles to its own float64 routines: vendor
libraries beyond them differ between targets and do not run in Triton's interpreter. Each is accurate to a few
float64 units in the last place. They cost some fifty operations: call them once a row, not once an element.

A Python constant keeps float64 precision as an operand of ``+ - * /``; as an argument of ``tl.where`` it is
rounded to float32, so only constants exact in float32 stand there.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LOG_2 = tl.constexpr(0.6931471805599453)
_HALF_PI = tl.constexpr(1.5707963267948966)
_TAN_EIGHTH_PI = tl.constexpr(0.41421356237309503)
# The product of exp(400) and the smallest number of any narrow type is beyond all of them.
_CAP = tl.constexpr(400.0)
# exp(1800) times the smallest number of float64 is infinite, and exp((1800 - 400) / 2) is not.
_OVERFLOW = tl.constexpr(1800.0)


@triton.jit
def log1p(x):
    """``log(1 + x)`` for ``x > -1``: what the sum ``u = 1 + x`` rounds off is added to first order."""
    u = 1.0 + x
    lost = tl.where(x > 1.0, 1.0 - (u - x), x - (u - 1.0))
    return tl.where(u == x, tl.log(u), tl.log(u) + lost / u)


@triton.jit
def expm1(x):
    """``exp(x) - 1 = 2 sinh(x/2) exp(x/2)``"""
    return tl.where(x < -40.0, -1.0, 2.0 * sinh(0.5 * x) * tl.exp(0.5 * x))


@triton.jit
def sinh(t):
    return tl.where(tl.abs(t) < 1.0, t * _sinhc_near(t), _sinh_far(t))


@triton.jit
def cosh(t):
    """By the square of ``exp(|t|/2)``: finite wherever the result is."""
    root = tl.exp(0.5 * tl.abs(t))
    return (0.5 * root) * root + 0.5 / root / root


@triton.jit
def sinhc(t):
    """``sinh(t) / t``, 1 at zero."""
    return tl.where(tl.abs(t) < 1.0, _sinhc_near(t), _sinh_far(t) / t)


@triton.jit
def capped(t):
    """``(cap, half)`` of ``t >= 0``, with ``exp(t) = exp(cap) * half**2``.

    Beyond the cap ``exp`` takes all numbers of narrow types out of their range; some float64 numbers
    stay in it.
    """
    cap = tl.where(t > _CAP, _CAP, t)
    return cap, tl.exp(0.5 * (tl.where(t > _OVERFLOW, _OVERFLOW, t) - cap))


@triton.jit
def sinhc_slope(t):
    """``sinhc'(t) / t = (cosh(t) - sinhc(t)) / t**2``, 1/3 at zero."""
    return tl.where(tl.abs(t) < 2.0, _sinhc_slope_near(t), (cosh(t) - sinhc(t)) / t / t)


@triton.jit
def capped_sinhc(t, cap):
    """``sinhc(t)`` for ``t >= 0`` over the square of ``half``, see :func:`capped`."""
    return tl.where(t < 1.0, _sinhc_near(t), _sinh_far(cap) / t)


@triton.jit
def capped_sinhc_slope(t, cap):
    """``sinhc_slope(t)``, likewise."""
    return tl.where(t < 2.0, _sinhc_slope_near(t), (cosh(cap) - _sinh_far(cap) / t) / t / t)


@triton.jit
def capped_stretch(t, cap):
    """``t sinhc'(t) = cosh(t) - sinhc(t)``, likewise."""
    return tl.where(t < 2.0, t * t * _sinhc_slope_near(t), cosh(cap) - _sinh_far(cap) / t)


@triton.jit
def asinh(s):
    """``asinh(s)``; ``log(1 + a) + log(2)`` with ``a = |s|`` where ``a^2`` might overflow."""
    a = tl.abs(s)
    far = a > 1e20
    e = tl.where(far, a, a + a * a / (1.0 + tl.sqrt(1.0 + a * a)))
    positive = log1p(e) + _LOG_2 * far.to(tl.float64)
    return tl.where(s < 0.0, -positive, positive)


@triton.jit
def asinhc(s):
    """``asinh(s) / s``, 1 at zero."""
    return tl.where(s == 0.0, 1.0, asinh(s) / s)


@triton.jit
def asinhc_slope(s):
    """``asinhc'(s) / s = (1/sqrt(1 + s**2) - asinhc(s)) / s**2``, -1/3 at zero."""
    s2 = s * s
    w = s2 / (1.0 + s2)
    return tl.where(w < 0.15, _asinhc_slope_near(w), (1.0 / _hypotenuse(s) - asinhc(s)) / s / s)


@triton.jit
def asinhc_stretch(s):
    """``s asinhc'(s) = 1/sqrt(1 + s**2) - asinhc(s)``"""
    s2 = s * s
    w = s2 / (1.0 + s2)
    return tl.where(w < 0.15, s2 * _asinhc_slope_near(w), 1.0 / _hypotenuse(s) - asinhc(s))


@triton.jit
def _hypotenuse(s):
    """``sqrt(1 + s**2)`` for ``s >= 0``, finite where it is."""
    return tl.where(s > 1e10, s, tl.sqrt(1.0 + s * s))


@triton.jit
def _asinhc_slope_near(w):
    """:func:`asinhc_slope` near 0, as a series in ``w = s^2 / (1 + s^2)``."""
    return -_odd_reciprocals(tl.minimum(w, 0.15), 3, 20) * (1.0 - w) * tl.sqrt(1.0 - w)


@triton.jit
def atan2_positive(y, x):
    """``atan2(y, x)`` for ``y >= 0``: in [0, pi], 0 where both are zero."""
    a = tl.abs(x)
    small, large = tl.minimum(y, a), tl.maximum(y, a)
    q = tl.where(large == 0.0, 0.0, small / large)
    steep = q > _TAN_EIGHTH_PI
    u = tl.where(steep, (small - large) / (small + large), q)
    octant = u * _odd_reciprocals(-u * u, 1, 24)
    octant = tl.where(steep, octant + 0.5 * _HALF_PI, octant)
    quadrant = tl.where(y > a, _HALF_PI - octant, octant)
    return tl.where(x < 0.0, 2.0 * _HALF_PI - quadrant, quadrant)


@triton.jit
def _sinhc_near(t):
    """``1 + t^2/3! + t^4/5! + ...``, to a 64-bit mantissa for ``|t| < 1``."""
    t2 = tl.minimum(t * t, 1.0)
    total = 1.0 + t2 * (1.0 / (20 * 21))
    for j in tl.static_range(9):
        total = 1.0 + total * t2 * (1.0 / ((18 - 2 * j) * (19 - 2 * j)))
    return total


@triton.jit
def _sinh_far(t):
    root = tl.exp(0.5 * tl.abs(t))
    positive = (0.5 * root) * root - 0.5 / root / root
    return tl.where(t < 0.0, -positive, positive)


@triton.jit
def _sinhc_slope_near(t):
    """``1/3 + t^2/30 + ... = sum (2j + 2) / (2j + 3)! t^(2j)``, to a 64-bit mantissa for ``|t| < 2``."""
    t2 = tl.minimum(t * t, 4.0)
    total = 1.0 + t2 * (1.0 / (26 * 29))
    for j in tl.static_range(12):
        total = 1.0 + total * t2 * (1.0 / ((24 - 2 * j) * (27 - 2 * j)))
    return total / 3.0


@triton.jit
def _odd_reciprocals(w, FIRST: tl.constexpr, TERMS: tl.constexpr):
    """``1/FIRST + w/(FIRST + 2) + w^2/(FIRST + 4) + ...``: the series of atan and atanh."""
    total = 1.0 / (FIRST + 2 * TERMS - 4) + w * (1.0 / (FIRST + 2 * TERMS - 2))
    for j in tl.static_range(2, TERMS):
        total = total * w + 1.0 / (FIRST + 2 * (TERMS - 1 - j))
    return total
