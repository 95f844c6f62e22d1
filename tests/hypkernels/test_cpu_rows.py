"""The compiled row-wise ops: accuracy on every instruction set, layouts, numbers out of range, threads."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lorentz_oracle import MAPS
from native_rows import (
    DTYPES,
    ISAS,
    OPS,
    arguments,
    by_closed_form,
    needs_library,
    op,
    upstream_of,
)
from rowwise_cases import (
    BUSEMANN_FLOAT64,
    FLOAT32,
    FLOAT32_MAP,
    REGIMES,
    Tolerance,
    assert_accurate,
    options,
    points,
    tangents,
    with_scaled_gradient,
)

from hypkernels import exp_map, use_backend
from hypkernels.cpu import library
from hypkernels.cpu import rows as native

pytestmark = needs_library

PLAIN = tuple(name for name in OPS if name not in ("scaled_exp_map0", "entailment_loss"))
EPS = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


@pytest.fixture(params=ISAS)
def isa(request):
    """Each instruction set that this machine has."""
    yield library.use_isa(request.param)
    library.use_isa(None)


# ---------------------------------------------------------------- accuracy


def vectors_of(name, regime, dtype):
    if name == "exp_map":
        return [REGIMES[regime].x.to(dtype), tangents(REGIMES[regime], 1, dtype)]
    return points(name, REGIMES[regime], dtype)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", PLAIN)
def test_float32_is_rounded_once(name, regime):
    tolerance = FLOAT32_MAP if name in ("exp_map", "log_map") else FLOAT32
    assert_accurate(name, vectors_of(name, regime, torch.float32), REGIMES[regime].curv, tolerance, op(name))


@pytest.mark.parametrize("regime", REGIMES)
def test_exp_map_inward_is_rounded_once(regime):
    x = REGIMES[regime].x.float()
    vectors = [x, tangents(REGIMES[regime], -1, x.dtype)]
    assert_accurate("exp_map", vectors, REGIMES[regime].curv, FLOAT32_MAP, op("exp_map"))


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", PLAIN)
def test_float64(name, regime):
    """The tolerances of the tests of the closed forms."""
    x, c = REGIMES[regime].x, REGIMES[regime].curv
    stretch = (1 + c * (x * x).sum(-1)).sqrt().max().item()
    tolerance = Tolerance(16, 1e-9, 1e-12)
    if name in MAPS:
        tolerance = Tolerance(1e9, 1e-12 + 2e-16 * stretch, 1e-12, value=1e-13)
    if name == "busemann":
        tolerance = BUSEMANN_FLOAT64
    if name == "half_aperture" and "edge" in regime:
        tolerance = Tolerance(1e3, 1e-9, 1e-9)
    assert_accurate(name, vectors_of(name, regime, torch.float64), c, tolerance, op(name))


@pytest.mark.parametrize("name", PLAIN)
def test_a_wrong_gradient_is_caught(name):
    regime = REGIMES["embeddings, c=10.0"]
    vectors = points(name, regime, torch.float32)
    for argument in range(len(vectors) + 1):
        wrong = with_scaled_gradient(op(name), argument)
        with pytest.raises(AssertionError):
            assert_accurate(name, vectors, regime.curv, FLOAT32_MAP, wrong)


def assert_like_closed_form(name, vectors, scalars, grad):
    """Values, gradients by points and by scalars against the closed form in float64, row by row.

    ``vectors`` are ``(*batch, D)``; the dtype's rounding, relative to each row's norm, is allowed.
    """
    *_, op_options, is_map = OPS[name]
    out = native.forward(name, vectors, scalars, op_options)
    grads = native.backward(name, grad, vectors, scalars, op_options)
    x, batch = vectors[0], vectors[0].shape[:-1]
    flat = [v.reshape(-1, v.shape[-1]) for v in vectors]
    numbers = [s.expand(batch).reshape(-1) if s.dim() else s for s in scalars]
    upstream = grad.reshape(-1, grad.shape[-1]) if is_map else grad.reshape(-1)
    value, by_points, shares = by_closed_form(name, upstream, flat, numbers)
    eps = max(EPS[x.dtype] if is_map else EPS[out.dtype], 1e-12)
    assert out.shape == (x.shape if is_map else batch)
    assert out.dtype == (x.dtype if is_map else torch.promote_types(x.dtype, torch.float32))
    assert_rows_close(out.reshape(value.shape), value, eps)
    for actual, expected, v in zip(grads, by_points, vectors, strict=False):
        assert actual.dtype == v.dtype
        assert actual.shape == v.shape
        assert_rows_close(actual.reshape(expected.shape), expected, max(EPS[x.dtype], 1e-9))
    for actual, expected, s in zip(grads[len(vectors) :], shares, scalars, strict=True):
        assert actual.dtype == torch.float64
        assert actual.shape == s.shape
        if not s.dim():
            scale = expected.abs().sum() + 1e-300
            assert abs(actual - expected.sum()) <= 1e-9 * scale
        else:
            torch.testing.assert_close(actual.reshape(-1), expected.expand(len(value)), rtol=1e-9, atol=1e-13)


def assert_rows_close(actual, expected, eps):
    """Relative to a row's norm; what the dtype cannot hold is for other tests."""
    least = torch.finfo(actual.dtype).tiny
    actual = actual.double()
    if actual.dim() == 1:
        actual, expected = actual.unsqueeze(1), expected.unsqueeze(1)
    error, scale = (actual - expected).norm(dim=1), expected.norm(dim=1)
    assert (error <= 1.01 * eps * scale + expected.shape[1] * least).all(), (error / scale).max()


def degenerate(vectors):
    """Rows with equal points, opposite and collinear ones, and origins, in place."""
    if len(vectors[0]) >= 6:
        x, y = vectors[0], vectors[-1]
        x[0], y[1] = 0, 0
        y[2], y[3], y[4] = x[2], -x[3], 2 * x[4]
        y[5] = x[5] * (1 + EPS[x.dtype])
    return vectors


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 2, 7, 31, 64, 515])
@pytest.mark.parametrize("name", OPS)
def test_every_instruction_set(name, width, dtype, isa):
    generator = torch.Generator().manual_seed(width)
    vectors, scalars = arguments(name, (40, width), dtype, generator)
    vectors = degenerate([v * min(1.0, 3 / width**0.5) for v in vectors])
    assert_like_closed_form(name, vectors, scalars, upstream_of(name, vectors, generator))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_shape_and_strides(data):
    """Expanded, sliced, transposed, permuted and flipped batches; scalars for all rows or for each."""
    name = data.draw(st.sampled_from(tuple(OPS)))
    dtype = data.draw(st.sampled_from(DTYPES))
    batch = tuple(data.draw(st.lists(st.integers(0, 4), max_size=7)))
    width = data.draw(st.integers(1, 20))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31 - 1)))
    layout = st.sampled_from(["dense", "expanded", "every second", "permuted", "columns", "nothing adjacent"])

    def laid_out(tensor):
        kind = data.draw(layout)
        if kind == "expanded" and batch:
            return tensor[:1].expand(tensor.shape)
        if kind == "every second" and batch:
            return tensor.repeat_interleave(2, 0)[::2]
        if kind == "permuted" and len(batch) > 1:
            return tensor.transpose(0, len(batch) - 1).contiguous().transpose(0, len(batch) - 1)
        if kind == "columns" and tensor.dim() > len(batch):
            return torch.cat([tensor, tensor], -1)[..., tensor.shape[-1] :]
        if kind == "nothing adjacent" and tensor.dim() > len(batch):
            return torch.stack([tensor, tensor], -1)[..., 0]
        return tensor

    vectors, scalars = arguments(name, (*batch, width), dtype, generator)
    vectors = [laid_out(v * min(1.0, 3 / width**0.5)) for v in vectors]
    if data.draw(st.booleans()):
        of_rows = torch.rand(batch, generator=generator, dtype=torch.float64) + 0.5
        scalars = [laid_out(s * of_rows) if data.draw(st.booleans()) else s for s in scalars]
    scalars = [s.to(data.draw(st.sampled_from([torch.float64, torch.float32]))) for s in scalars]
    grad = laid_out(upstream_of(name, vectors, generator))
    assert_like_closed_form(name, vectors, scalars, grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_conversions_of_every_half_precision_number(dtype, isa):
    """The logarithm of a point next to the origin is the point: all numbers go in and come out."""
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    numbers = numbers[numbers.double().abs() < 1e20]  # the rest would not be next to the origin
    tiny = torch.tensor(1e-59, dtype=torch.float64)
    for width in (1, 64):
        rows = numbers[: len(numbers) // width * width].view(-1, width)
        assert torch.equal(native.forward("log_map0", [rows], [tiny]), rows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_to_half_precision_is_pytorchs(dtype, isa):
    generator = torch.Generator().manual_seed(0)
    size = torch.exp(torch.linspace(-20, 9, 4000, dtype=torch.float64)).unsqueeze(1)
    x = (size * torch.randn(4000, 33, generator=generator, dtype=torch.float64)).to(dtype)
    c = torch.tensor(0.3, dtype=torch.float64)
    wide, _, _ = by_closed_form("log_map0", x, [x], [c])
    assert (native.forward("log_map0", [x], [c]) == wide.to(dtype)).double().mean() > 0.9999


# ---------------------------------------------------------------- numbers out of range


def test_squares_beyond_double(isa):
    """x = 1e200, y = 1e-200: by logarithms."""
    c = torch.tensor(1.0, dtype=torch.float64)
    u = torch.tensor([[0.6, 0.8], [0.6, 0.8]], dtype=torch.float64)
    far, near = 1e200 * u, 1e-200 * u
    expected = math.asinh(1e200)
    assert native.forward("elementwise_dist", [far, near], [c]).tolist() == pytest.approx(
        [expected] * 2, rel=1e-15
    )
    assert native.forward("elementwise_dist", [far, -far], [c]).tolist() == pytest.approx(
        [2 * expected] * 2, rel=1e-15
    )
    assert native.forward("elementwise_dist", [near, -near], [c]).tolist() == pytest.approx(
        [2e-200] * 2, rel=1e-15
    )
    assert native.forward("dist0", [far], [c]).tolist() == pytest.approx([expected] * 2, rel=1e-15)
    assert native.forward("dist0", [near], [c]).tolist() == pytest.approx([1e-200] * 2, rel=1e-15)
    torch.testing.assert_close(native.forward("log_map0", [near], [c]), near, rtol=1e-15, atol=0)
    torch.testing.assert_close(native.forward("exp_map0", [near], [c]), near, rtol=1e-15, atol=0)
    torch.testing.assert_close(native.forward("log_map0", [far], [c]), expected * u, rtol=1e-14, atol=0)
    by_far, by_near, _ = native.backward("elementwise_dist", torch.ones(2).double(), [far, near], [c])
    torch.testing.assert_close(by_far, u / 1e200, rtol=1e-14, atol=0)
    torch.testing.assert_close(by_near, -u, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPS)
def test_finite_arguments_never_give_nan(name, dtype, isa):
    """Sizes from the least denormal to the largest number, both in one row too, for points and gradients."""
    info = torch.finfo(dtype)
    sizes = [
        0.0,
        info.smallest_normal * info.eps,
        info.tiny,
        1e-200,
        1e-20,
        1.0,
        88.0,
        720.0,
        3e4,
        1e30,
        info.max,
    ]
    sizes = torch.tensor(sizes, dtype=torch.float64).clamp(max=info.max).to(dtype)
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(-1, 2, (3, 11, 11, 6), generator=generator).to(dtype)
    x, y, upstream = (
        signs[0] * sizes[:, None, None],
        signs[1] * sizes[None, :, None],
        signs[2] * sizes[:, None, None],
    )
    x[..., 0] = sizes.flip(0)[:, None]
    n_points, n_scalars, op_options, is_map = OPS[name]
    vectors = [x, y][:n_points]
    for curv in (1e-30, 1.0, 1e30):
        scalars = [torch.tensor(v, dtype=torch.float64) for v in ((curv,), (1e8, curv))[n_scalars - 1]]
        out = native.forward(name, vectors, scalars, op_options)
        assert not out.isnan().any()
        grad = upstream if is_map else upstream[..., 1].to(out.dtype)
        by_points = native.backward(name, grad, vectors, scalars, op_options)[:n_points]
        for gradient in by_points:
            assert gradient.isfinite().all()


def test_values_out_of_range_are_infinite_where_they_are_not_zero(isa):
    v = torch.tensor([[1e5, 0.0, -1e5], [100.0, 0.0, -100.0]])
    c = torch.tensor(1.0)
    assert native.forward("exp_map0", [v], [c]).tolist() == [[math.inf, 0.0, -math.inf]] * 2
    assert native.forward("exp_map0", [v.double()[:1]], [c]).tolist() == [[math.inf, 0.0, -math.inf]]
    assert native.forward("exp_map", [torch.zeros(1, 3), v[:1]], [c]).tolist() == [[math.inf, 0.0, -math.inf]]
    far = torch.tensor([[1e30, 0.0]])
    assert native.forward("elementwise_inner", [far, -far], [c]).tolist() == [-math.inf]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_out_of_range_keeps_its_direction(dtype, isa):
    largest = torch.finfo(dtype).max
    v = torch.tensor([[1000.0, -500.0, 0.0]], dtype=dtype)
    (gradient, _) = native.backward("exp_map0", v, [v], [torch.tensor(1.0)])
    assert gradient[0, 0] == largest
    assert gradient[0, 1].item() == pytest.approx(-largest / 2, rel=EPS[dtype])
    assert gradient[0, 2] == 0


@pytest.mark.parametrize("name", OPS)
def test_nan_stays_in_its_row(name, isa):
    generator = torch.Generator().manual_seed(0)
    vectors, scalars = arguments(name, (5, 9), torch.float32, generator)
    vectors[-1][3, 4] = math.nan
    *_, op_options, _is_map = OPS[name]
    out = native.forward(name, vectors, scalars, op_options)
    grads = native.backward(name, torch.ones_like(out), vectors, scalars, op_options)
    for result in (out, *grads[: len(vectors)]):
        of_row = result.isnan().reshape(5, -1).any(1)
        assert of_row.tolist() == [False, False, False, True, False]
    assert grads[-1].isnan()


# ---------------------------------------------------------------- PyTorch


@pytest.mark.parametrize("name", OPS)
def test_the_number_of_threads_changes_no_bit(name, isa):
    generator = torch.Generator().manual_seed(0)
    vectors, scalars = arguments(name, (999, 300), torch.float32, generator)
    vectors = [v / 17 for v in vectors]
    *_, op_options, _ = OPS[name]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            out = native.forward(name, vectors, scalars, op_options)
            grads = native.backward(name, out, vectors, scalars, op_options)
            results.append((out, *grads))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPS)
def test_what_is_kept_of_rows_changes_no_bit(name, dtype, isa):
    """Of rows beyond the range of plain formulas, too."""
    options, generator = OPS[name][2], torch.Generator().manual_seed(0)
    points, scalars = arguments(name, (5, 7, 200), dtype, generator)
    points[0][1, :3] *= torch.finfo(dtype).max / 1e3
    points[-1][2, :3] *= torch.finfo(dtype).smallest_normal * 1e3
    points[0][3, :3] = 0
    expected = native.forward(name, points, scalars, options)
    out, splits = native.value_and_splits(name, points, scalars, options)
    assert splits is not None
    assert_equal_bits(out, expected)
    upstream = upstream_of(name, points, generator)
    grads = native.backward(name, upstream, points, scalars, options, splits)
    true = native.backward(name, upstream, points, scalars, options)
    for one, other in zip(grads, true, strict=True):
        assert_equal_bits(one, other)


def assert_equal_bits(one, other):
    assert one.dtype == other.dtype
    assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


def test_of_narrow_rows_nothing_is_kept():
    x = torch.randn(9, 10)
    assert native.value_and_splits("elementwise_dist", [x, x], [torch.tensor(1.0)], ())[1] is None
    assert native.value_and_splits("dist0", [x.repeat(1, 8)], [torch.tensor(1.0)], ())[1] is not None


@pytest.mark.parametrize("name", OPS)
def test_gradcheck(name):
    generator = torch.Generator().manual_seed(3)
    vectors, scalars = arguments(name, (4, 5), torch.float64, generator)
    tensors = [t.requires_grad_() for t in (*vectors, *scalars)]
    assert torch.autograd.gradcheck(op(name), (*tensors, *OPS[name][2]))


def test_options_of_the_half_aperture_are_those_of_the_cases():
    assert options("half_aperture") == OPS["half_aperture"][2]


def test_far_collinear_tangents_have_no_lateral_gradient():
    """What rounding leaves across, of components of 1e38, times a slope of 1e38, is nothing."""
    x = torch.tensor([[9.9692e37], [-9.9692e37]], dtype=torch.bfloat16, requires_grad=True)
    v = torch.tensor([[8.9058e37], [-1.1431e38]], dtype=torch.bfloat16, requires_grad=True)
    found = {}
    for name in ("torch", "native"):
        with use_backend(name):
            out = exp_map(x, v)
            found[name] = [out, *torch.autograd.grad(out, [x, v], torch.ones_like(out))]
    for actual, expected in zip(found["native"], found["torch"], strict=True):
        torch.testing.assert_close(actual, expected)
