"""Pairwise inner product, distance and exterior angle: accuracy, resolution, conventions, PyTorch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from isometries import boost, random_rotation
from lorentz_oracle import relative_error, truth, ulp_error
from mpmath import mp
from rowwise_cases import REGIMES, with_scaled_gradient
from torch.library import opcheck

import hypkernels as hk
from hypkernels import operators, rowwise
from hypkernels.pairwise import op as pairwise_op
from hypkernels.pairwise import reference

ROWWISE = {
    "pairwise_inner": "elementwise_inner",
    "pairwise_dist": "elementwise_dist",
    "pairwise_oxy_angle": "oxy_angle",
}
NAMES = tuple(ROWWISE)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
RESOLUTION = 16 * 2.0**-52  # of the matrix product, relative to the norms: what the docstrings promise

# The pairs of one regime, all with all, are unrelated here; what is close or collinear has its own tests.
UNRELATED = [
    name
    for name in REGIMES
    if name.startswith(("embeddings", "near", "tiny", "far", "huge")) or "edge" in name
]
CLOSE = [name for name in REGIMES if name.startswith("close")]

pytestmark = pytest.mark.filterwarnings("ignore:.*CPU autocast.*")


def sets(*shapes, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def with_gradients(function, x, y, curv=0.7, upstream=None):
    """``[value, gradient by x, by y, by curv]``; the upstream gradient differs from pair to pair."""
    x, y = (p.detach().requires_grad_() for p in (x, y))
    c = torch.tensor(curv, dtype=torch.float64, requires_grad=True)
    out = function(x, y, c)
    if upstream is None:
        upstream = torch.cos(torch.arange(out.numel(), dtype=torch.float64)).view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, (x, y, c), upstream.to(out.dtype))]


def assert_close(actual, expected, tolerance):
    """Relative to the largest element of each tensor."""
    for a, b in zip(actual, expected, strict=True):
        scale = b.double().abs().max().item() if b.numel() else 0.0
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=tolerance * scale)


def assert_accurate(name, x, y, curv, function=None):
    """Values and the gradients of their weighted sum against 240 digits; points are float32."""
    weights = torch.cos(torch.arange(len(x) * len(y), dtype=torch.float64)).view(len(x), len(y)).float()
    out, by_x, by_y, by_curv = with_gradients(function or getattr(hk, name), x, y, curv, weights)
    with mp.workdps(60):
        true_x = [[mp.mpf(0)] * x.shape[1] for _ in x]
        true_y = [[mp.mpf(0)] * x.shape[1] for _ in y]
        true_curv = mp.mpf(0)
        for i in range(len(x)):
            for j in range(len(y)):
                true = truth(ROWWISE[name], [x[i], y[j]], curv, weights[i, j])
                assert ulp_error(out[i, j], true.value) <= 0.501
                true_x[i] = [a + b for a, b in zip(true_x[i], true.gradients[0], strict=True)]
                true_y[j] = [a + b for a, b in zip(true_y[j], true.gradients[1], strict=True)]
                true_curv += true.curv_gradient
        # Rounded once; the sums over pairs may cancel a little.
        for gradients, expected in ((by_x, true_x), (by_y, true_y)):
            for gradient, row in zip(gradients, expected, strict=True):
                assert relative_error(gradient, row) <= 2.0**-24 + 1e-9
        assert relative_error(by_curv, [true_curv]) <= 1e-8


@pytest.mark.parametrize("regime", UNRELATED)
@pytest.mark.parametrize("name", NAMES)
def test_unrelated_pairs_are_rounded_once(name, regime):
    regime = REGIMES[regime]
    assert_accurate(name, regime.x.float(), regime.y.float(), regime.curv)


@pytest.mark.parametrize("argument", range(3))
@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_gradient_is_caught(name, argument):
    regime = REGIMES["embeddings, c=1.0"]
    wrong = with_scaled_gradient(getattr(hk, name), argument)
    with pytest.raises(AssertionError):
        assert_accurate(name, regime.x.float(), regime.y.float(), regime.curv, wrong)


@pytest.mark.parametrize("regime", CLOSE)
def test_close_pairs_are_exact_to_the_resolution(regime):
    regime = REGIMES[regime]
    x, y, curv = regime.x, regime.y, regime.curv
    exact = hk.elementwise_dist(x, y, curv) * curv**0.5
    noise = RESOLUTION * curv * x.norm(dim=1) * y.norm(dim=1)
    bound = torch.minimum(noise / torch.sinh(exact), torch.sqrt(2 * noise)) + 1e-15 * exact
    actual = hk.pairwise_dist(x, y, curv).diagonal() * curv**0.5
    assert ((actual - exact).abs() <= bound).all()
    inner = hk.pairwise_inner(x, y, curv).diagonal()
    exact_inner = hk.elementwise_inner(x, y, curv)
    assert ((inner - exact_inner).abs() * curv <= noise + 1e-15 * exact_inner.abs() * curv).all()


@pytest.mark.parametrize("size", [1.0, 1e2, 1e4, 1e8])
def test_gradients_below_the_resolution_are_bounded(size):
    """True ones have norm at most 1 (distance) or 1/sinh(d) (angle); where unresolved, at most twice that."""
    x, delta = (torch.nn.functional.normalize(v, dim=1) for v in sets((400, 16), (400, 16)))
    y = size * (x + 1e-7 * torch.linspace(0, 1, 400, dtype=torch.float64)[:, None] * delta)
    least_sinh = math.sqrt(2 * RESOLUTION) * size
    for function, bound in ((hk.pairwise_dist, 1), (hk.pairwise_oxy_angle, 1 / least_sinh)):
        _, by_x, by_y, _ = with_gradients(function, size * x, y, 1.0, torch.eye(400))
        assert max(by_x.norm(dim=1).max(), by_y.norm(dim=1).max()) <= 2 * bound


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_point_and_itself(scale):
    (x,) = sets((50, 64))
    x = scale * x / x.norm(dim=1, keepdim=True)
    identity = torch.eye(50)
    dist, by_x, by_y, by_curv = with_gradients(hk.pairwise_dist, x, x, 1.0, identity)
    assert dist.diagonal().max() <= math.sqrt(2 * RESOLUTION) * scale
    assert max(by_x.norm(dim=1).max(), by_y.norm(dim=1).max()) <= 1
    assert torch.isfinite(by_curv)
    angle, by_x, by_y, _ = with_gradients(hk.pairwise_oxy_angle, x, x, 1.0, identity)
    assert not angle.diagonal().any()
    assert torch.isfinite(by_x).all()
    assert torch.isfinite(by_y).all()
    assert (hk.pairwise_inner(x, x).diagonal() + 1).abs().max() <= RESOLUTION * scale**2


X = torch.tensor([[0.3, -1.2, 0.7], [20.0, -30.0, 10.0], [1e-6, 2e-6, 0.0]], dtype=torch.float64)
ORIGIN = torch.zeros(2, 3, dtype=torch.float64)


def test_distance_with_the_origin():
    for x, y, along in ((X, ORIGIN, 1), (ORIGIN, X, 0)):
        dist, by_x, by_y, _ = with_gradients(hk.pairwise_dist, x, y, 0.7, torch.ones(len(x), len(y)))
        torch.testing.assert_close(
            dist, hk.dist0(X, 0.7).unsqueeze(along).expand_as(dist), rtol=1e-14, atol=0
        )
        at_origin, norm = (by_y, by_x) if along else (by_x, by_y)
        # Towards the origin all distances grow together: the unit vectors of the three points add up.
        torch.testing.assert_close(
            at_origin, -torch.nn.functional.normalize(X).sum(0).expand(2, 3), rtol=1e-13, atol=1e-15
        )
        assert torch.isfinite(norm).all()
    dist, *gradients = with_gradients(hk.pairwise_dist, ORIGIN, ORIGIN)
    assert not any(t.any() for t in (dist, *gradients))


@pytest.mark.parametrize(
    ("x", "y", "angle"),
    [
        pytest.param(ORIGIN, ORIGIN, 0.0, id="y = x = 0"),
        pytest.param(ORIGIN, X, math.pi / 2, id="x = 0"),
        pytest.param(X, ORIGIN, math.pi, id="y = 0"),
    ],
)
def test_angle_with_the_origin(x, y, angle):
    out, *gradients = with_gradients(hk.pairwise_oxy_angle, x, y)
    assert torch.equal(out, torch.full_like(out, angle))
    assert not any(g.any() for g in gradients)


def test_collinear_angles():
    """Resolved to ``sqrt(resolution)``, with gradients that rounding leaves near their convention, 0."""
    x = torch.linspace(0.3, 2, 5, dtype=torch.float64)[:, None] * X[:1]
    for factor, angle in ((3.0, 0.0), (0.1, math.pi), (-1.0, math.pi)):
        out, *gradients = with_gradients(hk.pairwise_oxy_angle, x, factor * x[-1:], 1.0)
        torch.testing.assert_close(out, torch.full_like(out, angle), rtol=0, atol=1e-6)
        assert max(g.abs().max() for g in gradients) <= 1e-5


@pytest.mark.parametrize(
    ("name", "width"),  # on a line every angle is at its kink
    [(name, width) for name in NAMES for width in (1, 2, 7) if (name, width) != ("pairwise_oxy_angle", 1)],
)
@pytest.mark.parametrize(
    "shapes", [((6,), (9,)), ((4, 6), (4, 3)), ((2, 3, 5), (2, 3, 4))], ids=["matrix", "batch", "batches"]
)
def test_float64_against_autograd_through_the_definition(name, width, shapes):
    x, y = sets(*((*shape, width) for shape in shapes))
    expected = with_gradients(getattr(reference, name), x, y)
    assert_close(with_gradients(getattr(hk, name), x, y), expected, 1e-9)
    for argument in range(3):
        wrong = with_gradients(with_scaled_gradient(getattr(hk, name), argument), x, y)
        with pytest.raises(AssertionError):
            assert_close(wrong, expected, 1e-9)


seeds = st.integers(0, 2**31 - 1)
widths = st.integers(1, 8)
curvatures = st.floats(0.05, 20)


def cloud(seed, rows, width, curv, spread=1.5):
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return hk.exp_map0(v * spread / (width * curv) ** 0.5, curv), generator


def resolved(name, x, y, curv):
    """How well: on a line all angles are 0 or pi, where they are least resolved."""
    if name != "pairwise_oxy_angle":
        return 1e-9
    k = curv**0.5
    dist = hk.elementwise_dist(x[:, None], y[None], curv)
    return 1e-9 + 1e-7 * k * y.norm(dim=1) / torch.sinh(k * dist)


@settings(max_examples=40, deadline=None)
@given(seeds, widths, curvatures)
def test_agrees_with_the_row_wise_functions(seed, width, curv):
    points, _ = cloud(seed, 9, width, curv)
    x, y = points[:4], points[4:]
    for name, rowwise_name in ROWWISE.items():
        pairwise = getattr(hk, name)(x, y, curv)
        rows = getattr(hk, rowwise_name)(x[:, None], y[None], curv)
        assert ((pairwise - rows).abs() <= 1e-9 * rows.abs() + resolved(name, x, y, curv)).all()


@settings(max_examples=40, deadline=None)
@given(seeds, widths, curvatures, st.floats(0, 0.9))
def test_motions_change_no_distance(seed, width, curv, speed):
    points, generator = cloud(seed, 8, width, curv)
    rotation = random_rotation(width, generator)
    velocity = torch.nn.functional.normalize(
        torch.randn(width, generator=generator, dtype=torch.float64), dim=0
    )
    moved = boost(points, speed * velocity, curv) @ rotation.mT
    for name in ("pairwise_dist", "pairwise_inner"):
        before, after = (getattr(hk, name)(p[:3], p[3:], curv) for p in (points, moved))
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    turned = points @ rotation.mT
    before, after = (hk.pairwise_oxy_angle(p[:3], p[3:], curv) for p in (points, turned))
    assert ((after - before).abs() <= 2 * resolved("pairwise_oxy_angle", points[:3], points[3:], curv)).all()


@settings(max_examples=40, deadline=None)
@given(seeds, widths, curvatures)
def test_order_and_symmetry(seed, width, curv):
    points, generator = cloud(seed, 11, width, curv)
    x, y = points[:5], points[5:]
    p, q = (torch.randperm(n, generator=generator) for n in (5, 6))
    for name in NAMES:
        before, after = getattr(hk, name)(x, y, curv), getattr(hk, name)(x[p], y[q], curv)
        tolerance = torch.as_tensor(resolved(name, x, y, curv)).expand(5, 6)
        assert ((after - before[p][:, q]).abs() <= 2 * tolerance[p][:, q] + 1e-12 * after.abs()).all()
    torch.testing.assert_close(
        hk.pairwise_dist(x, y, curv), hk.pairwise_dist(y, x, curv).mT, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("elements", [2, 7, 64])
@pytest.mark.parametrize("name", NAMES)
def test_tiles_do_not_show(name, elements, monkeypatch):
    """And none is larger than asked for: that, not ``M N``, is what temporaries need."""
    x, y = sets((2, 9, 5), (2, 13, 5))
    expected = with_gradients(getattr(hk, name), x, y)
    sizes = []

    def recorded(*args):
        tile = pairwise_tile(*args)
        sizes.append(tile.z.numel())
        return tile

    pairwise_tile = pairwise_op.pair_tile
    monkeypatch.setattr(pairwise_op, "pair_tile", recorded)
    monkeypatch.setattr(rowwise, "CPU_CHUNK_ELEMENTS", elements)
    assert_close(with_gradients(getattr(hk, name), x, y), expected, 1e-13)
    assert max(sizes) <= elements
    assert sum(sizes) == 2 * 2 * 9 * 13


def test_the_default_tiles():
    (x,), (y,) = sets((700, 3)), sets((900, 3), seed=1)
    tiles = pairwise_op._cuts(1, 700, 900, rowwise.CPU_CHUNK_ELEMENTS)
    covered = torch.zeros(1, 700, 900)
    for cut in tiles:
        covered[cut] += 1
        assert covered[cut].numel() <= rowwise.CPU_CHUNK_ELEMENTS
    assert (covered == 1).all()
    expected = with_gradients(reference.pairwise_dist, x, y)
    assert_close(with_gradients(hk.pairwise_dist, x, y), expected, 1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name, dtype):
    x, y = (p.requires_grad_() for p in sets((3, 4), (5, 4), dtype=dtype))
    opcheck(operators.registered(name), (x, y, torch.tensor(0.7, requires_grad=True), None, "torch"))
    x, y = (p.detach().mT.contiguous().mT.requires_grad_() for p in sets((2, 3, 4), (2, 5, 4), dtype=dtype))
    opcheck(operators.registered(name), (x, y, torch.tensor(0.7), "ieee", "torch"))


@pytest.mark.parametrize("name", NAMES)
def test_opcheck_of_the_backward(name):
    x, y, grad = sets((3, 4), (5, 4), (3, 5))
    opcheck(operators.registered(f"{name}_backward"), (grad, x, y, torch.tensor(0.7), None, "torch"))


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name):
    x, y = (p.requires_grad_() for p in sets((2, 3, 4), (2, 5, 4)))
    curv = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(getattr(hk, name), (x, y, curv))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_to_one_graph(backend):
    def together(x, y, curv):
        return sum(getattr(hk, name)(x, y, curv).sum() for name in NAMES)

    torch._dynamo.reset()
    compiled = torch.compile(together, fullgraph=True, backend=backend)
    for rows in (5, 7, 9):  # a second shape makes the first dimension dynamic
        x, y = sets((rows, 6), (8, 6))
        assert_close(with_gradients(compiled, x, y), with_gradients(together, x, y), 1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_narrow_results_are_float64_results_rounded_once(name, dtype):
    x, y = sets((6, 20), (7, 20), dtype=dtype)
    ones = torch.ones(6, 7)
    narrow = with_gradients(getattr(hk, name), x, y, upstream=ones)
    wide = with_gradients(getattr(hk, name), x.double(), y.double(), upstream=ones)
    scalar = torch.float64 if dtype == torch.float64 else torch.float32
    assert [t.dtype for t in narrow] == [scalar, dtype, dtype, torch.float64]
    assert all(torch.equal(n, w.to(n.dtype)) for n, w in zip(narrow, wide, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing(name, dtype):
    x, y = sets((6, 20), (7, 20), dtype=dtype)
    expected = with_gradients(getattr(hk, name), x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = with_gradients(getattr(hk, name), x, y)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_memory_layout_does_not_show(name):
    x, y = sets((6, 8), (7, 8))
    expected = with_gradients(getattr(hk, name), x, y)
    for change in (lambda p: p.mT.contiguous().mT, lambda p: torch.stack([p, p], dim=-1)[..., 0]):
        assert not change(x).is_contiguous()
        assert_close(with_gradients(getattr(hk, name), change(x), change(y)), expected, 1e-13)
    repeated = with_gradients(getattr(hk, name), x[:1].expand(6, 8), y)
    assert_close(repeated, with_gradients(getattr(hk, name), x[:1].repeat(6, 1), y), 1e-13)


@pytest.mark.parametrize(
    "shapes", [((0, 5), (3, 5)), ((3, 5), (0, 5)), ((0, 5), (0, 5)), ((0, 2, 5), (0, 3, 5))]
)
@pytest.mark.parametrize("name", NAMES)
def test_empty(name, shapes):
    x, y = sets(*shapes)
    out, by_x, by_y, by_curv = with_gradients(getattr(hk, name), x, y)
    assert out.shape == (*x.shape[:-1], y.shape[-2])
    assert (by_x.shape, by_y.shape) == (x.shape, y.shape)
    assert not any(g.any() for g in (by_x, by_y, by_curv))


@pytest.mark.parametrize("name", NAMES)
def test_nan_stays_in_its_row(name):
    x, y = sets((4, 5), (6, 5))
    expected = getattr(hk, name)(x, y)
    for bad in (math.nan, math.inf):
        dirty = x.clone()
        dirty[1, 2] = bad
        out = getattr(hk, name)(dirty, y)
        assert out[1].isnan().all()
        assert_close([out[[0, 2, 3]]], [expected[[0, 2, 3]]], 1e-13)
        out, by_x, *_ = with_gradients(getattr(hk, name), dirty, y)
        assert by_x[1].isnan().any()
        assert torch.isfinite(by_x[[0, 2, 3]]).all()


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_left_alone(name):
    x, y = sets((4, 5), (6, 5))
    before = x.clone(), y.clone()
    with_gradients(getattr(hk, name), x, y)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


@pytest.mark.parametrize("name", NAMES)
def test_curvature_and_what_learns(name):
    x, y = sets((4, 5), (6, 5))
    function = getattr(hk, name)
    expected = function(x, y, 0.75)
    for curv in (torch.tensor(0.75), torch.tensor([0.75]), torch.tensor([[0.75]], dtype=torch.float64)):
        assert torch.equal(function(x, y, curv), expected)
    learned = torch.tensor([0.75], requires_grad=True)
    function(x, y, learned).sum().backward()
    assert learned.grad.shape == (1,)
    assert learned.grad != 0
    y.requires_grad_()
    function(x, y).sum().backward()
    assert x.grad is None
    assert y.grad.any()


@pytest.mark.parametrize("name", NAMES)
def test_a_point_for_a_set(name):
    """As ``torch.matmul`` takes a vector: its dimension is missing in the result."""
    function = getattr(hk, name)
    x, y = sets((2, 3, 4), (2, 5, 4))
    whole = function(x, y)
    for index in range(3):
        assert_close([function(x[0, index], y[0])], [whole[0, index]], 1e-14)
        assert_close([function(y[0], x[0, index])], [function(y[0], x[0])[:, index]], 1e-14)
    assert_close([function(x[0, 0], y[0, 0])], [whole[0, 0, 0]], 1e-14)
    assert_close([function(x[0, 0], y)], [function(x[0, :1].expand(2, 1, 4), y)[:, 0]], 1e-14)
    assert_close([function(x, y[0, 0])], [function(x, y[0, :1].expand(2, 1, 4))[..., 0]], 1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_leading_dimensions_broadcast(name):
    x, y = sets((2, 1, 3, 4), (5, 7, 4))
    grid = [x.expand(2, 5, 3, 4).contiguous(), y.expand(2, 5, 7, 4).contiguous()]
    assert_close([getattr(hk, name)(x, y)], [getattr(hk, name)(*grid)], 1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_bad_arguments_are_refused_by_name(name):
    function = getattr(hk, name)
    x = torch.ones(3, 4)
    with pytest.raises(ValueError, match=r"x and y .* broadcastable.*\(2,\) of x.*\(3,\) of y"):
        function(x.expand(2, 3, 4), x.expand(3, 3, 4))
    with pytest.raises(ValueError, match=r"same width.*\(3, 4\) and \(3, 5\)"):
        function(x, torch.ones(3, 5))
    with pytest.raises(TypeError, match=r"same dtype, got torch.float32 and torch.float64"):
        function(x, x.double())
    with pytest.raises(ValueError, match=r"curv must be positive and finite, got -1\.0"):
        function(x, x, torch.tensor(-1.0))
    with pytest.raises(TypeError, match="y must be a tensor"):
        function(x, [1.0])
    with pytest.raises(ValueError, match=r"precision must be one of None, .*, got 'bf16'"):
        function(x, x, precision="bf16")


@pytest.mark.parametrize("name", NAMES)
def test_a_cpu_has_one_precision(name):
    x, y = sets((3, 4), (5, 4), dtype=torch.float32)
    expected = getattr(hk, name)(x, y)
    for precision in ("ieee", "tf32", "tf32x3"):
        assert torch.equal(getattr(hk, name)(x, y, precision=precision), expected)
