"""The Busemann function: accuracy, its limits at degenerate points and directions, and what defines it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rowwise_cases import BUSEMANN_FLOAT64, FLOAT32, REGIMES, assert_accurate, points, with_scaled_gradient

import hypkernels as hk

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("regime", REGIMES)
def test_float32_is_rounded_once(regime):
    vectors = points("busemann", REGIMES[regime], torch.float32)
    assert_accurate("busemann", vectors, REGIMES[regime].curv, FLOAT32)


@pytest.mark.parametrize("regime", REGIMES)
def test_float64(regime):
    vectors = points("busemann", REGIMES[regime], torch.float64)
    assert_accurate("busemann", vectors, REGIMES[regime].curv, BUSEMANN_FLOAT64)


@pytest.mark.parametrize("argument", range(3))
def test_a_wrong_gradient_is_caught(argument):
    vectors = points("busemann", REGIMES["collinear"], torch.float32)
    wrong = with_scaled_gradient(hk.busemann, argument)
    with pytest.raises(AssertionError):
        assert_accurate("busemann", vectors, REGIMES["collinear"].curv, FLOAT32, op=wrong)


def gradients(x, direction, curv=0.7):
    leaves = [one.detach().clone().requires_grad_() for one in (x, direction)]
    c = torch.tensor(curv, dtype=torch.float64, requires_grad=True)
    out = hk.busemann(*leaves, c)
    return out.detach(), *torch.autograd.grad(out.sum(), [*leaves, c])


def test_the_origin():
    """There it falls along the unit vector of the direction."""
    direction = torch.randn(4, 5, dtype=torch.float64)
    w = direction / direction.norm(dim=1, keepdim=True)
    out, by_x, by_direction, by_curv = gradients(torch.zeros(4, 5, dtype=torch.float64), direction)
    assert not out.any()
    torch.testing.assert_close(by_x, -w, rtol=1e-15, atol=0)
    assert not by_direction.any()
    assert by_curv == 0


def test_near_the_origin_it_is_minus_the_part_along_the_direction():
    x = 1e-12 * torch.tensor([[3.0, 4.0], [-4.0, 1.0]], dtype=torch.float64)
    out, *_ = gradients(x, torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(out, -x[:, 0] + 0.7**0.5 * x[:, 1] ** 2 / 2, rtol=1e-15, atol=0)


@pytest.mark.parametrize("size", [2.0**-100, 2.0**-10, 1.0, 2.0**13, 2.0**100])
@pytest.mark.parametrize("sign", [1, -1])
def test_on_both_rays_it_is_the_distance_to_the_origin(sign, size):
    """In full precision, where ``sqrt(1 + c|x|^2) - sqrt(c) x.w`` of float64 numbers is 1 or 0."""
    direction = torch.tensor([[0.75, -1.5, 0.25]])
    x = sign * size * direction
    out, by_x, by_direction, by_curv = gradients(x, direction)
    far = x.double().requires_grad_()
    c = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    distance = hk.dist0(far, c)
    slopes = torch.autograd.grad(distance.sum(), [far, c])
    torch.testing.assert_close(out, -sign * distance.detach().float(), rtol=1e-7, atol=0)
    torch.testing.assert_close(by_x.double(), -sign * slopes[0], rtol=1e-7, atol=0)
    torch.testing.assert_close(by_curv, -sign * slopes[1], rtol=1e-13, atol=0)
    assert not by_direction.any()


def test_a_direction_of_0_counts_as_one_across():
    x = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    at_0 = gradients(x, torch.zeros_like(x))
    across = gradients(x, torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64).expand_as(x))
    torch.testing.assert_close(at_0[0], torch.log1p(0.7 * (x * x).sum(1)) / (2 * 0.7**0.5))
    torch.testing.assert_close(at_0[1], 0.7**0.5 * x / (1 + 0.7 * (x * x).sum(1, keepdim=True)))
    assert not at_0[2].any()
    for index in (0, 3):
        torch.testing.assert_close(at_0[index], across[index], rtol=1e-15, atol=0)


def test_second_derivatives_where_there_is_no_direction():
    """By a direction of 0 they are 0; by the point those of the convention."""
    x = torch.randn(3, dtype=torch.float64)
    zero = torch.zeros_like(x)
    hessian = torch.func.hessian(lambda x, w: hk.busemann(x, w, 0.7), argnums=(0, 1))(x, zero)
    expected = torch.func.hessian(lambda x: torch.log1p(0.7 * x.dot(x)) / (2 * 0.7**0.5))(x)
    torch.testing.assert_close(hessian[0][0], expected, rtol=1e-13, atol=1e-15)
    assert not any(one.any() for one in (hessian[0][1], *hessian[1]))


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("length", [5e-324, 1e-250, 1e-150, 1e150, 1e250])
def test_directions_of_every_length_have_a_direction(length, backend):
    """Even if the square of their length is 0 or infinite in float64."""
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    short = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    with hk.use_backend(backend):
        out, by_x, _, by_curv = gradients(x, length * short)
        expected = gradients(x, short)
    torch.testing.assert_close(out, expected[0], rtol=1e-14, atol=0)
    torch.testing.assert_close(by_x, expected[1], rtol=1e-14, atol=0)
    torch.testing.assert_close(by_curv, expected[3], rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_length_of_a_direction_does_not_matter(dtype):
    """Its powers of two leave the same bits; the gradient goes with the inverse."""
    x, direction = (torch.randn(2, 6, 9) / 3).to(dtype)
    expected = gradients(x, direction)
    for factor in (0.25, 0.5):
        out, by_x, by_direction, by_curv = gradients(x, factor * direction)
        assert out.equal(expected[0])
        assert by_x.equal(expected[1])
        assert (factor * by_direction).equal(expected[2])
        assert by_curv == expected[3]


@pytest.mark.parametrize("dtype", DTYPES)
def test_far_points_beside_the_ray_of_a_rounded_unit_vector(dtype):
    """Unit vectors of bfloat16 are off by 0.4 %: taken as they are, some points have no logarithm."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(50, 16, generator=generator, dtype=torch.float64)
    w = (w / w.norm(dim=1, keepdim=True)).to(dtype)
    x = (100 * w.double()).to(dtype)
    out, *_ = gradients(x, w, 1.0)
    exact = [w.double(), x.double()]
    with hk.use_backend("reference"):
        expected = hk.busemann(exact[1], exact[0], 1.0)
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=0)


def test_on_a_line_it_is_the_signed_distance():
    x, direction = torch.randn(2, 20, 1, dtype=torch.float64)
    expected = -torch.asinh(0.7**0.5 * x * direction.sign()).squeeze(1) / 0.7**0.5
    torch.testing.assert_close(hk.busemann(x, direction, 0.7), expected, rtol=1e-14, atol=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 9), st.floats(0.05, 20), st.floats(1e-6, 6))
def test_what_defines_it(seed, width, curv, radius):
    """The limit of ``d(x, y) - d(0, y)``; its gradient has the Lorentz norm 1."""
    generator = torch.Generator().manual_seed(seed)
    x, w = torch.randn(2, width, generator=generator, dtype=torch.float64)
    w /= w.norm()
    x = hk.exp_map0(x / x.norm() * radius / curv**0.5, curv)
    y = hk.exp_map0(w * 30 / curv**0.5, curv)
    out, by_x, _, _ = gradients(x, w, curv)
    limit = hk.elementwise_dist(x, y, curv) - hk.dist0(y, curv)
    torch.testing.assert_close(out, limit, rtol=0, atol=1e-13 / curv**0.5)
    squared_norm = by_x.dot(by_x) + curv * by_x.dot(x) ** 2
    torch.testing.assert_close(squared_norm.item(), 1.0, rtol=1e-12, atol=0)
