"""The compiled pairwise functions: accuracy, near pairs, layouts, edge cases, threads."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_rows import ISAS, needs_library

import hypkernels as hk
from hypkernels.cpu import library
from hypkernels.cpu import pairwise as native

pytestmark = needs_library
NAMES = ("pairwise_dist", "pairwise_inner", "pairwise_oxy_angle")


@pytest.fixture(params=ISAS)
def isa(request):
    yield library.use_isa(request.param)
    library.use_isa(None)


class ByLibrary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, name, x, y, curv):
        ctx.name = name
        ctx.save_for_backward(x, y, curv)
        return getattr(native, name)(x, y, curv)

    @staticmethod
    def backward(ctx, grad):
        saved = ctx.saved_tensors
        grads = getattr(native, f"{ctx.name}_backward")(grad, *saved)
        return None, *(g.to(t.dtype) for g, t in zip(grads, saved, strict=True))


def sets(*shapes, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5).to(dtype)
        for shape in shapes
    ]


def with_gradients(function, x, y, curv):
    x, y = (p.detach().requires_grad_() for p in (x, y))
    c = torch.as_tensor(curv, dtype=torch.float64).clone().requires_grad_()
    out = function(x, y, c)
    weights = (1.5 + torch.cos(torch.arange(out.numel(), dtype=torch.float64))).view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, (x, y, c), weights.to(out.dtype))]


def assert_like_float64(name, x, y, curv, *, value=5e-7, gradient=3e-7):
    """Every distance relative to itself; gradients to their norm, what the points' dtype rounds on top."""
    actual = with_gradients(lambda *a: ByLibrary.apply(name, *a), x, y, curv)
    with hk.use_backend("torch"):
        expected = with_gradients(getattr(hk, name), x.double(), y.double(), curv)
    error, resolution = (actual[0].double() - expected[0]).abs(), 1e-6
    assert (error <= value * expected[0].abs() + resolution * value).all(), (error / expected[0].abs()).max()
    for a, b, rounding in zip(actual[1:], expected[1:], (*[torch.finfo(x.dtype).eps] * 2, 0), strict=True):
        assert a.shape == b.shape
        error = (a.double() - b).norm() / (b.norm() + 1e-300)
        assert error <= gradient + rounding, error


SHAPES = [(1, 1, 1), (5, 7, 3), (64, 130, 33), (300, 700, 16)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_unrelated_points(name, shape, dtype, isa):
    M, N, D = shape
    if name == "pairwise_oxy_angle" and D == 1:
        pytest.skip("on a line angles are 0 or pi")
    x, y = sets((M, D), (N, D), dtype=dtype)
    tolerances = {"value": 1e-9, "gradient": 1e-10} if dtype == torch.float64 and D > 1 else {}
    assert_like_float64(name, x, y, 0.7, **tolerances)


@pytest.mark.parametrize("kind", ["pairs", "clusters", "one place", "all one"])
@pytest.mark.parametrize("name", ["pairwise_dist", "pairwise_inner"])
def test_near_points(name, kind, isa):
    """Some near pairs are computed one by one, tiles with many in double."""
    x, y = sets((300, 64), (310, 64), dtype=torch.float32)
    if kind == "pairs":
        y[:300] = x + 1e-3 * y[:300]
        y[0] = x[0]
    elif kind == "clusters":
        x, y = x[:3].repeat(100, 1) + 0.02 * x, x[:2].repeat(155, 1) + 0.02 * y
    elif kind == "one place":
        x, y = x[0] + 1e-2 * x, x[0] + 1e-2 * y
    else:
        x, y = x[:1].expand(300, 64), (1 + 1e-3) * x[:1].expand(310, 64)
    assert_like_float64(name, x, y, 0.7)


@pytest.mark.parametrize(("spread", "uncertainty"), [(1e-1, 1e-12), (1e-2, 1e-10), (1e-4, 1e-6)])
def test_angles_of_near_points(spread, uncertainty, isa):
    """They are as uncertain as what a product of matrices leaves of the points' difference."""
    x, y = sets((60, 32), (70, 32))
    x, y = x[0] + spread * x, x[0] + spread * y
    assert_like_float64("pairwise_oxy_angle", x, y, 0.7, value=uncertainty, gradient=uncertainty)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gradients_that_leave_the_points_range_keep_their_direction(dtype, isa):
    """An angle turns by 1/|x| at an apex close to the origin."""
    x, y = sets((20, 9), (30, 9))
    largest, least = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    x = (4 * least * x).to(dtype) if dtype == torch.float16 else (0.1 / largest * x).to(dtype)
    weights = 1e3 * torch.randn(20, 30, generator=torch.Generator().manual_seed(1))
    by_x, by_y, _ = native.pairwise_oxy_angle_backward(weights, x, y.to(dtype), torch.tensor(1.0))
    assert by_x.isfinite().all()
    assert by_y.isfinite().all()
    true, *_ = native.pairwise_oxy_angle_backward(
        weights.double(), x.double(), y.to(dtype).double(), torch.tensor(1.0)
    )
    longest = true.abs().amax(1, keepdim=True)
    assert (longest > largest).all()
    torch.testing.assert_close(by_x.double() / largest, true / longest, rtol=0, atol=torch.finfo(dtype).eps)


def test_apexes_at_the_origin(isa):
    """By convention an angle of pi/2, with a gradient of 0."""
    x, y = sets((6, 8), (7, 8), dtype=torch.float32)
    x[::2] = 0
    value, by_x, *_ = with_gradients(lambda *a: ByLibrary.apply("pairwise_oxy_angle", *a), x, y, 0.7)
    assert torch.equal(value[::2], torch.full_like(value[::2], math.pi / 2))
    assert (by_x[::2] == 0).all()
    assert by_x[1::2].abs().min() > 0


@pytest.mark.parametrize("size", [1e-8, 1e-3, 30.0, 1e4, 1e8, 1e12, 1e18])
@pytest.mark.parametrize("name", NAMES)
def test_sizes(name, size, isa):
    """Norms that float cannot square are for double."""
    x, y = sets((40, 32), (50, 32), dtype=torch.float32)
    assert_like_float64(name, size * x, 3 * size * y, 1.3)
    assert_like_float64(name, size * x, y, 1.3)


def test_zero_rows(isa):
    x, y = sets((30, 8), (40, 8), dtype=torch.float32)
    x[::3], y[::2] = 0, 0
    assert_like_float64("pairwise_dist", x, y, 0.7)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e80])
def test_points_out_of_range_are_left_to_others(bad):
    x, y = sets((20, 4), (20, 4))
    x[3, 2] = bad
    c = torch.tensor(0.7)
    assert native.pairwise_dist(x, y, c) is None
    assert native.pairwise_dist_backward(torch.ones(20, 20).double(), x, y, c) is None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_shape_and_strides(data):
    batch = tuple(data.draw(st.lists(st.integers(0, 3), max_size=2)))
    M, N, D = data.draw(st.integers(0, 40)), data.draw(st.integers(0, 40)), data.draw(st.integers(3, 20))
    seed, dtype = data.draw(st.integers(0, 999)), data.draw(st.sampled_from([torch.float64, torch.float32]))
    x, y = sets((*batch, M, D), (*batch, N, D), dtype=dtype, seed=seed)
    if data.draw(st.booleans()):
        x = torch.cat([x, x], -1)[..., D:]
    if data.draw(st.booleans()):
        y = y.mT.contiguous().mT
    curv = torch.full(batch, 0.7, dtype=torch.float64) if data.draw(st.booleans()) else 0.7
    name = data.draw(st.sampled_from(NAMES))
    actual = with_gradients(lambda *a: ByLibrary.apply(name, *a), x, y, curv)
    by_sum = getattr(native, f"{name}_backward")(
        torch.ones(()).to(actual[0].dtype).expand(*batch, M, N), x, y, torch.tensor(0.7)
    )
    with hk.use_backend("torch"):
        expected = with_gradients(getattr(hk, name), x.double(), y.double(), 0.7)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double().sum(), b.sum(), rtol=1e-5, atol=1e-5)
        if a.shape == b.shape:
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)
    assert [g.shape for g in by_sum] == [x.shape, y.shape, ()]


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_threads_changes_no_bit(name, isa):
    x, y = sets((500, 65), (600, 65), dtype=torch.float32)
    y[:500] = x + 1e-2 * y[:500]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(with_gradients(lambda *a: ByLibrary.apply(name, *a), x, y, 0.7))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_changes_no_bit(name, near, dtype, isa, monkeypatch):
    """Where many pairs are near, products in float are given up, and not kept."""
    x, y = sets((150, 40), (270, 40), dtype=dtype)
    if near:
        x, y = x[:3].repeat(50, 1) + 0.02 * x, x[:2].repeat(135, 1) + 0.02 * y
    with hk.use_backend("native"):
        found = native.value_and_products(name, x, y, torch.tensor(0.7))
        assert (found[1] is None) == (near and name == "pairwise_dist" and dtype != torch.float64)
        kept = with_gradients(getattr(hk, name), x, y, 0.7)
        monkeypatch.setattr(native, "KEPT_BYTES", 0)
        assert native.value_and_products(name, x, y, torch.tensor(0.7))[1] is None
        for a, b in zip(with_gradients(getattr(hk, name), x, y, 0.7), kept, strict=True):
            assert torch.equal(a, b)


def test_what_is_kept_serves_several_backward_passes():
    x, y = (p.requires_grad_() for p in sets((30, 8), (40, 8)))
    with hk.use_backend("native"):
        out = hk.pairwise_dist(x, y)
        first = torch.autograd.grad(out.sum(), (x, y), retain_graph=True)
        (by_x,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        torch.testing.assert_close(by_x, first[0], rtol=1e-12, atol=1e-12)
        assert torch.autograd.grad(by_x.sum(), x, retain_graph=True)[0].isfinite().all()
        for a, b in zip(torch.autograd.grad(out.sum(), (x, y)), first, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name):
    x, y = (p.requires_grad_() for p in sets((4, 5), (3, 5)))
    curv = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: ByLibrary.apply(name, *a), (x, y, curv))
