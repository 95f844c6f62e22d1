"""The kernels of the pairwise functions, over several ragged tiles and blocks, against exact float64 rows."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from kernel_lane import DEVICE, INTERPRETED
from row_kernel_cases import poisoned_memory
from torch import Tensor
from torch.library import opcheck

import hypkernels as hk
from hypkernels.operators import registered
from hypkernels.pairwise import kernel, tile_kernels
from hypkernels.tritonlib import launch, products
from hypkernels.tritonlib.tile_plan import Plan, Tile

ROWWISE = {
    "pairwise_inner": hk.elementwise_inner,
    "pairwise_dist": hk.elementwise_dist,
    "pairwise_oxy_angle": hk.oxy_angle,
}
NAMES = tuple(ROWWISE)
every_function = pytest.mark.parametrize("name", NAMES)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TILE = Tile(32, 32, depth_bytes=64, warps=4, stages=1, pieces=2, group=2)
# The backward pass takes several blocks, none of whole tiles only.
PLAN = Plan(TILE, TILE, TILE, TILE._replace(pieces=1), inline_ptx=False, workspace_bytes=20_000)
ROWS, COLUMNS, WIDTH = 40, 70, 24
U = 2.0**-24


@pytest.fixture(autouse=True)
def _many_pairs_a_program(monkeypatch):
    """Still several programs: they are what the interpreter takes time for."""
    if INTERPRETED:
        at_a_time = {"ROWS": 32, "COLUMNS": 32, "DEPTH": 16, "num_warps": 4}
        monkeypatch.setattr(kernel, "_NEAR_VALUES", at_a_time)
        monkeypatch.setattr(kernel, "_NEAR_GRADIENTS", at_a_time)
        monkeypatch.setattr(launch, "NARROW_TILE", 2048)


class Inputs(NamedTuple):
    x: Tensor
    y: Tensor
    curv: Tensor
    grad: Tensor


class Results(NamedTuple):
    values: Tensor
    x: Tensor
    y: Tensor
    curv: Tensor


class Tolerance(NamedTuple):
    """Of values in units of what a product of matrices rounds; of gradients relative to their norms."""

    values: float
    points: float
    curv: float


# A product rounds each of its sums a few times, its operands' scalars and what is made of it once. The
# gradients are sums of as many terms of one sign. Those of narrow points are products of weights that are
# rounded, to bfloat16 or, for float16, to tf32.
FLOAT32 = Tolerance(8, 1e-6, 1e-6)
TOLERANCES = {
    torch.float32: FLOAT32,
    torch.bfloat16: FLOAT32._replace(points=2.0**-8),
    torch.float16: FLOAT32._replace(points=2.0**-11),
}


def points(*shape, dtype=torch.float32, size=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (size / shape[-1] ** 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def upstream(*shape, seed=9):
    """Positive, so that the sums of the gradients are as large as their terms."""
    generator = torch.Generator().manual_seed(seed)
    return 0.5 + torch.rand(shape, generator=generator)


def inputs(dtype=torch.float32, rows=ROWS, columns=COLUMNS, width=WIDTH, size=1.0) -> Inputs:
    return Inputs(
        points(rows, width, dtype=dtype, size=size),
        points(columns, width, dtype=dtype, size=size, seed=1),
        torch.tensor(0.7, dtype=torch.float64),
        upstream(rows, columns),
    )


def with_degenerate_pairs(given: Inputs) -> Inputs:
    """Coincident, close, opposite and collinear points, and the origin, in several tiles."""
    x, y = given.x.clone(), given.y.clone()
    y[3:8] = x[3:8]
    y[10:16] = (x[10:16].double() * (1 + 2.0 ** -torch.arange(1, 7)[:, None])).to(y.dtype)
    y[16:20] = (x[20:24].double() + 1e-3 * x[15:19].double()).to(y.dtype)
    y[20], y[21], y[22] = -x[35], 3 * x[36], x[37] / 4
    x[33] = y[24] = y[65] = 0
    return given._replace(x=x, y=y)


def computed(name, given: Inputs, precision="ieee", plan=PLAN) -> Results:
    x, y, curv, grad = (tensor.to(DEVICE) for tensor in given)
    with poisoned_memory():
        values = kernel.values(name, x, y, curv, precision, plan=plan)
        gradients = kernel.gradients(name, grad, x, y, curv, precision, plan=plan)
    return Results(*(one.cpu() for one in (values, *gradients)))


def defined(name, given: Inputs) -> Results:
    """By the function of two rows, which resolves any two points."""
    x, y, curv = (one.double().clone().requires_grad_() for one in given[:3])
    c = curv[..., None, None] if curv.dim() else curv
    with hk.use_backend("torch"):
        values = ROWWISE[name](x[..., :, None, :], y[..., None, :, :], c)
        gradients = torch.autograd.grad(values, (x, y, curv), given.grad.double())
    return Results(values.detach(), *gradients)


def resolution(name, given: Inputs) -> Tensor:
    """What one rounding of a product, as large as the norms, changes of each value; and of the value."""
    x, y, c = given.x.double(), given.y.double(), given.curv
    c = c[..., None, None] if c.dim() else c
    P2, Q2 = c * (x * x).sum(-1)[..., :, None], c * (y * y).sum(-1)[..., None, :]
    rounded = torch.sqrt(P2 * Q2) + P2 * torch.sqrt(1 + Q2) + Q2
    with hk.use_backend("torch"):
        sinh = torch.sinh(torch.sqrt(c) * hk.elementwise_dist(x[..., :, None, :], y[..., None, :, :], c))
        cosh = -c * hk.elementwise_inner(x[..., :, None, :], y[..., None, :, :], c)
    if name == "pairwise_inner":
        return (rounded + cosh) / c
    # Of near pairs nothing but the relative rounding is left, whatever the product resolves.
    far = (cosh - 1 >= tile_kernels.NEAR_SHARE.value * torch.sqrt(P2 * Q2)) & (sinh > 0)
    distance = torch.asinh(sinh) / torch.sqrt(c)
    if name == "pairwise_dist":
        return distance + torch.where(far, rounded / sinh / torch.sqrt(c), 0.0)
    return 1 + rounded / torch.sqrt(P2 + 1e-300).clamp(min=1e-3) / sinh.clamp(min=1e-30) * far


def assert_close(name, given: Inputs, actual: Results, expected: Results, tolerance: Tolerance) -> None:
    error = (actual.values.double() - expected.values).abs()
    worst = (error / (U * resolution(name, given)).clamp(min=1e-40)).max().item() if error.numel() else 0
    assert worst <= tolerance.values, f"values: {worst:.1f} > {tolerance.values}"
    for field, bound in (("x", tolerance.points), ("y", tolerance.points), ("curv", tolerance.curv)):
        a, b = getattr(actual, field).double(), getattr(expected, field)
        error, size = (a - b).norm().item(), b.norm().item()
        assert error <= bound * size, f"{field}: {error / size:.1e} > {bound:.1e}"


def assert_right(name, given: Inputs, tolerance=FLOAT32, **options) -> Results:
    actual = computed(name, given, **options)
    assert actual.values.dtype == torch.float32
    assert (actual.x.dtype, actual.y.dtype) == (given.x.dtype, given.y.dtype)
    assert (actual.curv.dtype, actual.curv.shape) == (torch.float64, given.curv.shape)
    assert_close(name, given, actual, defined(name, given), tolerance)
    return actual


@pytest.mark.parametrize("dtype", DTYPES)
@every_function
def test_values_and_gradients(name, dtype):
    given = with_degenerate_pairs(inputs(dtype))
    actual = assert_right(name, given, TOLERANCES[dtype])
    expected = defined(name, given)
    for field in Results._fields:
        wrong = actual._replace(**{field: 0.9 * getattr(actual, field)})
        with pytest.raises(AssertionError, match=field):
            assert_close(name, given, wrong, expected, TOLERANCES[dtype])


@every_function
def test_where_nothing_is_defined(name):
    """Conventions hold to the bit: nothing else is a product able to tell."""
    given = with_degenerate_pairs(inputs())
    given = given._replace(grad=torch.ones_like(given.grad))
    actual, expected = computed(name, given), defined(name, given)
    coincident = torch.arange(3, 8)
    if name == "pairwise_inner":
        assert torch.equal(actual.values[coincident, coincident], torch.full((5,), -1 / 0.7))
    else:
        assert not actual.values[coincident, coincident].any()
        assert not actual.values[33, [24, 65]].any()
    if name == "pairwise_oxy_angle":
        others = [column for column in range(COLUMNS) if column not in (24, 65)]
        assert torch.equal(actual.values[33, others], torch.full((len(others),), math.pi / 2))
        assert not actual.x[33].any()
    assert ((actual.x.double() - expected.x).norm(dim=1) <= 1e-5 * expected.x.norm(dim=1)).all()


@pytest.mark.parametrize("width", [1, 2, 5, 33, 300])
@every_function
def test_widths(name, width):
    given = inputs(rows=33, columns=40, width=width)
    if name == "pairwise_oxy_angle" and width == 1:  # on a line every angle is at its kink
        actual, expected = computed(name, given), defined(name, given)
        assert torch.equal(actual.values, expected.values.float())
        assert not any(one.any() for one in actual[1:])
        return
    assert_right(name, given, FLOAT32._replace(values=16))


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (33, 64)])
@every_function
def test_shapes(name, shape):
    assert_right(name, inputs(rows=shape[0], columns=shape[1], width=5), FLOAT32._replace(curv=3e-6))


@every_function
def test_close_points(name):
    """Each pair by itself: the product knows nothing of them."""
    x = points(40, 20)
    size = torch.logspace(-12, -1, 40, dtype=torch.float64)[:, None]
    y = (x.double() * (1 + size) + size * points(40, 20, seed=1)).float()
    given = Inputs(x, y, torch.tensor(1.3, dtype=torch.float64), torch.eye(40))
    actual, expected = computed(name, given), defined(name, given)
    error = (actual.values.double() - expected.values).abs().diagonal()
    assert (error <= 4 * U * expected.values.diagonal().abs()).all()
    # Directions have 48 bits.
    apart = (y.double() - x.double()).norm(dim=1) / x.norm(dim=1)
    bound = 1e-6 + 2.0**-48 / apart.clamp(min=1e-30)
    for a, b in ((actual.x, expected.x), (actual.y, expected.y)):
        assert ((a.double() - b).norm(dim=1) <= bound * b.norm(dim=1)).all()


SIZES = [
    pytest.param(size, curv, id=f"{size:g}, curvature {curv:g}")
    for size, curv in [
        (1e-30, 1.0),
        (1e-12, 0.7),
        (1e-3, 1.0),
        (1e2, 0.7),
        (1e9, 1.0),
        (1e15, 1.0),
        (1e30, 1.0),
        (1e-3, 1e8),
        (1e20, 1e-40),
    ]
]


@pytest.mark.parametrize(("size", "curv"), SIZES)
@every_function
def test_any_radius(name, size, curv):
    """Where float32 has no room for what a product makes of such points, all of them are computed exactly."""
    x, y = points(20, 8, size=size), points(24, 8, size=size, seed=1)
    given = Inputs(x, y, torch.tensor(curv, dtype=torch.float64), upstream(20, 24))
    actual, expected = computed(name, given), defined(name, given)
    in_range = expected.values.abs() < 3e38
    error = (actual.values.double() - expected.values).abs()
    assert (error <= 1e-5 * expected.values.abs())[in_range].all()
    assert torch.equal(actual.values[~in_range], expected.values[~in_range].float())
    for a, b in ((actual.x, expected.x), (actual.y, expected.y)):
        if b.norm(dim=1).min() > 1e-35 and b.abs().max() < 1e37:
            assert ((a.double() - b).norm(dim=1) <= 1e-5 * b.norm(dim=1)).all()
    if 1e-3 <= size * curv**0.5 <= 1e9:
        assert abs(actual.curv - expected.curv) <= 1e-5 * abs(expected.curv)


@every_function
def test_points_of_all_radii(name):
    sizes = torch.logspace(-18, 8, 33, dtype=torch.float64)[:, None]
    x, y = (points(33, 8, seed=seed).double().mul(sizes.roll(7 * seed, 0)).float() for seed in (0, 1))
    given = Inputs(x, y, torch.tensor(1.0, dtype=torch.float64), upstream(33, 33))
    actual, expected = computed(name, given), defined(name, given)
    assert ((actual.values.double() - expected.values).abs() <= 1e-5 * expected.values.abs()).all()
    for a, b in ((actual.x, expected.x), (actual.y, expected.y)):
        if name == "pairwise_oxy_angle":  # it turns the faster the nearer to the origin
            assert (a.double() - b).norm() <= 1e-5 * b.norm()
        else:
            assert ((a.double() - b).norm(dim=1) <= 1e-5 * b.norm(dim=1)).all()


def batch(dtype=torch.float32) -> Inputs:
    """Matrices of several curvatures; ``y`` is broadcast along the first dimension, ``x`` permuted."""
    x = points(2, 2, 33, 5, dtype=dtype).transpose(0, 1)
    y = points(2, 36, 5, dtype=dtype, seed=1).expand(2, 2, 36, 5)
    curv = torch.linspace(0.3, 2.0, 4, dtype=torch.float64).view(2, 2)
    return Inputs(x, y, curv, upstream(2, 2, 33, 36))


@pytest.mark.parametrize("workspace_bytes", [1, 40_000, 1 << 30])
@every_function
def test_batches_of_several_curvatures(name, workspace_bytes):
    given = batch()
    plan = PLAN._replace(workspace_bytes=workspace_bytes)
    assert_right(name, given, FLOAT32._replace(curv=3e-6), plan=plan)


@every_function
def test_batches_of_one_curvature(name):
    given = batch()._replace(curv=torch.tensor(0.7, dtype=torch.float64))
    assert_right(name, given, FLOAT32._replace(curv=3e-6))


@every_function
def test_memory_layout_does_not_show(name):
    given = inputs(rows=33, columns=36, width=5)
    expected = computed(name, given)
    columns_first = given.x.mT.contiguous().mT
    every_other = torch.stack([given.y, given.y], -1)[..., 0]
    turned = given.grad.mT.contiguous().mT
    layouts = given._replace(x=columns_first, y=every_other, grad=turned)
    assert all(torch.equal(a, b) for a, b in zip(computed(name, layouts), expected, strict=True))
    one_for_all = given._replace(grad=torch.ones(()).expand(33, 36))
    dense = given._replace(grad=torch.ones(33, 36))
    of_views, of_dense = computed(name, one_for_all), computed(name, dense)
    assert all(torch.equal(a, b) for a, b in zip(of_views, of_dense, strict=True))


@every_function
def test_same_bits_in_every_run(name):
    given = with_degenerate_pairs(inputs())
    first, second = computed(name, given), computed(name, given)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@every_function
def test_a_value_is_of_its_pair_alone(name):
    """Whoever else is in its tile, near or not."""
    given = with_degenerate_pairs(inputs())
    whole = computed(name, given).values
    part = given._replace(x=given.x[:38], y=given.y[10:50], grad=given.grad[:38, 10:50])
    torch.testing.assert_close(computed(name, part).values, whole[:38, 10:50], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("precision", ["tf32", "tf32x3"])
@every_function
def test_coarser_products(name, precision):
    """tf32 keeps 11 bits of each factor, rounded to nearest; of near pairs nothing is lost."""
    given = with_degenerate_pairs(inputs())
    coarse = Tolerance(2.0**13, 2.0**-10, 2.0**-10)
    assert_right(name, given, coarse if precision == "tf32" else FLOAT32, precision=precision)


@every_function
def test_gradients_that_cancel(name):
    """Upstream of both signs, zeros among them: errors are of the terms' size."""
    given = with_degenerate_pairs(inputs())
    signs = torch.cos(torch.arange(given.grad.numel(), dtype=torch.float64)).view_as(given.grad).float()
    signs[::3, ::2] = 0
    actual, expected = computed(name, given._replace(grad=signs)), defined(name, given._replace(grad=signs))
    sizes = defined(name, given._replace(grad=signs.abs()))
    for a, b, size in zip(actual[1:], expected[1:], sizes[1:], strict=True):
        assert (a.double() - b).norm() <= 1e-6 * size.norm()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@every_function
def test_what_is_no_point_stays_in_its_row(name, bad):
    given = inputs(rows=40, columns=40, width=5)
    x = given.x.clone()
    x[7, 2] = bad
    clean, actual = computed(name, given), computed(name, given._replace(x=x))
    others = torch.arange(40) != 7
    assert actual.values[7].isnan().all()
    assert actual.x[7].isnan().any()
    torch.testing.assert_close(actual.values[others], clean.values[others], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual.x[others], clean.x[others], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "shapes", [((0, 5), (3, 5)), ((3, 5), (0, 5)), ((0, 2, 5), (0, 3, 5)), ((2, 0, 5), (2, 3, 5))]
)
@every_function
def test_empty(name, shapes):
    x, y = (torch.ones(shape, device=DEVICE).requires_grad_() for shape in shapes)
    curv = torch.ones((), requires_grad=True)
    with hk.use_backend("triton"):
        out = getattr(hk, name)(x, y, curv)
    assert out.shape == (*x.shape[:-1], y.shape[-2])
    out.sum().backward()
    assert not any(one.grad.any() for one in (x, y, curv))


@every_function
def test_the_public_function(name):
    """Its values and gradients are those of the launchers, with the plan of the device."""
    given = Inputs(*(one[:1, :, :20] for one in batch()[:2]), batch().curv[:1], upstream(1, 2, 20, 20))
    x, y, grad = (one.to(DEVICE) for one in (given.x, given.y, given.grad))
    curv = given.curv.to(DEVICE)
    leaves = [one.detach().clone().requires_grad_() for one in (x, y, curv.unsqueeze(-1))]
    with hk.use_backend("triton"):
        out = getattr(hk, name)(*leaves, precision="ieee")
    actual = [out.detach(), *torch.autograd.grad(out, leaves, grad)]
    expected = [
        kernel.values(name, x, y, curv, "ieee"),
        *kernel.gradients(name, grad, x, y, curv, "ieee"),
    ]
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b.view_as(a))


@every_function
def test_half_precision_gradients_saturate(name):
    x, y = (points(3, 4, dtype=torch.float16, seed=seed) for seed in (0, 1))
    given = Inputs(x, y, torch.tensor(1.0, dtype=torch.float64), torch.full((3, 3), 1e6))
    actual, expected = computed(name, given), defined(name, given)
    assert actual.x.isfinite().all()
    directions = [torch.nn.functional.normalize(one.double(), dim=1) for one in (actual.x, expected.x)]
    torch.testing.assert_close(*directions, rtol=0, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_function
def test_opcheck(name, dtype):
    x, y = (points(n, 4, dtype=dtype, seed=n).to(DEVICE).requires_grad_() for n in (3, 5))
    curv = torch.tensor(0.7, requires_grad=True, device=DEVICE)
    opcheck(registered(name), (x, y, curv, "ieee", "triton"))
    grad = torch.ones(3, 5, device=DEVICE)
    opcheck(registered(f"{name}_backward"), (grad, x.detach(), y.detach(), curv.detach(), None, "triton"))


@every_function
def test_compiles_to_one_graph(name):
    torch._dynamo.reset()
    compiled = torch.compile(getattr(hk, name), fullgraph=True, backend="aot_eager")
    for rows in (5, 7, 9):  # a second shape makes the first dimension dynamic
        given = [one.to(DEVICE).requires_grad_() for one in (points(rows, 6), points(8, 6, seed=1))]
        with hk.use_backend("triton"):
            results = [
                (out.detach(), *torch.autograd.grad(out.sum(), given))
                for out in (function(*given, 0.7) for function in (getattr(hk, name), compiled))
            ]
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@every_function
def test_float64_points_are_refused(name):
    x = torch.ones(2, 3, dtype=torch.float64, device=DEVICE)
    reason = f"hypkernels.{name} cannot run with backend 'triton': the points are float64"
    with hk.use_backend("triton"), pytest.raises(RuntimeError, match=reason):
        getattr(hk, name)(x, x)


@pytest.mark.parametrize(("setting", "expected"), [("highest", "ieee"), ("high", "tf32")])
def test_the_products_follow_the_setting_of_the_process(setting, expected, monkeypatch):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: setting)
    assert products.precision_of(torch.ones(1), None) == expected
    assert products.precision_of(torch.ones(1), "tf32x3") == "tf32x3"
    assert products.precision_of(torch.ones(1, dtype=torch.bfloat16), "tf32") == "ieee"


def test_a_tile_of_no_whole_chunks_is_refused():
    given = inputs(rows=3, columns=3, width=2)
    plan = PLAN._replace(forward=TILE._replace(rows=16))
    with pytest.raises(ValueError, match="rows and columns of a tile must be multiples of 32"):
        computed("pairwise_dist", given, plan=plan)
