"""Functions for the formulas that are differentiated more than once, in ``smooth.py`` of each family.

Plain out-of-place PyTorch on float64 rows: autograd, forward mode and ``torch.func`` may differentiate
it any number of times. Where a value is smooth its formula is smooth, too: it has squares of norms where
a norm has a kink, and :func:`where_safe` where a branch would be infinite. Intermediates are sums of
positive terms, whose derivatives are no larger than those of the result: so autograd's derivatives are
exact to rounding, relative to their norm.

Points are ``(rows, D)``, scalars of rows ``(rows, 1)``; the curvature is 0-d or ``(rows, 1)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import factorial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hypkernels.pair_geometry import ROUNDING_NOISE, dot, leading_bits

# Series up to the term that is below 1e-18 of the second derivative, at the argument where they end.
_COSH_TERMS = [1 / factorial(2 * j) for j in range(13)]
_SINHC_TERMS = [1 / factorial(2 * j + 1) for j in range(12)]
_ATANHC_TERMS = [1 / (2 * j + 1) for j in range(19)]
# Arguments from which exponentials are large, so that their products may leave the range; and from which
# they come near float64's largest number.
_LARGE, _TOP = 300.0, 700.0
# A pair is near the origin, where norms have kinks, if the smaller of P and Q is below this.
NEAR_ORIGIN = 2.0**-7


def where_safe(condition: Tensor, function: Callable[[Tensor], Tensor], argument: Tensor) -> Tensor:
    """``function(argument)`` where ``condition`` holds, elsewhere ``function(1)`` without any gradient."""
    return function(torch.where(condition, argument, 1.0))


def sqrt_or_0(square: Tensor) -> Tensor:
    """The square root, whose derivatives at 0 are 0: the convention at kinks."""
    return torch.where(square > 0, where_safe(square > 0, torch.sqrt, square), 0.0)


def large_exponent(q: Tensor) -> Tensor:
    """``sqrt(q)`` where its exponential is large, elsewhere 0: a constant, the unit of :func:`in_units`."""
    q = q.detach()
    return torch.where(q > _LARGE**2, torch.sqrt(q), 0.0)


def cosh_of_square(q: Tensor, unit: Tensor) -> Tensor:
    """``exp(-unit) cosh(sqrt(q))``, smooth at zero."""
    return _exponential(q, unit, _COSH_TERMS, torch.cosh, lambda t: 2.0)


def sinhc_of_square(q: Tensor, unit: Tensor) -> Tensor:
    """``exp(-unit) sinh(sqrt(q)) / sqrt(q)``, smooth at zero."""
    return _exponential(q, unit, _SINHC_TERMS, lambda t: torch.sinh(t) / t, lambda t: 2 * t)


def _exponential(
    q: Tensor,
    unit: Tensor,
    terms: list[float],
    far: Callable[[Tensor], Tensor],
    divisor: Callable[[Tensor], Tensor | float],
) -> Tensor:
    """A series in ``q``; beyond it ``far(sqrt(q))``; where that is large, the exponential alone."""
    near, large = q < 1, unit > 0
    series = _polynomial(torch.where(near, q, 0.0), terms)
    value = torch.where(near, series, where_safe(~(near | large), lambda q: far(torch.sqrt(q)), q))
    t = where_safe(large, torch.sqrt, q)
    return torch.where(large, torch.exp(t - torch.where(large, unit, 1.0)) / divisor(t), value)


def in_units(unit: Tensor, formula: Callable[..., Tensor], *operands: Tensor) -> Tensor:
    """``exp(unit) formula(*operands)`` of rows, each with its constant ``unit``.

    Results and derivatives beyond float64's range are infinite, with the right sign. Autograd by itself
    would multiply with the exponential first in the backward pass, and add infinities of different
    signs. It does so in compiled graphs, which take no autograd function with rules for forward and
    reverse mode.
    """
    if torch.compiler.is_compiling():
        return _enlarged(formula(*operands), unit)
    inside = (_Inlet.apply(one if one.dim() else one.expand(unit.shape), unit) for one in operands)
    return _Outlet.apply(formula(*inside), unit)


def _enlarged(rows: Tensor, unit: Tensor) -> Tensor:
    """``exp(unit) rows``, by finite factors one after the other, so that zeros stay zeros."""
    factor = torch.exp(unit.clamp(max=3 * _TOP) / 3)
    return rows * factor * factor * factor


class _Inlet(torch.autograd.Function):
    """The inputs of a formula: tangents pass unchanged, gradients are multiplied with ``exp(unit)``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, unit: Tensor) -> Tensor:
        return rows.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Outlet.apply(grad, *ctx.saved_tensors), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _Inlet.apply(tangent, *ctx.saved_tensors)


class _Outlet(torch.autograd.Function):
    """The output of a formula: it and its tangents are multiplied, gradients pass unchanged."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, unit: Tensor) -> Tensor:
        return _enlarged(rows, unit)

    setup_context = staticmethod(_Inlet.setup_context)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Inlet.apply(grad, *ctx.saved_tensors), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _Outlet.apply(tangent, *ctx.saved_tensors)


def asinhc_of_square(q: Tensor) -> Tensor:
    """``asinh(sqrt(q)) / sqrt(q)``, smooth at zero: there ``atanh(sqrt(w)) / sqrt(w) * sqrt(1 - w)``."""
    near = q < 1 / 16
    w = torch.where(near, q, 0.0) / (1 + torch.where(near, q, 0.0))
    series = _polynomial(w, _ATANHC_TERMS) * torch.sqrt(1 - w)
    far = where_safe(~near, lambda q: torch.asinh(torch.sqrt(q)) / torch.sqrt(q), q)
    return torch.where(near, series, far)


def _polynomial(argument: Tensor, terms: Sequence[float]) -> Tensor:
    """:func:`hypkernels.scalar_functions.horner` for autograd, not in place."""
    total = torch.full_like(argument, terms[-1])
    for term in reversed(terms[:-1]):
        total = total * argument + term
    return total


class SmoothSplit(NamedTuple):
    """``y = alpha x + n`` with ``n`` across ``x``; for ``x = 0``, ``alpha = 0`` and ``n = y``."""

    x_sq: Tensor
    alpha: Tensor
    n: Tensor
    collinear: Tensor


def smooth_split(x: Tensor, y: Tensor) -> SmoothSplit:
    """As :func:`hypkernels.pair_geometry.split_along`: no derivative depends on the coarse step.

    Where ``n`` is only rounding its value is 0; its derivatives stay.
    """
    x_sq = dot(x, x)
    divisor = torch.where(x_sq > 0, x_sq, 1.0)
    coarse = leading_bits(dot(x, y) / divisor).detach()
    rest = _minus_product(y, coarse, x)
    fine = dot(rest, x) / divisor
    n = _minus_product(rest, fine, x)
    direction = x / where_safe(x_sq > 0, torch.sqrt, x_sq)
    n = n - dot(n, direction) * direction  # changes derivatives only: the part along x is rounding
    n_sq = dot(n, n)
    collinear = n_sq <= ROUNDING_NOISE * (n_sq + fine * fine * x_sq)
    return SmoothSplit(x_sq, coarse + fine, n - torch.where(collinear, n, 0.0).detach(), collinear)


def _minus_product(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``a - b c``, rounded once by ``addcmul``, with the derivatives of the plain form."""
    twice = a - b * c
    return twice + (torch.addcmul(a.detach(), b.detach(), c.detach(), value=-1) - twice.detach())


class Wedge(NamedTuple):
    """``square = |x|^2 |y|^2 - (x.y)^2``, by the part ``n`` of the shorter point across the longer one."""

    longer_sq: Tensor
    n_sq: Tensor
    square: Tensor
    collinear: Tensor


def wedge(x: Tensor, y: Tensor) -> Wedge:
    """The part across the longer point, because the square is smooth where the shorter one vanishes."""
    x_is_longer = dot(x, x) >= dot(y, y)
    split = smooth_split(torch.where(x_is_longer, x, y), torch.where(x_is_longer, y, x))
    n_sq = dot(split.n, split.n)
    return Wedge(split.x_sq, n_sq, split.x_sq * n_sq, split.collinear)


class SmoothPair(NamedTuple):
    """The scalars of two points, with ``gram = x.y``, ``delta = y - x`` and ``grown = |y|^2 - |x|^2``."""

    c: Tensor
    x_sq: Tensor
    y_sq: Tensor
    gram: Tensor
    delta_sq: Tensor
    grown: Tensor
    across: Wedge
    A: Tensor
    B: Tensor


def smooth_pair(x: Tensor, y: Tensor, c: Tensor) -> SmoothPair:
    delta, x_sq, y_sq = y - x, dot(x, x), dot(y, y)
    A, B = torch.sqrt(1 + c * x_sq), torch.sqrt(1 + c * y_sq)
    return SmoothPair(c, x_sq, y_sq, dot(x, y), dot(delta, delta), dot(delta, x + y), wedge(x, y), A, B)


def excess(pair: SmoothPair) -> Tensor:
    """``M = z/c`` for ``z = cosh(kd) - 1``. A function: PyTorch 2.10 compiles no property of a tuple."""
    near = pair.c * torch.minimum(pair.x_sq, pair.y_sq) < NEAR_ORIGIN**2
    return torch.where(near, _near_origin(pair), _away_from_origin(pair, ~near))


def _near_origin(pair: SmoothPair) -> Tensor:
    """``M`` by polynomials: smooth at the origin."""
    c, x_sq, y_sq, gram = pair.c, pair.x_sq, pair.y_sq, pair.gram
    same_side = gram > 0
    numerator = torch.where(same_side, pair.delta_sq + c * pair.across.square, x_sq + y_sq + c * x_sq * y_sq)
    positive = torch.where(same_side, gram, 0.0)
    return numerator / (1 + pair.A * pair.B + c * positive) - (gram - positive)


def _away_from_origin(pair: SmoothPair, away: Tensor) -> Tensor:
    """``(|x||y| - x.y) + (|y| - |x|)^2 / (1 + AB + PQ)``: only the second term depends on ``c``."""
    x_norm, y_norm = (where_safe(away, torch.sqrt, square) for square in (pair.x_sq, pair.y_sq))
    product, same_side = x_norm * y_norm, pair.gram > 0
    opposite = product + torch.where(same_side, pair.gram, 0.0)
    lateral = torch.where(same_side, pair.across.square / opposite, product - pair.gram)
    radial = pair.grown / (x_norm + y_norm)
    return lateral + radial * radial / (1 + pair.A * pair.B + pair.c * product)
