"""The entailment loss: accuracy against 240 digits, options, conventions, and what PyTorch needs."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from isometries import random_rotation
from lorentz_oracle import relative_error, truth
from mpmath import mpf
from rowwise_cases import REGIMES, with_scaled_gradient
from torch.library import opcheck

import hypkernels as hk
from hypkernels.entailment import reference
from hypkernels.operators import registered

pytestmark = pytest.mark.filterwarnings("ignore:.*CPU autocast.*")

DEFAULTS = {"aperture_scale": 1.0, "min_radius": 0.1, "margin": 0.0, "leak": 0.0}
OPTIONS = [
    {},
    {"aperture_scale": 0.7},
    {"aperture_scale": 1.2, "min_radius": 0.3},
    {"aperture_scale": 0.0},
    {"margin": 0.2},
    {"margin": -0.5},
    {"leak": 0.1},
    {"aperture_scale": 1.2, "min_radius": 0.05, "margin": 0.3, "leak": 0.25},
]


def sets(*shapes, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def with_gradients(function, apex, point, curv=0.7, upstream=None):
    apex, point = (p.detach().requires_grad_() for p in (apex, point))
    c = torch.tensor(curv, dtype=torch.float64, requires_grad=True)
    loss = function(apex, point, c)
    upstream = torch.ones_like(loss) if upstream is None else upstream.to(loss.dtype)
    return [loss.detach(), *torch.autograd.grad(loss, (apex, point, c), upstream)]


def true_row(apex, point, curv, aperture_scale, min_radius, margin, leak):
    """Loss and gradients of one row, as sums of multiples of the angle's and the aperture's."""
    one = torch.ones(())
    angle = truth("oxy_angle", [apex, point], curv, one)
    aperture = truth("half_aperture", [apex], curv, one, (min_radius,))
    residual = angle.value[0] - aperture_scale * aperture.value[0] + mpf(margin)
    outside = 1 if residual > 0 else 0
    by_apex = [
        (outside + leak) * a - outside * aperture_scale * w
        for a, w in zip(angle.gradients[0], aperture.gradients[0], strict=True)
    ]
    by_point = [(outside + leak) * a for a in angle.gradients[1]]
    by_curv = (outside + leak) * angle.curv_gradient - outside * aperture_scale * aperture.curv_gradient
    return outside * residual + leak * angle.value[0], by_apex, by_point, by_curv


def assert_accurate(apex, point, curv, function=hk.entailment_loss, **options):
    """Float64 formulas on float32 points, rounded once; a gradient may be a difference of two close ones."""
    function = partial(function, reduction="none", **options)
    losses, by_apex, by_point, _ = with_gradients(function, apex, point, curv)
    for row in range(len(apex)):
        loss, *true = true_row(apex[row], point[row], curv, **{**DEFAULTS, **options})
        assert abs(losses[row].item() - float(loss)) <= 2.0**-24 * float(loss) + 1e-12
        *_, by_curv = with_gradients(function, apex[row], point[row], curv)
        gradients, true[2] = (by_apex[row], by_point[row], by_curv), [true[2]]
        for gradient, expected in zip(gradients, true, strict=True):
            if any(expected):
                assert relative_error(gradient, expected) <= 2.0**-24 + 1e-9
            else:
                assert not gradient.any()


ACCURATE = [name for name in REGIMES if name.startswith(("embeddings", "near", "far", "huge", "tiny"))]


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[-1]], ids=["defaults", "all options"])
@pytest.mark.parametrize("regime", ACCURATE)
def test_rounded_once(regime, options):
    regime = REGIMES[regime]
    assert_accurate(regime.x.float(), regime.y.float(), regime.curv, **options)


@pytest.mark.parametrize("options", OPTIONS)
def test_options_outside_and_inside_the_cone(options):
    apex, _ = (p.float() for p in sets((4, 8), (4, 8)))
    outside, inside = sets((4, 8), (4, 8), seed=1)
    for point in (outside.float(), (2 * apex + 0.01 * inside).float()):
        assert_accurate(apex, point, 0.7, **options)


@pytest.mark.parametrize("argument", range(3))
def test_a_wrong_gradient_is_caught(argument):
    regime = REGIMES["embeddings, c=1.0"]

    def wrong(*args, **options):
        return with_scaled_gradient(partial(hk.entailment_loss, **options), argument)(*args)

    with pytest.raises(AssertionError):
        assert_accurate(regime.x.float(), regime.y.float(), regime.curv, wrong)


@pytest.mark.parametrize("options", OPTIONS)
def test_float64_against_autograd_through_the_definition(options):
    apex, point = sets((40, 6), (40, 6))
    upstream = torch.linspace(-1, 2, 40, dtype=torch.float64)
    definition = partial(reference.entailment_loss, **options)
    function = partial(hk.entailment_loss, reduction="none", **options)
    expected = with_gradients(definition, apex, point, upstream=upstream)
    actual = with_gradients(function, apex, point, upstream=upstream)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_reductions():
    apex, point = sets((4, 5, 6), (4, 5, 6))
    each = hk.entailment_loss(apex, point, reduction="none")
    assert each.shape == (4, 5)
    upstream = with_gradients(partial(hk.entailment_loss, reduction="none"), apex, point)
    for reduction, divisor in (("mean", 20), ("sum", 1)):
        loss, *gradients = with_gradients(partial(hk.entailment_loss, reduction=reduction), apex, point)
        torch.testing.assert_close(loss, upstream[0].sum() / divisor)
        for a, b in zip(gradients, upstream[1:], strict=True):
            torch.testing.assert_close(a, b / divisor)
    torch.testing.assert_close(hk.entailment_loss(apex, point), each.mean())


def test_the_mean_of_many_is_not_rounded_on_the_way():
    losses = hk.entailment_loss(*sets((200_000, 2), (200_000, 2), dtype=torch.float32), reduction="none")
    mean = hk.entailment_loss(*sets((200_000, 2), (200_000, 2), dtype=torch.float32))
    assert mean.item() == losses.double().mean().float().item()


def test_the_leak_pulls_inside_the_cone_too():
    apex, point = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.1]])
    assert hk.oxy_angle(apex, point) < hk.half_aperture(apex)
    silent = with_gradients(hk.entailment_loss, apex, point)
    assert not any(t.any() for t in silent)
    leaky = with_gradients(partial(hk.entailment_loss, leak=0.1), apex, point)
    plain = with_gradients(lambda *a: hk.oxy_angle(*a).mean(), apex, point)
    for a, b in zip(leaky, plain, strict=True):
        torch.testing.assert_close(a, 0.1 * b, rtol=1e-6, atol=0)


X = torch.tensor([[0.3, -1.2, 0.7], [20.0, -30.0, 10.0], [1e-6, 2e-6, 0.0]])


@pytest.mark.parametrize(
    ("apex", "point", "loss"),
    [
        pytest.param(X, X, 0.0, id="coincident"),
        pytest.param(torch.zeros_like(X), X, 0.0, id="apex at the origin"),
        pytest.param(torch.zeros_like(X), torch.zeros_like(X), 0.0, id="both at the origin"),
        pytest.param(X, 3 * X, 0.0, id="on the axis"),
    ],
)
def test_what_lies_inside_costs_nothing(apex, point, loss):
    outputs = with_gradients(partial(hk.entailment_loss, reduction="none"), apex, point)
    assert not any(t.any() for t in outputs)


def test_towards_the_origin():
    """The angle is pi, a kink; the aperture still learns."""
    loss, by_apex, by_point, _ = with_gradients(
        partial(hk.entailment_loss, reduction="none"), X[:2], torch.zeros(2, 3)
    )
    torch.testing.assert_close(loss, math.pi - hk.half_aperture(X[:2], 0.7))
    assert not by_point.any()
    assert by_apex.any(dim=1).all()


seeds = st.integers(0, 2**31 - 1)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(2, 8), st.floats(0.05, 20), st.floats(0, 1.5), st.floats(0, 0.5))
def test_rotations_order_and_unit_change_nothing(seed, width, curv, aperture_scale, leak):
    generator = torch.Generator().manual_seed(seed)
    points = hk.exp_map0(torch.randn(12, width, generator=generator, dtype=torch.float64) / curv**0.5, curv)
    rotation = random_rotation(width, generator)
    order = torch.randperm(6, generator=generator)
    loss = partial(hk.entailment_loss, aperture_scale=aperture_scale, leak=leak, reduction="none")
    apex, point = points[:6], points[6:]
    expected = loss(apex, point, curv)
    for other in (
        loss(apex @ rotation.mT, point @ rotation.mT, curv),
        loss(apex[order], point[order], curv)[torch.argsort(order)],
        loss(curv**0.5 * apex, curv**0.5 * point),
    ):
        torch.testing.assert_close(other, expected, rtol=1e-8, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(seeds, st.floats(0.05, 20), st.floats(1.001, 4))
def test_moving_out_along_the_ray_stays_inside(seed, curv, factor):
    (apex,) = sets((5, 4), seed=seed)
    assert not hk.entailment_loss(apex, factor * apex, curv, reduction="none").any()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_empty_batch_costs_nothing(reduction):
    outputs = with_gradients(
        partial(hk.entailment_loss, reduction=reduction), torch.ones(0, 3), torch.ones(0, 3)
    )
    assert [t.shape for t in outputs] == [(), (0, 3), (0, 3), ()]
    assert not any(t.any() for t in outputs)


def test_nan_is_not_hidden():
    apex, point = sets((3, 4), (3, 4))
    point[1, 2] = math.nan
    losses = hk.entailment_loss(apex, point, reduction="none")
    assert losses.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    apex, point = (p.requires_grad_() for p in sets((3, 4), (3, 4), dtype=dtype))
    options = torch.tensor([1.2, 0.1, 0.1, 0.2], dtype=torch.float64).unbind()
    curv = torch.tensor(0.7, requires_grad=True)
    opcheck(registered("entailment_loss"), (apex, point, curv, *options, "torch"))


@pytest.mark.parametrize("options", OPTIONS)
def test_gradcheck_with_broadcasting(options):
    apex, point = (p.requires_grad_() for p in sets((2, 1, 4), (3, 4)))
    curv = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    function = partial(hk.entailment_loss, reduction="none", **options)
    assert torch.autograd.gradcheck(function, (apex, point, curv))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_to_one_graph(backend):
    function = partial(hk.entailment_loss, aperture_scale=0.8, leak=0.1)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *a: function(*a), fullgraph=True, backend=backend)
    for rows in (5, 7, 9):  # a second shape makes the first dimension dynamic
        apex, point = sets((rows, 6), (rows, 6))
        actual, expected = (with_gradients(f, apex, point) for f in (compiled, function))
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype):
    apex, point = sets((6, 20), (6, 20), dtype=dtype)
    function = partial(hk.entailment_loss, reduction="none")
    narrow = with_gradients(function, apex, point)
    wide = with_gradients(function, apex.double(), point.double())
    assert [t.dtype for t in narrow] == [torch.float32, dtype, dtype, torch.float64]
    assert all(torch.equal(n, w.to(n.dtype)) for n, w in zip(narrow, wide, strict=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = with_gradients(function, apex, point)
    assert all(torch.equal(a, b) for a, b in zip(under_autocast, narrow, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"apex": None}, TypeError, "apex must be a tensor of space components"),
        ({"point": torch.ones(2, 4)}, ValueError, r"apex and point must have the same width"),
        ({"point": torch.ones(5, 3)}, ValueError, r"apex and point must have broadcastable"),
        ({"curv": 0.0}, ValueError, "curv must be positive and finite, got 0.0"),
        ({"aperture_scale": -1.0}, ValueError, "aperture_scale must not be negative, got -1.0"),
        ({"aperture_scale": "1"}, TypeError, "aperture_scale must be a number, got str"),
        ({"min_radius": 0.0}, ValueError, "min_radius must be positive and finite, got 0.0"),
        ({"margin": math.inf}, ValueError, "margin must be finite, got inf"),
        ({"leak": -0.1}, ValueError, "leak must not be negative, got -0.1"),
        ({"leak": math.nan}, ValueError, "leak must be finite, got nan"),
        ({"reduction": "max"}, ValueError, "reduction must be one of 'mean', 'sum', 'none', got 'max'"),
    ],
)
def test_bad_arguments_are_refused_by_name(change, error, message):
    arguments = {"apex": torch.ones(2, 3), "point": torch.ones(2, 3), **change}
    with pytest.raises(error, match=message):
        hk.entailment_loss(arguments.pop("apex"), arguments.pop("point"), **arguments)
