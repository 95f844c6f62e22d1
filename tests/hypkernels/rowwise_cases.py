"""The row-wise ops' test points, by regime, and the assertions that compare an op with the oracle."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from lorentz_oracle import ONE_POINT, relative_error, truth, ulp_error
from torch import Tensor

import hypkernels

ROWS = 3
WIDTH = 48
MIN_RADIUS = 0.1


@dataclass(frozen=True)
class Regime:
    """Points at the sizes where one kind of cancellation is worst, as float64."""

    x: Tensor
    y: Tensor
    curv: float


def _regimes() -> dict[str, Regime]:
    generator = torch.Generator().manual_seed(0)

    def directions(width: int = WIDTH) -> Tensor:
        v = torch.randn(ROWS, width, generator=generator, dtype=torch.float64)
        return v / v.norm(dim=-1, keepdim=True)

    def between(low: float, high: float) -> Tensor:
        t = torch.rand(ROWS, 1, generator=generator, dtype=torch.float64)
        return torch.exp(math.log(low) + t * (math.log(high) - math.log(low)))

    def at_radius(low: float, high: float, curv: float = 1.0, width: int = WIDTH) -> Tensor:
        return torch.sinh(between(low, high)) / curv**0.5 * directions(width)

    def close_to(x: Tensor) -> Tensor:
        return x + between(1e-7, 1e-2) * x.norm(dim=-1, keepdim=True) * directions()

    regimes = {
        f"embeddings, c={c}": Regime(at_radius(0.1, 5, c, 512), at_radius(0.1, 5, c, 512), c)
        for c in (0.1, 1.0, 10.0)
    }
    regimes["near the origin"] = Regime(at_radius(1e-8, 1e-3), at_radius(1e-8, 1e-3), 1.0)
    regimes["tiny"] = Regime(at_radius(1e-20, 1e-17), at_radius(1e-20, 1e-17), 0.7)
    for radius in (11.0, 22.0):
        regimes[f"far, r<{radius:g}"] = Regime(at_radius(0.8 * radius, radius), at_radius(5, radius), 1.0)
        regimes[f"far to near, r<{radius:g}"] = Regime(
            at_radius(0.8 * radius, radius), at_radius(0.01, 1), 1.0
        )
    for radius in (0.1, 1.0, 5.0, 10.0, 22.0):
        x = at_radius(radius, radius)
        regimes[f"close, r={radius:g}"] = Regime(x, close_to(x), 1.0)
    x = at_radius(0.5, 5)
    for name, sign in (("collinear", 1), ("opposite", -1)):
        tilt = between(1e-7, 1e-5) * x.norm(dim=-1, keepdim=True) * directions()
        regimes[name] = Regime(x, sign * between(0.1, 10) * x + tilt, 1.0)
    edge = 2 * MIN_RADIUS * (1 + between(1e-6, 1e-1))
    regimes["at the aperture's edge"] = Regime(edge / 2.0**0.5 * directions(), at_radius(0.1, 1), 2.0)
    regimes["huge and tiny"] = Regime(
        between(1e-18, 1e-10) * directions(), between(1e3, 1e9) * directions(), 0.4
    )
    regimes["tiny and huge"] = Regime(
        between(1e3, 1e9) * directions(), between(1e-18, 1e-10) * directions(), 0.4
    )
    return regimes


REGIMES = _regimes()


def tangents(regime: Regime, sign: int, dtype: torch.dtype) -> Tensor:
    """Tangent vectors at ``x``, outward or inward, whose length stays moderate when rounded to ``dtype``."""
    x, generator = regime.x, torch.Generator().manual_seed(1)
    x_norm = x.norm(dim=-1, keepdim=True)
    stretch = torch.sqrt(1 + regime.curv * x_norm**2).clamp(max=0.01 / torch.finfo(dtype).eps)
    length = 0.2 + 4 * torch.rand(len(x), 1, generator=generator, dtype=torch.float64)
    lateral = torch.randn(x.shape, generator=generator, dtype=torch.float64) / x.shape[-1] ** 0.5
    return (sign * length * stretch * x / x_norm + lateral).to(dtype)


def points(name: str, regime: Regime, dtype: torch.dtype) -> list[Tensor]:
    """The arguments of op ``name`` in this regime, rounded to ``dtype``."""
    if name == "exp_map0":  # a tangent vector as long as the point is far
        with hypkernels.use_backend("torch"):  # on the CPU, whatever the test is of
            return [hypkernels.log_map0(regime.x, regime.curv).to(dtype)]
    return [p.to(dtype) for p in ([regime.x] if name in ONE_POINT else [regime.x, regime.y])]


def options(name: str) -> tuple[float, ...]:
    return (MIN_RADIUS,) if name == "half_aperture" else ()


@dataclass(frozen=True)
class Tolerance:
    """Units in the last place for values, relative 2-norms for gradients."""

    value_ulp: float
    gradient: float
    curv_gradient: float
    value: float = math.inf


# A float64 result rounded once: half a unit, and for a gradient at most that of each component. A component
# of a map that nearly vanishes shows the float64 error of its neighbours.
FLOAT32 = Tolerance(0.501, 2.0**-24, 1e-10)
# x.w is a sum of terms of both signs: some 1/50 of them is left where the direction is nearly across x. And
# n is computed to a unit of the direction, and it is 1e-7 of that in the collinear regimes.
BUSEMANN_FLOAT64 = Tolerance(128, 1e-11, 1e-12)
FLOAT32_MAP = Tolerance(4, 2.0**-24, 1e-10, value=2.0**-24)


def assert_accurate(
    name: str, vectors: Sequence[Tensor], curv: float, tolerance: Tolerance, op: Callable | None = None
) -> None:
    """Value and every gradient of each row against the oracle."""
    op = op or getattr(hypkernels, name)
    vectors = [v.detach().clone().requires_grad_() for v in vectors]
    c = torch.tensor(curv, dtype=torch.float64, requires_grad=True)
    out = op(*vectors, c, *options(name))
    generator = torch.Generator().manual_seed(2)
    upstream = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    for row in range(len(out)):
        true = truth(name, [v[row].detach() for v in vectors], curv, upstream[row], options(name))
        *gradients, curv_gradient = torch.autograd.grad(
            out[row], [*vectors, c], upstream[row], retain_graph=True
        )
        assert torch.isfinite(out[row]).all()
        assert ulp_error(out[row].detach(), true.value) <= tolerance.value_ulp
        assert relative_error(out[row].detach(), true.value) <= tolerance.value
        for gradient, expected in zip(gradients, true.gradients, strict=True):
            assert_gradient(gradient[row], expected, tolerance.gradient)
        assert_gradient(curv_gradient, [true.curv_gradient], tolerance.curv_gradient)


def assert_gradient(actual: Tensor, expected: Sequence, tolerance: float) -> None:
    assert torch.isfinite(actual).all()
    if any(expected):
        assert relative_error(actual, expected) <= tolerance
    else:
        assert not actual.any()


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return ctx.factor * grad, None


def with_scaled_gradient(op: Callable, argument: int, factor: float = 0.9) -> Callable:
    """``op`` with a wrong gradient by one of its arguments: what every assertion on gradients must catch."""

    def wrong(*args):
        scaled = _Scale.apply(args[argument], factor)
        return op(*args[:argument], scaled, *args[argument + 1 :])

    return wrong
