"""The kernels of the maps, through the public functions."""

from __future__ import annotations

import pytest
import torch
import triton.language as tl
from kernel_lane import DEVICE
from row_kernel_cases import (
    LAYOUTS,
    ROUNDING,
    SHAPES_AND_DTYPES,
    assert_close,
    poisoned_memory,
    random_points,
    strided_points,
)
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
from test_scaled_map import assert_accurate as assert_scaled_accurate

import hypkernels as hk
from hypkernels.maps import closed_form
from hypkernels.tritonlib import launch
from hypkernels.tritonlib.rows import columns_from, input_rows, load, output_rows, row_kernel, row_tile, store

AT_ORIGIN = ("exp_map0", "log_map0")
# name -> how many points, which scalars
MAPS = {
    "exp_map0": (1, (0.7,)),
    "log_map0": (1, (0.7,)),
    "scaled_exp_map0": (1, (-0.6, 0.7)),
    "exp_map": (2, (0.7,)),
    "log_map": (2, (0.7,)),
}
# One of the three curvatures is enough here: the others differ in rounding only.
KERNEL_REGIMES = [regime for regime in REGIMES if regime not in ("embeddings, c=0.1", "embeddings, c=1.0")]
ARGUMENTS = [(name, i) for name, (count, scalars) in MAPS.items() for i in range(count + len(scalars))]


@pytest.fixture(autouse=True)
def _kernels_on_poisoned_memory():
    with hk.use_backend("triton"), poisoned_memory():
        yield


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels launched."""
    names = []
    launch_rows = launch.launch_rows

    def recorded(kernel, *args, **kwargs):
        names.append(kernel.__name__)
        launch_rows(kernel, *args, **kwargs)

    monkeypatch.setattr(launch, "launch_rows", recorded)
    return names


def on_device(name):
    """The public function where kernels run, its result back where the truth is computed."""

    def op(*args):
        return getattr(hk, name)(*(a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in args)).cpu()

    return op


def with_gradients(op, vectors, scalars, dtype=torch.float64):
    """``([value, gradient by each point], [gradient by each scalar], upstream)``"""
    vectors = [v.detach().requires_grad_() for v in vectors]
    scalars = [torch.tensor(s, dtype=dtype, requires_grad=True) for s in scalars]
    out = op(*vectors, *scalars)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    grads = torch.autograd.grad(out, [*vectors, *scalars], upstream)
    return [out.detach(), *grads[: len(vectors)]], grads[len(vectors) :], upstream


def assert_matches_formula(name, vectors, scalars, op=None):
    """Value and gradients against the closed forms on float64 rows."""
    actual, by_scalars, upstream = with_gradients(op or on_device(name), vectors, scalars)
    rows = [v.double().reshape(-1, v.shape[-1]) for v in vectors]
    values = [torch.tensor(s, dtype=torch.float64) for s in scalars]
    count = len(vectors)
    gradient = getattr(closed_form, f"{name}_gradient")
    grads = gradient(upstream.double().reshape(rows[0].shape), *rows, *values)
    expected = [getattr(closed_form, name)(*rows, *values), *grads[:count]]
    for a, e, v in zip(actual, expected, [vectors[0], *vectors], strict=True):
        assert a.shape == v.shape
        assert a.dtype == v.dtype
        assert_close(a.reshape(e.shape), e, 1.01 * ROUNDING[a.dtype])
    for a, shares in zip(by_scalars, grads[count:], strict=True):
        assert (a - shares.sum()).abs() <= 1e-12 * shares.abs().sum()


@pytest.mark.parametrize("regime", KERNEL_REGIMES)
@pytest.mark.parametrize("name", AT_ORIGIN)
def test_map_at_origin_is_rounded_once(name, regime):
    assert_accurate(
        name, points(name, REGIMES[regime], torch.float32), REGIMES[regime].curv, FLOAT32, on_device(name)
    )


@pytest.mark.parametrize("regime", KERNEL_REGIMES)
def test_log_map_is_rounded_once(regime):
    vectors = points("log_map", REGIMES[regime], torch.float32)
    assert_accurate("log_map", vectors, REGIMES[regime].curv, FLOAT32_MAP, on_device("log_map"))


@pytest.mark.parametrize("sign", [1, -1], ids=["outward", "inward"])
@pytest.mark.parametrize("regime", KERNEL_REGIMES)
def test_exp_map_is_rounded_once(regime, sign):
    vectors = [REGIMES[regime].x.float(), tangents(REGIMES[regime], sign, torch.float32)]
    assert_accurate("exp_map", vectors, REGIMES[regime].curv, FLOAT32_MAP, on_device("exp_map"))


@pytest.mark.parametrize("regime", ["embeddings, c=10.0", "tiny", "far, r<22", "close, r=5", "huge and tiny"])
@pytest.mark.parametrize("name", [*AT_ORIGIN, "log_map"])
def test_float64(name, regime):
    """As for the formulas themselves: a factor of sqrt(c)|v| = 22 on the rounding of a norm."""
    tolerance = Tolerance(1e9, 1e-12, 1e-12, value=2e-14)
    assert_accurate(
        name, points(name, REGIMES[regime], torch.float64), REGIMES[regime].curv, tolerance, on_device(name)
    )


@pytest.mark.parametrize("scale", [0.0625, -3.0])
@pytest.mark.parametrize(
    "regime", ["embeddings, c=0.1", "embeddings, c=10.0", "near the origin", "far, r<22"]
)
def test_scaled_map_is_rounded_once(regime, scale):
    (x,) = points("exp_map0", REGIMES[regime], torch.float32)
    assert_scaled_accurate(x[0], scale, REGIMES[regime].curv, on_device("scaled_exp_map0"))


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_a_wrong_gradient_is_caught(name, argument):
    wrong = with_scaled_gradient(on_device(name), argument)
    count, scalars = MAPS[name]
    for dtype in (torch.float32, torch.bfloat16):
        vectors = random_points((3,), 5, dtype, count)
        assert_matches_formula(name, vectors, scalars)
        with pytest.raises(AssertionError):
            assert_matches_formula(name, vectors, scalars, op=wrong)


@pytest.mark.parametrize("name", MAPS)
def test_what_no_kernel_writes_is_caught(name, monkeypatch):
    monkeypatch.setattr(launch, "launch_rows", lambda *args, **kwargs: None)
    count, scalars = MAPS[name]
    with pytest.raises(AssertionError):
        assert_matches_formula(name, random_points((3,), 5, torch.float32, count), scalars)


@pytest.mark.parametrize(("shape", "dtype"), SHAPES_AND_DTYPES)
@pytest.mark.parametrize("name", MAPS)
def test_shapes_and_dtypes(name, shape, dtype):
    count, scalars = MAPS[name]
    assert_matches_formula(name, random_points(*shape, dtype, count), scalars)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MAPS)
def test_strides(name, layout):
    count, scalars = MAPS[name]
    assert_matches_formula(name, strided_points(layout)[-count:], scalars)


@pytest.mark.parametrize("name", MAPS)
def test_one_launch_each_way(name, launches):
    count, scalars = MAPS[name]
    with_gradients(on_device(name), random_points((3,), 5, torch.float32, count), scalars)
    forward, backward = launches
    assert forward.endswith("_forward")
    assert backward.endswith("_backward")


def test_upstream_gradient_without_memory_of_its_own():
    """The gradient of a sum is one number, expanded."""
    x = torch.randn(3, 4, 5, requires_grad=True)
    (actual,) = torch.autograd.grad(on_device("exp_map0")(x, 0.7).sum(), x)
    with hk.use_backend("torch"):
        (expected,) = torch.autograd.grad(hk.exp_map0(x, 0.7).sum(), x)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", MAPS)
def test_same_bits_every_time(name):
    count, scalars = MAPS[name]
    vectors = random_points((20,), 33, torch.float32, count)
    first, second = (with_gradients(on_device(name), vectors, scalars) for _ in range(2))
    for a, b in zip([*first[0], *first[1]], [*second[0], *second[1]], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scalars_of_any_dtype(dtype):
    (x,) = random_points((3,), 5, torch.float32, 1)
    actual, by_scalars, _ = with_gradients(on_device("scaled_exp_map0"), [x], (0.5, 0.75), dtype)
    expected, by_wide, _ = with_gradients(on_device("scaled_exp_map0"), [x], (0.5, 0.75))
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
    assert [s.dtype for s in by_scalars] == [dtype, dtype]
    assert all(torch.equal(a, e.to(dtype)) for a, e in zip(by_scalars, by_wide, strict=True))


@pytest.mark.parametrize("batch", [(0,), (3, 0), ()])
@pytest.mark.parametrize("name", MAPS)
def test_no_rows_and_a_single_one(name, batch):
    count, scalars = MAPS[name]
    vectors = [torch.linspace(0.1, 0.4, 4).expand(*batch, 4) for _ in range(count)]
    (out, *grads), by_scalars, _ = with_gradients(on_device(name), vectors, scalars)
    assert out.shape == (*batch, 4)
    assert all(torch.isfinite(t).all() for t in (out, *grads, *by_scalars))
    if 0 in batch:
        assert not any(by_scalars)


@pytest.mark.parametrize("name", AT_ORIGIN)
def test_identity_to_first_order_at_the_origin(name):
    (out, by_x), (by_curv,), upstream = with_gradients(on_device(name), [torch.zeros(2, 5)], [0.3])
    assert not out.any()
    assert torch.equal(by_x, upstream)
    assert by_curv == 0


def test_zero_velocity_stays():
    x = torch.randn(4, 6)
    (out, by_x, by_v), (by_curv,), upstream = with_gradients(
        on_device("exp_map"), [x, torch.zeros(4, 6)], [0.3]
    )
    assert torch.equal(out, x)
    assert torch.equal(by_x, upstream)
    assert torch.equal(by_v, upstream)
    assert by_curv == 0


def test_log_of_the_same_point_is_zero():
    x = torch.randn(4, 6)
    (out, by_x, by_y), (by_curv,), upstream = with_gradients(on_device("log_map"), [x, x.clone()], [0.3])
    assert not out.any()
    assert torch.equal(by_y, upstream)
    assert torch.equal(by_x, -upstream)
    assert by_curv == 0


@pytest.mark.parametrize(("at_point", "at_origin"), [("exp_map", "exp_map0"), ("log_map", "log_map0")])
def test_base_point_at_the_origin(at_point, at_origin):
    v = torch.randn(4, 6)
    assert torch.equal(on_device(at_point)(torch.zeros_like(v), v, 0.7), on_device(at_origin)(v, 0.7))


@pytest.mark.parametrize("name", MAPS)
def test_nan_stays_in_its_row(name):
    count, scalars = MAPS[name]
    clean = random_points((3,), 5, torch.float32, count)
    dirty = [v.clone() for v in clean]
    dirty[-1][1, 2] = float("nan")
    out, expected = (on_device(name)(*vectors, *scalars) for vectors in (dirty, clean))
    assert out[1].isnan().all()
    assert torch.equal(out[::2], expected[::2])


def test_the_whole_range_of_float32():
    sizes = torch.tensor([3e38, 1e20, 1.0, 1e-20, 1e-45])
    x = sizes[:, None] * torch.tensor([[1.0, -1.0, 1.0]])
    assert_matches_formula("log_map0", [x], [0.7])


def test_rows_further_apart_than_32_bits_count():
    """Pages of memory that are never touched cost nothing."""
    memory = torch.UntypedStorage(2 * (2**31 + 64))
    x = torch.tensor([], dtype=torch.float16).set_(memory, 0, (3, 5), (2**30, 1))
    x.copy_(torch.arange(15).view(3, 5) / 8)
    assert_matches_formula("exp_map0", [x], [0.7])


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_to_one_graph(backend, launches):
    torch._dynamo.reset()
    op = on_device("scaled_exp_map0")
    compiled = torch.compile(op, fullgraph=True, backend=backend)
    x = torch.randn(7, 6)
    actual, expected = (with_gradients(f, [x], [0.5, 0.7]) for f in (compiled, op))
    for a, e in zip([*actual[0], *actual[1]], [*expected[0], *expected[1]], strict=True):
        assert torch.equal(a, e)
    assert launches == ["_radial_forward", "_radial_backward"] * 2


@pytest.mark.parametrize("layout", ["transposed batch", "broadcast pair"])
def test_more_outer_rows_than_a_grid_has_along_a_dimension(layout, monkeypatch):
    """Those beyond it are counted along a third, in which the last programs have no rows."""
    monkeypatch.setattr(launch, "MAX_GRID_Y", 3)
    vectors = strided_points(layout)
    assert launch.as_outer_and_inner(vectors)[0] > launch.MAX_GRID_Y
    assert_matches_formula("log_map", vectors, (0.7,))


@row_kernel
def _copy(
    X,
    x_outer,
    x_inner,
    OUT,
    outer_size,
    inner_size,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tile = row_tile(outer_size, inner_size, ROWS)
    x, out = input_rows(X, x_outer, x_inner, tile), output_rows(OUT, tile, D)
    for start in range(0, D, BLOCK_D):
        columns = columns_from(start, tile, D, BLOCK_D)
        store(out, load(x, columns), columns)


def copied(values, dtype):
    out = torch.full(values.shape, 7.0, dtype=dtype, device=DEVICE)
    launch.launch_rows(_copy, [values.to(DEVICE)], [out])
    return out.cpu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_pytorchs(dtype):
    """Ties, subnormals, overflow, infinities and NaN."""
    steps = torch.arange(4096, dtype=torch.float64) / 8
    ulp = torch.finfo(dtype).eps
    values = torch.cat(
        [(1 + ulp * steps) * scale for scale in (1, 0.3, -(2.0**-130), torch.finfo(dtype).max)]
    )
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e300, -1e-300])
    values = torch.cat([values, special.double()])[None]
    out = copied(values, dtype)
    expected = values.to(dtype)
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.nan_to_num(0), expected.nan_to_num(0))
    assert torch.equal(out.signbit()[~out.isnan()], expected.signbit()[~out.isnan()])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_half_precision_number_converts_exactly(dtype):
    """Save the subnormals of bfloat16, which the interpreter reads as 0."""
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    values = values[~values.isnan() & ((values == 0) | (values.abs() >= torch.finfo(dtype).tiny))][None]
    out = copied(values, dtype)
    assert torch.equal(out.view(torch.int16), values.view(torch.int16))


@pytest.mark.parametrize(
    ("views", "sizes"),
    [
        (lambda x: [x, x], (1, 4 * 6 * 3)),
        (lambda x: [x[:, ::2]], (4 * 3, 3)),
        (lambda x: [x[:, :, 0]], (1, 4 * 6)),
        (lambda x: [x[:, 0, 0].unsqueeze(1).expand(4, 7, 5), x[0, 0, 0].expand(4, 7, 5)], (4, 7)),
        (lambda x: [x[1:2, 2:3, ::2]], (1, 2)),
        (lambda x: [x[0, 0, 0]], (1, 1)),
        (lambda x: [x[..., :1], x[..., 2:3]], (1, 4 * 6 * 3)),
    ],
)
def test_rows_are_viewed_without_a_copy(views, sizes):
    tensors = views(torch.arange(4 * 6 * 3 * 5).view(4, 6, 3, 5))
    outer, inner, rows = launch.as_outer_and_inner(tensors)
    assert (outer, inner) == sizes
    for tensor, view in zip(tensors, rows, strict=True):
        assert view.data_ptr() == tensor.data_ptr()
        assert torch.equal(view.reshape(-1), tensor.reshape(-1))


def test_three_strides_of_rows_take_a_copy():
    x = torch.arange(4 * 6 * 3 * 5).view(4, 6, 3, 5)
    outer, inner, (rows,) = launch.as_outer_and_inner([x.permute(2, 1, 0, 3)])
    assert (outer, inner) == (1, 4 * 6 * 3)
    assert torch.equal(rows.view(3, 6, 4, 5), x.permute(2, 1, 0, 3))
