"""Half-aperture and exterior angle: accuracy, degenerate points, and the geometry of the triangle O-x-y."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rowwise_cases import (
    FLOAT32,
    MIN_RADIUS,
    REGIMES,
    Tolerance,
    assert_accurate,
    points,
    with_scaled_gradient,
)

import hypkernels as hk

NAMES = ("half_aperture", "oxy_angle")


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", NAMES)
def test_float32_is_rounded_once(name, regime):
    assert_accurate(name, points(name, REGIMES[regime], torch.float32), REGIMES[regime].curv, FLOAT32)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", NAMES)
def test_float64(name, regime):
    """A unit of ``y`` is 1e-9 of the angle where that is 1e-7; the aperture's edge is 1e-6 of ``2K``."""
    collinear = regime in ("collinear", "opposite")
    edge = name == "half_aperture" and "edge" in regime
    tolerance = Tolerance(1e3 if edge else 16, 1e-9 if collinear or edge else 1e-11, 1e-9 if edge else 1e-12)
    assert_accurate(name, points(name, REGIMES[regime], torch.float64), REGIMES[regime].curv, tolerance)


@pytest.mark.parametrize(
    ("name", "argument"), [*((NAMES[0], i) for i in range(2)), *((NAMES[1], i) for i in range(3))]
)
def test_a_wrong_gradient_is_caught(name, argument):
    regime = REGIMES["embeddings, c=1.0"]
    vectors = points(name, regime, torch.float32)
    assert_accurate(name, vectors, regime.curv, FLOAT32)
    wrong = with_scaled_gradient(getattr(hk, name), argument)
    with pytest.raises(AssertionError):
        assert_accurate(name, vectors, regime.curv, FLOAT32, op=wrong)


def value_and_gradients(function, *vectors):
    vectors = [v.detach().clone().requires_grad_() for v in vectors]
    curv = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    out = function(*vectors, curv)
    return out.detach(), torch.autograd.grad(out.sum(), [*vectors, curv])


X = torch.tensor([[0.3, -1.2, 0.7], [1e4, 2e4, -3e4], [1e-9, 0.0, 2e-9]])
ZERO = torch.zeros_like(X)


@pytest.mark.parametrize(
    ("x", "y", "angle"),
    [
        pytest.param(X, X, 0.0, id="y = x"),
        pytest.param(ZERO, ZERO, 0.0, id="y = x = 0"),
        pytest.param(ZERO, X, math.pi / 2, id="x = 0"),
        pytest.param(X, ZERO, math.pi, id="y = 0"),
        pytest.param(X, 2 * X, 0.0, id="outward"),
        pytest.param(X, 0.5 * X, math.pi, id="inward"),
        pytest.param(X, -X, math.pi, id="opposite"),
    ],
)
def test_degenerate_angles_have_a_value_and_zero_gradients(x, y, angle):
    out, gradients = value_and_gradients(hk.oxy_angle, x, y)
    assert torch.equal(out, torch.full((3,), angle))
    assert not any(g.any() for g in gradients)


def test_one_dimension_is_collinear():
    x, y = torch.rand(2, 50, 1, dtype=torch.float64) + 0.1
    for sign in (1, -1):
        out, gradients = value_and_gradients(hk.oxy_angle, x, sign * y)
        expected = torch.full_like(x, math.pi).masked_fill(sign * y > x, 0)
        assert torch.equal(out, expected.squeeze(-1))
        assert not any(g.any() for g in gradients)


@pytest.mark.parametrize("norm", [0.0, 0.5, 1.0])
def test_cone_within_the_minimal_radius_is_a_half_space(norm):
    """The radius itself included: 2K / sqrt(c) = 0.5 exactly."""
    x = norm * torch.tensor([[0.5, 0.0]])
    out, gradients = value_and_gradients(lambda p, c: hk.half_aperture(p, c / 0.7, min_radius=0.25), x)
    assert torch.equal(out, torch.tensor([math.pi / 2]))
    assert not any(g.any() for g in gradients)


def test_aperture_closes_far_from_the_origin():
    x = torch.tensor([[1e30, 0.0]])
    torch.testing.assert_close(hk.half_aperture(x).item(), 2e-31, rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("min_radius", [1e300, 1e308, 1.7e308])
def test_the_largest_minimal_radii(backend, min_radius):
    """``2K`` leaves float64: everything is within it."""
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1e30, 0.0]], dtype=torch.float64)
    y, right = x + torch.tensor([1.0, 2.0]), torch.full((3,), math.pi / 2, dtype=torch.float64)
    losses = hk.oxy_angle(x, y) - 0.5 * right

    def aperture(x):
        return hk.half_aperture(x, 1.0, min_radius)

    def loss(x):
        return hk.entailment_loss(x, y, aperture_scale=0.5, min_radius=min_radius, reduction="none")

    with hk.use_backend(backend):
        for function, expected in ((aperture, right), (loss, losses.relu())):
            torch.testing.assert_close(function(x), expected)
            torch.testing.assert_close(torch.func.jvp(function, (x,), (x,))[0], expected)
        assert not torch.func.grad(lambda x: aperture(x).sum())(x).any()
        assert torch.func.grad(lambda x: loss(x).sum())(x).isfinite().all()


seeds = st.integers(0, 2**31 - 1)
widths = st.integers(2, 9)
curvatures = st.floats(0.05, 20)
radii = st.floats(0.01, 4)


def random_points(seed, width, curv, *radii):
    generator = torch.Generator().manual_seed(seed)
    for radius in radii:
        v = torch.randn(width, generator=generator, dtype=torch.float64)
        yield hk.exp_map0(v / v.norm() * radius / curv**0.5, curv)


@settings(max_examples=60, deadline=None)
@given(seeds, widths, curvatures, radii, radii)
def test_angle_is_the_direction_of_the_logarithm(seed, width, curv, r1, r2):
    """At ``x`` the Lorentz inner product of the unit radial vector with ``log_map(x, y)``."""
    x, y = random_points(seed, width, curv, r1, r2)
    radial = x / x.norm() * torch.sqrt(1 + curv * (x * x).sum())
    velocity = hk.log_map(x, y, curv)
    radial_time, velocity_time = (x.dot(v) / torch.sqrt(1 / curv + x.dot(x)) for v in (radial, velocity))
    cosine = (radial.dot(velocity) - radial_time * velocity_time) / hk.elementwise_dist(x, y, curv)
    torch.testing.assert_close(torch.cos(hk.oxy_angle(x, y, curv)), cosine, rtol=0, atol=1e-11)


@settings(max_examples=60, deadline=None)
@given(seeds, widths, curvatures, radii, radii)
def test_angles_of_a_triangle(seed, width, curv, r1, r2):
    """Hyperbolic: the interior angles at O, x and y sum to less than pi."""
    x, y = random_points(seed, width, curv, r1, r2)
    at_origin = torch.acos((x.dot(y) / (x.norm() * y.norm())).clamp(-1, 1))
    interior = at_origin + 2 * math.pi - hk.oxy_angle(x, y, curv) - hk.oxy_angle(y, x, curv)
    assert interior <= math.pi + 1e-7


@settings(max_examples=60, deadline=None)
@given(seeds, widths, curvatures, radii, radii)
def test_scale_invariance(seed, width, curv, r1, r2):
    """Angles see ``sqrt(c) x`` only."""
    x, y = random_points(seed, width, curv, r1, r2)
    unit = curv**0.5
    torch.testing.assert_close(
        hk.oxy_angle(x, y, curv), hk.oxy_angle(unit * x, unit * y), rtol=1e-11, atol=1e-13
    )
    torch.testing.assert_close(hk.half_aperture(x, curv), hk.half_aperture(unit * x), rtol=1e-6, atol=0)


def step_into_cone(x, w, curv, share, length):
    """A point at ``length`` from ``x`` and at ``share`` of its half-aperture, on the side of ``w``."""
    lateral = w - w.dot(x) / x.dot(x) * x
    radial = x / x.norm() * torch.sqrt(1 + curv * x.dot(x))
    angle = share * hk.half_aperture(x, curv, MIN_RADIUS)
    velocity = torch.cos(angle) * radial + torch.sin(angle) * lateral / lateral.norm()
    y = hk.exp_map(x, velocity * length / curv**0.5, curv)
    torch.testing.assert_close(hk.oxy_angle(x, y, curv), angle, rtol=1e-9, atol=1e-12)
    return y


@settings(max_examples=60, deadline=None)
@given(seeds, widths, curvatures, st.floats(0.3, 3), st.floats(0.01, 3), st.floats(0.01, 1), st.floats(-1, 1))
def test_entailment_is_transitive(seed, width, curv, radius, length, share, share_next):
    x, w = random_points(seed, width, curv, radius, 1.0)
    y = step_into_cone(x, w, curv, share, length)
    z = step_into_cone(y, w if share_next > 0 else -w, curv, abs(share_next), length)
    assert hk.oxy_angle(x, z, curv) <= hk.half_aperture(x, curv, MIN_RADIUS) * (1 + 1e-9)
