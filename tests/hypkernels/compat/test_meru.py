"""The drop-in for the MERU family's ``lorentz.py``: signatures, shapes, values, gradients of both modes."""

import inspect
import math

import pytest
import torch

import hypkernels as hk
from hypkernels.compat import meru, meru_reference
from hypkernels.translation import to_origin

ARGUMENTS = {  # of the published functions, in order, with their defaults
    "pairwise_inner": {"x": None, "y": None, "curv": 1.0},
    "pairwise_dist": {"x": None, "y": None, "curv": 1.0, "eps": 1e-8},
    "elementwise_inner": {"x": None, "y": None, "curv": 1.0},
    "elementwise_dist": {"x": None, "y": None, "curv": 1.0, "eps": 1e-8},
    "exp_map0": {"x": None, "curv": 1.0, "eps": 1e-8},
    "log_map0": {"x": None, "curv": 1.0, "eps": 1e-8},
    "half_aperture": {"x": None, "curv": 1.0, "min_radius": 0.1, "eps": 1e-8},
    "oxy_angle": {"x": None, "y": None, "curv": 1.0, "eps": 1e-8},
    "oxy_angle_eval": {"x": None, "y": None, "curv": 1.0, "eps": 1e-8},
    "pairwise_oxy_angle": {"x": None, "y": None, "curv": 1.0, "eps": 1e-8},
    "exp_map0_batch": {"x": None, "curv": None, "eps": 1e-8},
    "log_map0_batch": {"x": None, "curv": None, "eps": 1e-8},
    "pairwise_inner_batch": {"x": None, "y": None, "curv": None},
    "pairwise_dist_batch": {"x": None, "y": None, "curv": None, "eps": 1e-8},
    "half_aperture_batch": {"x": None, "curv": None, "min_radius": 0.1, "eps": 1e-8},
    "oxy_angle_batch": {"x": None, "y": None, "curv": None, "eps": 1e-8},
    "get_space_norm": {"x": None},
    "get_distance_from_origin": {"x": None, "curv": 1.0},
}
ROOTED = {  # called by HySAC, published nowhere
    "half_aperture_withroot": {"x": None, "root": None, "curv": 1.0},
    "oxy_angle_withroot": {"x": None, "y": None, "root": None, "curv": 1.0},
}
MODULES = {"stable": meru, "reference": meru_reference}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def points(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def call(name, x, y, curv, **options):
    takes = inspect.signature(getattr(meru, name)).parameters
    arguments = [one for key, one in (("x", x), ("y", y), ("curv", curv)) if key in takes]
    return getattr(meru, name)(*arguments, **options)


def defaults(function):
    return {
        name: None if one.default is one.empty else one.default
        for name, one in inspect.signature(function).parameters.items()
        if one.kind is one.POSITIONAL_OR_KEYWORD
    }


# ---------------------------------------------------------------- names, order, defaults


def test_every_name_is_there():
    assert set(meru.__all__) == {*ARGUMENTS, *ROOTED}


@pytest.mark.parametrize("name", [*ARGUMENTS, *ROOTED])
@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_order_and_defaults(module, name):
    expected = {**ARGUMENTS, **ROOTED}[name]
    found = defaults(getattr(module, name))
    assert list(found)[: len(expected)] == list(expected)
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize("name", [name for name in meru.__all__ if name != "get_space_norm"])
@pytest.mark.parametrize("mode", meru.MODES)
def test_eps_is_taken_everywhere_by_position_and_by_name(name, mode):
    if name.endswith("_batch"):
        x, y, curv = points(4, 3, 5), points(4, 3, 5, seed=1), torch.tensor([0.5, 1.0, 2.0])
    else:
        x, y, curv = points(4, 5), points(4, 5, seed=1), 0.7
    named = {"x": x, "y": y, "root": 0.1 * y[0], "curv": curv, "min_radius": 0.1, "eps": 1e-6}
    takes = list(defaults(getattr(meru, name)))
    function = getattr(meru, name)
    by_name = function(**{key: named[key] for key in takes}, mode=mode)
    assert torch.equal(function(*(named[key] for key in takes), mode=mode), by_name)


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize("mode", meru.MODES)
@pytest.mark.parametrize(
    ("name", "shapes", "expected"),
    [
        ("pairwise_inner", [(4, 5), (6, 5)], (4, 6)),
        ("pairwise_dist", [(5,), (6, 5)], (6,)),
        ("pairwise_dist", [(4, 5), (5,)], (4,)),
        ("pairwise_dist", [(5,), (5,)], ()),
        ("elementwise_dist", [(4, 5), (4, 5)], (4,)),
        ("elementwise_dist", [(5,), (5,)], ()),
        ("elementwise_inner", [(4, 1, 5), (1, 6, 5)], (4, 6)),
        ("exp_map0", [(5,)], (5,)),
        ("log_map0", [(2, 3, 5)], (2, 3, 5)),
        ("half_aperture", [(5,)], ()),
        ("half_aperture", [(2, 3, 5)], (2, 3)),
        ("oxy_angle", [(5,), (6, 5)], (6,)),
        ("oxy_angle", [(4, 1, 5), (1, 6, 5)], (4, 6)),
        ("oxy_angle_eval", [(4, 5), (6, 5)], (6, 4)),
        ("oxy_angle_eval", [(4, 5), (5,)], (1, 4)),
        ("pairwise_oxy_angle", [(4, 5), (6, 5)], (4, 6)),
        ("get_distance_from_origin", [(4, 5)], (4, 1)),
        ("get_distance_from_origin", [(5,)], (1,)),
        ("exp_map0_batch", [(4, 3, 5)], (4, 3, 5)),
        ("pairwise_inner_batch", [(4, 3, 5), (6, 3, 5)], (3, 4, 6)),
        ("pairwise_dist_batch", [(4, 3, 5), (6, 3, 5)], (3, 4, 6)),
        ("half_aperture_batch", [(4, 3, 5)], (3, 4)),
        ("oxy_angle_batch", [(4, 3, 5), (4, 3, 5)], (3, 4)),
    ],
)
def test_shapes(name, shapes, expected, mode):
    x, *y = (points(*shape, seed=seed) for seed, shape in enumerate(shapes))
    assert call(name, x, y[0] if y else None, 0.7, mode=mode).shape == expected


def test_space_norm_keeps_a_dimension():
    x = points(4, 3, 5).requires_grad_()
    norms = meru.get_space_norm(x)
    assert torch.allclose(norms, x.norm(dim=-1, keepdim=True))
    (grad,) = torch.autograd.grad(norms.sum(), x)
    assert torch.allclose(grad, x / norms)
    at_origin = torch.zeros(1, 5, requires_grad=True)
    meru.get_space_norm(at_origin).sum().backward()
    assert torch.equal(at_origin.grad, torch.zeros(1, 5))


@pytest.mark.parametrize("mode", meru.MODES)
@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3, 1)])
@pytest.mark.parametrize(
    "name", [*(n for n in ARGUMENTS if n.endswith("_batch")), "exp_map0", "log_map0", "half_aperture"]
)
def test_curvatures_of_factors(name, shape, mode):
    """Each factor is computed with its own, whatever shape they come in."""
    x, y, curvatures = points(4, 3, 5), points(4, 3, 5, seed=1), torch.tensor([0.3, 1.0, 4.0]).double()
    found = call(name, x, y, curvatures.reshape(shape), mode=mode)
    for index, c in enumerate(curvatures.tolist()):
        alone = call(name.removesuffix("_batch"), x[:, index], y[:, index], c, mode=mode)
        place = found[index] if name.endswith("_batch") and "map0" not in name else found[:, index]
        assert torch.allclose(place, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", meru.MODES)
@pytest.mark.parametrize("name", [name for name in ARGUMENTS if name.endswith("_batch")])
def test_gradients_of_factors(name, mode):
    x, y, curvatures = points(4, 3, 5), points(4, 3, 5, seed=1), torch.tensor([0.3, 1.0, 4.0]).double()

    def one_by_one(x, y, c):
        alone = [
            call(name.removesuffix("_batch"), x[:, index], y[:, index], c[index], mode=mode)
            for index in range(3)
        ]
        return torch.stack(alone, 1 if "map0" in name else 0)

    found = with_gradients(lambda *a: call(name, *a, mode=mode), x, y, curvatures)
    for a, b in zip(found, with_gradients(one_by_one, x, y, curvatures), strict=True):
        assert a is b is None or torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("curv", [1, 0.7, torch.tensor(0.7), torch.tensor([0.7]), torch.tensor([[0.7]])])
def test_one_curvature_in_any_shape(curv):
    x, y = points(4, 5), points(4, 5, seed=1)
    for name in ("pairwise_dist", "exp_map0", "half_aperture", "oxy_angle", "oxy_angle_eval"):
        value = float(curv)
        assert torch.equal(call(name, x, y, curv), call(name, x, y, value))


# ---------------------------------------------------------------- stable mode


DIRECT = {
    "pairwise_inner": hk.pairwise_inner,
    "pairwise_dist": hk.pairwise_dist,
    "elementwise_inner": hk.elementwise_inner,
    "elementwise_dist": hk.elementwise_dist,
    "exp_map0": lambda x, y, c: hk.exp_map0(x, c),
    "log_map0": lambda x, y, c: hk.log_map0(x, c),
    "half_aperture": lambda x, y, c: hk.half_aperture(x, c),
    "oxy_angle": hk.oxy_angle,
    "oxy_angle_eval": lambda x, y, c: -hk.pairwise_oxy_angle(x, y, c).mT,
    "pairwise_oxy_angle": hk.pairwise_oxy_angle,
    "get_distance_from_origin": lambda x, y, c: hk.dist0(x, c).unsqueeze(-1),
}


def with_gradients(function, *arguments):
    leaves = [one.detach().clone().requires_grad_() for one in arguments]
    out = function(*leaves)
    upstream = points(*out.shape, seed=9).to(out.dtype)
    return [out, *torch.autograd.grad(out, leaves, upstream, allow_unused=True)]


@pytest.mark.parametrize("name", DIRECT)
@pytest.mark.parametrize("dtype", DTYPES)
def test_stable_mode_is_this_library(name, dtype):
    x, y, curv = points(4, 5, dtype=dtype), points(4, 5, seed=1, dtype=dtype), torch.tensor(0.7)
    y[0], x[1] = x[0], 0  # a coincident pair, and the origin
    found = with_gradients(lambda *a: call(name, *a, eps=0.3), x, y, curv)
    expected = with_gradients(DIRECT[name], x, y, curv)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_no_distance_is_lost_and_no_gradient_is_dead():
    """What the published clamps lose in float32: a distance of 1e-6, and the gradient of an angle of 1e-3."""
    x = points(1, 8, dtype=torch.float32).requires_grad_()
    y = (x * (1 + 1e-6)).detach()
    assert meru.elementwise_dist(x, y).item() > 0
    meru.elementwise_dist(x, y).sum().backward()
    assert x.grad.norm() > 0.1


def test_two_dtypes_are_promoted():
    x, y = points(4, 5, dtype=torch.float16), points(6, 5, dtype=torch.float32)
    assert torch.equal(meru.pairwise_dist(x, y), hk.pairwise_dist(x.float(), y))


def test_sign_and_transposition_of_oxy_angle_eval():
    x, y = points(3, 5), points(4, 5, seed=1)
    for mode in meru.MODES:
        found = meru.oxy_angle_eval(x, y, 0.7, mode=mode)
        for i in range(3):
            for j in range(4):
                assert math.isclose(found[j, i], -hk.oxy_angle(x[i], y[j], 0.7), rel_tol=1e-7)


# ---------------------------------------------------------------- reference mode


def test_reference_mode_agrees_where_nothing_is_clamped():
    """Values and gradients."""
    x, y, curv = points(4, 5), points(4, 5, seed=1), torch.tensor(0.7, dtype=torch.float64)
    for name in DIRECT:
        found = with_gradients(lambda *a, name=name: call(name, *a, mode="reference", eps=0.0), x, y, curv)
        expected = with_gradients(DIRECT[name], x, y, curv)
        for a, b in zip(found, expected, strict=True):
            assert a is b is None or torch.allclose(a, b, rtol=1e-9, atol=1e-12), name


def test_reference_mode_is_the_module_of_reference_formulas():
    x, y = points(4, 5, dtype=torch.float32), points(4, 5, seed=1, dtype=torch.float32)
    for name in DIRECT:
        takes = inspect.signature(getattr(meru_reference, name)).parameters
        arguments = [one for key, one in (("x", x), ("y", y)) if key in takes]
        direct = getattr(meru_reference, name)(*arguments, 0.7)
        assert torch.equal(call(name, x, y, 0.7, mode="reference"), direct), name


@pytest.mark.parametrize("eps", [1e-8, 1e-5])
def test_published_clamps(eps):
    """The constants that clamps leave, in float64, with curvature 4 (``k = 2``)."""
    reference, at = {"curv": 4.0, "eps": eps}, points(1, 5)
    floor = math.acosh(1 + eps)
    assert math.isclose(meru_reference.elementwise_dist(at, at, **reference), floor / 2, rel_tol=1e-6)
    assert math.isclose(meru_reference.pairwise_dist(at, at, **reference), floor / 2, rel_tol=1e-6)
    wide = torch.tensor([[0.01, 0.0]], dtype=torch.float64)  # within the minimal radius
    assert math.isclose(meru_reference.half_aperture(wide, **reference), math.asin(1 - eps), rel_tol=1e-12)
    farther = at * 3
    assert math.isclose(meru_reference.oxy_angle(at, farther, **reference), math.acos(1 - eps), rel_tol=1e-6)
    nearer = at / 3
    angle = meru_reference.oxy_angle(at, nearer, **reference)
    assert math.isclose(angle, math.acos(eps - 1), rel_tol=1e-6)
    tiny = torch.tensor([[eps / 8, 0.0]], dtype=torch.float64)  # k|x| = eps / 4
    grown = math.sinh(eps) / eps
    assert math.isclose(meru_reference.exp_map0(tiny, **reference)[0, 0], grown * eps / 8, rel_tol=1e-12)
    assert math.isclose(meru_reference.log_map0(tiny, **reference)[0, 0], floor * eps / 8 / eps, rel_tol=1e-6)
    far = torch.tensor([[50.0, 0.0]], dtype=torch.float64)  # k|x| = 100
    assert math.isclose(meru_reference.exp_map0(far, **reference)[0, 0], 2.0**15 / 2, rel_tol=1e-12)


def test_eps_beside_norms():
    """Where ``eps`` is added and not a bound: the half-aperture and the cosine of the exterior angle."""
    x, y = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    assert math.isclose(meru_reference.half_aperture(x, 1.0, 0.1, 0.5), math.asin(0.2 / 1.5))
    minus_cosh = -math.sqrt(2) * math.sqrt(5)
    cosine = (math.sqrt(5) + minus_cosh * math.sqrt(2)) / (math.sqrt(minus_cosh**2 - 1) + 0.1)
    assert math.isclose(meru_reference.oxy_angle(x, y, 1.0, 0.1), math.acos(cosine))


def test_reference_mode_keeps_the_dtype():
    x = points(4, 5, dtype=torch.bfloat16)
    assert meru_reference.pairwise_dist(x, x).dtype == torch.bfloat16


# ---------------------------------------------------------------- roots


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_root_moves_to_the_origin_isometrically(dtype):
    x, y, root = (points(6, 5, seed=seed, dtype=dtype) for seed in range(3))
    a, b = to_origin(x, root, 0.7), to_origin(y, root, 0.7)
    wide = [one.double() for one in (x, y, root)]
    assert torch.allclose(hk.dist0(a, 0.7), hk.elementwise_dist(wide[0], wide[2], 0.7), rtol=1e-13)
    assert torch.allclose(hk.elementwise_dist(a, b, 0.7), hk.elementwise_dist(*wide[:2], 0.7), rtol=1e-13)
    assert torch.equal(to_origin(root, root, 0.7), torch.zeros(6, 5).double())
    assert torch.equal(to_origin(x, torch.zeros_like(root), 0.7), x.double())


def test_near_the_root_no_digit_is_lost():
    root = 3 * points(6, 5)
    near = root + 1e-9 * points(6, 5, seed=1)
    found = hk.dist0(to_origin(near, root, 0.7), 0.7)
    assert torch.allclose(found, hk.elementwise_dist(near, root, 0.7), rtol=1e-11)


@pytest.mark.parametrize("mode", meru.MODES)
def test_rooted_cones_by_their_formulas(mode):
    """The law of cosines in the triangle root, x, y; and the aperture at the distance to the root."""
    c, k = 0.7, math.sqrt(0.7)
    x, y, root = (points(6, 5, seed=seed) for seed in range(3))
    r_x, r_y, x_y = (k * hk.elementwise_dist(*pair, c) for pair in ((root, x), (root, y), (x, y)))
    interior = torch.acos(
        (torch.cosh(r_x) * torch.cosh(x_y) - torch.cosh(r_y)) / (torch.sinh(r_x) * torch.sinh(x_y))
    )
    angle = meru.oxy_angle_withroot(x, y, root, c, eps=1e-12, mode=mode)
    assert torch.allclose(angle, math.pi - interior, rtol=1e-9)
    aperture = meru.half_aperture_withroot(x, root, c, eps=1e-12, mode=mode)
    assert torch.allclose(aperture, torch.asin(0.2 / torch.sinh(r_x)), rtol=1e-9)


def test_root_at_the_origin_changes_nothing():
    x, y, root = points(6, 5), points(6, 5, seed=1), torch.zeros(5).double()
    assert torch.equal(meru.oxy_angle_withroot(x, y, root, 0.7), hk.oxy_angle(x, y, 0.7))
    assert torch.equal(meru.half_aperture_withroot(x, root, 0.7), hk.half_aperture(x, 0.7))
    assert math.isclose(meru.half_aperture_withroot(x[0], x[0], 0.7), math.pi / 2)


@pytest.mark.parametrize("name", ["oxy_angle_withroot", "half_aperture_withroot"])
def test_gradients_of_rooted_cones(name):
    x, y, root = (points(3, 4, seed=seed).requires_grad_() for seed in range(3))
    curv = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    arguments = (x, y, root, curv) if name.startswith("oxy") else (x, root, curv)
    assert torch.autograd.gradcheck(getattr(meru, name), arguments)


def test_rooted_cones_of_half_precision_points_are_float32():
    x, y, root = (points(3, 4, seed=seed, dtype=torch.float16) for seed in range(3))
    found = meru.oxy_angle_withroot(x, y, root, 0.7)
    assert found.dtype == torch.float32
    assert torch.allclose(
        found.double(), meru.oxy_angle_withroot(x.double(), y.double(), root.double(), 0.7), rtol=1e-6
    )


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "arguments", "options", "error", "message"),
    [
        ("pairwise_dist", [points(4, 5), points(4, 6)], {}, ValueError, "x and y"),
        ("exp_map0", [[1.0]], {}, TypeError, "x must be a tensor"),
        ("exp_map0", [points(4, 5), -1.0], {}, ValueError, "curv must be positive"),
        ("oxy_angle", [points(4, 5), points(4, 5)], {"mode": "exact"}, ValueError, "mode must be one of"),
        ("oxy_angle", [points(4, 5), points(4, 5)], {"eps": -1.0}, ValueError, "eps must not be negative"),
        ("half_aperture", [points(4, 5)], {"min_radius": 0.0}, ValueError, "min_radius"),
        ("half_aperture_batch", [points(4, 5), 1.0], {}, ValueError, r"x must have shape \(B, N, D\)"),
        ("pairwise_dist_batch", [points(4, 3, 5), points(4, 5), 1.0], {}, ValueError, "y must have shape"),
        ("pairwise_dist_batch", [points(4, 3, 5)] * 2 + [torch.ones(2)], {}, ValueError, "broadcast"),
        ("oxy_angle_withroot", [points(4, 5), points(4, 5), points(4)], {}, ValueError, "root"),
        ("get_space_norm", [points()], {}, ValueError, "x must have shape"),
    ],
)
def test_bad_input(name, arguments, options, error, message):
    with pytest.raises(error, match=message):
        getattr(meru, name)(*arguments, **options)
