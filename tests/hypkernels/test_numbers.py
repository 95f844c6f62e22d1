"""Finite numbers of every size: values and gradients of the closed forms against several thousand digits."""

import math

import lorentz_oracle
import mpmath as mp
import pytest
import torch
from lorentz_oracle import DEFINITIONS, ONE_POINT, truth
from mpmath import mpf
from rowwise_ops import OPS, options_of

import hypkernels as hk
from hypkernels.cpu import library
from hypkernels.saturation import copy_gradient, saturated
from hypkernels.wide import Wide

LARGEST, SMALLEST = torch.finfo(torch.float64).max, 5e-324
TINY = 2.0**-1022


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


X, Y = randn(1, 3), randn(1, 3, seed=1)
# name -> x, y, c
PLACES = {
    "far": (1e200 * X, 3e200 * Y, 1.0),
    "at the largest numbers": (row(1.7e308, 1.7e308), row(-1.7e308, 1e308), 1.0),
    "opposite": (row(1e200, 0.0), row(-1e200, 0.0), 1.0),
    "opposite on a line": (row(1e200), row(-1e200), 1.0),
    "on one ray": (row(1e200, 0.0), row(3e200, 0.0), 1.0),
    "on one ray, far apart": (row(1e300, 0.0), row(1e100, 0.0), 1.0),
    "on one ray, near": (row(0.0, 1.23e200), row(0.0, 1.23e200 * (1 - 1e-6)), 1.0),
    "on one line, near": (row(-6.861359044113931e129), row(-6.861352182754887e129), 2.23e-5),
    "almost on one ray": (row(1e250, 0.0), row(1e250, 1e50), 1.0),
    "almost on one ray, near": (row(1e250, 0.0), row(1.5e250, 1e-3), 1.0),
    "a unit apart": (row(1e250, 2e250), row(1e250 * (1 + 1e-15), 2e250), 1.0),
    "tiny": (1e-200 * X, 1e-200 * Y, 1.0),
    "subnormal": (row(5e-324, 1e-323), row(1e-322, 5e-324), 1.0),
    "tiny and huge": (1e-300 * X, 1e300 * Y, 0.4),
    "huge and tiny": (1e300 * X, 1e-300 * Y, 0.4),
    "tiny and moderate": (1e-250 * X, Y, 1.0),
    "moderate and tiny": (X, 1e-250 * Y, 1.0),
    "moderate and huge, at a right angle": (row(1.0, 0.0), row(0.0, 1e200), 1.0),
    "a tiny angle": (row(1.0, 0.0), row(2.0, 1e-200), 1.0),
    "strongly curved": (X, Y, 1e300),
    "strongly curved and far": (1e200 * X, 1e250 * Y, 1e300),
    "strongly curved and tiny": (1e-150 * X, 1e-150 * Y, 1e300),
    "hardly curved": (X, Y, 1e-300),
    "hardly curved and far": (1e150 * X, 1e150 * Y, 1e-300),
    "hardly curved and tiny": (1e-200 * X, 1e-250 * Y, 1e-300),
}


@pytest.fixture(scope="module", autouse=True)
def _digits():
    """Numbers of 1e-1000 beside 1e1000."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lorentz_oracle, "DIGITS", 4500)
        patch.setattr(lorentz_oracle, "STEP", mpf(10) ** -1500)
        yield


def assert_number(actual, true, tolerance):
    """Each number relative to itself; infinite beyond the largest number, and exact to a subnormal."""
    for value, expected in zip(actual.reshape(-1).tolist(), true, strict=True):
        if abs(expected) > mpf(LARGEST):
            assert value == math.copysign(math.inf, expected)
        else:
            assert abs(mpf(value) - expected) <= tolerance * max(abs(expected), TINY) + SMALLEST


def assert_direction(actual, true, tolerance):
    """A gradient by a point, relative to its largest component; that is at most the largest number."""
    largest = max(map(abs, true))
    if largest > mpf(LARGEST):
        true = [component / largest * mpf(LARGEST) for component in true]
        assert actual.abs().max() == LARGEST
    for value, expected in zip(actual.reshape(-1).tolist(), true, strict=True):
        assert abs(mpf(value) - expected) <= tolerance * max(min(largest, LARGEST), TINY)


def results(name, vectors, c, upstream=None):
    """Value, gradients by points and by the curvature of rows, with the upstream gradient."""
    op, options, curv = OPS[name], options_of(name), torch.as_tensor(c, dtype=torch.float64)
    value = op.formula(*vectors, curv, *options)
    upstream = randn(*value.shape, seed=2) if upstream is None else upstream
    return value, op.gradient(upstream, *vectors, curv, *options), upstream


def assert_accurate(name, vectors, c, tolerance=1e-12):
    value, (*by_points, by_curv), upstream = results(name, vectors, c)
    true = truth(name, [v[0] for v in vectors], c, upstream[0], options_of(name))
    assert_number(value, true.value, tolerance)
    for gradient, expected in zip(by_points, true.gradients, strict=True):
        assert_direction(gradient, expected, tolerance)
    assert_number(by_curv, [true.curv_gradient], tolerance)


# Angles have a kink there: 0 or pi, with gradients of 0.
COLLINEAR = {
    "opposite": math.pi,
    "opposite on a line": math.pi,
    "on one ray": 0.0,
    "on one ray, far apart": math.pi,
    "on one ray, near": math.pi,
    "on one line, near": math.pi,
}
# Of one point, those that differ.
OF_ONE_POINT = [
    place for place in PLACES if not place.startswith(("on one", "almost", "a unit", "opposite", "moderate"))
]
CASES = [
    (name, place)
    for name in DEFINITIONS
    for place in (OF_ONE_POINT if name in ONE_POINT else PLACES)
    if not (name in ("oxy_angle", "entailment_loss") and place in COLLINEAR)
    # A map's gradient cancels there, whatever the arithmetic.
    and not (name == "exp_map" and place in ("on one ray, near", "on one line, near"))
]


@pytest.mark.parametrize(("name", "place"), CASES)
def test_results_that_float64_holds(name, place):
    *vectors, c = PLACES[place]
    assert_accurate(name, vectors[:1] if name in ONE_POINT else vectors, c)


@pytest.mark.parametrize("place", COLLINEAR)
def test_angles_of_far_collinear_points(place):
    *vectors, c = PLACES[place]
    angle, grads, _ = results("oxy_angle", vectors, c)
    torch.testing.assert_close(angle, row(COLLINEAR[place]), rtol=1e-15, atol=0)
    assert not any(gradient.any() for gradient in grads)


# A tangent vector's components are as far apart as its exponential's factor is large.
@pytest.mark.parametrize("length", [300.0, 709.0, 711.0, 1000.0, 1450.0])
@pytest.mark.parametrize("c", [1.0, 1e100])
def test_a_huge_factor_times_a_tiny_component(length, c):
    v = row(length, 1e-300, -1e-320, 0.0) / c**0.5
    value, (by_v, _), _ = results("exp_map0", [v], c)
    true = truth("exp_map0", [v[0]], c, randn(1, 4, seed=2)[0])
    assert_number(value, true.value, 1e-12)
    assert_direction(by_v, true.gradients[0], 1e-12)
    assert_accurate("exp_map", [row(0.0, 0.0, 0.0, 1e-300) / c**0.5, v], c)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("width", [1, 2, 700])
def test_maps_beyond_the_range_of_their_type(width, sign, dtype):
    """Infinite where the result is not 0, which it is where the argument is."""
    v = torch.zeros(2, width, dtype=dtype)
    v[:, 0] = sign * 2000
    expected = torch.zeros_like(v)
    expected[:, 0] = sign * math.inf
    x = torch.zeros_like(v)
    x[:, -1] = sign
    far = torch.where(v + x == 0, 0.0, sign * math.inf).to(dtype)
    assert hk.exp_map0(v).equal(expected)
    assert hk.scaled_exp_map0(v, 1e300).equal(expected)
    assert hk.scaled_exp_map0(v, -1e300).equal(-expected)
    assert hk.exp_map(torch.zeros_like(v), v).equal(expected)
    assert hk.exp_map(x, v).equal(far)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_rows_beyond_the_range_beside_others(name):
    """Each row as if it were alone, those of the plain formulas to the last bit; batches of any shape too."""
    width = 3
    inside = [randn(5, width, seed=seed) for seed in (3, 4)]
    vectors = [p.clone() for p in inside]
    vectors[0][1], vectors[1][3], vectors[0][4] = 1e-200, 1e200, 0
    count = 1 if name in ONE_POINT else 2
    vectors, inside = vectors[:count], inside[:count]
    c = torch.tensor([0.7, 1.0, 1e300, 2.0, 0.5], dtype=torch.float64).unsqueeze(-1)
    value, grads, upstream = results(name, vectors, c)
    shaped = results(
        name, [v.reshape(1, 5, width) for v in vectors], c.reshape(1, 5, 1), upstream.unsqueeze(0)
    )
    for one, again in zip((value, *grads), (shaped[0], *shaped[1]), strict=True):
        assert again.squeeze(0).equal(one)
    for index in range(5):
        at = slice(index, index + 1)
        alone, alone_grads, _ = results(name, [v[at] for v in vectors], c[at], upstream[at])
        for one, expected in zip((value, *grads), (alone, *alone_grads), strict=True):
            assert one[at].equal(expected)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_wide_numbers_where_plain_ones_do(name):
    """The same formulas: the out-of-range path at points within the range."""
    vectors = [randn(6, 4, seed=5), randn(6, 4, seed=6)][: 1 if name in ONE_POINT else 2]
    vectors[0][1] = 0
    if len(vectors) == 2:
        vectors[1][2:4] = vectors[0][2:4]
        vectors[1][3] *= -2
    op, options, c = OPS[name], options_of(name), torch.tensor(0.7, dtype=torch.float64)
    value, grads, upstream = results(name, vectors, c)
    wide = [Wide.of(one) for one in (upstream, *vectors, c)]
    wide_value = op.formula.__wrapped__(*wide[1:], *options)
    wide_grads = op.gradient.__wrapped__(*wide, *options)
    for one, expected in zip((wide_value, *wide_grads), (value, *grads), strict=True):
        torch.testing.assert_close(one.float64(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gradient_too_large_for_its_type_keeps_its_direction(dtype):
    limit = torch.finfo(dtype).max
    rows = torch.tensor([[3.0, -4.0, 0.0], [1.0, 2.0, 3.0]], dtype=torch.float64)
    large = rows * torch.tensor([[limit], [1.0]], dtype=torch.float64)
    target = torch.empty(2, 3, dtype=dtype)
    copy_gradient(target, large)
    assert target.equal(torch.tensor([[0.75 * limit, -limit, 0], [1, 2, 3]], dtype=torch.float64).to(dtype))
    assert saturated(rows, dtype).equal(rows)


def test_gradients_at_subnormal_points_keep_their_direction():
    x, y = row(5e-324, 0.0), row(0.0, 1.0)
    _, (by_x, by_y, _), _ = results("oxy_angle", [x, y], 1.0, row(1.0))
    torch.testing.assert_close(by_x, row(0.0, -LARGEST), rtol=0, atol=1)
    torch.testing.assert_close(by_y, row(-1.0, 0.0), rtol=1e-15, atol=1e-300)


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("name", [name for name in DEFINITIONS if name != "entailment_loss"])
def test_a_huge_upstream_gradient_keeps_its_direction(name, backend):
    """Gradients are linear in it, up to the largest number."""
    if backend == "native" and library.why_not():
        pytest.skip(library.why_not())
    shape = (2, 3)
    points = [1e-3 * randn(*shape, seed=seed) for seed in range(1 if name in ONE_POINT else 2)]
    points[0][0] *= 3e4  # the exponential of a long vector
    points = [one.requires_grad_() for one in points]
    with hk.use_backend(backend):
        out = getattr(hk, name)(*points)
        ones, huge = (
            torch.autograd.grad(out, points, torch.full_like(out, upstream), retain_graph=True)
            for upstream in (1.0, 1e300)
        )
    for by, scaled in zip(ones, huge, strict=True):
        expected = torch.stack([(Wide(row) * 1e300).saturated() for row in by])
        torch.testing.assert_close(scaled, expected, rtol=1e-9, atol=0)


@pytest.mark.slow
def test_arithmetic_of_wide_numbers():
    """Against exact arithmetic, at exponents of thousands."""
    fractions, others = randn(200, seed=7), randn(200, seed=8)
    exponents = torch.arange(200) * 40 - 4000
    a, b = Wide(fractions, exponents), Wide(others, exponents.flip(0) // 3)
    with mp.workdps(3000):

        def exact(wide):
            pairs = zip(wide.mantissa.tolist(), wide.exponent.tolist(), strict=True)
            return [mp.ldexp(mpf(m), e) for m, e in pairs]

        def check(wide, function, *operands, tolerance=2.0**-52):
            for value, *arguments in zip(exact(wide), *map(exact, operands), strict=True):
                true = function(*arguments)
                assert abs(value - true) <= tolerance * abs(true)

        check(a + b, lambda p, q: p + q, a, b)
        check(a - b, lambda p, q: p - q, a, b)
        check(a * b, lambda p, q: p * q, a, b)
        check(a / b, lambda p, q: p / q, a, b)
        check(a**3, lambda p: p**3, a, tolerance=2.0**-51)
        positive = a * a
        check(torch.sqrt(positive), mp.sqrt, positive)
        check(torch.asinh(a), mp.asinh, a, tolerance=2.0**-50)
        moderate = Wide(fractions.abs(), exponents.clamp(max=14))
        check(torch.sinh(moderate), mp.sinh, moderate, tolerance=1e-11)
        check(torch.cosh(moderate), mp.cosh, moderate, tolerance=1e-11)
        check(torch.atan2(positive, b), lambda p, q: mp.atan2(p, q), positive, b, tolerance=2.0**-50)
        assert ((a < b) == torch.tensor([p < q for p, q in zip(exact(a), exact(b), strict=True)])).all()
