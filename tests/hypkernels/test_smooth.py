"""The twice differentiable formulas: values and first and second derivatives against 240 digits."""

import math
import re

import mpmath as mp
import pytest
import torch
from lorentz_oracle import DEFINITIONS, DIGITS, ONE_POINT, exact_truth, relative_error
from mpmath import mpf
from rowwise_cases import MIN_RADIUS, REGIMES, points, tangents
from rowwise_ops import OPS, options_of
from torch.autograd import gradcheck, gradgradcheck

import hypkernels as hk
from hypkernels import smooth_geometry

FUNCTIONS = {name: OPS[name].smooth for name in DEFINITIONS}
# Of two points whose formula has no terms that cancel inward.
NOT_INWARD = [name for name in FUNCTIONS if name not in ONE_POINT and name != "exp_map"]
DIFFERENCE = mpf(10) ** -30
# A few units; inward, the two terms of the exponential cancel by ``exp(-2 tau)``.
TOLERANCE = 1e-12


def function(name):
    return lambda *args: FUNCTIONS[name](*args, *options_of(name))


def vectors(name, regime):
    """The first row of the regime's points: float32 values, of which lateral parts are exact, as float64."""
    if name == "exp_map":
        rows = [regime.x.float(), tangents(regime, -1, torch.float32)]
    else:
        rows = points(name, regime, torch.float32)
    return [row[:1].double() for row in rows]


def randn_like(seed, *tensors):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in tensors]


def exact(tensor):
    return [mpf(value) for value in tensor.detach().reshape(-1).tolist()]


def true_second(name, arguments, upstream, direction):
    """The derivative of the gradients along ``direction``, one tensor for each argument."""

    def gradients(sign):
        *moved, (c,) = [
            [a + sign * DIFFERENCE * b for a, b in zip(exact(argument), exact(change), strict=True)]
            for argument, change in zip(arguments, direction, strict=True)
        ]
        true = exact_truth(name, moved, c, exact(upstream), options_of(name))
        return [*true.gradients, [true.curv_gradient]]

    with mp.workdps(DIGITS):
        return [
            [(a - b) / (2 * DIFFERENCE) for a, b in zip(above, below, strict=True)]
            for above, below in zip(gradients(1), gradients(-1), strict=True)
        ]


def assert_close(actual, expected, unit=0.0):
    """Relative to the expected norm or, where that is less, to ``unit``; zeros are exact."""
    assert torch.isfinite(actual).all()
    if any(expected):
        with mp.workdps(DIGITS):
            size = float(mp.norm(list(expected)))
            assert relative_error(actual, expected) * size <= TOLERANCE * max(size, unit)
    else:
        assert not actual.any()


def check_derivatives(name, arguments, op):
    """Arguments are points of one row and the curvature.

    Derivatives by ``c`` nearly vanish far from the origin: their unit is 1/c times what they derive.
    """
    arguments = [a.detach().clone().requires_grad_() for a in arguments]
    c, last = arguments[-1].item(), len(arguments) - 1
    out = op(*arguments)
    (upstream,) = randn_like(1, out)
    with mp.workdps(DIGITS):
        vectors = [exact(v) for v in arguments[:-1]]
        true = exact_truth(name, vectors, mpf(c), exact(upstream), options_of(name))
    assert_close(out.detach(), true.value)
    first = torch.autograd.grad(out, arguments, upstream, create_graph=True)
    sizes = [gradient.detach().norm().item() for gradient in first]
    for gradient, expected in zip(first[:-1], true.gradients, strict=True):
        assert_close(gradient.detach(), expected)
    assert_close(first[-1].detach(), [true.curv_gradient], (upstream * out).norm().item() / c)
    for moving, argument in enumerate(arguments):
        direction = [torch.zeros_like(a) for a in arguments]
        (change,) = randn_like(2, argument)
        direction[moving] = change * argument.detach().norm() / change.norm()
        along = sum((a * b).sum() for a, b in zip(first, direction, strict=True))
        second = torch.autograd.grad(along, arguments, retain_graph=True)
        expected = true_second(name, arguments, upstream, direction)
        for index, (actual, components) in enumerate(zip(second, expected, strict=True)):
            unit = sizes[moving] * direction[moving].norm().item() / c if index == last else 0.0
            if moving == last:
                unit = sizes[index]
            assert_close(actual, components, unit)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_two_derivatives(name, regime):
    c = torch.tensor(REGIMES[regime].curv, dtype=torch.float64)
    check_derivatives(name, [*vectors(name, REGIMES[regime]), c], function(name))


@pytest.mark.parametrize("factor", [1.0092286, 1.3, -1.5])
@pytest.mark.parametrize("size", [1e10, 1e20, 1e30])
@pytest.mark.parametrize("name", NOT_INWARD)
def test_far_points_that_are_nearly_collinear(name, size, factor):
    """Float32 values. What is across them is exact: a millionth of a float64 unit would be a distance."""
    (x,) = randn_like(4, torch.empty(1, 3))
    x, y = ((size * factor * x).float().double() for factor in (1.0, factor))
    check_derivatives(name, [x, y, torch.tensor(1.0, dtype=torch.float64)], function(name))


DTYPES = [torch.float64, torch.float32, torch.bfloat16]
FAR = [(torch.float64, 150), *((dtype, power) for dtype in DTYPES for power in (33, 66, 120))]


@pytest.mark.parametrize("factor", [1.0, 1.0092286, 1.3, -1.5])
@pytest.mark.parametrize(("dtype", "power"), FAR)
def test_far_values_in_forward_mode_are_those_of_plain_calls(dtype, power, factor):
    """On a line, and collinear to rounding; pairwise, the angle alone is resolved there."""
    (x,) = randn_like(5, torch.empty(4, 3))
    rounded = [
        (one * 2.0**power).to(dtype) for one in (x.bfloat16().double(), (factor * x).bfloat16().double())
    ]
    on_a_line = [(one[:, :1] * 2.0**power).to(dtype) for one in (x, factor * x)]
    for x, y in (rounded, on_a_line):
        for name in NOT_INWARD:
            value, _ = torch.func.jvp(getattr(hk, name), (x, y), (y, x))
            torch.testing.assert_close(value, getattr(hk, name)(x, y), rtol=2e-12, atol=0)
    value, _ = torch.func.jvp(hk.pairwise_oxy_angle, (x, y), (y, x))
    torch.testing.assert_close(value, hk.pairwise_oxy_angle(x, y), rtol=1e-12, atol=0)


class _ScaledSecond(torch.autograd.Function):
    """The identity, with 0.9 times the gradient of its gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad + 0.1 * (grad.detach() - grad)


@pytest.mark.parametrize("wrong", [_ScaledSecond.apply, lambda x: x + 0.1 * (x - x.detach())])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_wrong_derivative_is_caught(name, wrong):
    regime = REGIMES["embeddings, c=1.0"]
    arguments = [*vectors(name, regime), torch.tensor(regime.curv, dtype=torch.float64)]
    with pytest.raises(AssertionError):
        check_derivatives(name, arguments, lambda *args: function(name)(*map(wrong, args)))


def points_at(place, width=3):
    """Pairs where the formulas change branches, of float64 rows."""
    x, y = randn_like(3, torch.empty(2, width), torch.empty(2, width))
    zero = torch.zeros_like(x)
    return {
        "generic": (x, y),
        "x = 0": (zero, y),
        "y = 0": (x, zero),
        "both 0": (zero, zero),
        "coincident": (x, x.clone()),
        "collinear": (x, 2 * x),
        "opposite": (x, -x),
        "on one line": (x[:, :1], y[:, :1]),
    }[place]


PLACES = ["generic", "x = 0", "y = 0", "both 0", "coincident", "collinear", "opposite", "on one line"]
# Where a function has a kink, and by convention derivatives of 0.
KINKS = {
    "dist0": ("x = 0", "both 0"),
    "elementwise_dist": ("both 0", "coincident"),
    "oxy_angle": ("x = 0", "y = 0", "both 0", "coincident", "collinear", "opposite", "on one line"),
}
KINKS["entailment_loss"] = KINKS["oxy_angle"]
NO_DIRECTION = {"busemann": ("y = 0", "both 0")}  # has no derivative by it
SMOOTH = [
    (name, place)
    for name in FUNCTIONS
    for place in PLACES
    if place not in KINKS.get(name, ()) and place not in NO_DIRECTION.get(name, ())
]


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize(("name", "place"), SMOOTH)
def test_derivatives_of_smooth_functions(name, place, per_row):
    """By differences, where the oracle has none: at the origin and at coincident points."""
    vectors = points_at(place)[: 1 if name in ONE_POINT else 2]
    c = torch.tensor([[0.7], [1.9]] if per_row else 0.7, dtype=torch.float64)
    arguments = [a.clone().requires_grad_() for a in (*vectors, c)]
    assert gradcheck(function(name), arguments, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(function(name), arguments, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize(("name", "place"), [(name, place) for name in KINKS for place in KINKS[name]])
def test_derivatives_at_kinks_are_zero(name, place):
    vectors = points_at(place)[: 1 if name in ONE_POINT else 2]
    arguments = [v.clone().requires_grad_() for v in vectors]
    options = (0.0, MIN_RADIUS, 0.1, 0.2) if name == "entailment_loss" else ()
    out = FUNCTIONS[name](*arguments, torch.tensor(0.7, dtype=torch.float64), *options)
    first = torch.autograd.grad(out.sum(), arguments, create_graph=True)
    second = torch.autograd.grad(sum(g.sum() for g in first), arguments)
    assert not any(derivative.any() for derivative in (*first, *second))
    if name in ("oxy_angle", "entailment_loss") and place != "on one line":
        angle = {"x = 0": math.pi / 2, "y = 0": math.pi, "opposite": math.pi}.get(place, 0.0)
        expected = angle if name == "oxy_angle" else angle + 0.1 + 0.2 * angle
        torch.testing.assert_close(out.detach(), torch.full_like(out, expected), rtol=1e-15, atol=0)


def test_half_aperture_has_no_derivative_within_its_disc():
    x = torch.zeros(2, 3, dtype=torch.float64)
    x[1, 0] = 0.1
    x.requires_grad_()
    out = FUNCTIONS["half_aperture"](x, torch.tensor(1.0, dtype=torch.float64), MIN_RADIUS)
    (first,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert (out == math.pi / 2).all()
    assert not first.any()
    assert not second.any()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functional_transforms(name):
    """Hessians by ``torch.func``, forward over reverse, of each row under ``vmap``."""
    vectors = points_at("generic")[: 1 if name in ONE_POINT else 2]
    c = torch.tensor(0.7, dtype=torch.float64)

    def of_row(x, *rest):
        return function(name)(x.unsqueeze(0), *(v.unsqueeze(0) for v in rest), c).sum()

    actual = torch.func.vmap(torch.func.hessian(of_row))(*vectors)
    for row in range(2):
        expected = torch.autograd.functional.hessian(
            lambda x, row=row: of_row(x, *(v[row] for v in vectors[1:])), vectors[0][row]
        )
        torch.testing.assert_close(actual[row], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("formula", ["cosh", "sinhc"])
def test_exponentials_up_to_the_largest_number(formula):
    """In float64 to a few units, although ``exp`` itself overflows before; beyond it they are infinite."""
    of_units = {"cosh": smooth_geometry.cosh_of_square, "sinhc": smooth_geometry.sinhc_of_square}[formula]
    last = {"cosh": 710.47, "sinhc": 717.05}[formula]

    def function(q):
        unit = smooth_geometry.large_exponent(q)
        return smooth_geometry.in_units(unit, lambda q: of_units(q, unit), q)

    for t in (2.0, 2.5, 30.0, 299.0, 301.0, 350.0, 709.0, last):
        q = torch.tensor(t, dtype=torch.float64).square().requires_grad_()
        value = function(q)
        (slope,) = torch.autograd.grad(value, q)
        root = mp.sqrt(mpf(q.item()))
        of_square = {"cosh": mp.cosh, "sinhc": lambda r: mp.sinh(r) / r}[formula]
        assert value.item() == pytest.approx(float(of_square(root)), rel=3e-13)
        true = mp.diff(lambda q, f=of_square: f(mp.sqrt(q)), mpf(q.item()))
        assert slope.item() == pytest.approx(float(true), rel=1e-11)
    for t in (last + 0.1, 1e3, 1e10):
        assert function(torch.tensor(t * t, dtype=torch.float64)).item() == math.inf


def far_map(scale=1.0, curv=1.0):
    return {
        "exp_map0": lambda x, v: hk.exp_map0(v, curv),
        "scaled_exp_map0": lambda x, v: hk.scaled_exp_map0(v, scale, curv),
        "exp_map": lambda x, v: hk.exp_map(x, v, curv),
    }


# Base point, tangent vector and a direction for it: results that float64 does not hold, some beside others
# that it does, and terms that cancel.
ORIGIN = [0.0, 0.0]
FAR_MAPS = [
    ("exp_map0", ORIGIN, [719.0, 1e-9], [1.0, 0.0], {}),
    ("exp_map0", ORIGIN, [719.0, 1e-9], [0.5, -1.0], {}),
    ("exp_map0", ORIGIN, [800.0, 600.0], [1.0, 0.0], {}),
    ("exp_map0", ORIGIN, [-1000.0, 1.0], [1.0, 500.0], {}),
    ("exp_map0", ORIGIN, [1500.0, 0.0], [1.0, 0.0], {}),
    ("exp_map0", ORIGIN, [9e-12, 1e-11], [1.0, -1.0], {"curv": 8.1e33}),
    ("scaled_exp_map0", ORIGIN, [3.0, 4.0], [1.0, 1.0], {"scale": -200.0}),
    ("scaled_exp_map0", ORIGIN, [3e-3, 4e-3], [1.0, 0.0], {"scale": 1e20}),
    ("exp_map", [2.0, 0.0], [-1000.0, 1000.0], [1.0, 1.0], {}),
    ("exp_map", [3.0, 0.0], [-3000.0, 4000.0], [1.0, 0.0], {}),
    ("exp_map", [-7.36e34, -5.45e34], [1.099, 2.512], [1.0, 1.0], {"curv": 5.9e5}),
    ("exp_map", [1e10, 0.0], [-1e13, 0.0], [1.0, 0.0], {}),
    ("exp_map", [1e6, 0.0], [-14.5e6, 0.0], [1.0, 0.0], {}),
    ("exp_map", [1e6, 0.0], [-16e6, 3.0], [1.0, 2.0], {}),
]


def true_far_map(x, v, scale=1.0, curv=1.0):
    v, c = [mpf(scale) * one for one in v], mpf(curv)
    tau = mp.sqrt(c * (mp.fdot(v, v) - mp.fdot(x, v) ** 2 / (1 / c + mp.fdot(x, x))))
    return [mp.cosh(tau) * a + mp.sinh(tau) / tau * b for a, b in zip(x, v, strict=True)]


def assert_rounded(actual, expected, tolerance):
    """Infinite where the dtype does not hold what is expected."""
    wanted = torch.tensor([[float(one) for one in expected]], dtype=torch.float64).to(actual.dtype)
    size = wanted.norm().item() if wanted.isfinite().all() else 0.0
    torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance * size)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-7)])
@pytest.mark.parametrize(("name", "x", "v", "along", "numbers"), FAR_MAPS)
def test_maps_beyond_float64_in_forward_mode(name, x, v, along, numbers, dtype, tolerance):
    x, v, along = (torch.tensor([one], dtype=torch.float64).to(dtype) for one in (x, v, along))
    function = far_map(**numbers)[name]
    with mp.workdps(DIGITS):

        def at(step):
            moved = [a + step * b for a, b in zip(exact(v), exact(along), strict=True)]
            return true_far_map(exact(x), moved, **numbers)

        slopes = [(a - b) / (2 * DIFFERENCE) for a, b in zip(at(DIFFERENCE), at(-DIFFERENCE), strict=True)]
        values = at(0)
    value, tangent = torch.func.jvp(lambda v: function(x, v), (v,), (along,))
    assert_rounded(value, values, tolerance)
    assert_rounded(tangent, slopes, tolerance)


@pytest.mark.parametrize("outer", [torch.func.jacfwd, torch.func.jacrev])
@pytest.mark.parametrize("inner", [torch.func.jacfwd, torch.func.jacrev])
@pytest.mark.parametrize(("name", "x", "v", "along", "numbers"), FAR_MAPS)
def test_second_derivatives_beyond_float64(name, x, v, along, numbers, outer, inner):
    """Of the first component by the tangent vector, in each order of forward and reverse mode."""
    x, v = (torch.tensor([one], dtype=torch.float64) for one in (x, v))
    function = far_map(**numbers)[name]
    actual = outer(inner(lambda v: function(x, v.unsqueeze(0))[0, 0]))(v[0])
    with mp.workdps(DIGITS):
        units = [[DIFFERENCE * (i == j) for j in range(2)] for i in range(2)]

        def at(*steps):
            return true_far_map(
                exact(x), [sum(terms) for terms in zip(exact(v), *steps, strict=True)], **numbers
            )[0]

        for i, a in enumerate(units):
            row = []
            for b in units:
                minus_a, minus_b = ([-one for one in step] for step in (a, b))
                corners = at(a, b) - at(a, minus_b) - at(minus_a, b) + at(minus_a, minus_b)
                row.append(corners / (4 * DIFFERENCE**2))
            assert_rounded(actual[i : i + 1], row, 1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [100.0, 715.0, 1000.0, 3e4])
def test_forward_mode_beyond_the_range_of_exponentials(length, dtype):
    """Large, or infinite, with the right sign, and 0 where it is 0."""
    v, along = torch.tensor([[-length, 0.0]], dtype=dtype), torch.tensor([[1.0, 0.0]], dtype=dtype)
    for function in (
        hk.exp_map0,
        lambda v: hk.scaled_exp_map0(v, 1.5),
        lambda v: hk.exp_map(torch.tensor([[-1.0, 0.0]], dtype=dtype), v),
    ):
        value, tangent = torch.func.jvp(function, (v,), (along,))
        torch.testing.assert_close(value, function(v))
        assert (tangent[0, 0] > 1e30) & (tangent[0, 1] == 0), tangent


@pytest.mark.slow
def test_values_beyond_float64_in_a_compiled_function():
    torch._dynamo.reset()
    x, v = (torch.tensor(one, dtype=torch.float64) for one in ([[3.0, 0.0]], [[-3000.0, 4000.0]]))
    compiled = torch.compile(torch.func.vmap(hk.exp_map), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, v), hk.exp_map(x, v))


@pytest.mark.parametrize("size", [1e-60, 1e60, 1e200])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_forward_mode_refuses_a_scale_that_leaves_its_range(size, sign):
    x = torch.tensor([[3e-3, 4e-3]], dtype=torch.float64)
    for scale in (sign * size, torch.tensor(sign * size, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"hypkernels.scaled_exp_map0 has forward mode .* scales"):
            torch.func.jvp(lambda x, scale=scale: hk.scaled_exp_map0(x, scale), (x,), (x,))


@pytest.mark.parametrize("size", [1e-60, 1e60, 1e200])
@pytest.mark.parametrize("name", ["dist0", "elementwise_dist", "pairwise_dist", "exp_map0"])
def test_higher_derivatives_refuse_what_leaves_their_range(name, size):
    x = torch.full((2, 3), size, dtype=torch.float64, requires_grad=True)
    others = [torch.ones(2, 3, dtype=torch.float64)] * ("dist0" not in name and name != "exp_map0")

    def function(x, curv=1.0):
        return getattr(hk, name)(x, *others, curv).sum()

    refused = pytest.raises(
        ValueError, match=rf"hypkernels.{name} has forward .* got {re.escape(f'{size:.3g}')}"
    )
    with refused:
        torch.func.jvp(function, (x,), (x,))
    with refused:
        torch.func.vmap(lambda x: torch.func.jvp(function, (x,), (x,)))(x)
    (slope,) = torch.autograd.grad(function(x), x, create_graph=True)
    with refused:
        slope.sum().backward()
    with refused:
        torch.func.jvp(lambda x: function(x, size), (torch.ones_like(x),), (torch.ones_like(x),))
