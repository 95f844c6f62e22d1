"""What every row-wise op owes PyTorch: registration, autograd, compilation, autocast, dtypes and shapes."""

import pytest
import torch
from lorentz_oracle import FUNCTIONS, MAPS, ONE_POINT
from rowwise_ops import OPS, options_of
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

import hypkernels as hk
from hypkernels import operators, rowwise

NAMES = FUNCTIONS
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

pytestmark = pytest.mark.filterwarnings("ignore:.*CPU autocast.*")


def vectors(name, *shape, dtype=torch.float64, seed=0):
    """Points (or a point and a tangent vector) of moderate size, all in one piece of the space."""
    generator = torch.Generator().manual_seed(seed)
    count = 1 if name in ONE_POINT else 2
    return [torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def call(name, args, curv=0.7):
    return getattr(hk, name)(*args, curv)


def with_gradients(name, args, curv=0.7, upstream=None):
    """``[value, gradient by each point, gradient by curv]``"""
    args = [a.detach().requires_grad_() for a in args]
    c = torch.tensor(curv, dtype=torch.float64, requires_grad=True)
    out = call(name, args, c)
    upstream = torch.linspace(-1, 2, out.numel()).view(out.shape) if upstream is None else upstream
    return [out.detach(), *torch.autograd.grad(out, [*args, c], upstream.to(out.dtype))]


def assert_equal(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def assert_same_up_to_rounding(actual, expected):
    """Vectorised and scalar library functions, and sums in another order, differ in the last bits."""
    for a, b in zip(actual, expected, strict=True):
        scale = b.abs().max().item() if b.numel() else 0.0
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13 * scale)


def settings(name):
    """What an operator takes after its points and the curvature."""
    options = (torch.tensor(0.1, dtype=torch.float64),) if name == "half_aperture" else ()
    return (*options, "torch")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name, dtype):
    args = [v.requires_grad_() for v in vectors(name, 3, 4, dtype=dtype)]
    curv = torch.tensor(0.7, requires_grad=True)
    opcheck(operators.registered(name), (*args, curv, *settings(name)))


@pytest.mark.parametrize("name", NAMES)
def test_opcheck_of_the_backward(name):
    args, curv = vectors(name, 3, 4), torch.tensor(0.7)
    grad = torch.randn_like(call(name, args, curv))
    opcheck(operators.registered(f"{name}_backward"), (grad, *args, curv, *settings(name)))


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck_with_broadcasting(name):
    args = [v.requires_grad_() for v in vectors(name, 2, 3)]
    if len(args) == 2:
        args = [args[0].detach()[:, None].requires_grad_(), args[1].detach()[None].requires_grad_()]
    curv = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(getattr(hk, name), (*args, curv))


def everything(x, y, curv, min_radius=0.2):
    """One graph with every op, their results used together."""
    moved = hk.log_map(x, hk.exp_map(x, hk.log_map0(y, curv), curv), curv)
    points = hk.exp_map0(moved, curv)
    hinge = (hk.oxy_angle(points, y, curv) - hk.half_aperture(points, curv, min_radius)).relu()
    lengths = hk.elementwise_dist(x, points, curv) + hk.dist0(points, curv) + hk.busemann(x, y, curv)
    return (hinge + lengths - hk.elementwise_inner(points, y, curv)).mean()


def everything_gradients(function, *args):
    args = [a.detach().requires_grad_() for a in args]
    out = function(*args)
    return out.detach(), *torch.autograd.grad(out, args)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_to_one_graph(backend):
    torch._dynamo.reset()
    compiled = torch.compile(everything, fullgraph=True, backend=backend)
    for rows in (5, 7, 9):  # a second shape makes the first dimension dynamic
        x, y = 0.5 * torch.randn(2, rows, 6, dtype=torch.float64)
        curv = torch.tensor(0.7, dtype=torch.float64)
        expected = everything_gradients(everything, x, y, curv)
        torch.testing.assert_close(
            everything_gradients(compiled, x, y, curv), expected, rtol=1e-13, atol=1e-15
        )


def test_compiles_with_changing_floats():
    torch._dynamo.reset()
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    x, y = 0.5 * torch.randn(2, 5, 6)
    for curv in (0.5, 0.7, 1.3):
        torch.testing.assert_close(compiled(x, y, curv, curv / 8), everything(x, y, curv, curv / 8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_dtype(name, dtype):
    out, *gradients, curv_gradient = with_gradients(name, vectors(name, 3, 4, dtype=dtype))
    scalar = torch.float64 if dtype == torch.float64 else torch.float32
    assert out.dtype == (dtype if name in MAPS else scalar)
    assert all(g.dtype == dtype for g in gradients)
    assert curv_gradient.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_narrow_results_are_float64_results_rounded_once(name, dtype):
    args = vectors(name, 6, 20, dtype=dtype)
    out, *gradients, curv_gradient = with_gradients(
        name, args, upstream=torch.ones(()).expand(call(name, args).shape)
    )
    wide = with_gradients(name, [a.double() for a in args], upstream=torch.ones(()).expand(out.shape))
    assert_equal(
        [out, *gradients, curv_gradient],
        [w.to(n.dtype) for w, n in zip(wide, [out, *gradients, curv_gradient], strict=True)],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing(name, dtype):
    args = vectors(name, 6, 20, dtype=dtype)
    expected = with_gradients(name, args)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = with_gradients(name, args)
    assert_equal(actual, expected)


@pytest.mark.parametrize("name", NAMES)
def test_chunks_do_not_show(name, monkeypatch):
    args = vectors(name, 40, 3, 7)
    expected = with_gradients(name, args)
    monkeypatch.setattr(rowwise, "CPU_CHUNK_ELEMENTS", 32)
    assert_same_up_to_rounding(with_gradients(name, args), expected)


@pytest.mark.parametrize("limit", [1, 32, 1 << 16])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ONE_POINT])
def test_broadcasting(name, limit, monkeypatch):
    """Leading dimensions broadcast without a copy, and however the chunks cut them."""
    x, y = vectors(name, 5, 7)
    grid = [x[:, None].expand(5, 5, 7).contiguous(), y[None].expand(5, 5, 7).contiguous()]
    expected = call(name, grid)
    monkeypatch.setattr(rowwise, "CPU_CHUNK_ELEMENTS", limit)
    assert_same_up_to_rounding(
        [call(name, [x[:, None], y]), call(name, [x[2], y]), call(name, [x[2], y[3]])],
        [expected, expected[2], expected[2, 3]],
    )
    _, by_x, by_y, by_curv = with_gradients(name, grid)
    assert_same_up_to_rounding(
        with_gradients(name, [x[:, None], y[None]]),
        [expected, by_x.sum(1, keepdim=True), by_y.sum(0, keepdim=True), by_curv],
    )


@pytest.mark.parametrize("name", NAMES)
def test_memory_layout_does_not_show(name):
    args = vectors(name, 6, 4, 8)
    expected = with_gradients(name, args)
    transposed = [a.mT.contiguous().mT for a in args]
    permuted = [a.transpose(0, 1).contiguous().transpose(0, 1) for a in args]
    strided = [torch.stack([a, a], dim=-1)[..., 0] for a in args]
    for variant in (transposed, permuted, strided):
        assert not variant[0].is_contiguous()
        assert_same_up_to_rounding(with_gradients(name, variant), expected)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5), (0, 3, 1)])
@pytest.mark.parametrize("name", NAMES)
def test_empty_batch(name, shape):
    out, *gradients, curv_gradient = with_gradients(name, vectors(name, *shape))
    assert out.shape == (shape if name in MAPS else shape[:-1])
    assert all(g.shape == shape for g in gradients)
    assert curv_gradient == 0


@pytest.mark.parametrize("name", NAMES)
def test_single_vector(name):
    args = vectors(name, 5)
    (batch,) = call(name, [a[None] for a in args])
    assert torch.equal(call(name, args), batch)


@pytest.mark.parametrize("name", NAMES)
def test_ways_to_pass_the_curvature(name):
    args = vectors(name, 3, 4)
    expected = call(name, args, 0.75)
    for curv in (torch.tensor(0.75), torch.tensor([0.75]), torch.tensor([[0.75]], dtype=torch.float64)):
        assert torch.equal(call(name, args, curv), expected)
    learned = torch.tensor([0.75], requires_grad=True)
    call(name, args, learned).sum().backward()
    assert learned.grad.shape == (1,)
    assert learned.grad.dtype == torch.float32
    assert learned.grad != 0


@pytest.mark.parametrize("name", NAMES)
def test_only_what_learns_gets_a_gradient(name):
    args = vectors(name, 3, 4)
    args[-1].requires_grad_()
    curv = torch.tensor(0.7)
    call(name, args, curv).sum().backward()
    assert args[-1].grad is not None
    assert curv.grad is None
    assert len(args) == 1 or args[0].grad is None


@pytest.mark.parametrize("name", NAMES)
def test_nan_stays_in_its_row(name):
    clean = vectors(name, 3, 4)
    dirty = [a.clone() for a in clean]
    dirty[-1][1, 2] = float("nan")
    out, expected = call(name, dirty), call(name, clean)
    assert out[1].isnan().all()
    assert torch.equal(out[::2], expected[::2])


@pytest.mark.parametrize(
    "name", ["elementwise_dist", "busemann", "oxy_angle", "dist0", "half_aperture", "log_map0"]
)
def test_the_whole_range_of_float32(name):
    """Squares of float32 numbers, largest and subnormal, are far inside the range of float64."""
    sizes = torch.tensor([3e38, 1e20, 1.0, 1e-20, 1e-45])
    x = sizes.repeat_interleave(5)[:, None] * torch.tensor([[1.0, -1.0, 1.0]])
    y = sizes.repeat(5)[:, None] * torch.tensor([[1.0, 1.0, 0.0]])
    args = [x] if name in ONE_POINT else [x, y]
    value, *gradients, curv_gradient = with_gradients(
        name, args, upstream=torch.ones(()).expand(call(name, args).shape)
    )
    assert all(t.isfinite().all() for t in (value, curv_gradient))
    assert not any(g.isnan().any() for g in gradients)
    if name == "oxy_angle":  # at a point r from the origin it turns by 1/r: in range down to the subnormals
        gradients = [g[:20] for g in gradients]
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("name", NAMES)
def test_rows_on_a_gpu_never_wait_for_the_host(name):
    """Fake GPU tensors have no values: reading one back, or mixing devices wrongly, raises."""
    op, options = OPS[name], options_of(name)
    with FakeTensorMode():
        points = [torch.empty(3000, 2048, dtype=torch.float64, device="cuda") for _ in range(op.points)]
        curv = torch.tensor(1.0, dtype=torch.float64)
        value = op.formula(*points, curv, *options)
        result = (value.shape[-1], torch.float32)
        (out,) = rowwise.map_rows(lambda *rows: (op.formula(*rows, curv, *options),), points, [result])
        assert out.device == points[0].device
        assert all(g.device == out.device for g in op.gradient(value, *points, curv, *options))


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_left_alone(name):
    """Float64 rows are used in place: no formula may write to them."""
    args = vectors(name, 3, 4)
    copies = [a.clone() for a in args]
    with_gradients(name, args)
    assert_equal(args, copies)
