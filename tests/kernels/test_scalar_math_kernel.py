"""The float64 functions of the kernels against mpmath."""

from __future__ import annotations

import mpmath as mp
import pytest
import torch
import triton
import triton.language as tl
from kernel_lane import DEVICE
from torch import Tensor

from hypkernels.tritonlib import scalar_math

BLOCK = 256


@triton.jit
def _apply(X, OUT, SIZE, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = FUNCTION(tl.load(X + index, mask=index < SIZE, other=1.0))
    tl.store(OUT + index, value, mask=index < SIZE)


@triton.jit
def _apply2(Y, X, OUT, SIZE, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = tl.load(Y + index, mask=index < SIZE, other=1.0)
    x = tl.load(X + index, mask=index < SIZE, other=1.0)
    tl.store(OUT + index, FUNCTION(y, x), mask=index < SIZE)


def apply(name: str, x: Tensor) -> Tensor:
    x = x.to(DEVICE)
    out = torch.full_like(x, float("nan"))
    grid = (triton.cdiv(x.numel(), BLOCK),)
    _apply[grid](x, out, x.numel(), getattr(scalar_math, name), BLOCK)
    return out.cpu()


def worst_ulp(actual: Tensor, expected: list) -> float:
    """Largest error in units in the last place of the truth, subnormals counted in their own units."""
    errors = []
    for value, true in zip(actual.tolist(), expected, strict=True):
        magnitude = max(abs(true), mp.mpf(2) ** -1022)
        errors.append(abs(mp.mpf(value) - true) / mp.mpf(2) ** (mp.floor(mp.log(magnitude, 2)) - 52))
    return float(max(errors))


def logspaced(low: float, high: float, count: int) -> Tensor:
    """From ``low`` to ``high``, unevenly: no point of the grid is a round number."""
    exponent = torch.linspace(0, 1, count, dtype=torch.float64)
    return low * (high / low) ** exponent


# Around each switch-over between two forms, and the largest argument whose value is finite.
SWITCHES = torch.tensor([0.15, 0.42, 0.5, 1.0, 2.0, 1e8], dtype=torch.float64)
NEAR_SWITCHES = (SWITCHES[:, None] * (1 + 2.0**-52 * torch.arange(-3, 4))).flatten()


def positive(high: float) -> Tensor:
    x = torch.cat([logspaced(1e-300, high, 150), logspaced(1e-3, 30, 350), NEAR_SWITCHES])
    return x[x <= high]


def both_signs(high: float) -> Tensor:
    x = positive(high)
    return torch.cat([x, -x, torch.zeros(1, dtype=torch.float64)])


def over(numerator, denominator, limit):
    return numerator / denominator if denominator else mp.mpf(limit)


# name -> (points, definition, units in the last place). The slopes inherit, where they switch to their
# definitions, the cancellation of two terms.
CASES = {
    "log1p": (torch.cat([both_signs(0.99), positive(1e300)]), mp.log1p, 2),
    "expm1": (torch.cat([both_signs(709), -positive(1e300)]), mp.expm1, 4),
    "sinh": (both_signs(710.4), mp.sinh, 4),
    "cosh": (both_signs(710.4), mp.cosh, 4),
    "sinhc": (both_signs(710.4), lambda t: over(mp.sinh(t), t, 1), 4),
    "sinhc_slope": (
        both_signs(700),
        lambda t: over(mp.cosh(t) - over(mp.sinh(t), t, 1), t * t, mp.mpf(1) / 3),
        8,
    ),
    "asinh": (both_signs(1e300), mp.asinh, 4),
    "asinhc": (both_signs(1e300), lambda s: over(mp.asinh(s), s, 1), 4),
    "asinhc_slope": (
        positive(1e90),
        lambda s: over(1 / mp.sqrt(1 + s * s) - over(mp.asinh(s), s, 1), s * s, -mp.mpf(1) / 3),
        40,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_function_is_accurate_over_its_whole_range(name):
    x, definition, ulp = CASES[name]
    with mp.workdps(700 if name.endswith("slope") else 330):  # the terms of a slope cancel to 1e-600 of them
        expected = [definition(mp.mpf(v)) for v in x.tolist()]
    assert worst_ulp(apply(name, x), expected) <= ulp


def test_atan2_is_accurate_in_the_upper_half_plane():
    ratio = torch.cat([logspaced(1e-300, 1e300, 150), logspaced(1e-3, 1e3, 350), NEAR_SWITCHES])
    y = torch.cat([ratio, ratio, ratio.flip(0).clamp(max=1e150), torch.tensor([0.0, 0.0, 3.0, 0.0])])
    x = torch.cat([torch.ones_like(ratio), -torch.ones_like(ratio), ratio.clamp(max=1e150)])
    x = torch.cat([x, torch.tensor([2.0, -2.0, 0.0, 0.0])])
    out = torch.full_like(y, float("nan"), device=DEVICE)
    grid = (triton.cdiv(y.numel(), BLOCK),)
    _apply2[grid](y.to(DEVICE), x.to(DEVICE), out, y.numel(), scalar_math.atan2_positive, BLOCK)
    with mp.workdps(40):
        expected = [
            mp.atan2(b, a) if a or b else mp.mpf(0) for b, a in zip(y.tolist(), x.tolist(), strict=True)
        ]
    assert worst_ulp(out.cpu(), expected) <= 3


@pytest.mark.parametrize(
    ("name", "argument", "limit"),
    [
        ("log1p", float("inf"), float("inf")),
        ("expm1", 800.0, float("inf")),
        ("expm1", float("-inf"), -1.0),
        ("sinh", -800.0, float("-inf")),
        ("cosh", 800.0, float("inf")),
        ("asinh", float("-inf"), float("-inf")),
        ("sinhc_slope", 0.0, 1 / 3),
        ("asinhc_slope", 0.0, -1 / 3),
    ],
)
def test_limits(name, argument, limit):
    assert apply(name, torch.tensor([argument], dtype=torch.float64)).item() == limit
