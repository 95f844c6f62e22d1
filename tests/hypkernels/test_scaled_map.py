"""The lift of scaled features: accuracy, degenerate points, and what an operator owes PyTorch."""

import math

import mpmath as mp
import pytest
import torch
from lorentz_oracle import DIGITS, relative_error, truth, ulp_error
from rowwise_cases import REGIMES, with_scaled_gradient
from torch.library import opcheck

import hypkernels as hk
from hypkernels.operators import registered

EPS = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
OPERATOR = registered("scaled_exp_map0")
BACKWARD = registered("scaled_exp_map0_backward")


def features(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def with_gradients(x, scale=0.3, curv=0.7, op=hk.scaled_exp_map0):
    x = x.detach().requires_grad_()
    s, c = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (scale, curv))
    out = op(x, s, c)
    upstream = features(*out.shape, dtype=out.dtype, seed=2)
    return [out.detach(), *torch.autograd.grad(out, [x, s, c], upstream)], upstream


def assert_accurate(x, scale, curv, op=hk.scaled_exp_map0):
    """One row against the oracle of ``exp_map0`` at the exact product ``scale * x``."""
    (out, by_x, by_scale, by_curv), upstream = with_gradients(x, scale, curv, op)
    product = scale * x.double()  # exact: 24 bits times 3
    true = truth("exp_map0", [product], curv, upstream)
    with mp.workdps(DIGITS):
        expected_by_x = [scale * g for g in true.gradients[0]]
        expected_by_scale = mp.fdot([mp.mpf(v) for v in x.tolist()], true.gradients[0])
    assert ulp_error(out, true.value) <= 0.501
    assert relative_error(by_x, expected_by_x) <= EPS[x.dtype]
    assert relative_error(by_scale, [expected_by_scale]) <= 1e-10
    assert relative_error(by_curv, [true.curv_gradient]) <= 1e-10


@pytest.mark.parametrize("scale", [1.0, 0.0625, -0.625, 3.0])
@pytest.mark.parametrize("regime", REGIMES)
def test_rounded_once(regime, scale):
    x, curv = REGIMES[regime].x, REGIMES[regime].curv
    tangents = hk.log_map0(x, curv).float()
    assert_accurate(tangents[0], scale, curv)


@pytest.mark.parametrize("argument", range(3))
def test_a_wrong_gradient_is_caught(argument):
    wrong = with_scaled_gradient(hk.scaled_exp_map0, argument)
    with pytest.raises(AssertionError):
        assert_accurate(features(24).float(), 0.625, 0.7, op=wrong)


def test_is_the_exponential_of_the_product():
    x = features(5, 7)
    (out, by_x, by_scale, by_curv), _ = with_gradients(x, 0.3)
    (expected, *gradients), _ = with_gradients(x, 0.3, op=lambda x, s, c: hk.exp_map0(s * x, c))
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    torch.testing.assert_close([by_x, by_scale, by_curv], gradients, rtol=1e-14, atol=1e-14)


def test_degenerate_points():
    """Around zero rows the map is ``scale x``; at scale 0 it is constant in ``x``."""
    (out, by_x, by_scale, by_curv), upstream = with_gradients(torch.zeros(2, 5), scale=0.5)
    assert not out.any()
    assert torch.equal(by_x, 0.5 * upstream)
    assert by_scale == by_curv == 0
    x = features(2, 5)
    (out, by_x, by_scale, by_curv), upstream = with_gradients(x, scale=0.0)
    assert not out.any()
    assert not by_x.any()
    assert by_curv == 0
    torch.testing.assert_close(by_scale, (x * upstream).sum())


@pytest.mark.parametrize("dtype", list(EPS))
def test_narrow_results_are_float64_results_rounded_once(dtype):
    x = features(6, 20, dtype=dtype)
    (out, by_x, by_scale, by_curv), upstream = with_gradients(x)
    wide = x.double().requires_grad_()
    s, c = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.3, 0.7))
    expected = hk.scaled_exp_map0(wide, s, c)
    gradients = torch.autograd.grad(expected, [wide, s, c], upstream.double())
    for narrow, wider in zip([out, by_x, by_scale, by_curv], [expected, *gradients], strict=True):
        assert torch.equal(narrow, wider.to(narrow.dtype))
    assert out.dtype == by_x.dtype == dtype


def test_dtypes_and_shapes_of_the_scalars():
    x = features(3, 4)
    expected = hk.scaled_exp_map0(x, 0.25, 0.75)
    for scale in (torch.tensor(0.25), torch.tensor([0.25]), torch.tensor([[0.25]], dtype=torch.float64)):
        assert torch.equal(hk.scaled_exp_map0(x, scale, 0.75), expected)
    learned = torch.tensor([0.25], requires_grad=True)
    fixed = torch.tensor(0.75)
    hk.scaled_exp_map0(x, learned, fixed).sum().backward()
    assert learned.grad.shape == (1,)
    assert learned.grad.dtype == torch.float32
    assert learned.grad != 0
    assert fixed.grad is None


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5)])
def test_empty_batch(shape):
    (out, by_x, by_scale, by_curv), _ = with_gradients(features(*shape))
    assert out.shape == by_x.shape == shape
    assert by_scale == by_curv == 0


def test_gradcheck():
    x = features(2, 3, 4).requires_grad_()
    scale, curv = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (-0.6, 0.7))
    assert torch.autograd.gradcheck(hk.scaled_exp_map0, (x, scale, curv))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_opcheck(dtype):
    x = features(3, 4, dtype=dtype).requires_grad_()
    scale, curv = (torch.tensor(v, requires_grad=True) for v in (0.6, 0.7))
    opcheck(OPERATOR, (x, scale, curv, "torch"))
    opcheck(BACKWARD, (torch.ones_like(x), x.detach(), scale.detach(), curv.detach(), "torch"))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_to_one_graph(backend):
    torch._dynamo.reset()
    compiled = torch.compile(hk.scaled_exp_map0, fullgraph=True, backend=backend)
    for rows in (5, 7, 9):
        x = features(rows, 6)
        actual, expected = (with_gradients(x, op=op)[0] for op in (compiled, hk.scaled_exp_map0))
        torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (math.nan, ValueError, "scale must be finite, got nan"),
        (math.inf, ValueError, "scale must be finite, got inf"),
        ("1", TypeError, "scale must be a number, got str"),
        (torch.ones(5), ValueError, r"points and scale must have broadcastable.*\(5,\) of scale"),
        (torch.tensor(1), TypeError, "scale must be a floating tensor, got torch.int64"),
        (torch.ones((), device="meta"), ValueError, "scale must be on the CPU or on the points' cpu"),
    ],
)
def test_bad_scale(scale, error, message):
    with pytest.raises(error, match=message):
        hk.scaled_exp_map0(torch.ones(2, 3), scale)


@pytest.mark.parametrize("curv", [0.0, -1.0, torch.tensor(-1.0)])
def test_bad_curvature(curv):
    with pytest.raises(ValueError, match="curv must be positive and finite"):
        hk.scaled_exp_map0(torch.ones(2, 3), 0.5, curv)
