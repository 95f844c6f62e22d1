"""The row kernels out of the ordinary: a curvature for each row, results beyond the range of their type."""

import importlib

import pytest
import torch
from row_kernel_cases import run
from rowwise_ops import OPS, keywords_of, options_of

import hypkernels as hk
from hypkernels.saturation import saturated


def launched(name, points, *scalars):
    """Value and gradients of a sum of the values."""
    forward, backward = launchers(name)
    out = run(forward, *points, *scalars, *options_of(name))
    return out, *run(backward, torch.ones_like(out), *points, *scalars, *options_of(name))


def launchers(name):
    module = importlib.import_module(OPS[name].kernels)
    return getattr(module, name), getattr(module, f"{name}_backward")


def curvatures(batch, layout):
    """Positive, not all dense: a few different values, ``batch``."""
    values = torch.rand(24, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.2
    return {
        "dense": values[: batch.numel()].reshape(batch),
        "of the outer rows": values[: batch[0]].reshape(-1, *[1] * (len(batch) - 1)).expand(batch),
        "of the inner rows": values[: batch[-1]].expand(batch),
        "expanded": values[0].expand(batch),
    }[layout]


LAYOUTS = ("dense", "of the outer rows", "of the inner rows", "expanded")


# The interpreter takes long for wide rows.
@pytest.mark.parametrize(("width", "layout"), [*((5, layout) for layout in LAYOUTS), (300, "dense")])
@pytest.mark.parametrize("name", OPS)
def test_a_curvature_for_each_row(name, width, layout):
    """As row by row with its own one; the gradient by it is that of each row."""
    batch = torch.Size((3, 4))
    generator = torch.Generator().manual_seed(width)
    points = [torch.randn(*batch, width, generator=generator) for _ in range(OPS[name].points)]
    scalars = [curvatures(batch, layout)]
    if name == "scaled_exp_map0":
        scalars = [curvatures(batch, "dense") - 0.7, *scalars]
    results = launched(name, points, *scalars)
    assert all(one.shape == batch for one in results[1 + len(points) :])
    for i, j in ((0, 0), (1, 2), (2, 3)):
        alone = launched(name, [p[i, j] for p in points], *(one[i, j] for one in scalars))
        for actual, expected in zip(results, alone, strict=True):
            torch.testing.assert_close(actual[i, j], expected, rtol=0, atol=0)


def test_one_scale_beside_many_curvatures():
    x = torch.randn(6, 5)
    curv, scale = curvatures(torch.Size((6,)), "dense"), torch.tensor(0.7, dtype=torch.float64)
    *_, by_scale, by_curv = launched("scaled_exp_map0", [x], scale, curv)
    *_, by_scales, by_curvs = launched("scaled_exp_map0", [x], scale.expand(6), curv)
    torch.testing.assert_close(by_scale, by_scales.sum(), rtol=1e-15, atol=0)
    assert by_curv.equal(by_curvs)


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Relative to the largest component: half a unit in the last place; for float64, of two ways to add.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def sizes(dtype):
    """From the smallest numbers of a type to its largest; Triton's interpreter has no subnormal bfloat16."""
    info = torch.finfo(dtype)
    smallest = info.tiny if dtype == torch.bfloat16 else info.tiny * info.eps
    return [smallest, 4 * info.tiny, info.tiny**0.5, 1e-3, 1.0, 300.0, info.max**0.5, info.max / 4]


def points_of_all_sizes(dtype, width, seed, count):
    """``(count, width)``: directions and zeros, at sizes in turn."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, width, generator=generator, dtype=torch.float64)
    rows = rows.sign() * (1 + rows.abs()).clamp(max=3)
    rows[:, 1::3] = 0
    scale = torch.tensor(sizes(dtype), dtype=torch.float64)[torch.arange(count) // (seed + 1) % 8]
    return (rows * scale.unsqueeze(-1)).to(dtype)


def assert_rows(actual, expected, tolerance):
    """Each row relative to its largest component, or to a subnormal; the same infinities."""
    info = torch.finfo(actual.dtype)
    subnormal = info.tiny if actual.dtype in (torch.float64, torch.bfloat16) else info.tiny * info.eps
    assert not actual.isnan().any()
    expected = expected.to(actual.dtype)
    infinite = expected.isinf()
    assert actual.isinf().equal(infinite)
    assert actual[infinite].sign().equal(expected[infinite].sign())
    actual, expected = (one.masked_fill(infinite, 0).double() for one in (actual, expected))
    largest = expected.abs().amax(-1, keepdim=True)
    error = (actual - expected).abs()
    assert (error <= 2.1 * tolerance * largest + subnormal).all(), (error / largest).nan_to_num(0).max()


def expected_results(name, points, scalars, upstream):
    """By the closed forms, with exponents of their own where float64's do not do."""
    op, options = OPS[name], options_of(name)
    rows = [p.double() for p in points]
    columns = [one.unsqueeze(-1) if one.dim() else one for one in scalars]
    value = op.formula(*rows, *columns, *options)
    grads = op.gradient(upstream.double().reshape(value.shape), *rows, *columns, *options)
    by_points = [saturated(g, p.dtype) for g, p in zip(grads[: op.points], points, strict=True)]
    return [value, *by_points, *grads[op.points :]]


def check_results(name, points, scalars, upstream):
    (forward, backward), count, options = launchers(name), OPS[name].points, options_of(name)
    value, *expected = expected_results(name, points, scalars, upstream)
    actual = run(forward, *points, *scalars, *options)
    dtype, out = points[0].dtype, actual.dtype
    assert_rows(actual.reshape(value.shape), value, TOLERANCE[out])
    grads = run(backward, upstream.to(out), *points, *scalars, *options)
    for actual, true in zip(grads[:count], expected[:count], strict=True):
        assert_rows(actual, true, TOLERANCE[dtype])
    for actual, true in zip(grads[count:], expected[count:], strict=True):
        assert_rows(actual.unsqueeze(-1), true, 1e-10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 5, 300])
@pytest.mark.parametrize("name", ["exp_map0", "log_map0", "scaled_exp_map0"])
def test_points_of_every_size(name, width, dtype):
    x = points_of_all_sizes(dtype, width, 0, 24)
    upstream = points_of_all_sizes(torch.float16, width, 3, 24).to(dtype)
    curv = torch.tensor([0.7, 1e-6, 1e4], dtype=torch.float64).repeat(8)
    scalars = [curv]
    if name == "scaled_exp_map0":
        scalars = [torch.tensor([1.0, -1e-3, 50.0, 0.0], dtype=torch.float64).repeat(6), curv]
    check_results(name, [x], scalars, upstream)


NARROW = [torch.float32, torch.bfloat16, torch.float16]
# Of the maps of one point there is the test above.
NOT_OF_EVERY_SIZE = [name for name, op in OPS.items() if op.points == 2 or not op.returns_points]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("width", [1, 5, 300])
@pytest.mark.parametrize("name", NOT_OF_EVERY_SIZE)
def test_narrow_points_of_every_size(name, width, dtype):
    chosen = slice(None, None, 1 if width < 100 else 5)  # of all pairs of sizes; wide rows take long
    points = [points_of_all_sizes(dtype, width, seed, 64)[chosen] for seed in (0, 7)][: OPS[name].points]
    curv = torch.tensor([0.7, 1e-2, 1e4, 3.0], dtype=torch.float64).repeat(16)[chosen]
    upstream = torch.rand(64, generator=torch.Generator().manual_seed(4))[chosen] + 0.1
    if name == "exp_map" and width == 1:  # inward two terms cancel, which are beyond all numbers here
        points[1] = points[1].abs() * points[0].sign()
    if name in ("exp_map", "log_map"):
        upstream = points_of_all_sizes(torch.float16, width, 3, 64)[chosen].to(dtype)
    check_results(name, points, [curv], upstream)


@pytest.mark.parametrize("name", NOT_OF_EVERY_SIZE)
def test_float64_points_beyond_the_range_of_a_kernel(name):
    """It leaves them NaN and nothing wrong beside; the public function then is right."""
    sizes = torch.tensor([1e-300, 1e-160, 1e-60, 1e-3, 0.0, 1.0, 1e40, 1e160, 1e300], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    points = [torch.randn(9, 9, 3, generator=generator, dtype=torch.float64) for _ in range(2)]
    points = [points[0] * sizes[:, None, None], points[1] * sizes[:, None]][: OPS[name].points]
    if name == "exp_map":
        points[1] = points[1].clamp(-50, 50)
    curv = torch.tensor(0.7, dtype=torch.float64)
    by_kernel = launched(name, points, curv)
    options = keywords_of(name) | ({"reduction": "none"} if "loss" in name else {})

    def public(backend):
        leaves = [p.clone().requires_grad_() for p in (*points, curv)]
        with hk.use_backend(backend):
            out = getattr(hk, name)(*leaves, **options)
            return [out.detach(), *torch.autograd.grad(out.sum(), leaves)]

    expected = public("torch")
    for kernel, actual, true in zip(by_kernel, public("triton"), expected, strict=True):
        torch.testing.assert_close(actual, true, rtol=1e-11, atol=0)
        if kernel.shape == actual.shape[:2] or kernel.dim() > 2:
            torch.testing.assert_close(
                kernel, true.where(~kernel.isnan(), torch.nan), rtol=1e-11, atol=0, equal_nan=True
            )
    assert by_kernel[0].isnan().any()


@pytest.mark.parametrize("name", NOT_OF_EVERY_SIZE)
def test_rows_that_fit_stay_beside_rows_that_do_not(name):
    """All rows of a tile are stored again if one is beyond its type: only that one is scaled."""
    generator = torch.Generator().manual_seed(0)
    points = [torch.randn(6, 5, generator=generator).half() for _ in range(OPS[name].points)]
    upstream = torch.tensor([1.0, 1e6, 0.3, -3e5, 1.0, 2.0])
    if name in ("exp_map", "log_map"):
        upstream = (
            upstream.clamp(-6e4, 6e4).half().unsqueeze(-1) * torch.rand(6, 5, generator=generator).half()
        )
        points[1] = points[1] * torch.tensor([1.0, 4.0, 1.0, 4.0, 1.0, 1.0]).half().unsqueeze(-1)
    curv = torch.full((6,), 0.7, dtype=torch.float64)
    grads = expected_results(name, points, [curv], upstream)[1 : 1 + len(points)]
    largest = torch.stack([grad.abs().amax(-1) for grad in grads]).amax(0)
    assert (largest == 65504).any()
    assert (largest < 10).sum() >= 3
    check_results(name, points, [curv], upstream)
