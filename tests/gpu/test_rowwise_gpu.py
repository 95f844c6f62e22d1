"""The row-wise ops on a GPU: what only a device can show. Their values are tested by ``tests/kernels``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from on_gpu import (
    DEVICE,
    MORE_THAN_32_BITS_COUNT,
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

sys.path.append(str(Path(__file__).parents[1] / "hypkernels"))

import rowwise_ops
from rowwise_ops import DEFAULTS, options_of, scalars_of

import hypkernels as hk
from hypkernels import backend
from hypkernels.operators import registered

pytestmark = pytest.mark.gpu

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Half a unit in the last place, and for float64 what two orders of summation leave of each other.
ROUNDING = {torch.float64: 1e-12, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
MARGIN = 1.01


@dataclass(frozen=True)
class Op:
    """An op: how many points it takes, its scalars, and the other arguments of its registered operator."""

    function: Callable
    points: int
    scalars: tuple[float, ...] = (0.7,)
    options: tuple[float, ...] = ()

    def __call__(self, *args):
        return self.function(*args)


# The loss of each row has no public name of its own.
PUBLIC = {"entailment_loss": partial(hk.entailment_loss, reduction="none")}
SCALARS = {"scale": -0.6, "curv": 0.7}
OPS = {
    name: Op(
        PUBLIC.get(name) or getattr(hk, name),
        op.points,
        tuple(SCALARS[scalar] for scalar in scalars_of(name)),
        options_of(name, DEFAULTS),
    )
    for name, op in rowwise_ops.OPS.items()
}
every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())


def arguments(op, *shape, dtype=torch.float32, seed=0, device=DEVICE):
    """Points of norms around 1 and the op's scalars, all on the GPU."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*map(size, shape[:-1]), shape[-1])
    points = [
        (1.5 * torch.randn(*shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5).to(dtype)
        for _ in range(op.points)
    ]
    scalars = [torch.tensor(s, dtype=torch.float64) for s in op.scalars]
    return [a.to(device) for a in (*points, *scalars)]


@every_op
def test_kernels_run_by_default(op, launches):
    args = arguments(op, 33, 20)
    assert backend.choose("op", args[0]).implementation == "triton"
    automatic = with_gradients(op, args)
    assert len(launches) == 2
    with hk.use_backend("triton"):
        assert_equal(with_gradients(op, args), automatic)
    assert len(launches) == 4
    with hk.use_backend("torch"):
        with_gradients(op, args)
    assert len(launches) == 4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [(4099, 512), (7, 3, 768), (1030, 77), (65, 4096), (33, 5000), (17, 8192), (3, 40000), (70001, 2)],
)
@every_op
def test_same_as_on_the_cpu(op, shape, dtype):
    """The closed forms on the CPU, in float64, rounded once: each row's distance relative to the row."""
    args = arguments(op, *shape, dtype=dtype)
    actual = with_gradients(op, args)
    expected = with_gradients(op, [a.cpu().double() for a in args], upstream_of(actual[0]).cpu().double())
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        scalar = a.dim() == 0
        of_rows = a.shape == args[0].shape
        error, size = (a.cpu().double() - e).abs(), e.abs()
        if of_rows:
            error, size = error.norm(dim=-1), size.norm(dim=-1)
        if index == 0 and op is OPS["busemann"]:  # which is 0 on a horosphere
            size = size.clamp(min=0.01)
        # A scalar's gradient sums, in two orders, terms of both signs.
        tolerance = 1e-9 if scalar else MARGIN * ROUNDING[a.dtype]
        assert torch.isfinite(a).all()
        assert (error <= tolerance * size).all(), (index, (error / size).max())


LAYOUTS = {
    "rows of wider rows": lambda x: torch.cat([x, x], dim=-1)[..., : x.shape[-1]],
    "unaligned rows": lambda x: torch.cat([x[..., :1], x], dim=-1)[..., 1:],
    "every other row": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "transposed batch": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "strided columns": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
    "one row for all": lambda x: x[:1, :1].expand_as(x),
    "one row for each": lambda x: x[:, :1].expand_as(x),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@every_op
def test_memory_layout_does_not_show(op, layout):
    first, *others = arguments(op, 5, 33, 64)
    view = layout(first)
    assert not view.is_contiguous()
    assert_equal(with_gradients(op, [view, *others]), with_gradients(op, [view.contiguous(), *others]))


@pytest.mark.parametrize("argument", [0, -1])
@every_op
def test_a_wrong_gradient_is_caught(op, argument):
    """The comparison above, with one gradient 10 % too small."""
    args = arguments(op, 65, 20)
    actual = with_gradients(op, args)[1:][argument] * 0.9
    expected = with_gradients(op, [a.cpu().double() for a in args])[1:][argument]
    assert ((actual.cpu().double() - expected).abs() > 1e-3 * expected.abs()).any()


@pytest.mark.parametrize("op", [OPS["log_map"], OPS["oxy_angle"]], ids=["log_map", "oxy_angle"])
def test_more_outer_rows_than_a_grid_has_along_a_dimension(op):
    """A broadcast pair has no more than two row strides, and they count 70001 outer rows."""
    (x, _, curv), (_, y, _) = arguments(op, 70001, 1, 4), arguments(op, 1, 3, 4, seed=1)
    expanded = [p.expand(len(x), 3, 4) for p in (x, y)]
    assert_equal(
        with_gradients(op, [*expanded, curv]), with_gradients(op, [p.clone() for p in expanded] + [curv])
    )


@pytest.mark.parametrize("shape", [(4099, 512), (70001, 2), (33, 8192)])
@every_op
def test_same_bits_every_time(op, shape):
    args = arguments(op, *shape)
    assert_equal(with_gradients(op, args), with_gradients(op, args))


@every_op
def test_nothing_waits_for_the_device(op):
    args = arguments(op, 33, 20)
    expected = with_gradients(op, args)  # compiles the kernels
    upstream = upstream_of(expected[0])
    assert_equal(without_waiting(lambda: with_gradients(op, args, upstream)), expected)


@pytest.mark.parametrize("on_device", [True, False], ids=["scalars on the GPU", "scalars are floats"])
@every_op
def test_cuda_graph(op, on_device):
    """Captured once, replayed on other values: forward and backward."""
    args = arguments(op, 257, 64)
    scalars = [] if on_device else list(op.scalars)
    static = args if on_device else args[: op.points]

    def step(*args):
        return with_gradients(lambda *a: op(*a, *scalars), args)

    graph, results = captured(step, static)
    for seed in (1, 2):
        fresh = arguments(op, 257, 64, seed=seed)[: len(static)]
        if on_device:
            fresh[-1] = fresh[-1] * (1 + seed)
        for a, b in zip(static, fresh, strict=True):
            a.copy_(b)
        graph.replay()
        assert_equal(results, step(*fresh))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_op
def test_autocast_changes_nothing(op, dtype):
    args = arguments(op, 33, 20, dtype=dtype)
    expected = with_gradients(op, args)
    for narrow in (torch.bfloat16, torch.float16):
        with torch.autocast("cuda", dtype=narrow):
            actual = with_gradients(op, args)
        assert_equal(actual, expected)


@every_op
def test_streams(op):
    """Work on two streams, each with its own points."""
    inputs = [arguments(op, 4099, 512, seed=seed) for seed in (0, 1)]
    expected = [with_gradients(op, args) for args in inputs]
    upstream = upstream_of(expected[0][0])
    actual = on_streams(lambda *args: with_gradients(op, args, upstream), inputs)
    for a, e in zip(actual, expected, strict=True):
        assert_equal(a, e)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@every_op
def test_another_device_than_the_current_one(op):
    args = arguments(op, 33, 20)
    other = with_gradients(op, [a.to("cuda:1") for a in args])
    assert_equal([t.to(DEVICE) for t in other], with_gradients(op, args))


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@every_op
def test_compiles_to_one_graph(op, compiler, launches):
    torch._dynamo.reset()
    compiled = torch.compile(op.function, fullgraph=True, backend=compiler)
    for rows in (33, 65, 129):  # a second shape makes the first dimension dynamic
        args = arguments(op, rows, 20)
        expected = with_gradients(op, args)
        launches.clear()
        assert_equal(with_gradients(compiled, args), expected)
        assert len(launches) >= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPS)
def test_opcheck(name, dtype):
    op = OPS[name]
    operator = registered(name)
    args = [a.requires_grad_() for a in arguments(op, 3, 4, dtype=dtype)]
    settings = (*(torch.tensor(option, dtype=torch.float64) for option in op.options), "triton")
    opcheck(operator, (*args, *settings))
    grad = torch.ones_like(operator(*args, *settings)).detach()
    backward = registered(f"{name}_backward")
    opcheck(backward, (grad, *(a.detach() for a in args), *settings))


@pytest.fixture
def _memory_is_returned():
    yield
    free_memory()


@pytest.mark.usefixtures("_memory_is_returned")
@every_op
def test_more_elements_than_32_bits_count(op):
    """The last rows of 2^31 elements and more, and those around element 2^31, as if they were alone."""
    width = 512
    rows = MORE_THAN_32_BITS_COUNT // width + 64
    # Points, their gradients, the value (as large as a point, or small) and its upstream gradient.
    enough_memory((2 * op.points + 3) * rows * width * 2)
    points = [torch.empty(rows, width, dtype=torch.bfloat16, device=DEVICE) for _ in range(op.points)]
    for p in points:
        p.normal_(std=width**-0.5)
    scalars = arguments(op, 1, 4)[op.points :]
    out, *gradients = with_gradients(op, [*points, *scalars])
    upstream = upstream_of(out)
    for part in (slice(0, 64), slice(rows - 128, rows - 64), slice(rows - 64, rows)):
        alone = [p[part].clone() for p in points]
        expected = with_gradients(op, [*alone, *scalars], upstream[part])
        actual = [out[part], *(g[part] for g in gradients[: op.points])]
        assert_equal(actual, expected[: 1 + op.points])
        assert all(t.any() for t in actual)


@pytest.mark.usefixtures("_memory_is_returned")
@every_op
def test_strides_of_more_than_32_bits(op):
    """Rows 2^31 elements and more apart."""
    apart = MORE_THAN_32_BITS_COUNT + 64
    enough_memory(2 * apart + 2**20)
    memory = torch.empty(apart + 4096, dtype=torch.bfloat16, device=DEVICE)
    args = arguments(op, 2, 20, dtype=torch.bfloat16)
    for index, point in enumerate(args[: op.points]):
        view = memory.as_strided((2, 20), (apart, 1), 64 * index)
        view.copy_(point)
        args[index] = view
    assert_equal(with_gradients(op, args), with_gradients(op, [a.clone() for a in args]))
