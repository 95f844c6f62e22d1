"""The contrastive loss on a GPU: what only a device can show. ``tests/kernels`` has the special cases."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from on_gpu import (
    DEVICE,
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
from hypkernels import losses
from hypkernels.operators import registered

pytestmark = pytest.mark.gpu

SIMILARITIES = ("dist", "sqdist", "inner", "angle")
every_similarity = pytest.mark.parametrize("similarity", SIMILARITIES)
# Of the 2-norm of the points' gradients, which for half precision is that of their rounding. The loss and the
# gradients by the scalars are sums, of which less is lost.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}
# Compilations are most of the time: each width, dtype and similarity has its own.
CASES = [
    *(((257, 300, 64), dtype, similarity) for dtype in TOLERANCES for similarity in SIMILARITIES),
    ((1030, 1030, 768), torch.float32, "dist"),
    ((1030, 1030, 768), torch.bfloat16, "dist"),
    ((2000, 2000, 33), torch.float32, "dist"),
    ((130, 4099, 512), torch.bfloat16, "angle"),
]
FOUR_PAIRINGS = ((0, 2), (1, 3), (0, 3), (1, 2))


def arguments(rows, columns, width, dtype=torch.float32, seed=0, scale=5.0):
    """Points of norms around 1, of which pairs are near each other, one curvature, one scale; on the GPU.

    Of unrelated points the gradients by curvature and scale would be differences of nearly equal terms.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, columns, width = size(rows), size(columns), size(width)

    def normal(n):
        return torch.randn(n, width, generator=generator, dtype=torch.float64) / (2 * width) ** 0.5

    base = normal(max(rows, columns))
    x, y = ((base[:n] + normal(n)).to(dtype) for n in (rows, columns))
    numbers = (torch.tensor(value, dtype=torch.float64) for value in (0.7, scale))
    return [a.to(DEVICE) for a in (x, y, *numbers)]


def loss(similarity="dist", **options):
    return partial(hk.contrastive_loss, similarity=similarity, precision="ieee", **options)


def four_losses(*args):
    *points, curv, scale = args
    return torch.stack(losses.contrastive_losses(points, FOUR_PAIRINGS, curv, scale, precision="ieee"))


def on_the_cpu(function, args):
    """In float64."""
    return with_gradients(function, [a.cpu().double() for a in args])


def errors(actual, expected):
    """Relative to the norm of each result."""
    return [((a.cpu().double() - e).norm() / e.norm()).item() for a, e in zip(actual, expected, strict=True)]


@pytest.mark.parametrize(("shape", "dtype", "similarity"), CASES)
def test_same_as_on_the_cpu(shape, dtype, similarity, launches):
    args = arguments(*shape, dtype=dtype)
    actual = with_gradients(loss(similarity), args)
    assert {"log_sums", "merge_log_sums", "pair_weights"} <= set(launches)
    expected = on_the_cpu(loss(similarity), args)
    found = errors(actual, expected)
    of_scalars = max(5e-5, TOLERANCES[dtype] / 8)
    bounds = [2e-6, TOLERANCES[dtype], TOLERANCES[dtype], of_scalars, of_scalars]
    if similarity == "inner":
        # The gradient of inner products by the curvature is a thousandth of its terms.
        bounds[3] = 2e-6 / expected[3].abs().item()
    assert all(error <= bound for error, bound in zip(found, bounds, strict=True)), (found, bounds)
    for index in range(1, 5):
        if bounds[index] < 0.05:
            wrong = [a * 0.9 if i == index else a for i, a in enumerate(actual)]
            assert errors(wrong, expected)[index] > bounds[index]


@pytest.mark.parametrize("precision", ["tf32", "tf32x3"])
def test_coarser_products(precision):
    args = arguments(1030, 1030, 64)
    function = partial(hk.contrastive_loss, precision=precision)
    found = errors(with_gradients(function, args), on_the_cpu(function, args))
    assert max(found) <= (5e-4 if precision == "tf32" else 5e-5)


@pytest.mark.parametrize("scale", [0.0, 1000.0])
@every_similarity
def test_logits_without_and_with_a_large_spread(similarity, scale):
    """Sums of exponentials that lose terms take the other kernel, as the device alone knows."""
    args = arguments(300, 300, 64, scale=scale)
    actual, expected = with_gradients(loss(similarity), args), on_the_cpu(loss(similarity), args)
    for a, e in zip(actual, expected, strict=True):
        assert torch.isfinite(a).all()
        assert (a.cpu().double() - e).norm() <= 1e-3 * e.norm() + 1e-12


def test_several_pairings():
    args = [*arguments(300, 300, 64)[:2], *arguments(300, 300, 64, seed=1)]
    together = with_gradients(four_losses, args)
    assert max(errors(together, on_the_cpu(four_losses, args))) <= 5e-5


@pytest.mark.parametrize("shape", [(257, 300, 64), (4099, 4099, 64)])
@every_similarity
def test_same_bits_every_time(similarity, shape):
    args = arguments(*shape)
    assert_equal(with_gradients(loss(similarity), args), with_gradients(loss(similarity), args))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("targets", ["default", "given"])
@pytest.mark.parametrize("similarity", ["dist", "angle"])
def test_nothing_waits_for_the_device(similarity, targets, dtype):
    args = arguments(130, 140, 64, dtype=dtype)
    given = None if targets == "default" else (torch.arange(size(130), device=DEVICE) * 3) % size(140)
    function = loss(similarity, targets=given)
    expected = with_gradients(function, args)  # compiles the kernels
    upstream = upstream_of(expected[0])
    assert_equal(without_waiting(lambda: with_gradients(function, args, upstream)), expected)


@every_similarity
def test_cuda_graph(similarity):
    """Captured once, replayed on other values: forward and backward."""

    def step(*args):
        return with_gradients(loss(similarity), args)

    static = arguments(257, 257, 64)
    graph, results = captured(step, static)
    for seed in (1, 2):
        fresh = arguments(257, 257, 64, seed=seed, scale=5.0 * seed)
        for a, b in zip(static, fresh, strict=True):
            a.copy_(b)
        graph.replay()
        assert_equal(results, step(*fresh))


def test_a_graph_takes_the_other_kernel_when_it_must():
    """Captured on sums that lose no terms, replayed on some that do."""

    def step(*args):
        return with_gradients(loss(), args)

    static = arguments(257, 257, 64, scale=1.0)
    graph, results = captured(step, static)
    fresh = arguments(257, 257, 64, scale=1000.0)
    static[-1].copy_(fresh[-1])
    graph.replay()
    assert_equal(results, step(*fresh))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    args = arguments(130, 140, 64, dtype=dtype)
    expected = with_gradients(loss(), args)
    for narrow in (torch.bfloat16, torch.float16):
        with torch.autocast("cuda", dtype=narrow):
            assert_equal(with_gradients(loss(), args), expected)


def test_streams():
    inputs = [arguments(1030, 1030, 64, seed=seed) for seed in (0, 1)]
    expected = [with_gradients(loss(), args) for args in inputs]
    upstream = upstream_of(expected[0][0])
    actual = on_streams(lambda *args: with_gradients(loss(), args, upstream), inputs)
    for a, e in zip(actual, expected, strict=True):
        assert_equal(a, e)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device_than_the_current_one():
    args = arguments(130, 140, 64)
    other = with_gradients(loss(), [a.to("cuda:1") for a in args])
    assert_equal([t.to(DEVICE) for t in other], with_gradients(loss(), args))


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_to_one_graph(compiler, launches):
    torch._dynamo.reset()
    compiled = torch.compile(loss(), fullgraph=True, backend=compiler)
    for rows in (130, 140, 150):  # a second shape makes the first dimension dynamic
        args = arguments(rows, rows, 64)
        expected = with_gradients(loss(), args)
        launches.clear()
        assert_equal(with_gradients(compiled, args), expected)
        assert "pair_weights" in launches


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_similarity
def test_opcheck(similarity, dtype):
    x, y, curv, scale = (a.requires_grad_() for a in arguments(40, 50, 16, dtype=dtype))
    targets = torch.arange(len(x), device=DEVICE) % len(y)
    options = ([0], [1], similarity, [True], "ieee", "triton")
    opcheck(registered("contrastive_losses"), ([x, y], curv, scale, [targets], *options))


def test_no_gradient_keeps_nothing():
    args = arguments(4096, 4096, 64)
    with torch.no_grad():
        hk.contrastive_loss(*args)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        value = hk.contrastive_loss(*args)
        torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before <= 4096
    assert torch.isfinite(value)


@pytest.mark.parametrize(
    ("dtype", "rows", "most"), [(torch.bfloat16, 1 << 18, 4 << 30), (torch.float32, 1 << 17, 2 << 30)]
)
def test_memory_beyond_inputs_and_gradients(dtype, rows, most):
    """Of 262144 points a matrix of all pairs would take 256 GiB. Those of float32 take longer."""
    rows, width = size(rows), size(768)
    point_bytes = 2 * rows * width * dtype.itemsize
    enough_memory(2 * point_bytes + most)
    args = [torch.empty(rows, width, dtype=dtype, device=DEVICE).normal_(std=width**-0.5) for _ in range(2)]
    args = [*args, torch.tensor(0.7, device=DEVICE), torch.tensor(14.0, device=DEVICE)]
    try:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results = with_gradients(hk.contrastive_loss, args)
        torch.cuda.synchronize()
        extra = torch.cuda.max_memory_allocated() - before - point_bytes
        assert all(torch.isfinite(one).all() for one in results)
        assert extra <= most, f"{extra / 2**30:.2f} GiB"
    finally:
        del args
        free_memory()
