"""Row-wise inner product and distances: accuracy, degenerate points, and the axioms of a metric."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rowwise_cases import FLOAT32, REGIMES, Tolerance, assert_accurate, points, with_scaled_gradient

import hypkernels as hk

NAMES = ("elementwise_inner", "elementwise_dist", "dist0")

# n is computed to a unit of y, and it is 1e-7 of y in the collinear regimes.
FLOAT64 = Tolerance(16, 1e-9, 1e-12)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", NAMES)
def test_float32_is_rounded_once(name, regime):
    assert_accurate(name, points(name, REGIMES[regime], torch.float32), REGIMES[regime].curv, FLOAT32)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", NAMES)
def test_float64(name, regime):
    assert_accurate(name, points(name, REGIMES[regime], torch.float64), REGIMES[regime].curv, FLOAT64)


@pytest.mark.parametrize(
    ("name", "argument"),
    [(name, argument) for name in ("elementwise_inner", "elementwise_dist") for argument in range(3)]
    + [("dist0", argument) for argument in range(2)],
)
def test_a_wrong_gradient_is_caught(name, argument):
    regime = REGIMES["close, r=1"]
    vectors = points(name, regime, torch.float32)
    assert_accurate(name, vectors, regime.curv, FLOAT32)
    wrong = with_scaled_gradient(getattr(hk, name), argument)
    with pytest.raises(AssertionError):
        assert_accurate(name, vectors, regime.curv, FLOAT32, op=wrong)


def gradients(function, *vectors, curv=0.7):
    vectors = [v.detach().clone().requires_grad_() for v in vectors]
    c = torch.tensor(curv, dtype=torch.float64, requires_grad=True)
    out = function(*vectors, c)
    return out.detach(), *torch.autograd.grad(out.sum(), [*vectors, c])


@pytest.mark.parametrize("x", [torch.zeros(2, 5), torch.randn(2, 5), 1e8 * torch.randn(2, 5)])
def test_distance_of_a_point_to_itself(x):
    out, *grads = gradients(hk.elementwise_dist, x, x)
    assert not out.any()
    assert not any(g.any() for g in grads)


def test_distance_to_the_origin_has_the_gradient_of_the_limit():
    """At the origin the distance to ``y`` falls along the unit vector towards ``y``."""
    y, origin = torch.randn(4, 5, dtype=torch.float64), torch.zeros(4, 5, dtype=torch.float64)
    toward = -y / y.norm(dim=-1, keepdim=True)
    out, by_origin, by_y, _ = gradients(hk.elementwise_dist, origin, y)
    torch.testing.assert_close(by_origin, toward, rtol=1e-15, atol=0)
    swapped, by_y_swapped, by_origin_swapped, _ = gradients(hk.elementwise_dist, y, origin)
    torch.testing.assert_close(by_origin_swapped, toward, rtol=1e-14, atol=0)
    torch.testing.assert_close(by_y_swapped, by_y, rtol=1e-14, atol=0)
    torch.testing.assert_close(swapped, out, rtol=1e-15, atol=0)
    torch.testing.assert_close(out, hk.dist0(y, 0.7), rtol=1e-15, atol=0)


def test_dist0_at_the_origin():
    out, grad_x, grad_c = gradients(hk.dist0, torch.zeros(2, 5))
    assert not out.any()
    assert not grad_x.any()
    assert grad_c == 0


def test_inner_product_of_a_point_with_itself():
    x = 1e4 * torch.randn(3, 5)
    out, grad_x, grad_y, grad_c = gradients(hk.elementwise_inner, x, x)
    torch.testing.assert_close(out, torch.full((3,), -1 / 0.7))
    assert not grad_x.any()
    assert not grad_y.any()
    torch.testing.assert_close(grad_c.item(), 3 / 0.7**2)


def test_points_on_one_ray_have_no_lateral_gradient():
    x = torch.tensor([[3e7, 0.0, 0.0]])
    _, grad_x, grad_y, _ = gradients(hk.elementwise_dist, x, x * (1 + 2e-7))
    for grad in (grad_x, grad_y):
        assert grad[0, 0] != 0
        assert not grad[0, 1:].any()


def test_one_dimension():
    """On a line the distance is the difference of the signed distances to the origin."""
    x, y = torch.randn(2, 20, 1, dtype=torch.float64)
    signed = [torch.asinh(0.7**0.5 * p[:, 0]) / 0.7**0.5 for p in (x, y)]
    torch.testing.assert_close(
        hk.elementwise_dist(x, y, 0.7), (signed[0] - signed[1]).abs(), rtol=1e-13, atol=1e-15
    )


seeds = st.integers(0, 2**31 - 1)
widths = st.integers(1, 9)
curvatures = st.floats(0.05, 20)
radii = st.floats(1e-6, 6)


def random_points(seed, width, curv, *radii):
    generator = torch.Generator().manual_seed(seed)
    for radius in radii:
        v = torch.randn(width, generator=generator, dtype=torch.float64)
        yield hk.exp_map0(v / v.norm() * radius / curv**0.5, curv)


@settings(max_examples=60, deadline=None)
@given(seeds, widths, curvatures, radii, radii)
def test_symmetry(seed, width, curv, r1, r2):
    x, y = random_points(seed, width, curv, r1, r2)
    torch.testing.assert_close(
        hk.elementwise_dist(x, y, curv), hk.elementwise_dist(y, x, curv), rtol=1e-14, atol=0
    )


@settings(max_examples=60, deadline=None)
@given(seeds, widths, curvatures, radii, radii, radii)
def test_triangle_inequality(seed, width, curv, r1, r2, r3):
    x, y, z = random_points(seed, width, curv, r1, r2, r3)
    direct = hk.elementwise_dist(x, z, curv)
    assert direct <= (hk.elementwise_dist(x, y, curv) + hk.elementwise_dist(y, z, curv)) * (1 + 1e-14)


@settings(max_examples=60, deadline=None)
@given(seeds, widths, curvatures, radii, radii)
def test_rotations_are_isometries(seed, width, curv, r1, r2):
    x, y = random_points(seed, width, curv, r1, r2)
    normal = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rotation = torch.linalg.qr(normal).Q
    rotated = hk.elementwise_dist(rotation @ x, rotation @ y, curv)
    torch.testing.assert_close(rotated, hk.elementwise_dist(x, y, curv), rtol=1e-12, atol=1e-14)


def boost(x, curv, rapidity):
    """A Lorentz transformation along the first axis."""
    time = torch.sqrt(1 / curv + (x * x).sum(-1))
    first = torch.cosh(rapidity) * x[..., 0] + torch.sinh(rapidity) * time
    return torch.cat([first.unsqueeze(-1), x[..., 1:]], dim=-1)


@settings(max_examples=60, deadline=None)
@given(seeds, widths, curvatures, st.floats(0.01, 3), st.floats(0.01, 3), st.floats(-2, 2))
def test_boosts_are_isometries(seed, width, curv, r1, r2, rapidity):
    """A boosted point is rounded to a unit of its own size, ``exp(r + rapidity)`` at most."""
    x, y = random_points(seed, width, curv, r1, r2)
    rapidity = torch.tensor(rapidity, dtype=torch.float64)
    boosted = hk.elementwise_dist(boost(x, curv, rapidity), boost(y, curv, rapidity), curv)
    atol = 1e-12 / curv**0.5
    torch.testing.assert_close(boosted, hk.elementwise_dist(x, y, curv), rtol=1e-12, atol=atol)


@settings(max_examples=60, deadline=None)
@given(seeds, widths, curvatures, radii, radii)
def test_distance_is_1_lipschitz(seed, width, curv, r1, r2):
    x, y = random_points(seed, width, curv, r1, r2)
    _, grad_x, grad_y, grad_c = gradients(hk.elementwise_dist, x, y, curv=curv)
    assert grad_x.norm() <= 1 + 1e-14
    assert grad_y.norm() <= 1 + 1e-14
    assert grad_c <= 0


@settings(max_examples=60, deadline=None)
@given(seeds, widths, curvatures, radii, radii)
def test_inner_product_is_minus_the_hyperbolic_cosine(seed, width, curv, r1, r2):
    x, y = random_points(seed, width, curv, r1, r2)
    expected = -torch.cosh(curv**0.5 * hk.elementwise_dist(x, y, curv)) / curv
    torch.testing.assert_close(hk.elementwise_inner(x, y, curv), expected, rtol=1e-13, atol=0)
