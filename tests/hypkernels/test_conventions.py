"""Conversions to full vectors, geoopt's k and the Poincaré ball: exact for every curvature, and checked."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp

import hypkernels as hk
from hypkernels import conventions as cv

CURVATURES = (0.1, 1.0, 4.0)


def random_points(curv, rows=6, width=5, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return hk.exp_map0(
        torch.randn(rows, width, generator=generator, dtype=torch.float64) / curv**0.5, curv
    ).to(dtype)


def minkowski(a, b):
    return (a[..., 1:] * b[..., 1:]).sum(-1) - a[..., 0] * b[..., 0]


def ball_distance(p, q, curv):
    """The textbook distance of the Poincaré ball of curvature ``-curv``."""
    p_sq, q_sq = (curv * (a * a).sum(-1) for a in (p, q))
    gap = curv * ((p - q) ** 2).sum(-1)
    return torch.acosh(1 + 2 * gap / ((1 - p_sq) * (1 - q_sq))) / curv**0.5


@pytest.mark.parametrize("curv", CURVATURES)
def test_full_vectors_lie_on_geoopts_hyperboloid(curv):
    x, y = random_points(curv), random_points(curv, seed=1)
    full_x, full_y = cv.space_to_full(x, curv), cv.space_to_full(y, curv)
    k = cv.curv_to_k(curv)
    assert full_x.shape == (6, 6)
    torch.testing.assert_close(minkowski(full_x, full_x), torch.full((6,), -k, dtype=torch.float64))
    geoopt_distance = k**0.5 * torch.acosh(-minkowski(full_x, full_y) / k)
    torch.testing.assert_close(hk.elementwise_dist(x, y, curv), geoopt_distance)
    assert torch.equal(cv.full_to_space(full_x, curv), x)


def test_k_is_the_squared_radius():
    assert cv.curv_to_k(4.0) == 0.25
    assert cv.k_to_curv(cv.curv_to_k(0.3)) == pytest.approx(0.3)
    curv = torch.tensor(4.0, requires_grad=True)
    cv.curv_to_k(curv).backward()
    assert curv.grad == -1 / 16


@pytest.mark.parametrize("curv", CURVATURES)
def test_the_ball_has_the_same_distances(curv):
    x, y = random_points(curv), random_points(curv, seed=1)
    p, q = cv.lorentz_to_ball(x, curv), cv.lorentz_to_ball(y, curv)
    assert (p.norm(dim=-1) < curv**-0.5).all()
    torch.testing.assert_close(ball_distance(p, q, curv), hk.elementwise_dist(x, y, curv))
    torch.testing.assert_close(cv.ball_to_lorentz(p, curv), x)


@pytest.mark.parametrize("curv", CURVATURES)
def test_tangent_vectors_are_tangent(curv):
    x, v = random_points(curv), random_points(curv, seed=1)
    full = cv.tangent_to_full(x, v, curv)
    torch.testing.assert_close(
        minkowski(cv.space_to_full(x, curv), full), torch.zeros(6, dtype=torch.float64)
    )
    assert torch.equal(cv.tangent_to_space(x, full, curv), v)


def test_full_tangent_vector_gives_geoopts_exponential_map():
    curv = 0.3
    x, v = random_points(curv), random_points(curv, seed=1)
    full_x, full_v = cv.space_to_full(x, curv), cv.tangent_to_full(x, v, curv)
    tau = (curv * minkowski(full_v, full_v)).sqrt().unsqueeze(-1)
    arrival = torch.cosh(tau) * full_x + torch.sinh(tau) / tau * full_v
    torch.testing.assert_close(cv.full_to_space(arrival, curv), hk.exp_map(x, v, curv))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(0.05, 20), st.floats(1e-6, 8), st.integers(1, 7))
def test_round_trips(seed, curv, radius, width):
    """The ball's boundary magnifies a unit of rounding by ``cosh(r/2)^2``."""
    v = torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = hk.exp_map0(v / v.norm() * radius / curv**0.5, curv)
    back = cv.ball_to_lorentz(cv.lorentz_to_ball(x, curv), curv)
    rtol = 1e-15 * torch.cosh(torch.tensor(radius)).item() + 1e-14
    torch.testing.assert_close(back, x, rtol=rtol, atol=rtol * x.norm().item())
    assert torch.equal(cv.full_to_space(cv.space_to_full(x, curv), curv), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_kept_and_rounded_once(dtype):
    x, v = random_points(0.3, dtype=dtype), random_points(0.3, dtype=dtype, seed=1)
    ball = cv.lorentz_to_ball(x, 0.3)
    full, tangent = cv.space_to_full(x, 0.3), cv.tangent_to_full(x, v, 0.3)
    for actual, exact in (
        (ball, cv.lorentz_to_ball(x.double(), 0.3)),
        (cv.ball_to_lorentz(ball, 0.3), cv.ball_to_lorentz(ball.double(), 0.3)),
        (full, cv.space_to_full(x.double(), 0.3)),
        (tangent, cv.tangent_to_full(x.double(), v.double(), 0.3)),
    ):
        assert actual.dtype == dtype
        assert torch.equal(actual, exact.to(dtype))
    assert torch.equal(cv.full_to_space(full, 0.3), x)
    assert torch.equal(cv.tangent_to_space(x, tangent, 0.3), v)


def test_gradients():
    x, v = (random_points(0.3, rows=2, width=3, seed=s).requires_grad_() for s in range(2))
    curv = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    for function, args in (
        (cv.space_to_full, (x, curv)),
        (cv.lorentz_to_ball, (x, curv)),
        (cv.ball_to_lorentz, (0.1 * x, curv)),
        (cv.tangent_to_full, (x, v, curv)),
    ):
        assert torch.autograd.gradcheck(function, args)
        assert torch.autograd.gradgradcheck(function, args)


def test_points_off_the_hyperboloid_are_refused():
    x = random_points(0.3, dtype=torch.float32)
    full = cv.space_to_full(x, 0.3)
    with pytest.raises(ValueError, match="not on the hyperboloid of curvature -1"):
        cv.full_to_space(full, 1.0)
    with pytest.raises(ValueError, match="not on the hyperboloid"):
        cv.full_to_space(torch.cat([-full[:, :1], full[:, 1:]], dim=-1), 0.3)
    with pytest.raises(ValueError, match="not on the hyperboloid"):
        cv.full_to_space(full.clone().fill_(float("nan")), 0.3)
    assert torch.equal(cv.full_to_space(full, 1.0, check=False), x)


def test_vectors_that_are_not_tangent_are_refused():
    x = random_points(0.3)
    full = cv.tangent_to_full(x, x, 0.3)
    with pytest.raises(ValueError, match="not tangent at x"):
        cv.tangent_to_space(x, full + 1, 0.3)
    with pytest.raises(ValueError, match="not tangent at x"):
        cv.tangent_to_space(x, full, 3.0)
    assert torch.equal(cv.tangent_to_space(x, full, 3.0, check=False), x)
    zero = torch.zeros_like(full)
    assert not cv.tangent_to_space(x, zero, 0.3).any()


def test_points_outside_the_ball_are_refused():
    p = torch.tensor([[1.5, 0.0]])
    assert cv.ball_to_lorentz(p, 0.25).isfinite().all()
    with pytest.raises(ValueError, match=r"open ball of radius 1/sqrt\(curv\)"):
        cv.ball_to_lorentz(p, 1.0)


def test_compiles_without_graph_breaks():
    def round_trip(x, curv):
        ball = cv.ball_to_lorentz(cv.lorentz_to_ball(x, curv), curv)
        return cv.full_to_space(cv.space_to_full(ball, curv), curv) + cv.tangent_to_space(
            x, cv.tangent_to_full(x, x, curv), curv
        )

    x, curv = random_points(0.3), torch.tensor(0.3)
    compiled = torch.compile(round_trip, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, curv), 2 * x)


def test_a_vector_of_one_component_has_no_space_part():
    with pytest.raises(ValueError, match=r"points must have shape \(\.\.\., D \+ 1\)"):
        cv.full_to_space(torch.ones(3, 1))
    with pytest.raises(ValueError, match=r"vectors must have shape \(\.\.\., D \+ 1\)"):
        cv.tangent_to_space(torch.ones(3, 1), torch.ones(3, 1))


@pytest.mark.parametrize("curv", [1e-320, 1e-300, 1e-9, 1.0, 1e9, 1e300])
@pytest.mark.parametrize("size", [0.0, 1e-290, 1e-150, 1.0, 1e150, 1e200, 1e307])
def test_every_number_of_float64(size, curv):
    """Against 60 digits. Squares of these leave float64, the results do not."""
    x = size * torch.tensor([[3.0, -4.0]], dtype=torch.float64)
    with mp.workdps(60):
        rows, c = [mp.mpf(value) for value in x[0].tolist()], mp.mpf(curv)
        square = sum(value**2 for value in rows)
        time = mp.sqrt(1 / c + square)
        ball = [value / (1 + mp.sqrt(c) * time) for value in rows]
        numbers = [time, *rows, square / time, *ball]
        expected = torch.tensor([float(number) for number in numbers], dtype=torch.float64)
    full, tangent = cv.space_to_full(x, curv), cv.tangent_to_full(x, x, curv)
    actual = torch.cat([full[0], tangent[0, :1], cv.lorentz_to_ball(x, curv)[0]])
    torch.testing.assert_close(actual, expected, rtol=1e-14, atol=1e-320)
    assert torch.equal(cv.full_to_space(full, curv), x)
    assert torch.equal(cv.tangent_to_space(x, tangent, curv), x)
    if curv**0.5 * size < 1:
        torch.testing.assert_close(cv.ball_to_lorentz(actual[None, 4:], curv), x, rtol=1e-13, atol=1e-320)
    if size:
        with pytest.raises(ValueError, match="not tangent at x"):
            cv.tangent_to_space(x, tangent + 0.1 * size, curv)


CONVERSIONS = {
    "space_to_full": lambda x, c: cv.space_to_full(x, c),
    "full_to_space": lambda x, c: cv.full_to_space(cv.space_to_full(x, c), c),
    "tangent_to_full": lambda x, c: cv.tangent_to_full(x, 2 * x, c),
    "tangent_to_space": lambda x, c: cv.tangent_to_space(x, cv.tangent_to_full(x, 2 * x, c), c),
    "lorentz_to_ball": lambda x, c: cv.lorentz_to_ball(x, c),
    "ball_to_lorentz": lambda x, c: cv.ball_to_lorentz(cv.lorentz_to_ball(x, c), c),
    "curv_to_k": lambda x, c: cv.curv_to_k(c) * x,
}


@pytest.mark.parametrize("name", CONVERSIONS)
@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0)])
def test_vmap(name, in_dims):
    convert = CONVERSIONS[name]
    x = torch.stack([random_points(0.3, seed=seed) for seed in range(3)])
    c = torch.tensor([0.3, 0.4, 0.5], dtype=torch.float64)
    x, c = (all if dim == 0 else all[0] for all, dim in zip((x, c), in_dims, strict=True))
    together = torch.vmap(convert, in_dims)(x, c)
    for index in range(3):
        one = (all[index] if dim == 0 else all for all, dim in zip((x, c), in_dims, strict=True))
        torch.testing.assert_close(together[index], convert(*one))


@pytest.mark.parametrize("name", [name for name in CONVERSIONS if name != "curv_to_k"])
def test_a_curvature_on_the_cpu_beside_points_elsewhere(name):
    x, c = random_points(0.3), torch.tensor(0.3)
    assert CONVERSIONS[name](x.to("meta"), c).shape == CONVERSIONS[name](x, c).shape


def test_vmap_checks_every_sample():
    x, c = random_points(1.0), torch.tensor([1.0, 2.0])
    full, tangent, p = cv.space_to_full(x, 1.0), cv.tangent_to_full(x, x, 1.0), cv.lorentz_to_ball(x, 1.0)
    with pytest.raises(ValueError, match=r"not on the hyperboloid of curvature \[-1.0, -2.0\]"):
        torch.vmap(lambda c: cv.full_to_space(full, c))(c)
    with pytest.raises(ValueError, match=r"not on the hyperboloid of curvature -1.0"):
        torch.vmap(cv.full_to_space)(torch.stack([full, full + 1]))
    with pytest.raises(ValueError, match=r"not tangent at x for curvature \[-1.0, -2.0\]"):
        torch.vmap(lambda c: cv.tangent_to_space(x, tangent, c))(c)
    with pytest.raises(ValueError, match=r"open ball .* curv = \[1.0, 200.0\]"):
        torch.vmap(lambda c: cv.ball_to_lorentz(p, c))(torch.tensor([1.0, 200.0]))
    with pytest.raises(ValueError, match=r"curv must be positive and finite, got -2\.0 in"):
        torch.vmap(lambda c: cv.space_to_full(x, c))(torch.tensor([1.0, -2.0]))


@pytest.mark.parametrize("name", ["curv", "k"])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0.0, ValueError, "must be positive and finite, got 0.0"),
        (torch.tensor([1.0, 0.0]), ValueError, r"must be positive and finite, got 0.0 in a tensor of \(2,\)"),
        (torch.tensor(float("nan")), ValueError, "must be positive and finite, got nan"),
        ("1", TypeError, "must be a float or a tensor, got str"),
        (torch.tensor(1), TypeError, "must be a floating tensor, got torch.int64"),
        (torch.eye(2).to_sparse(), TypeError, "must be a dense tensor, got one of layout torch.sparse_coo"),
        (
            torch.nested.nested_tensor([torch.ones(2)]),
            TypeError,
            "must be a dense tensor, got a nested tensor",
        ),
    ],
)
def test_bad_squared_radii(name, value, error, message):
    function = {"curv": cv.curv_to_k, "k": cv.k_to_curv}[name]
    with pytest.raises(error, match=f"^{name} {message}"):
        function(value)


@pytest.mark.parametrize("curv", [1e-3, 0.1, 1.0, 50.0])
@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.float16, 1e-3)], ids=str
)
def test_the_curvature_of_points(curv, dtype, error):
    full = cv.space_to_full(0.2 * random_points(curv, rows=40), curv).view(4, 10, 6)
    assert cv.infer_curv(full.to(dtype)) == pytest.approx(curv, rel=error)


def test_far_points_do_not_spoil_the_curvature():
    """Alone they do not tell it: of their difference of squares nothing is left."""
    near, far = (cv.space_to_full(size * random_points(0.5, seed=3), 0.5).float() for size in (0.1, 1e5))
    assert cv.infer_curv(torch.cat([near, far])) == pytest.approx(0.5, rel=1e-5)
    with pytest.raises(ValueError, match=r"points must tell their curvature to 0.01, got .* torch.float32"):
        cv.infer_curv(far)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.ones(3, 1), r"points must have shape \(\.\.\., D \+ 1\), time first, got \(3, 1\)"),
        (torch.ones(0, 3), r"points must not be empty, got shape \(0, 3\)"),
        (torch.tensor([[-1.0, 0.0]]), "finite, positive time components"),
        (torch.tensor([[torch.nan, 0.0]]), "finite, positive time components"),
        (torch.tensor([[1.0, 2.0]]), "points must tell their curvature"),
        (torch.tensor([[1.0, 0.0], [2.0, 0.0]]), "points are not on the hyperboloid of curvature"),
        (torch.tensor([[1.0, torch.nan]]), "points must tell their curvature"),
    ],
)
def test_points_without_a_curvature(points, message):
    with pytest.raises(ValueError, match=message):
        cv.infer_curv(points)


@pytest.mark.parametrize("function", [cv.lorentz_to_ball, cv.ball_to_lorentz])
def test_no_ball_form_holds_what_compilers_write_inexactly(function):
    """Exporters write expm1 and log1p, and compilers atanh, so that they cancel near the origin."""
    graphs = []

    def backend(graph, _):
        graphs.append({str(getattr(node.target, "__name__", node.target)) for node in graph.graph.nodes})
        return graph

    points = 1e-6 * torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(function, fullgraph=True, backend=backend)(points, 0.5)
    torch.testing.assert_close(compiled.double(), function(points.double(), 0.5), rtol=1e-6, atol=0)
    (names,) = graphs
    assert "sqrt" in names or "truediv" in names  # these are the names of functions
    assert not names & {"atanh", "arctanh", "expm1", "log1p", "acosh", "arccosh"}
