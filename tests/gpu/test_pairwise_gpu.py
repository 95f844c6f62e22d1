"""The pairwise functions on a GPU: what only a device can show. ``tests/kernels`` has the special cases."""

from __future__ import annotations

import math

import pytest
import torch
from on_gpu import (
    DEVICE,
    PRETENDED,
    assert_equal,
    captured,
    enough_memory,
    free_memory,
    on_streams,
    opcheck,
    size,
    upstream_of,
    with_gradients,
    without_waiting,
)

import hypkernels as hk
from hypkernels.operators import registered

pytestmark = pytest.mark.gpu

NAMES = ("pairwise_inner", "pairwise_dist", "pairwise_oxy_angle")
every_function = pytest.mark.parametrize("name", NAMES)
# Of the 2-norm of each result. Weights of narrow points are rounded, to bfloat16 or, for float16, to tf32.
VALUES = 1e-5
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
CASES = [
    *(((257, 300, 64), dtype) for dtype in TOLERANCES),
    ((1030, 1030, 768), torch.float32),
    ((1030, 1030, 768), torch.bfloat16),
    ((700, 900, 33), torch.float32),
    ((130, 1099, 8192), torch.bfloat16),
    ((300, 200, 1), torch.float32),
]


def arguments(rows, columns, width, dtype=torch.float32, seed=0, batch=()):
    """Points of norms around 1, every tenth close to its counterpart, and a curvature; on the GPU."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns, width = size(rows), size(columns), size(width)
    x, y = (
        torch.randn(*batch, n, width, generator=generator, dtype=torch.float64) / width**0.5
        for n in (rows, columns)
    )
    close = min(rows, columns)
    y[..., :close:10, :] = x[..., :close:10, :] + 1e-3 * y[..., :close:10, :]
    y[..., 3, :] = x[..., 3, :]
    return [a.to(DEVICE) for a in (x.to(dtype), y.to(dtype), torch.tensor(0.7, dtype=torch.float64))]


def function(name, precision="ieee"):
    def call(*args):
        return getattr(hk, name)(*args, precision=precision)

    return call


def exact(name, args):
    """By rows, in float64: what resolves any two points."""
    rows = {"inner": hk.elementwise_inner, "dist": hk.elementwise_dist, "oxy_angle": hk.oxy_angle}
    of_rows = rows[name.removeprefix("pairwise_")]

    def call(x, y, curv):
        return of_rows(x[..., :, None, :], y[..., None, :, :], curv)

    return with_gradients(call, [a.cpu().double() for a in args])


def errors(actual, expected):
    return [
        ((a.cpu().double() - e).norm() / e.norm().clamp(min=1e-300)).item()
        for a, e in zip(actual, expected, strict=True)
    ]


@pytest.mark.parametrize(("shape", "dtype"), CASES)
@every_function
def test_same_as_exact_rows(name, shape, dtype, launches):
    args = arguments(*shape, dtype=dtype)
    actual = with_gradients(function(name), args)
    assert {"pair_values", "near_values", "pair_weights", "near_gradients"} <= set(launches)
    if shape[0] * shape[1] * shape[2] > 1 << 27:  # of which float64 rows take too much memory
        expected = with_gradients(getattr(hk, name), [a.double() for a in args])
        expected = [one.cpu().double() for one in expected]
    else:
        expected = exact(name, args)
    if name == "pairwise_oxy_angle" and shape[2] == 1:
        assert not any(one.any() for one in actual[1:])
        expected, actual = expected[:1], actual[:1]
    bounds = [VALUES, *(TOLERANCES[dtype],) * 2, 1e-4]
    found = errors(actual, expected)
    assert all(error <= bound for error, bound in zip(found, bounds, strict=False)), (found, bounds)
    for index in range(1, len(actual)):
        wrong = [a * 0.9 if i == index else a for i, a in enumerate(actual)]
        assert errors(wrong, expected)[index] > bounds[index]


@pytest.mark.parametrize("precision", ["tf32", "tf32x3"])
@every_function
def test_coarser_products(name, precision):
    args = arguments(1030, 1030, 64)
    found = errors(with_gradients(function(name, precision), args), exact(name, args))
    assert max(found[:3]) <= (2e-3 if precision == "tf32" else 5e-5)


@every_function
def test_near_pairs_have_the_accuracy_of_float32(name):
    """Each by itself: of the product nothing would be left of them."""
    x, y, curv = arguments(200, 200, 512)
    count = len(x)
    apart = torch.logspace(-10, -2, count, dtype=torch.float64, device=DEVICE)[:, None]
    y = (x.double() * (1 + apart) + apart * y.double()).float()
    args, upstream = [x, y, curv], torch.eye(count, device=DEVICE)
    actual = with_gradients(function(name, "tf32"), args, upstream)
    rows = {"inner": hk.elementwise_inner, "dist": hk.elementwise_dist, "oxy_angle": hk.oxy_angle}
    of_rows = rows[name.removeprefix("pairwise_")]
    expected = with_gradients(of_rows, [a.double() for a in args], torch.ones(count, device=DEVICE).double())
    error = (actual[0].diagonal().double() - expected[0]).abs()
    assert (error <= 1e-6 * expected[0].abs()).all()
    for a, e in zip(actual[1:3], expected[1:3], strict=True):
        assert ((a.double() - e).norm(dim=1) <= 1e-5 * e.norm(dim=1)).all()


@every_function
def test_batches_of_several_curvatures(name):
    x, y, _ = arguments(70, 90, 40, batch=(2, 3))
    curv = torch.linspace(0.3, 2.0, 6, dtype=torch.float64, device=DEVICE).view(2, 3, 1)
    together = with_gradients(function(name), [x, y, curv])
    upstream = upstream_of(together[0])
    for i in range(2):
        for j in range(3):
            one = with_gradients(function(name), [x[i, j], y[i, j], curv[i, j]], upstream[i, j])
            assert_equal([together[0][i, j], together[1][i, j], together[2][i, j]], one[:3])
            torch.testing.assert_close(together[3][i, j], one[3], rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(257, 300, 64), (2050, 2050, 64)])
@every_function
def test_same_bits_every_time(name, shape):
    args = arguments(*shape)
    assert_equal(with_gradients(function(name), args), with_gradients(function(name), args))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_function
def test_nothing_waits_for_the_device(name, dtype):
    args = arguments(130, 140, 64, dtype=dtype)
    expected = with_gradients(function(name), args)  # compiles the kernels
    upstream = upstream_of(expected[0])
    assert_equal(without_waiting(lambda: with_gradients(function(name), args, upstream)), expected)


@every_function
def test_cuda_graph(name):
    """Captured once, replayed on other values: forward and backward."""

    def step(*args):
        return with_gradients(function(name), args)

    static = arguments(257, 257, 64)
    graph, results = captured(step, static)
    for seed in (1, 2):
        for a, b in zip(static, arguments(257, 257, 64, seed=seed), strict=True):
            a.copy_(b)
        graph.replay()
        assert_equal(results, step(*static))


@every_function
def test_streams(name):
    inputs = [arguments(1030, 1030, 64, seed=seed) for seed in (0, 1)]
    expected = [with_gradients(function(name), args) for args in inputs]
    upstream = upstream_of(expected[0][0])
    actual = on_streams(lambda *args: with_gradients(function(name), args, upstream), inputs)
    for a, e in zip(actual, expected, strict=True):
        assert_equal(a, e)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@every_function
def test_compiles_to_one_graph(name, compiler, launches):
    torch._dynamo.reset()
    compiled = torch.compile(function(name), fullgraph=True, backend=compiler)
    for rows in (130, 140, 150):  # a second shape makes the first dimension dynamic
        args = arguments(rows, rows, 64)
        expected = with_gradients(function(name), args)
        launches.clear()
        assert_equal(with_gradients(compiled, args), expected)
        assert "pair_weights" in launches


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_function
def test_opcheck(name, dtype):
    args = [a.requires_grad_() for a in arguments(40, 50, 16, dtype=dtype)]
    opcheck(registered(name), (*args, "ieee", "triton"))


@every_function
def test_autocast_changes_nothing(name):
    args = arguments(130, 140, 64)
    expected = with_gradients(function(name), args)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert_equal(with_gradients(function(name), args), expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@every_function
def test_another_device_than_the_current_one(name):
    args = arguments(130, 140, 64)
    other = with_gradients(function(name), [a.to("cuda:1") for a in args])
    assert_equal([t.to(DEVICE) for t in other], with_gradients(function(name), args))


def test_more_than_two_to_the_31_pairs():
    """The last values, and the gradient of the last row, of a matrix of 9 GiB."""
    rows, columns, width = size(48_000), size(48_000), 16
    assert rows * columns > 1 << 31 or PRETENDED
    enough_memory(25 << 30)
    args = arguments(rows, columns, width)
    try:
        out, by_x, *_ = with_gradients(
            function("pairwise_dist"), args, torch.ones((), device=DEVICE).expand(rows, columns)
        )
        x, y, curv = args
        last = with_gradients(
            function("pairwise_dist"), [x[-16:], y, curv], torch.ones(16, columns, device=DEVICE)
        )
        torch.testing.assert_close(out[-16:], last[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(by_x[-16:], last[1], rtol=1e-4, atol=1e-2)
    finally:
        out = by_x = last = None
        free_memory()


def test_memory_beyond_results_and_gradients():
    rows, width = size(16_384), 512
    args = arguments(rows, rows, width)
    upstream = torch.ones((), device=DEVICE).expand(rows, rows)
    with_gradients(function("pairwise_dist"), args, upstream)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = with_gradients(function("pairwise_dist"), args, upstream)
    torch.cuda.synchronize()
    kept = sum(math.prod(one.shape) * one.dtype.itemsize for one in results)
    extra = torch.cuda.max_memory_allocated() - before - kept
    assert extra <= 300 << 20, f"{extra / 2**20:.0f} MiB"
