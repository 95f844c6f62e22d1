"""One curvature for each of several factors, as product manifolds have: in one call, for every function."""

from functools import partial

import pytest
import torch
from lorentz_oracle import FUNCTIONS
from rowwise_ops import OPS

import hypkernels as hk

ROWWISE = {
    **{name: (getattr(hk, name), OPS[name].points) for name in FUNCTIONS},
    "scaled_exp_map0": (lambda x, curv: hk.scaled_exp_map0(x, 0.8, curv), 1),
    "entailment_loss": (partial(hk.entailment_loss, aperture_scale=0.7, leak=0.1, reduction="none"), 2),
}
PAIRWISE = {name: getattr(hk, name) for name in ("pairwise_inner", "pairwise_dist", "pairwise_oxy_angle")}
BACKENDS = ("torch", "reference")
DTYPES = (torch.float64, torch.float32, torch.bfloat16)
FACTORS = (0.3, 1.0, 2.5)


def points(*shape, count=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def with_gradients(function, sets, curv):
    sets = [one.detach().clone().requires_grad_() for one in sets]
    curv = curv.detach().clone().requires_grad_()
    out = function(*sets, curv)
    upstream = torch.cos(torch.arange(out.numel(), dtype=torch.float64)).view(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, [*sets, curv], upstream)], upstream


def one_by_one(function, sets, upstream):
    """The same by a call for each factor, the first dimension of the sets."""
    parts = []
    for index, factor in enumerate(FACTORS):
        curv = torch.tensor(factor, dtype=torch.float64, requires_grad=True)
        ours = [one[index].detach().clone().requires_grad_() for one in sets]
        out = function(*ours, curv)
        parts.append([out.detach(), *torch.autograd.grad(out, [*ours, curv], upstream[index])])
    return [torch.stack(part) for part in zip(*parts, strict=True)]


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13 * b.abs().max().item())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ROWWISE)
def test_rowwise(name, backend, dtype):
    function, count = ROWWISE[name]
    sets = points(3, 5, 4, count=count, dtype=dtype)
    with hk.use_backend(backend):
        actual, upstream = with_gradients(
            function, sets, torch.tensor(FACTORS, dtype=torch.float64).view(3, 1)
        )
        expected = one_by_one(function, sets, upstream)
    assert actual[-1].shape == (3, 1)
    assert_same([*actual[:-1], actual[-1].squeeze(1)], expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PAIRWISE)
def test_pairwise(name, backend, dtype):
    sets = [points(3, 5, 4, dtype=dtype)[0], points(3, 6, 4, dtype=dtype)[1]]
    with hk.use_backend(backend):
        actual, upstream = with_gradients(
            PAIRWISE[name], sets, torch.tensor(FACTORS, dtype=torch.float64).view(3, 1)
        )
        expected = one_by_one(PAIRWISE[name], sets, upstream)
    assert_same([*actual[:-1], actual[-1].squeeze(1)], expected)


@pytest.mark.parametrize("name", ROWWISE)
def test_any_shape_that_broadcasts(name):
    """Also against fewer dimensions, of float32, expanded and with gradients of the shape that came."""
    function, count = ROWWISE[name]
    sets = points(5, 3, 4, count=count)
    curv = torch.tensor(FACTORS, dtype=torch.float32)
    expected = torch.stack([function(*(one[:, i] for one in sets), curv[i]) for i in range(3)], 1)
    for shape in ((3,), (1, 3), (5, 3)):
        given = curv.expand(shape).clone().requires_grad_()
        out = function(*sets, given)
        assert_same([out], [expected])
        out.sum().backward()
        assert given.grad.shape == shape
        assert given.grad.dtype == torch.float32
        assert (given.grad != 0).any()
    rows = [one[:, 0] for one in sets]  # more curvatures than points: all with all
    wide = function(*rows, curv.view(3, 1))
    assert_same([wide], [torch.stack([function(*rows, one) for one in curv])])


@pytest.mark.parametrize("name", PAIRWISE)
def test_pairs_of_one_set_under_several_curvatures(name):
    x, y = points(5, 4)
    curv = torch.tensor(FACTORS, dtype=torch.float64)
    expected = torch.stack([PAIRWISE[name](x, y, one) for one in curv])
    assert_same([PAIRWISE[name](x, y, curv.view(3, 1))], [expected])
    with pytest.raises(ValueError, match=r"curv must have one element for each matrix.*got \(5,\)"):
        PAIRWISE[name](x, y, torch.ones(5))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ROWWISE, *PAIRWISE])
def test_gradcheck_of_several_curvatures(name):
    function, count = ROWWISE[name] if name in ROWWISE else (PAIRWISE[name], 2)
    sets = [one.requires_grad_() for one in points(3, 2, 4, count=count)]
    curv = torch.tensor(FACTORS, dtype=torch.float64).view(3, 1).requires_grad_()
    assert torch.autograd.gradcheck(function, (*sets, curv), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (*sets, curv))


def test_several_scales():
    (x,) = points(3, 5, 4, count=1)
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).view(3, 1).requires_grad_()
    curv = torch.tensor(FACTORS, dtype=torch.float64).view(3, 1).requires_grad_()
    out = hk.scaled_exp_map0(x, scale, curv)
    assert_same([out], [torch.stack([hk.scaled_exp_map0(x[i], scale[i], curv[i]) for i in range(3)])])
    assert torch.autograd.gradcheck(hk.scaled_exp_map0, (x.requires_grad_(), scale, curv))


@pytest.mark.parametrize("name", [*ROWWISE, *PAIRWISE])
def test_several_curvatures_under_vmap_and_compile(name):
    function, count = ROWWISE[name] if name in ROWWISE else (PAIRWISE[name], 2)
    sets = points(3, 2, 4, count=count)
    curv = torch.tensor(FACTORS, dtype=torch.float64).view(3, 1)
    expected = function(*sets, curv)
    assert_same([torch.func.vmap(function)(*sets, curv.squeeze(1))], [expected])
    assert_same([torch.func.vmap(function)(*sets, curv)], [expected])
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    actual, _ = with_gradients(compiled, sets, curv)
    assert_same(actual, with_gradients(function, sets, curv)[0])
