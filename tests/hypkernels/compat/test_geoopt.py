"""geoopt's manifolds with this library's formulas: beside geoopt's own, and by their properties."""

import copy
import inspect
import math

import pytest
import torch

import hypkernels as hk
from hypkernels import conventions

geoopt = pytest.importorskip("geoopt", reason="geoopt is not installed: pip install 'hysac[geoopt]'")
from hypkernels.compat.geoopt import Lorentz, PoincareBall  # noqa: E402

CURVATURES = (0.3, 1.0, 4.0)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def wide(value):
    return torch.tensor(value, dtype=torch.float64)


def full(space, k):
    return conventions.space_to_full(space, 1 / k)


def tangent(x, v, k):
    return conventions.tangent_to_full(x[..., 1:], v, 1 / k)


def error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


# ---------------------------------------------------------------- as geoopt


@pytest.mark.parametrize("ours", [Lorentz, PoincareBall])
def test_signatures_are_those_of_geoopt(ours):
    theirs = ours.__mro__[1]
    compared = 0
    for name, method in vars(ours).items():
        original = getattr(theirs, name, None)
        if inspect.isfunction(method) and inspect.isfunction(original) and name not in ("__init__", "random"):
            found, expected = (inspect.signature(f).parameters for f in (method, original))
            assert [one for one in found if one in expected] == list(expected), name
            for one in expected.values():  # but for inner0(None), which fails
                assert found[one.name].kind == one.kind
                assert found[one.name].default == one.default or name == "inner0"
            compared += 1
    assert compared > 8
    assert list(inspect.signature(ours.__init__).parameters) == list(
        inspect.signature(theirs.__init__).parameters
    )
    assert not hasattr(theirs, "half_aperture")  # when it is, this should follow its signature


def test_version():
    assert geoopt.__version__.startswith("0.5"), "read what changed, then docs/compat.md and this file"


LORENTZ = {
    "dist": lambda m, x, y, u, v: m.dist(x, y),
    "dist, kept": lambda m, x, y, u, v: m.dist(x, y, keepdim=True),
    "dist2": lambda m, x, y, u, v: m.dist2(x, y),
    "dist0": lambda m, x, y, u, v: m.dist0(x),
    "norm": lambda m, x, y, u, v: m.norm(u),
    "norm, kept": lambda m, x, y, u, v: m.norm(u, keepdim=True),
    "inner": lambda m, x, y, u, v: m.inner(x, u, v),
    "inner of one": lambda m, x, y, u, v: m.inner(None, u),
    "inner, kept": lambda m, x, y, u, v: m.inner(x, u, v, keepdim=True),
    "component_inner": lambda m, x, y, u, v: m.component_inner(x, u, v),
    "inner0": lambda m, x, y, u, v: m.inner0(x),
    "projx": lambda m, x, y, u, v: m.projx(u),
    "proju": lambda m, x, y, u, v: m.proju(x, y),
    "egrad2rgrad": lambda m, x, y, u, v: m.egrad2rgrad(x, y.clone()),
    "expmap": lambda m, x, y, u, v: m.expmap(x, u),
    "expmap of no tangent": lambda m, x, y, u, v: m.expmap(x, y),
    "expmap, plain": lambda m, x, y, u, v: m.expmap(x, u, norm_tan=False, project=False),
    "retr": lambda m, x, y, u, v: m.retr(x, u),
    "expmap0": lambda m, x, y, u, v: m.expmap0(m.logmap0(x)),
    "logmap": lambda m, x, y, u, v: m.logmap(x, y),
    "logmap0": lambda m, x, y, u, v: m.logmap0(x),
    "logmap0back": lambda m, x, y, u, v: m.logmap0back(x),
    "transp": lambda m, x, y, u, v: m.transp(x, y, u),
    "transp0": lambda m, x, y, u, v: m.transp0(y, m.logmap0(x)),
    "transp0back": lambda m, x, y, u, v: m.transp0back(x, u),
    "transp_follow_expmap": lambda m, x, y, u, v: m.transp_follow_expmap(x, u, v),
    "transp_follow_retr": lambda m, x, y, u, v: m.transp_follow_retr(x, u, v),
    "expmap_transp": lambda m, x, y, u, v: torch.cat(m.expmap_transp(x, u, v)),
    "retr_transp": lambda m, x, y, u, v: torch.cat(m.retr_transp(x, u, v)),
    "geodesic_unit": lambda m, x, y, u, v: m.geodesic_unit(wide(0.7), x, u / m.norm(u, keepdim=True)),
    "geodesic_unit of rows": lambda m, x, y, u, v: m.geodesic_unit(
        normal(5, 1, seed=8), x, u / m.norm(u, keepdim=True)
    ),
    "origin": lambda m, x, y, u, v: m.origin(2, 4),
}


def on_lorentz(k):
    x, y = (full(normal(5, 4, seed=seed), k) for seed in (0, 1))
    return [x, y, *(tangent(x, normal(5, 4, seed=seed), k) for seed in (2, 3))]


@pytest.mark.parametrize("name", LORENTZ)
@pytest.mark.parametrize("k", CURVATURES)
def test_values_are_geoopts_where_it_resolves_them(name, k):
    arguments = on_lorentz(k)
    found, expected = (LORENTZ[name](m, *arguments) for m in (Lorentz(wide(k)), geoopt.Lorentz(wide(k))))
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert error(found, expected) < 1e-9


@pytest.mark.parametrize("name", ["dist", "dist2", "dist0", "expmap", "logmap", "transp", "logmap0back"])
@pytest.mark.parametrize("k", CURVATURES)
def test_riemannian_gradients_are_geoopts(name, k):
    """Euclidean ones are of another extension off the manifold."""
    found, expected = [], []
    for manifold, results in ((Lorentz(wide(k)), found), (geoopt.Lorentz(wide(k)), expected)):
        x, y, u, v = on_lorentz(k)
        x, y = x.requires_grad_(), y.requires_grad_()
        along = manifold.proju(x, u)  # whatever x is, and tangent there
        out = LORENTZ[name](manifold, x, y, along, v)
        grads = torch.autograd.grad(out, (x, y), normal(*out.shape, seed=7), allow_unused=True)
        for point, grad in zip((x, y), grads, strict=True):
            if grad is not None:
                results.append(geoopt.Lorentz(wide(k)).egrad2rgrad(point.detach(), grad.clone()))
    assert found
    for a, b in zip(found, expected, strict=True):
        assert b.norm() > 0
        assert error(a, b) < 1e-8


@pytest.mark.parametrize("k", CURVATURES)
def test_the_radius_learns(k):
    manifold = Lorentz(wide(k), learnable=True)
    x, y = (full(normal(5, 4, seed=seed), k) for seed in (0, 1))
    manifold.dist(x, y).sum().backward()
    c = wide(1 / k).requires_grad_()
    hk.elementwise_dist(x[:, 1:], y[:, 1:], c).sum().backward()
    assert math.isclose(manifold.k.grad, -c.grad / k**2, rel_tol=1e-12)


# ---------------------------------------------------------------- what geoopt has not, or not right


@pytest.mark.parametrize("k", CURVATURES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_near_pairs(k, dtype):
    """1e-6 apart, where geoopt's distance may be negative and its logarithm is 100 times as long."""
    manifold = Lorentz(wide(k).to(dtype))
    space = normal(5, 4, dtype=dtype)
    x, y = full(space, k), full(space + 1e-6 * normal(5, 4, seed=1, dtype=dtype), k)
    exact = hk.elementwise_dist(x[:, 1:].double(), y[:, 1:].double(), 1 / manifold.k.double())
    assert error(manifold.dist(x, y).double(), exact) < 1e-6
    length = manifold.norm(manifold.logmap(x.double(), y.double()))
    assert error(length, exact) < 1e-7
    assert torch.equal(manifold.dist(x, x), torch.zeros(5, dtype=dtype))
    theirs = geoopt.Lorentz(wide(k).to(dtype))
    assert error(theirs.norm(theirs.logmap(x, y)).double(), exact) > 1


@pytest.mark.parametrize("k", CURVATURES)
def test_cones_and_pairs(k):
    manifold, c = Lorentz(wide(k)), 1 / wide(k)
    x, y = full(normal(5, 4), k), full(normal(3, 4, seed=1), k)
    a, b = x[:, 1:], y[:, 1:]
    assert torch.allclose(manifold.cdist(x, y), manifold.dist(x[:, None], y[None]), rtol=1e-10)
    minkowski = x[:, 1:] @ y[:, 1:].T - x[:, :1] @ y[:, :1].T
    assert torch.allclose(manifold.pairwise_inner(x, y), minkowski, rtol=1e-10)
    sine = 0.2 * k**0.5 / a.norm(dim=1)
    expected = torch.where(sine < 1, torch.asin(sine.clamp(max=1)), math.pi / 2)
    assert torch.allclose(manifold.half_aperture(x), expected, rtol=1e-10)
    assert torch.allclose(manifold.half_aperture(x, min_radius=0.3), hk.half_aperture(a, c, 0.3), rtol=1e-10)
    assert manifold.half_aperture(x, keepdim=True).shape == (5, 1)
    to_x, to_y, between = (
        one / k**0.5 for one in (manifold.dist0(x)[:, None], manifold.dist0(y)[None], manifold.cdist(x, y))
    )
    cosine = (to_x.cosh() * between.cosh() - to_y.cosh()) / (to_x.sinh() * between.sinh())
    angles = manifold.pairwise_exterior_angle(x, y)
    assert torch.allclose(angles, math.pi - torch.acos(cosine), rtol=1e-9)
    assert torch.allclose(manifold.exterior_angle(x[:, None], y[None]), angles, rtol=1e-9)
    assert torch.allclose(angles, hk.pairwise_oxy_angle(a, b, c), rtol=1e-12)


@pytest.mark.parametrize("name", ["half_aperture", "exterior_angle", "pairwise_exterior_angle", "cdist"])
def test_gradients_of_cones_and_pairs(name):
    """Those of the functions of space components, with ``k`` for ``1/k``."""
    direct = {
        "half_aperture": lambda a, b, k: hk.half_aperture(a, 1 / k),
        "exterior_angle": lambda a, b, k: hk.oxy_angle(a, b, 1 / k),
        "pairwise_exterior_angle": lambda a, b, k: hk.pairwise_oxy_angle(a, b, 1 / k),
        "cdist": lambda a, b, k: hk.pairwise_dist(a, b, 1 / k),
    }[name]
    manifold = Lorentz(wide(0.3), learnable=True)
    x, y = (full(normal(5, 4, seed=seed), 0.3).requires_grad_() for seed in (0, 1))
    a, b, k = (
        x[:, 1:].detach().requires_grad_(),
        y[:, 1:].detach().requires_grad_(),
        wide(0.3).requires_grad_(),
    )
    arguments = (x,) if name == "half_aperture" else (x, y)
    out, expected = getattr(manifold, name)(*arguments), direct(a, b, k)
    upstream = normal(*out.shape, seed=7)
    found = torch.autograd.grad(out, (*arguments, manifold.k), upstream)
    truth = torch.autograd.grad(expected, (a, b, k) if len(arguments) == 2 else (a, k), upstream)
    for one, other in zip(found[:-1], truth[:-1], strict=True):
        assert torch.equal(one[:, :1], torch.zeros(5, 1, dtype=torch.float64))
        assert error(one[:, 1:], other) < 1e-12
    assert math.isclose(found[-1], truth[-1], rel_tol=1e-12)


def test_pairs_of_batches():
    x, y = full(normal(2, 5, 4), 2.0), full(normal(2, 3, 4, seed=1), 2.0)
    assert Lorentz(wide(2.0)).cdist(x, y).shape == (2, 5, 3)


def test_no_argument_is_written_to():
    x, grad, k = full(normal(5, 4), 1.0), normal(5, 5, seed=1), wide(2.0)
    before = grad.clone()
    manifold = Lorentz(k)
    manifold.egrad2rgrad(x, grad)
    assert torch.equal(grad, before)
    with torch.no_grad():
        manifold.k.mul_(2)
    ball = PoincareBall(k)
    with torch.no_grad():
        ball.isp_c.mul_(2)
    assert k == 2


OF_DIMENSIONS = {
    **{"dist": "xy", "dist0": "x", "norm": "u", "inner": "xuv", "inner0": "v", "half_aperture": "x"},
    **{"exterior_angle": "xy", "projx": "x", "proju": "xv", "egrad2rgrad": "xv", "expmap": "xu"},
    **{"expmap0": "u", "logmap": "xy", "logmap0": "x", "logmap0back": "x", "transp": "xyu"},
    **{"transp0": "yu", "transp0back": "xu"},
}


@pytest.mark.parametrize("dim", [0, 1])
def test_dimensions(dim):
    manifold, plain = Lorentz(wide(2.0)), dict(zip("xyuv", on_lorentz(2.0), strict=True))
    turned = {name: one.movedim(-1, dim) for name, one in plain.items()}
    for name, arguments in OF_DIMENSIONS.items():
        found = getattr(manifold, name)(*(turned[one] for one in arguments), dim=dim)
        expected = getattr(manifold, name)(*(plain[one] for one in arguments))
        assert torch.equal(found.movedim(dim, -1) if expected.dim() > 1 else found, expected), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype):
    manifold = Lorentz(wide(2.0).to(dtype))
    tolerance = 8 * torch.finfo(dtype).eps
    x, y = (full(normal(5, 4, seed=seed, dtype=dtype), 2.0) for seed in (0, 1))
    a, b = x[:, 1:].double(), y[:, 1:].double()
    found = manifold.dist(x, y)
    assert found.dtype == dtype
    assert error(found.double(), hk.elementwise_dist(a, b, 0.5)) < tolerance
    log = manifold.logmap(x, y)
    assert log.dtype == dtype
    assert error(log[:, 1:].double(), hk.log_map(a, b, 0.5)) < tolerance
    assert manifold.expmap(x, log).dtype == dtype
    assert manifold.transp(x, y, log).dtype == dtype


def test_two_dtypes_are_promoted():
    x, y = full(normal(5, 4, dtype=torch.float32), 2.0), full(normal(5, 4, seed=1), 2.0)
    assert Lorentz(2.0).dist(x, y).dtype == torch.float64


# ---------------------------------------------------------------- properties of the manifold


@pytest.mark.parametrize("k", CURVATURES)
def test_properties(k):
    manifold, (x, y, u, v) = Lorentz(wide(k)), on_lorentz(k)
    log = manifold.logmap(x, y)
    manifold.assert_check_point_on_manifold(manifold.expmap(x, u))
    for vector in (log, manifold.proju(x, y), manifold.egrad2rgrad(x, y)):
        manifold.assert_check_vector_on_tangent(x, vector)
    assert torch.allclose(manifold.expmap(x, log), y)
    assert torch.allclose(manifold.norm(log), manifold.dist(x, y))
    assert torch.allclose(manifold.projx(x), x)
    assert torch.allclose(manifold.proju(x, u), u)
    moved, other = manifold.transp(x, y, u), manifold.transp(x, y, v)
    manifold.assert_check_vector_on_tangent(y, moved)
    assert torch.allclose(manifold.inner(y, moved, other), manifold.inner(x, u, v))
    assert torch.allclose(manifold.transp(y, x, moved), u)
    assert torch.allclose(manifold.transp(x, y, log), -manifold.logmap(y, x))
    assert torch.equal(manifold.transp(x, x, u), u)
    origin = manifold.origin(5, 5)
    assert torch.allclose(manifold.logmap0back(x), manifold.logmap(x, origin))
    assert torch.allclose(manifold.transp0back(x, u), manifold.transp(x, origin, u))
    assert torch.allclose(manifold.expmap0(manifold.logmap0(x)), x)


def test_transport_between_near_points_keeps_digits():
    k = 2.0
    manifold, (x, _, u, _) = Lorentz(wide(k)), on_lorentz(k)
    near = full(x[:, 1:] + 1e-9, k)
    moved = manifold.transp(x, near, u)
    assert ((moved - u).norm(dim=1) < 1e-7).all()
    assert error(manifold.norm(moved), manifold.norm(u)) < 1e-13


def test_norms_and_logarithms_of_nothing():
    manifold, x = Lorentz(wide(2.0)), full(normal(5, 4), 2.0).requires_grad_()
    zero = torch.zeros(5, 5, dtype=torch.float64, requires_grad=True)
    for out in (manifold.norm(zero), manifold.logmap(x, x), manifold.dist(x, x), manifold.expmap(x, zero)):
        grads = torch.autograd.grad(out.sum(), (x, zero), allow_unused=True)
        assert all(one.isfinite().all() for one in grads if one is not None)
    assert manifold.norm(1e-9 * torch.tensor([[0.0, 1.0, 0.0]])).item() == pytest.approx(1e-9)


def test_checks_tell():
    manifold, (x, _, u, _) = Lorentz(wide(2.0)), on_lorentz(2.0)
    assert not manifold.check_point_on_manifold(x * 1.01)
    assert not manifold.check_point_on_manifold(-x)
    assert not manifold.check_vector_on_tangent(x, u + 0.1 * x)
    assert manifold.check_vector_on_tangent(x, u)
    far = full(1e6 * normal(5, 4, dtype=torch.float32), 2.0)
    assert manifold.check_point_on_manifold(far)


def test_random_points_are_normal():
    torch.manual_seed(0)
    for std in (0.1, 1.0):
        points = Lorentz(wide(2.0)).random(4000, 5, std=std)
        assert isinstance(points, geoopt.ManifoldTensor)
        log = points.manifold.logmap0(points)
        assert torch.equal(log[:, 0], torch.zeros(4000, dtype=torch.float64))
        assert torch.allclose(log[:, 1:].std(0), wide(std), rtol=0.05)


# ---------------------------------------------------------------- with the rest of geoopt


OPTIMISERS = {
    "sgd": lambda p: geoopt.optim.RiemannianSGD([p], lr=0.1),
    "momentum": lambda p: geoopt.optim.RiemannianSGD([p], lr=0.05, momentum=0.5, stabilize=3),
    "adam": lambda p: geoopt.optim.RiemannianAdam([p], lr=0.1, stabilize=3),
    "amsgrad": lambda p: geoopt.optim.RiemannianAdam([p], lr=0.1, amsgrad=True),
}


@pytest.mark.parametrize("make", OPTIMISERS.values(), ids=OPTIMISERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("manifold", [Lorentz, PoincareBall])
def test_optimisers_step(make, dtype, manifold):
    manifold = manifold(wide(2.0).to(dtype))
    torch.manual_seed(0)
    start, target = (manifold.random(6, 5, std=0.5).detach().as_subclass(torch.Tensor) for _ in range(2))
    point = geoopt.ManifoldParameter(start, manifold=manifold)
    optimiser = make(point)
    first = manifold.dist(point, target).square().sum().item()
    for _ in range(150):
        optimiser.zero_grad()
        loss = manifold.dist(point, target).square().sum()
        loss.backward()
        before = point.grad.clone()
        optimiser.step()
        if isinstance(manifold, Lorentz):
            assert torch.equal(point.grad, before)  # geoopt's own manifold flips the sign of its time
        manifold.assert_check_point_on_manifold(point.detach())
    assert loss < 1e-3 * first


def test_parameters_products_and_scales():
    manifold = Lorentz(wide(2.0))
    x, y = full(normal(5, 4), 2.0), full(normal(5, 4, seed=1), 2.0)
    product = geoopt.ProductManifold((manifold, 5), (geoopt.Euclidean(ndim=1), 3))
    pack = [product.pack_point(one, torch.ones(5, 3).double() * index) for index, one in enumerate((x, y))]
    assert torch.allclose(product.dist2(*pack), manifold.dist2(x, y) + 3)
    scaled = geoopt.Scaled(manifold, 3.0)
    for name in ("dist", "cdist"):
        assert torch.allclose(getattr(scaled, name)(x, y), 3 * getattr(manifold, name)(x, y))
    assert torch.equal(scaled.half_aperture(x), manifold.half_aperture(x))
    with pytest.raises(NotImplementedError):
        scaled.pairwise_inner(x, y)
    again = copy.deepcopy(manifold)
    again.load_state_dict(geoopt.Lorentz(wide(3.0)).state_dict())
    assert again.k == 3
    parameter = geoopt.ManifoldParameter(x, manifold=manifold)
    assert torch.equal(parameter.manifold.dist(parameter, y), manifold.dist(x, y))


# ---------------------------------------------------------------- the ball


BALL = {
    "dist": lambda m, x, y, u, v: m.dist(x, y),
    "dist, kept": lambda m, x, y, u, v: m.dist(x, y, keepdim=True),
    "dist2": lambda m, x, y, u, v: m.dist2(x, y),
    "dist0": lambda m, x, y, u, v: m.dist0(x),
    "projx": lambda m, x, y, u, v: m.projx(x),
    "expmap": lambda m, x, y, u, v: m.expmap(x, u),
    "expmap0": lambda m, x, y, u, v: m.expmap0(u),
    "logmap": lambda m, x, y, u, v: m.logmap(x, y),
    "logmap0": lambda m, x, y, u, v: m.logmap0(x),
    "transp": lambda m, x, y, u, v: m.transp(x, y, u),
    "transp_follow_expmap": lambda m, x, y, u, v: m.transp_follow_expmap(x, u, v),
    "mobius_add": lambda m, x, y, u, v: m.mobius_add(x, y),
    "egrad2rgrad": lambda m, x, y, u, v: m.egrad2rgrad(x, u),
}


@pytest.mark.parametrize("name", BALL)
@pytest.mark.parametrize("c", CURVATURES)
def test_the_ball_is_geoopts_in_the_middle(name, c):
    points = [0.3 / c**0.5 * normal(5, 4, seed=seed).tanh() for seed in (0, 1)]
    arguments = [*points, 0.1 * normal(5, 4, seed=2), 0.1 * normal(5, 4, seed=3)]
    results = []
    for manifold in (PoincareBall(wide(c)), geoopt.PoincareBall(wide(c))):
        leaves = [one.clone().requires_grad_() for one in arguments]
        out = BALL[name](manifold, *leaves)
        grads = torch.autograd.grad(out, leaves, normal(*out.shape, seed=7), allow_unused=True)
        results.append([out, *(one for one in grads if one is not None)])
    for found, expected in zip(*results, strict=True):
        assert found.shape == expected.shape
        assert error(found, expected) < 1e-8


@pytest.mark.parametrize("c", CURVATURES)
def test_the_ball_is_the_hyperboloid(c):
    ball, lorentz = PoincareBall(wide(c)), Lorentz(wide(1 / c))
    space = [normal(5, 4, seed=seed) for seed in (0, 1)]
    x, y = (conventions.lorentz_to_ball(one, c) for one in space)
    a, b = (full(one, 1 / c) for one in space)
    assert torch.allclose(ball.dist(x, y), lorentz.dist(a, b), rtol=1e-12)
    assert torch.allclose(ball.cdist(x, y), lorentz.cdist(a, b), rtol=1e-12)
    assert torch.allclose(ball.expmap(x, ball.logmap(x, y)), y, rtol=1e-10)
    u = normal(5, 4, seed=2)
    moved = ball.transp(x, y, u)
    assert torch.allclose(ball.norm(y, moved), ball.norm(x, u), rtol=1e-10)


def test_the_ball_keeps_its_curvature_in_float64():
    """Near the boundary the last float32 digit of ``c`` is 3e-4 of ``1 - c|x|^2``."""
    points = [torch.tensor([[math.tanh(5.0), 0.0]]) * 8**0.5, torch.tensor([[0.0, -math.tanh(5.0)]]) * 8**0.5]
    expected = hk.elementwise_dist(
        *(conventions.ball_to_lorentz(one.double(), 0.125) for one in points), 0.125
    )
    for c in (0.125, torch.tensor([0.125])):
        ball = PoincareBall(c=c)
        assert torch.allclose(ball.dist(*points).double(), expected, rtol=2e-7)
        assert ball.mobius_add(*points).dtype == torch.float32


def test_the_ball_reaches_its_boundary():
    """geoopt holds float32 points at 1 - 4e-3 of the radius, at a distance of 6.2."""
    ball, theirs = PoincareBall(1.0), geoopt.PoincareBall(1.0)
    far = torch.tensor([[12.0, 0.0]])
    assert ball.dist0(ball.expmap0(far / 2)).item() == pytest.approx(12, rel=0.05)
    assert theirs.dist0(theirs.expmap0(far)).item() < 6.3
    outside = ball.projx(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    assert ball.check_point_on_manifold(outside)
    assert torch.allclose(outside[0], torch.tensor([0.6, 0.8]))
    # The norm is rounded to float32 after the projection: half an ulp of each of two coordinates.
    ulps_inside = (1 - outside[0].double().norm().item()) / torch.finfo(torch.float32).eps
    assert abs(ulps_inside - 4) <= 0.5
    assert ball.check_point_on_manifold(ball.expmap0(1e3 * far))
    assert not ball.check_point_on_manifold(torch.tensor([[1.0, 0.0]]))
    end = ball.expmap(torch.tensor([[0.9, 0.0]]), torch.tensor([[0.0, 1e6]]))
    # Moebius addition of (0, 1) to (0.9, 0); projected 4 ulps inside, and rounded.
    assert torch.allclose(end, torch.tensor([[1.8, 0.19]]) / 1.81, rtol=0, atol=6 * 2.0**-23)


@pytest.mark.parametrize("c", [1e-6, 0.3, 100.0])
def test_the_balls_parameter(c):
    """geoopt's overflows from 89 on, and overwrites the tensor it is given."""
    given = torch.tensor(c)
    ball = PoincareBall(given, learnable=True)
    assert given == torch.tensor(c)
    assert ball.c.item() == pytest.approx(c, rel=1e-5)
    ball.dist(0.1 * normal(5, 4), 0.1 * normal(5, 4, seed=1)).sum().backward() if c < 1 else None
    assert (ball.isp_c.grad is not None) == (c < 1)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("manifold", [Lorentz, PoincareBall])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), torch.ones(2)])
def test_bad_parameter(manifold, value):
    with pytest.raises(ValueError, match="must be one positive number"):
        manifold(value)


def test_bad_input():
    manifold, x = Lorentz(2.0), full(normal(5, 4, dtype=torch.float32), 2.0)
    with pytest.raises(ValueError, match="x and y"):
        manifold.dist(x, x[:, :3])
    with pytest.raises(ValueError, match="min_radius"):
        manifold.half_aperture(x, min_radius=0.0)
    with pytest.raises(ValueError, match="dtype must be that of the manifold"):
        manifold.random_normal(3, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="device must be that of the manifold"):
        manifold.random_normal(3, 4, device="meta")
    with pytest.raises(ValueError, match="points must lie in the open ball"):
        PoincareBall(1.0).dist0(torch.ones(3))
