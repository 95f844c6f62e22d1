"""The contrastive loss: accuracy at every stage of training, options, edge cases, what PyTorch needs."""

import math
from functools import partial

import mpmath as mp
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from isometries import boost, random_rotation
from rowwise_cases import with_scaled_gradient
from torch import Tensor
from torch.library import opcheck

import hypkernels as hk
from hypkernels.contrastive import reference, strips
from hypkernels.operators import registered

SIMILARITIES = ("dist", "sqdist", "inner", "angle")
ARGUMENTS = ("x", "y", "curv", "logit_scale")

pytestmark = pytest.mark.filterwarnings("ignore:.*CPU autocast.*")


def sets(*shapes, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def with_gradients(function, x, y, curv=0.7, scale=5.0, upstream=None):
    """``[loss, gradient by x, y, curv, logit_scale]``; the scalars are float64."""
    x, y = (p.detach().requires_grad_() for p in (x, y))
    c, s = (torch.as_tensor(v, dtype=torch.float64).clone().requires_grad_() for v in (curv, scale))
    loss = function(x, y, c, s)
    if upstream is None:
        upstream = torch.ones_like(loss)
    return [loss.detach(), *torch.autograd.grad(loss, (x, y, c, s), upstream.to(loss.dtype))]


def relative_error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()


def assert_close(actual, expected, tolerance):
    """Relative to the norm of each tensor; the loss, which may be a difference of large logits, also to 1."""
    for name, a, b in zip(("loss", *ARGUMENTS)[: len(expected)], actual, expected, strict=True):
        error = (a.double() - b.double()).norm().item()
        scale = max(b.double().norm().item(), 1.0 if name == "loss" else 0.0)
        assert error <= tolerance * scale, f"{name}: {error:.2e} of {scale:.2e}"


# ---------------------------------------------------------------- accuracy in training


def unit(rows: int, width: int, generator: torch.Generator) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=1)


def embeddings(scenario: str, rows: int, width: int = 512) -> tuple[Tensor, Tensor]:
    """Float32 points with the norms and the distances that the name stands for (curvature 1)."""
    generator = torch.Generator().manual_seed(0)
    random_unit = partial(unit, rows, width, generator)
    axis_x, axis_y = torch.eye(width, dtype=torch.float64)[:2]

    def cone(axis: Tensor, opening: float, around: Tensor) -> Tensor:
        return math.sqrt(1 - opening) * axis + math.sqrt(opening) * around

    def related(to: Tensor, similarity: float) -> Tensor:
        return F.normalize(similarity * to + math.sqrt(1 - similarity**2) * random_unit(), dim=1)

    def norms(size: float) -> Tensor:
        return size * torch.exp(0.1 * torch.randn(rows, 1, generator=generator, dtype=torch.float64))

    around = random_unit()
    if scenario == "init":  # two cones, positives no closer than the rest
        x, y = norms(1.17) * cone(axis_x, 0.3, around), norms(1.17) * cone(axis_y, 0.3, random_unit())
    elif scenario in ("tight", "same"):  # positives that all but coincide, or do
        x = (norms(2.12) * cone(axis_x, 0.54, around)).float().double()
        y = x + (1.4e-3 if scenario == "tight" else 1.4e-6) * random_unit()
        if scenario == "same":
            y[::4] = x[::4]
    else:
        size, opening, similarity = {
            "trained": (1.02, 0.68, 0.34),
            "trained-far": (18.1, 0.25, 0.05),
            "cone": (1.17, 0.085, 0.5),
            "near the origin": (0.01, 0.68, 0.34),
        }[scenario]
        x = norms(size) * cone(axis_x, opening, around)
        y = norms(size) * cone(axis_x, opening, related(around, similarity))
    return x.float(), y.float()


def oracle(x: Tensor, y: Tensor, curv: Tensor, scale: Tensor) -> Tensor:
    """The default loss in float64; positives by differences, since ``acosh`` near 1 has no digits."""
    x_time, y_time = (torch.sqrt(1 / curv + (p * p).sum(1)) for p in (x, y))
    z = curv * (torch.outer(x_time, y_time) - x @ y.mT) - 1
    delta = x - y
    time_delta = (delta * (x + y)).sum(1) / (x_time + y_time)
    coincident = (delta == 0).all(1)
    positive_z = curv / 2 * ((delta * delta).sum(1) - time_delta**2)
    z = z.diagonal_scatter(positive_z.masked_fill(coincident, 1))
    dist = torch.log1p(z + torch.sqrt(z * (z + 2))) / curv.sqrt()
    logits = -scale * dist * (1 - torch.diag(coincident.double()))
    targets = torch.arange(len(x))
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.mT, targets)) / 2


# The loss of a converged model at scale 100 is below the smallest float32.
TRAINING = [
    (scenario, scale)
    for scenario in ("init", "trained", "trained-far", "cone", "tight", "same", "near the origin")
    for scale in (1 / 0.07, 100.0)
    if scenario not in ("tight", "same") or scale < 100
]


def assert_meets_the_gates(x, y, scale, function=hk.contrastive_loss):
    loss, *gradients = with_gradients(function, x, y, 1.0, scale)
    true_loss, *true_gradients = with_gradients(oracle, x.double(), y.double(), 1.0, scale)
    assert abs(loss - true_loss) <= 2e-6 * min(true_loss, 1) + 2.0**-24 * true_loss
    for gradient, expected in zip(gradients, true_gradients, strict=True):
        assert relative_error(gradient, expected) <= 1e-5


@pytest.mark.parametrize(("scenario", "scale"), TRAINING)
def test_gates_in_training(scenario, scale):
    x, y = embeddings(scenario, 640)
    assert_meets_the_gates(x, y, scale)


def test_logits_in_the_thousands_with_many_even_rivals():
    """Each is rounded by 6e-5, which averages out over a row as long as the row's sum is not rounded too.

    Over 200 rows of some 50 even rivals that leaves 6e-7, of the loss and relative to the gradients by the
    scalars; with other points and other processors up to four times as much.
    """
    generator = torch.Generator().manual_seed(0)
    x, y = ((1e4 * unit(200, 2048, generator)).float() for _ in range(2))
    loss, *gradients = with_gradients(hk.contrastive_loss, x, y, 1.0, 100.0)
    true_loss, *true_gradients = with_gradients(oracle, x.double(), y.double(), 1.0, 100.0)
    assert abs(loss - true_loss) <= 3e-6
    errors = [relative_error(g, true) for g, true in zip(gradients, true_gradients, strict=True)]
    assert max(errors[:2]) <= 3e-5
    assert max(errors[2:]) <= 3e-6


@pytest.mark.parametrize("argument", range(4))
@pytest.mark.parametrize("scenario", ["init", "trained-far", "tight"])
def test_the_gates_catch_a_wrong_gradient(scenario, argument):
    x, y = embeddings(scenario, 96, 64)
    assert_meets_the_gates(x, y, 14.0)
    with pytest.raises(AssertionError):
        assert_meets_the_gates(x, y, 14.0, with_scaled_gradient(hk.contrastive_loss, argument))


@pytest.mark.parametrize("curv", [0.1, 3.0])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_float32_of_every_similarity(similarity, curv):
    """Rounding is relative to the logits; a part of the inner product's cancels in ``dL/dc``."""
    x, y = (p / curv**0.5 for p in embeddings("trained", 256, 128))
    scale = {"dist": 14 * curv**0.5, "sqdist": 10 * curv, "inner": 10 * curv, "angle": 14}[similarity]
    curv = torch.tensor(curv).item()  # exact in float32
    function = partial(hk.contrastive_loss, similarity=similarity)
    definition = partial(reference.contrastive_loss, similarity=similarity)
    actual = with_gradients(function, x, y, curv, scale)
    expected = with_gradients(lambda *a: definition(*a).mean(), x.double(), y.double(), curv, scale)
    if similarity == "inner":
        assert abs(actual.pop(3) - expected.pop(3)) <= 1e-7 * scale / curv**2
    assert_close(actual, expected, 4e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_half_precision_values_are_taken_as_they_are(similarity, dtype):
    """Nothing but the last rounding of the gradients by the points tells them from float32 points."""
    x, y = (p.to(dtype) for p in embeddings("trained", 64, 32))
    function = partial(hk.contrastive_loss, similarity=similarity)
    half = with_gradients(function, x, y)
    single = with_gradients(function, x.float(), y.float())
    assert [t.dtype for t in half] == [torch.float32, dtype, dtype, torch.float64, torch.float64]
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(half, single, strict=True))


def mp_gap(similarity, x, y, c):
    dot = mp.fdot(x, y)
    x_time, y_time = (mp.sqrt(1 / c + mp.fdot(p, p)) for p in (x, y))
    inner = dot - x_time * y_time
    if similarity == "angle":
        adjacent = y_time + c * inner * x_time
        return mp.acos(adjacent / mp.sqrt(mp.fdot(x, x) * ((c * inner) ** 2 - 1)))
    dist = mp.acosh(-c * inner) / mp.sqrt(c)
    return {"dist": dist, "sqdist": dist**2, "inner": -inner}[similarity]


def mp_loss(similarity, x, y, c, s, targets):
    """The mean loss by its definition, with ``s`` a list of one scale for each row."""
    rows, columns = range(len(x)), range(len(y))
    by_row = [[-s[i] * mp_gap(similarity, x[i], y[j], c) for j in columns] for i in rows]
    by_column = by_row
    if similarity == "angle":
        by_column = [[-s[i] * mp_gap(similarity, y[j], x[i], c) for j in columns] for i in rows]
    total = mp.mpf(0)
    for i, t in enumerate(targets):
        total += mp.log(mp.fsum(mp.exp(by_row[i][j] - by_row[i][t]) for j in columns))
        total += mp.log(mp.fsum(mp.exp(by_column[m][t] - by_column[i][t]) for m in rows))
    return total / (2 * len(x))


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_against_arithmetic_of_60_digits(similarity):
    """Small losses too: two positives are 1e-3 and 1e-6 away, one pair shares its target with another."""
    x, y = sets((4, 3), (5, 3), seed=3)
    targets = torch.tensor([4, 1, 1, 0])
    y[4] = x[0] + torch.tensor([1e-3, -2e-3, 1e-3])
    y[0] = x[3] + torch.tensor([1e-6, 1e-6, -2e-6])
    scale = torch.tensor([9.0, 7.0, 11.0, 8.0], dtype=torch.float64)
    function = partial(hk.contrastive_loss, similarity=similarity, targets=targets)
    actual = with_gradients(function, x, y, 0.7, scale)
    with mp.workdps(60):
        shapes = ((4, 3), (5, 3), (1,), (4,))
        flat = [
            mp.mpf(v)
            for p in (x, y, torch.tensor([0.7], dtype=torch.float64), scale)
            for v in p.flatten().tolist()
        ]

        def loss(v):
            points = [v[3 * i : 3 * i + 3] for i in range(9)]
            return mp_loss(similarity, points[:4], points[4:], v[27], v[28:], targets.tolist())

        step = mp.mpf(10) ** -25

        def derivative(i):
            ahead, behind = (loss([*flat[:i], flat[i] + h, *flat[i + 1 :]]) for h in (step, -step))
            return float((ahead - behind) / (2 * step))

        gradient = torch.tensor([derivative(i) for i in range(len(flat))], dtype=torch.float64)
        true_loss = torch.tensor(float(loss(flat)), dtype=torch.float64)
    sections = gradient.split([math.prod(shape) for shape in shapes])
    expected = [true_loss, *(g.view(shape) for g, shape in zip(sections, shapes, strict=True))]
    actual[3] = actual[3].view(1)
    assert_close(actual, expected, 1e-9)


def test_a_tiny_loss_keeps_its_digits():
    """Next to a logit of rivals 28 lower; the loss of row 0 alone, so that nothing hides it."""
    x = torch.tensor([[0.5, 0.0], [-0.5, 0.0]])
    y = x + torch.tensor([[0.0, 1e-4], [0.0, -2e-4]])
    for scale in (14.0, 30.0, 80.0):
        losses, by_x, *_ = with_gradients(
            partial(hk.contrastive_loss, reduction="none", symmetric=False), x, y, 1.0, scale
        )
        rival, positive = (
            -scale * hk.elementwise_dist(x[0].double(), other.double()) for other in (y[1], y[0])
        )
        assert losses[0].item() == pytest.approx(math.exp(rival - positive), rel=1e-5)
        assert by_x[0].norm() == pytest.approx(scale * 2**0.5 * losses[0].item(), rel=0.2)


# ---------------------------------------------------------------- options


def targets_of(kind, rows, columns):
    generator = torch.Generator().manual_seed(1)
    if kind == "repeated":
        return torch.randint(columns // 2, (rows,), generator=generator)
    return torch.randperm(columns, generator=generator)[:rows] if kind == "permuted" else None


@pytest.mark.parametrize(
    ("rows", "columns", "targets"),
    [
        (6, 6, None),
        (5, 8, None),
        (6, 6, "permuted"),
        (5, 9, "permuted"),
        (8, 5, "repeated"),
        (5, 8, "repeated"),
    ],
)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_options_against_autograd_through_the_definition(similarity, symmetric, rows, columns, targets):
    x, y = sets((rows, 4), (columns, 4))
    targets = targets_of(targets, rows, columns)
    options = {"similarity": similarity, "symmetric": symmetric, "targets": targets}
    definition = partial(reference.contrastive_loss, **options)
    weights = torch.linspace(0.5, 2, rows, dtype=torch.float64)
    for scale in (3.0, torch.linspace(1, 6, rows, dtype=torch.float64)):
        for reduction, upstream in {
            "none": weights,
            "sum": torch.ones(rows),
            "mean": torch.full((rows,), 1 / rows, dtype=torch.float64),
        }.items():
            losses, *gradients = with_gradients(definition, x, y, scale=scale, upstream=upstream)
            loss = losses if reduction == "none" else (losses * upstream).sum()
            expected = [loss, *gradients]
            function = partial(hk.contrastive_loss, reduction=reduction, **options)
            run = partial(with_gradients, upstream=weights if reduction == "none" else None, scale=scale)
            assert_close(run(function, x, y), expected, 1e-10)
    for argument in range(4):
        with pytest.raises(AssertionError, match=f"^{ARGUMENTS[argument]}: "):
            assert_close(run(with_scaled_gradient(function, argument), x, y), expected, 1e-10)


@pytest.mark.parametrize("kind", [torch.int64, torch.int32])
def test_default_targets_are_the_diagonal(kind):
    x, y = sets((5, 4), (7, 4), dtype=torch.float32)
    expected = with_gradients(hk.contrastive_loss, x, y)
    actual = with_gradients(partial(hk.contrastive_loss, targets=torch.arange(5, dtype=kind)), x, y)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_equal_row_scales_are_one_scale():
    x, y = sets((5, 4), (7, 4))
    *expected, by_scale = with_gradients(hk.contrastive_loss, x, y, scale=3.0)
    *actual, by_row_scale = with_gradients(hk.contrastive_loss, x, y, scale=torch.full((5,), 3.0))
    for a, b in zip((*actual, by_row_scale.sum()), (*expected, by_scale), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", ["ieee", "tf32", "tf32x3"])
def test_every_precision_is_the_same_on_a_cpu(precision, dtype):
    x, y = sets((5, 4), (7, 4), dtype=dtype)
    expected = with_gradients(hk.contrastive_loss, x, y)
    actual = with_gradients(partial(hk.contrastive_loss, precision=precision), x, y)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_scalars_may_be_floats_or_tensors_of_any_dtype():
    x, y = sets((5, 4), (7, 4), dtype=torch.float32)
    expected = hk.contrastive_loss(x, y, 0.75, 5.0)
    for convert in (
        torch.tensor,
        lambda v: torch.tensor([v]),
        lambda v: torch.tensor([[v]], dtype=torch.float64),
        lambda v: torch.tensor(v, dtype=torch.bfloat16),
    ):
        assert torch.equal(hk.contrastive_loss(x, y, convert(0.75), convert(5.0)), expected)
    curv, scale = torch.tensor([0.75], requires_grad=True), torch.tensor(5.0, requires_grad=True)
    hk.contrastive_loss(x, y, curv, scale).backward()
    assert (curv.grad.shape, curv.grad.dtype) == ((1,), torch.float32)
    assert (scale.grad.shape, scale.grad.dtype) == ((), torch.float32)


# ---------------------------------------------------------------- invariances

seeds = st.integers(0, 2**31 - 1)
widths = st.integers(2, 8)
curvatures = st.floats(0.05, 20)


def cloud(seed, rows, width, curv):
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return hk.exp_map0(v / (width * curv) ** 0.5, curv), generator


@settings(max_examples=30, deadline=None)
@given(seeds, widths, curvatures, st.sampled_from(SIMILARITIES))
def test_order_of_the_rows(seed, width, curv, similarity):
    points, generator = cloud(seed, 13, width, curv)
    x, y = points[:6], points[6:]
    p, q = (torch.randperm(n, generator=generator) for n in (6, 7))
    targets = torch.randint(7, (6,), generator=generator)
    scale = 1 + torch.rand(6, generator=generator, dtype=torch.float64)
    loss = partial(hk.contrastive_loss, similarity=similarity, reduction="none")
    before = loss(x, y, curv, scale, targets=targets)
    after = loss(x[p], y[q], curv, scale[p], targets=torch.argsort(q)[targets[p]])
    torch.testing.assert_close(after, before[p], rtol=1e-10, atol=1e-10)


@settings(max_examples=30, deadline=None)
@given(seeds, widths, curvatures, st.floats(0, 0.9), st.sampled_from(("dist", "sqdist", "inner")))
def test_motions_change_nothing(seed, width, curv, speed, similarity):
    points, generator = cloud(seed, 12, width, curv)
    velocity = F.normalize(torch.randn(width, generator=generator, dtype=torch.float64), dim=0)
    moved = boost(points, speed * velocity, curv) @ random_rotation(width, generator).mT
    before, after = (
        hk.contrastive_loss(p[:6], p[6:], curv, 3.0, similarity=similarity) for p in (points, moved)
    )
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(seeds, widths, curvatures, st.sampled_from(SIMILARITIES))
def test_change_of_unit(seed, width, curv, similarity):
    """``sqrt(c) x`` on the unit hyperboloid, with the scale in units of the gap."""
    points, _ = cloud(seed, 12, width, curv)
    power = {"dist": 0.5, "sqdist": 1.0, "inner": 1.0, "angle": 0.0}[similarity]
    loss = partial(hk.contrastive_loss, similarity=similarity)
    here = loss(points[:6], points[6:], curv, 3.0)
    unit = curv**0.5 * points
    torch.testing.assert_close(loss(unit[:6], unit[6:], 1.0, 3.0 / curv**power), here, rtol=1e-9, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(seeds, widths, curvatures, st.sampled_from(SIMILARITIES))
def test_the_two_sides_are_alike(seed, width, curv, similarity):
    points, _ = cloud(seed, 12, width, curv)
    loss = partial(hk.contrastive_loss, similarity=similarity)
    one, other = loss(points[:6], points[6:], curv, 3.0), loss(points[6:], points[:6], curv, 3.0)
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    halves = [
        loss(a, b, curv, 3.0, symmetric=False)
        for a, b in ((points[:6], points[6:]), (points[6:], points[:6]))
    ]
    torch.testing.assert_close(sum(halves) / 2, one, rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------- edge cases


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("columns", [0, 3])
def test_no_rows(columns, similarity):
    """The mean over nothing is 0, not NaN: a batch without parts adds nothing to a loss and its gradients."""
    x, y = torch.ones(0, 4), torch.ones(columns, 4)
    for reduction in ("mean", "sum"):
        outputs = with_gradients(
            partial(hk.contrastive_loss, similarity=similarity, reduction=reduction), x, y
        )
        assert [t.shape for t in outputs] == [(), x.shape, y.shape, (), ()]
        assert not any(t.any() for t in outputs)
    assert hk.contrastive_loss(x, y, similarity=similarity, reduction="none").shape == (0,)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_one_pair_has_nothing_to_learn(similarity):
    x, y = sets((1, 4), (1, 4), dtype=torch.float32)
    outputs = with_gradients(partial(hk.contrastive_loss, similarity=similarity), x, y)
    assert not any(t.any() for t in outputs)


@pytest.mark.parametrize("point", [0.0, 0.7, 40.0])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_equal_points(similarity, point):
    """Also all at the origin: as likely one as the other, and no direction to go."""
    x = torch.full((6, 5), point)
    loss, by_x, by_y, by_curv, by_scale = with_gradients(
        partial(hk.contrastive_loss, similarity=similarity), x, x, 1.0
    )
    # What a product of matrices cannot resolve: 16 float32 roundings of the squared norm.
    gap = 16 * 2.0**-23 * 5 * point**2
    noise = 5 * {"dist": (2 * gap) ** 0.5, "sqdist": 2 * gap, "inner": gap, "angle": 0}[similarity]
    assert abs(loss - math.log(6)) <= noise + 1e-6
    assert max(by_x.norm(), by_y.norm()) <= 0.1
    assert torch.isfinite(by_curv)
    assert torch.isfinite(by_scale)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_set_and_itself(similarity):
    (x,) = sets((6, 5), seed=4)
    both = partial(hk.contrastive_loss, similarity=similarity)
    loss, by_x, by_y, *scalars = with_gradients(both, x, x.clone())
    x_alone = x.clone().requires_grad_()
    same = both(x_alone, x_alone, 0.7, 5.0)
    (gradient,) = torch.autograd.grad(same, x_alone)
    torch.testing.assert_close(same, loss)
    torch.testing.assert_close(gradient, by_x + by_y)
    assert loss < math.log(6)
    assert all(torch.isfinite(t) for t in scalars)


@pytest.mark.parametrize("width", [1, 7])
@pytest.mark.parametrize("similarity", ["dist", "sqdist", "inner"])
def test_narrow_points(similarity, width):
    x, y = sets((6, width), (6, width))
    expected = with_gradients(lambda *a: reference.contrastive_loss(*a, similarity=similarity).mean(), x, y)
    assert_close(with_gradients(partial(hk.contrastive_loss, similarity=similarity), x, y), expected, 1e-9)


def test_angles_on_a_line():
    """Each is 0 or pi; the gradients, 0 by convention, are what rounding leaves at a kink."""
    x, y = sets((6, 1), (6, 1))
    loss, *gradients, _ = with_gradients(partial(hk.contrastive_loss, similarity="angle"), x, y)
    angles = hk.oxy_angle(x[:, None], y[None]), hk.oxy_angle(y[:, None], x[None])
    targets = torch.arange(6)
    expected = sum(F.cross_entropy(-5 * angle, targets) for angle in angles) / 2
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
    assert max(g.abs().max() for g in gradients) <= 1e-4


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("size", [1e-15, 1e4, 1e9])
def test_points_of_every_size(size, similarity):
    x, y = sets((6, 5), (6, 5), dtype=torch.float32)
    x, y = size * x, size * y
    function = partial(hk.contrastive_loss, similarity=similarity)
    scale = 3 / size**2 if similarity == "inner" else 3.0
    single = with_gradients(function, x, y, 1.0, scale)
    double = with_gradients(function, x.double(), y.double(), 1.0, scale)
    assert all(torch.isfinite(t).all() for t in single)
    assert_close(single[:3], double[:3], 1e-5)


@pytest.mark.parametrize("similarity", ["dist", "sqdist", "angle"])
def test_one_point_far_out_does_not_blur_the_others(similarity):
    x, y = sets((6, 5), (6, 5), dtype=torch.float32)
    x[0] *= 1e7
    function = partial(hk.contrastive_loss, similarity=similarity, reduction="none", symmetric=False)
    single = with_gradients(function, x, y, 1.0, 3.0)
    double = with_gradients(function, x.double(), y.double(), 1.0, 3.0)
    torch.testing.assert_close(single[0][1:].double(), double[0][1:], rtol=1e-6, atol=1e-6)
    for gradient, expected in zip(single[1][1:], double[1][1:], strict=True):
        assert relative_error(gradient, expected) <= 1e-5


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_scale_zero(similarity):
    x, y = sets((6, 5), (6, 5), dtype=torch.float32)
    loss, *gradients, by_scale = with_gradients(
        partial(hk.contrastive_loss, similarity=similarity), x, y, scale=0.0
    )
    assert loss.item() == pytest.approx(math.log(6), rel=1e-6)
    assert not any(g.any() for g in gradients)
    assert by_scale != 0


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_very_large_scale(similarity):
    """The loss is the scale times how much farther the positive is than the nearest."""
    x, y = sets((6, 5), (6, 5), dtype=torch.float32)
    loss, *gradients = with_gradients(
        partial(hk.contrastive_loss, similarity=similarity, symmetric=False), x, y, scale=1e30
    )
    gaps = reference.GAPS[similarity](x.double(), y.double(), 0.7)
    margin = (gaps.diagonal() - gaps.min(1).values).mean().item()
    assert loss.item() == pytest.approx(1e30 * margin, rel=1e-5)
    assert gradients[-1].item() == pytest.approx(margin, rel=1e-5)
    assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_nan_and_inf_are_not_hidden(similarity, bad):
    x, y = sets((4, 5), (6, 5), dtype=torch.float32)
    clean = hk.contrastive_loss(x, y, 0.7, 5.0, similarity=similarity, symmetric=False, reduction="none")
    x[1, 2] = bad
    loss = hk.contrastive_loss(x, y, 0.7, 5.0, similarity=similarity, symmetric=False, reduction="none")
    assert loss[1].isnan()
    torch.testing.assert_close(loss[[0, 2, 3]], clean[[0, 2, 3]], rtol=1e-5, atol=1e-6)
    whole, by_x, *_ = with_gradients(partial(hk.contrastive_loss, similarity=similarity), x, y)
    assert whole.isnan()
    assert by_x.isnan().any()


# ---------------------------------------------------------------- PyTorch

OPERATOR = registered("contrastive_losses")
BACKWARD = registered("contrastive_losses_backward")


@pytest.mark.parametrize(
    ("similarity", "symmetric", "row_scales", "dtype"),
    [
        ("dist", True, False, torch.float32),
        ("dist", False, True, torch.bfloat16),
        ("inner", True, True, torch.float64),
        ("angle", True, False, torch.float64),
        ("angle", False, True, torch.float32),
    ],
)
def test_opcheck(similarity, symmetric, row_scales, dtype):
    x, y = (p.requires_grad_() for p in sets((4, 5), (6, 5), dtype=dtype))
    curv = torch.tensor(0.7, requires_grad=True)
    scale = (torch.linspace(1, 4, 4) if row_scales else torch.tensor(3.0)).requires_grad_()
    options = ([torch.tensor([5, 0, 0, 2])] * 2, [0, 2], [1, 1], similarity, [symmetric] * 2, None, "torch")
    z = (x.detach() + 1).requires_grad_()
    opcheck(OPERATOR, ([x, y, z], curv, scale, *options))
    inputs = ([x.detach(), y.detach(), z.detach()], curv.detach(), scale.detach())
    results = OPERATOR(*inputs, *options)
    grads, statistics = (
        [torch.ones(4, dtype=results[0].dtype)] * 2,
        results[2:],
    )
    opcheck(BACKWARD, (grads, statistics, [True, True, False, True, True], *inputs, *options))


def test_opcheck_of_transposed_points():
    x, y = (p.mT.contiguous().mT.requires_grad_() for p in sets((4, 5), (6, 5)))
    scalars = torch.tensor(0.7), torch.tensor(3.0)
    opcheck(OPERATOR, ([x, y], *scalars, [torch.arange(4)], [0], [1], "dist", [True], None, "torch"))


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_gradcheck(similarity):
    x, y = (p.requires_grad_() for p in sets((4, 3), (5, 3)))
    curv = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    scale = torch.linspace(1, 3, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([3, 0, 0, 2])
    for symmetric in (True, False):
        function = partial(
            hk.contrastive_loss,
            similarity=similarity,
            targets=targets,
            symmetric=symmetric,
            reduction="none",
        )
        assert torch.autograd.gradcheck(function, (x, y, curv, scale))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_to_one_graph(backend):
    def together(x, y, curv, scale):
        targets = torch.arange(x.shape[0]).flip(0)
        losses = [hk.contrastive_loss(x, y, curv, scale, similarity=s, targets=targets) for s in SIMILARITIES]
        return sum(losses) + hk.contrastive_loss(x, y, 0.5, 2.0)

    torch._dynamo.reset()
    compiled = torch.compile(together, fullgraph=True, backend=backend)
    for rows in (5, 7, 9):  # a second shape makes the first dimension dynamic
        x, y = sets((rows, 6), (rows, 6), dtype=torch.float32)
        assert_close(with_gradients(compiled, x, y), with_gradients(together, x, y), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_autocast_changes_nothing(similarity, dtype):
    x, y = (p.to(dtype) for p in embeddings("trained", 64, 32))
    function = partial(hk.contrastive_loss, similarity=similarity)
    expected = with_gradients(function, x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = with_gradients(function, x, y)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_same_bits_on_every_run(similarity):
    x, y = embeddings("trained", 128, 64)
    targets = torch.randint(50, (128,), generator=torch.Generator().manual_seed(0))
    function = partial(hk.contrastive_loss, similarity=similarity, targets=targets)
    runs = [with_gradients(function, x, y) for _ in range(3)]
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(again, runs[0], strict=True))


@pytest.mark.parametrize("learning", [(i,) for i in range(4)] + [(0, 3), (1, 2), (2, 3), (0, 1, 2)])
def test_any_subset_may_learn(learning):
    x, y = sets((5, 4), (7, 4))
    _, *expected = with_gradients(hk.contrastive_loss, x, y)
    arguments = [x, y, torch.tensor(0.7, dtype=torch.float64), torch.tensor(5.0, dtype=torch.float64)]
    for i in learning:
        arguments[i] = arguments[i].clone().requires_grad_()
    hk.contrastive_loss(*arguments).backward()
    for i, argument in enumerate(arguments):
        if i in learning:
            assert torch.equal(argument.grad, expected[i])
        else:
            assert argument.grad is None


def test_memory_layout_does_not_show():
    x, y = sets((6, 8), (7, 8))
    expected = with_gradients(hk.contrastive_loss, x, y)
    for change in (lambda p: p.mT.contiguous().mT, lambda p: torch.stack([p, p], dim=-1)[..., 0]):
        assert not change(x).is_contiguous()
        assert_close(with_gradients(hk.contrastive_loss, change(x), change(y)), expected, 1e-13)
    repeated = with_gradients(hk.contrastive_loss, x[:1].expand(6, 8), y)
    assert_close(repeated, with_gradients(hk.contrastive_loss, x[:1].repeat(6, 1), y), 1e-13)


def test_without_gradients():
    x, y = (p.requires_grad_() for p in sets((6, 8), (7, 8)))
    expected = hk.contrastive_loss(x, y)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            loss = hk.contrastive_loss(x, y)
        assert not loss.requires_grad
        assert torch.equal(loss, expected)


def test_inputs_are_left_alone():
    x, y, upstream = sets((6, 8), (7, 8), (6,))
    before = [t.clone() for t in (x, y, upstream)]
    with_gradients(partial(hk.contrastive_loss, reduction="none"), x, y, upstream=upstream)
    assert all(torch.equal(a, b) for a, b in zip((x, y, upstream), before, strict=True))


def test_no_second_derivative():
    x, y = (p.requires_grad_() for p in sets((6, 8), (7, 8)))
    (first,) = torch.autograd.grad(hk.contrastive_loss(x, y), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"hypkernels\.contrastive_loss has no second derivative"):
        first.sum().backward()


# ---------------------------------------------------------------- bad arguments

ONES = torch.ones(3, 4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": ONES.expand(2, 3, 4)}, ValueError, r"\(M, D\) and \(N, D\), got \(2, 3, 4\) and \(3, 4\)"),
        ({"x": ONES[0]}, ValueError, r"\(M, D\) and \(N, D\), got \(4,\) and \(3, 4\)"),
        (
            {"x": ONES.expand(2, 3, 4), "y": ONES.expand(2, 3, 4)},
            ValueError,
            r"x and y must have shapes \(M, D\) and \(N, D\), got \(2, 3, 4\) and \(2, 3, 4\)",
        ),
        ({"x": torch.ones(3, 5)}, ValueError, r"same width.*\(3, 5\) and \(3, 4\)"),
        ({"x": ONES.double()}, TypeError, "same dtype, got torch.float64 and torch.float32"),
        ({"y": None}, TypeError, "y must be a tensor of space components"),
        ({"x": torch.ones(5, 4)}, ValueError, r"targets must be given.*\(5, 4\) and \(3, 4\)"),
        ({"curv": -1.0}, ValueError, "curv must be positive and finite, got -1.0"),
        ({"curv": torch.tensor(0.0)}, ValueError, "curv must be positive and finite, got 0.0"),
        ({"logit_scale": -1.0}, ValueError, "logit_scale must not be negative, got -1.0"),
        ({"logit_scale": math.inf}, ValueError, "logit_scale must be finite, got inf"),
        ({"logit_scale": torch.tensor(-1.0)}, ValueError, "logit_scale must not be negative, got -1.0"),
        ({"logit_scale": torch.tensor(math.inf)}, ValueError, "logit_scale must be finite, got inf"),
        ({"logit_scale": torch.tensor(math.nan)}, ValueError, "logit_scale must be finite, got nan"),
        *(
            (
                {"logit_scale": torch.tensor([1.0, value, 2.0])},
                ValueError,
                rf"logit_scale must .*, got {value} in a tensor of \(3,\)",
            )
            for value in (-1.0, math.inf, math.nan)
        ),
        (
            {"logit_scale": torch.ones(2)},
            ValueError,
            r"logit_scale must be .* shape \(3,\), got shape \(2,\)",
        ),
        ({"logit_scale": torch.ones(3, 1)}, ValueError, r"logit_scale must be .* got shape \(3, 1\)"),
        ({"logit_scale": torch.ones(3).long()}, TypeError, "logit_scale must be a floating tensor"),
        ({"logit_scale": "1"}, TypeError, "logit_scale must be a number, got str"),
        ({"logit_scale": True}, TypeError, "logit_scale must be a number, got bool"),
        ({"targets": [0, 1, 2]}, TypeError, "targets must be a tensor of one index for each row, got list"),
        ({"targets": torch.ones(3)}, TypeError, "targets must be int64 or int32, got torch.float32"),
        ({"targets": torch.arange(2)}, ValueError, r"targets must have shape \(3,\).*got \(2,\)"),
        ({"targets": torch.zeros(3, 1).long()}, ValueError, r"targets must have shape \(3,\).*got \(3, 1\)"),
        ({"targets": torch.tensor([0, 3, 1])}, ValueError, r"targets must be in \[0, 3\).*\[0, 3\]"),
        ({"targets": torch.tensor([0, -1, 1])}, ValueError, r"targets must be in \[0, 3\).*\[-1, 1\]"),
        ({"targets": torch.arange(3, device="meta")}, ValueError, "targets must be on cpu .* got meta"),
        ({"y": ONES[:0], "targets": torch.zeros(3).long()}, ValueError, r"targets must be in \[0, 0\)"),
        ({"similarity": "cosine"}, ValueError, "similarity must be one of 'dist', .*, got 'cosine'"),
        ({"reduction": None}, ValueError, "reduction must be one of 'mean', 'sum', 'none', got None"),
        *(
            ({"symmetric": value}, TypeError, "symmetric must be True or False, got " + type(value).__name__)
            for value in (None, "a", 1, torch.tensor(True))
        ),
        (
            {"logit_scale": torch.nested.nested_tensor([torch.ones(1)])},
            TypeError,
            "logit_scale must be a dense tensor, got a nested tensor",
        ),
        ({"precision": "bf16"}, ValueError, "precision must be one of None, 'ieee', .* got 'bf16'"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_arguments_are_refused_by_name(change, error, message, backend):
    arguments = {"x": ONES, "y": ONES, **change}
    with hk.use_backend(backend), pytest.raises(error, match=message):
        hk.contrastive_loss(arguments.pop("x"), arguments.pop("y"), **arguments)


# ---------------------------------------------------------------- several pairings


SETS = [(5, 6), (5, 6), (7, 6), (7, 6)]
PAIRINGS = [(0, 2), (1, 3), (0, 3), (1, 2)]


def test_pairings_are_separate_losses():
    """In values to the last bit, in gradients to the rounding of their sum."""
    torch.manual_seed(5)
    points = [(0.3 * torch.randn(*shape)).requires_grad_() for shape in SETS]
    curv, scale = torch.tensor(0.7, requires_grad=True), torch.tensor(9.0, requires_grad=True)
    together = hk.contrastive_losses(points, PAIRINGS, curv, scale)
    alone = [hk.contrastive_loss(points[row], points[column], curv, scale) for row, column in PAIRINGS]
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=3e-7, atol=0)
    inputs = [*points, curv, scale]
    gradients = torch.autograd.grad(weights @ torch.stack(together), inputs)
    expected = torch.autograd.grad(weights @ torch.stack(alone), inputs)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * other.abs().max().item())


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_pairings_may_be_symmetric_each_by_itself(similarity):
    points = [one.requires_grad_() for one in sets(*SETS, seed=6)]
    both_ways = [True, False, False, True]
    losses = hk.contrastive_losses(points, PAIRINGS, 0.7, 3.0, similarity=similarity, symmetric=both_ways)
    expected = [
        reference.contrastive_loss(
            points[row],
            points[column],
            0.7,
            3.0,
            torch.arange(len(points[row])),
            similarity=similarity,
            symmetric=each,
        ).mean()
        for (row, column), each in zip(PAIRINGS, both_ways, strict=True)
    ]
    torch.testing.assert_close(losses, expected)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    found, wanted = (torch.autograd.grad(weights @ torch.stack(of), points) for of in (losses, expected))
    torch.testing.assert_close(found, wanted)
    with hk.use_backend("reference"):
        again = hk.contrastive_losses(points, PAIRINGS, 0.7, 3.0, similarity=similarity, symmetric=both_ways)
    torch.testing.assert_close(again, expected)


@pytest.mark.parametrize(
    ("symmetric", "error", "message"),
    [
        ([True], ValueError, "symmetric must be one for all or one for each of the 2 pairings, got 1"),
        ([True, 1], TypeError, "symmetric must be True or False, got int"),
        (None, TypeError, "symmetric must be True or False, got NoneType"),
    ],
)
def test_bad_symmetries_are_named(symmetric, error, message):
    with pytest.raises(error, match=message):
        hk.contrastive_losses(PAIR, [(0, 1), (1, 0)], symmetric=symmetric)


def test_pairings_of_a_set_with_itself_and_frozen_sets():
    torch.manual_seed(6)
    x = (0.3 * torch.randn(4, 6, dtype=torch.float64)).requires_grad_()
    y = 0.3 * torch.randn(4, 6, dtype=torch.float64)
    targets, pairings = torch.tensor([1, 2, 3, 0]), [(0, 0), (0, 1), (1, 0)]
    losses = hk.contrastive_losses([x, y], pairings, 0.7, 3.0, targets=targets, similarity="inner")
    expected = [
        reference.contrastive_loss(a, b, 0.7, 3.0, targets, similarity="inner").mean()
        for a, b in ((x, x), (x, y), (y, x))
    ]
    torch.testing.assert_close(losses, expected)
    (gradient,) = torch.autograd.grad(sum(losses), x)
    torch.testing.assert_close(gradient, *torch.autograd.grad(sum(expected), x))


def test_no_pairings_no_losses():
    assert hk.contrastive_losses([torch.ones(2, 3)], []) == []


PAIR = [ONES, ONES]


@pytest.mark.parametrize("pairings", [[(0, 1)], [(0, 2)], []], ids=["in no pairing", "paired", "no pairing"])
@pytest.mark.parametrize(
    ("third", "error", "message"),
    [
        (None, TypeError, "must be a tensor of space components .* got NoneType"),
        ("x", TypeError, "must be a tensor of space components .* got str"),
        (torch.tensor(1.0), ValueError, r"must have shape \(\.\.\., D\) with D >= 1, got \(\)"),
        (ONES[0], ValueError, r"must have shapes \(M, D\) and \(N, D\), got \(3, 4\) and \(4,\)"),
        (torch.ones(100_000, 1), ValueError, r"must have the same width .* got \(3, 4\) and \(100000, 1\)"),
        (ONES.double(), TypeError, "must have the same dtype, got torch.float32 and torch.float64"),
        (ONES.long(), TypeError, "must be float64.*got torch.int64"),
        (ONES.bool(), TypeError, "must be float64.*got torch.bool"),
        (ONES.to(torch.complex64), TypeError, "must be float64.*got torch.complex64"),
        (ONES.to("meta"), ValueError, "must be on the same device, got cpu and meta"),
        (ONES.to_sparse(), TypeError, "must be a dense tensor, got one of layout torch.sparse_coo"),
        (torch.nested.nested_tensor([ONES, ONES]), TypeError, "must be a dense tensor, got a nested tensor"),
    ],
)
def test_every_set_is_checked(pairings, third, error, message):
    with pytest.raises(error, match=rf"points\[2\] {message}"):
        hk.contrastive_losses([*PAIR, third], pairings)


@pytest.mark.parametrize(
    ("points", "pairings", "error", "message"),
    [
        (None, [(0, 1)], TypeError, "points must be a sequence, got NoneType"),
        ([None], [], TypeError, r"points\[0\] must be a tensor"),
        (
            [torch.ones(2, 3), torch.ones(2, 4)],
            [(0, 1)],
            ValueError,
            r"points\[0\] and points\[1\] must have",
        ),
        (PAIR, None, TypeError, "pairings must be a sequence, got NoneType"),
        (PAIR, [0, 1], TypeError, "pairings must be pairs of indices of points, got 0"),
        (PAIR, [(0, 1.0)], TypeError, r"pairings must be pairs of indices of points, got \(0, 1.0\)"),
        (PAIR, [(0, True)], TypeError, r"pairings must be pairs of indices of points, got \(0, True\)"),
        (PAIR, ["01"], TypeError, "pairings must be pairs of indices of points, got '01'"),
        (PAIR, [(0, 1, 1)], ValueError, r"of the 2 point sets, got \(0, 1, 1\)"),
        (PAIR, [(0, -1)], ValueError, r"of the 2 point sets, got \(0, -1\)"),
        (PAIR[:1], [(0, 1)], ValueError, "pairings must be pairs of indices of the 1 point sets"),
    ],
)
def test_bad_pairings_are_named(points, pairings, error, message):
    with pytest.raises(error, match=message):
        hk.contrastive_losses(points, pairings)


def test_points_and_pairings_may_be_iterators():
    sets = [torch.randn(3, 4) for _ in range(3)]
    expected = hk.contrastive_losses(sets, [(0, 1), (2, 0)])
    assert hk.contrastive_losses(iter(sets), zip([0, 2], [1, 0], strict=True)) == expected
    assert hk.contrastive_losses(sets, (pair for pair in [[0, 1], [2, 0]])) == expected


# ---------------------------------------------------------------- memory and tiles


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_many_tiles(similarity):
    """More rows and columns than a tile has, neither a multiple of its size."""
    torch.manual_seed(7)
    x, y = 0.2 * torch.randn(1100, 9), 0.2 * torch.randn(1300, 9)
    targets = torch.randint(1300, (1100,))
    loss = partial(hk.contrastive_loss, similarity=similarity, targets=targets)
    exact = partial(reference.contrastive_loss, similarity=similarity, targets=targets)
    value, *gradients = with_gradients(loss, x, y, scale=20.0)
    wanted, *expected = with_gradients(lambda *p: exact(*p).mean(), x.double(), y.double(), scale=20.0)
    assert value.item() == pytest.approx(wanted.item(), rel=1e-6)
    for one, other in zip(gradients, expected, strict=True):
        # By the curvature, inner products leave a small difference of large sums.
        assert relative_error(one, other) <= (2e-4 if similarity == "inner" else 1e-5)


def test_columns_in_blocks(monkeypatch):
    """Factors are prepared for some columns at a time: how many is no matter."""
    torch.manual_seed(8)
    x, y = 0.2 * torch.randn(600, 4), 0.2 * torch.randn(1200, 4)
    whole = with_gradients(hk.contrastive_loss, x, y)
    monkeypatch.setattr(strips, "BLOCK_BYTES", 1)
    for one, other in zip(with_gradients(hk.contrastive_loss, x, y), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_pairs():
    """Of everything PyTorch allocates, at its peak: beyond inputs and gradients at most 64 MiB."""
    x, y = (torch.randn(9000, 8).mul_(0.2).requires_grad_() for _ in range(2))
    with torch.profiler.profile(
        profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
    ) as trace:
        hk.contrastive_loss(x, y, symmetric=True).backward()
    held = peak = 0
    for event in sorted(trace.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert peak > 0
    assert peak - 2 * x.nbytes <= 64 * 2**20


def test_a_set_in_no_pairing_has_no_gradient():
    sets = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    (loss,) = hk.contrastive_losses(sets, [(0, 2)])
    loss.backward()
    assert not sets[1].grad.any()
    assert sets[0].grad.any()
