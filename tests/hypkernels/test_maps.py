"""Exponential and logarithmic maps: accuracy, degenerate points, and how they undo each other."""

import math

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rowwise_cases import (
    FLOAT32,
    FLOAT32_MAP,
    REGIMES,
    Tolerance,
    assert_accurate,
    points,
    tangents,
    with_scaled_gradient,
)

import hypkernels as hk
from hypkernels import scalar_functions

AT_ORIGIN = ("exp_map0", "log_map0")


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", AT_ORIGIN)
def test_map_at_origin_is_rounded_once(name, regime):
    assert_accurate(name, points(name, REGIMES[regime], torch.float32), REGIMES[regime].curv, FLOAT32)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", AT_ORIGIN)
def test_map_at_origin_in_float64(name, regime):
    """sinh and its slope multiply the relative error of the norm by up to sqrt(c)|v| = 22."""
    tolerance = Tolerance(64, 1e-14, 1e-12)
    assert_accurate(name, points(name, REGIMES[regime], torch.float64), REGIMES[regime].curv, tolerance)


@pytest.mark.parametrize("regime", REGIMES)
def test_log_map_is_rounded_once(regime):
    assert_accurate(
        "log_map", points("log_map", REGIMES[regime], torch.float32), REGIMES[regime].curv, FLOAT32_MAP
    )


@pytest.mark.parametrize("regime", REGIMES)
def test_log_map_in_float64(regime):
    tolerance = Tolerance(1e9, 1e-12, 1e-12, value=2e-15)
    assert_accurate(
        "log_map", points("log_map", REGIMES[regime], torch.float64), REGIMES[regime].curv, tolerance
    )


@pytest.mark.parametrize("sign", [1, -1], ids=["outward", "inward"])
@pytest.mark.parametrize("regime", REGIMES)
def test_exp_map_is_rounded_once(regime, sign):
    x = REGIMES[regime].x.float()
    assert_accurate(
        "exp_map", [x, tangents(REGIMES[regime], sign, x.dtype)], REGIMES[regime].curv, FLOAT32_MAP
    )


@pytest.mark.parametrize("sign", [1, -1], ids=["outward", "inward"])
@pytest.mark.parametrize("regime", REGIMES)
def test_exp_map_in_float64(regime, sign):
    """A tangent vector's radial part is stretched by ``A``, and so is its rounding, against the lateral."""
    x, c = REGIMES[regime].x, REGIMES[regime].curv
    stretch = (1 + c * (x * x).sum(-1)).sqrt().max().item()
    tolerance = Tolerance(1e9, 1e-14 + 2e-16 * stretch, 1e-12, value=1e-13)
    assert_accurate("exp_map", [x, tangents(REGIMES[regime], sign, x.dtype)], c, tolerance)


@pytest.mark.parametrize(
    ("name", "argument"),
    [(name, argument) for name in AT_ORIGIN for argument in range(2)]
    + [(name, argument) for name in ("exp_map", "log_map") for argument in range(3)],
)
def test_a_wrong_gradient_is_caught(name, argument):
    regime = REGIMES["embeddings, c=10.0"]
    vectors = points(name, regime, torch.float32)
    assert_accurate(name, vectors, regime.curv, FLOAT32_MAP)
    wrong = with_scaled_gradient(getattr(hk, name), argument)
    with pytest.raises(AssertionError):
        assert_accurate(name, vectors, regime.curv, FLOAT32_MAP, op=wrong)


def test_identity_to_first_order_at_the_origin():
    for name in AT_ORIGIN:
        x = torch.zeros(2, 5, requires_grad=True)
        curv = torch.tensor(0.3, requires_grad=True)
        out = getattr(hk, name)(x, curv)
        upstream = torch.randn_like(out)
        grad_x, grad_curv = torch.autograd.grad(out, [x, curv], upstream)
        assert not out.any()
        assert torch.equal(grad_x, upstream)
        assert grad_curv == 0


@pytest.mark.parametrize("beyond", [-0.5, 0.5])
def test_from_far_out_to_near_the_origin(beyond):
    """Straight inward by more than half of float64's digits: ``asinh|x| - tau`` is what is left of both."""
    x = torch.tensor([[math.sinh(22.0), 0.0]], dtype=torch.float64)
    v = torch.tensor([[-(22.0 + beyond) * math.cosh(22.0), 0.0]], dtype=torch.float64)
    radius, start = mp.asinh(mp.mpf(x[0, 0].item())), mp.mpf(x[0, 0].item())
    tau = -mp.mpf(v[0, 0].item()) / mp.sqrt(1 + start**2)
    found = hk.exp_map(x, v, 1.0)[0, 0].item()
    # A rounding of either length moves the difference by as much: a few ulp of 22, of sinh(1/2).
    assert found == pytest.approx(float(mp.sinh(radius - tau)), rel=8 * 22 * 2.0**-52 / math.tanh(0.5))


def test_zero_velocity_stays():
    x = torch.randn(4, 6, requires_grad=True)
    v = torch.zeros(4, 6, requires_grad=True)
    curv = torch.tensor(0.3, requires_grad=True)
    out = hk.exp_map(x, v, curv)
    upstream = torch.randn_like(out)
    grad_x, grad_v, grad_curv = torch.autograd.grad(out, [x, v, curv], upstream)
    assert torch.equal(out, x)
    assert torch.equal(grad_x, upstream)
    assert torch.equal(grad_v, upstream)
    assert grad_curv == 0


def test_log_of_the_same_point_is_zero():
    x = torch.randn(4, 6, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    curv = torch.tensor(0.3, requires_grad=True)
    out = hk.log_map(x, y, curv)
    upstream = torch.randn_like(out)
    grad_x, grad_y, grad_curv = torch.autograd.grad(out, [x, y, curv], upstream)
    assert not out.any()
    assert torch.equal(grad_y, upstream)
    assert torch.equal(grad_x, -upstream)
    assert grad_curv == 0


@pytest.mark.parametrize(("at_point", "at_origin"), [("exp_map", "exp_map0"), ("log_map", "log_map0")])
def test_base_point_at_the_origin(at_point, at_origin):
    v = torch.randn(4, 6, dtype=torch.float64)
    actual = getattr(hk, at_point)(torch.zeros_like(v), v, 0.7)
    torch.testing.assert_close(actual, getattr(hk, at_origin)(v, 0.7), rtol=1e-15, atol=0)


def test_log_map_to_the_origin_points_inward():
    x = torch.randn(4, 6, dtype=torch.float64)
    inward = hk.log_map(x, torch.zeros_like(x), 0.7)
    stretch = torch.sqrt(1 + 0.7 * (x * x).sum(-1, keepdim=True))
    expected = -x / x.norm(dim=-1, keepdim=True) * hk.dist0(x, 0.7).unsqueeze(-1) * stretch
    torch.testing.assert_close(inward, expected, rtol=1e-14, atol=0)


seeds = st.integers(0, 2**31 - 1)
widths = st.integers(1, 9)
curvatures = st.floats(0.05, 20)
radii = st.floats(1e-6, 4)


def on_sphere(seed, width, radius):
    v = torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return v / v.norm() * radius


@settings(max_examples=60, deadline=None)
@given(seeds, widths, curvatures, radii)
def test_origin_maps_undo_each_other(seed, width, curv, radius):
    v = on_sphere(seed, width, radius / curv**0.5)
    x = hk.exp_map0(v, curv)
    torch.testing.assert_close(hk.log_map0(x, curv), v, rtol=1e-14, atol=1e-14 * radius)
    torch.testing.assert_close(hk.dist0(x, curv), v.norm(), rtol=1e-14, atol=0)


@settings(max_examples=60, deadline=None)
@given(seeds, widths, curvatures, radii, radii)
def test_maps_undo_each_other(seed, width, curv, radius, length):
    """Rounding ``y`` moves the velocity by ``cosh(r) cosh(d)`` units at worst."""
    x = hk.exp_map0(on_sphere(seed, width, radius / curv**0.5), curv)
    v = on_sphere(seed + 1, width, length / curv**0.5)
    y = hk.exp_map(x, v, curv)
    atol = 1e-13 * length / curv**0.5 * torch.cosh(torch.tensor(radius)).item() ** 2
    torch.testing.assert_close(
        hk.log_map(x, y, curv), v, rtol=0, atol=atol + 1e-15 * (x.norm() + y.norm()).item()
    )
    v_time = (x * v).sum() / torch.sqrt(1 / curv + (x * x).sum())
    lorentz_norm = torch.sqrt((v * v).sum() - v_time**2)
    torch.testing.assert_close(hk.elementwise_dist(x, y, curv), lorentz_norm, rtol=1e-8, atol=0)


@settings(max_examples=40, deadline=None)
@given(st.one_of(st.floats(0, 30), st.floats(0.3, 0.5), st.floats(1.9, 2.1)))
def test_scalar_functions(t):
    """Against mpmath, at zero, through the change of formula and far out."""
    with mp.workdps(1000):  # the smallest number squared takes 648 digits
        s = mp.mpf(t)
        expected = {
            "sinhc": mp.sinh(s) / s if t else mp.mpf(1),
            "asinhc": mp.asinh(s) / s if t else mp.mpf(1),
            "sinhc_slope": (mp.cosh(s) - mp.sinh(s) / s) / s**2 if t else mp.mpf(1) / 3,
            "asinhc_slope": (1 / mp.sqrt(1 + s**2) - mp.asinh(s) / s) / s**2 if t else -mp.mpf(1) / 3,
        }
        for name, true in expected.items():
            actual = getattr(scalar_functions, name)(torch.tensor([t], dtype=torch.float64)).item()
            assert abs(mp.mpf(actual) - true) <= 1e-14 * abs(true), name
