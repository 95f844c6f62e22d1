"""The kernels of the contrastive loss, over several ragged tiles and blocks, against float64."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
import triton
import triton.language as tl
from kernel_lane import DEVICE, FMA_ROUNDS_ONCE, INTERPRETED
from row_kernel_cases import poisoned_memory
from torch import Tensor

from hypkernels.contrastive import kernel, point_kernels, reference, strips
from hypkernels.contrastive.problem import Embeddings, Learns, Problem, SoftmaxGradient
from hypkernels.tritonlib import launch, pair_gaps, pair_tiles, products, tile_plan
from hypkernels.tritonlib.tile_plan import Block, Plan, Tile, blocks, run_of_tiles

SIMILARITIES = ("dist", "sqdist", "inner", "angle")
TILE = Tile(32, 32, depth_bytes=64, warps=4, stages=1, pieces=2, group=2, run=2)
# The backward pass takes several blocks, none of whole tiles only; the forward pass one.
PLAN = Plan(TILE, TILE, TILE, TILE._replace(pieces=1), inline_ptx=False, workspace_bytes=20_000)
ROWS, COLUMNS, WIDTH = 70, 100, 40


@pytest.fixture(autouse=True)
def _many_rows_a_program(monkeypatch):
    """Still several programs. They are what the interpreter takes time for, and have tests of their own."""
    if INTERPRETED:
        monkeypatch.setattr(launch, "NARROW_TILE", 2048)


@pytest.fixture(autouse=True)
def _runs_of_tiles(monkeypatch):
    """Of two tiles and of one, where a GPU has a tile for each program."""
    monkeypatch.setattr(tile_plan, "_LEAST_PROGRAMS", 1)


class Inputs(NamedTuple):
    x: Tensor
    y: Tensor
    curv: Tensor
    scale: Tensor
    targets: Tensor | None


class Results(NamedTuple):
    """Losses of the rows, then their gradients."""

    losses: Tensor
    x: Tensor
    y: Tensor
    curv: Tensor
    scale: Tensor


class Tolerance(NamedTuple):
    """Relative to the norm of each result."""

    losses: float
    points: float
    curv: float
    scale: float


# Logits of size 10 in float32. For narrower points the gradients by the pairs are rounded: to bfloat16 or,
# for float16, to tf32. A derivative of the inner product by the curvature is small beside its terms.
FLOAT32 = Tolerance(2e-6, 1e-6, 3e-6, 5e-6)
TOLERANCES = {
    torch.float32: FLOAT32,
    torch.bfloat16: FLOAT32._replace(points=2.0**-9),
    torch.float16: FLOAT32._replace(points=2.0**-12),
}


def inputs(dtype=torch.float32, rows=ROWS, columns=COLUMNS, width=WIDTH, size=1.0, scale=5.0) -> Inputs:
    """A scale of its own for each row, repeated targets, columns without a target."""
    generator = torch.Generator().manual_seed(0)
    x, y = (
        (size / width**0.5 * torch.randn(n, width, generator=generator, dtype=torch.float64)).to(dtype)
        for n in (rows, columns)
    )
    scales = scale * torch.linspace(0.5, 1.5, rows, dtype=torch.float64)
    targets = (torch.arange(rows) * 2 + 3) % max(columns - 5, 1)
    return Inputs(x, y, torch.tensor(0.7, dtype=torch.float64), scales, targets)


def upstream(rows: int) -> Tensor:
    return torch.linspace(-0.5, 1.5, rows, dtype=torch.float64)


def computed(given: Inputs, similarity="dist", symmetric=True, plan=PLAN, learns=None, precision="ieee"):
    x, y, c, scale, targets = (None if tensor is None else tensor.to(DEVICE) for tensor in given)
    with poisoned_memory():
        embeddings = Embeddings([x, y], c, kernel.summaries([x, y]))
        p = Problem(*embeddings.sides(0, 1), c, scale, targets, precision, learns or Learns())
        losses, saved = kernel.forward(p, similarity, symmetric, plan=plan)
        grad = upstream(len(x)).to(DEVICE)
        grads = kernel.backward(grad, p, saved, similarity, symmetric, plan=plan)
    return Results(*(None if t is None else t.cpu() for t in (losses, *grads[:2], grads.curv, grads.scale)))


def defined(given: Inputs, similarity="dist", symmetric=True) -> Results:
    x, y, c, scale = (tensor.double().clone().requires_grad_() for tensor in given[:4])
    targets = torch.arange(len(x)) if given.targets is None else given.targets
    losses = reference.contrastive_loss(x, y, c, scale, targets, similarity=similarity, symmetric=symmetric)
    grads = torch.autograd.grad(losses, (x, y, c, scale), upstream(len(x)))
    return Results(losses.detach(), *grads)


def stable_gap(similarity):
    """The definition's values, also of close points: there is little left of ``z`` in ``1 + z``."""

    def gap(x, y, c):
        x_height, y_height = ((square := c * (p * p).sum(1)) / (1 + torch.sqrt(1 + square)) for p in (x, y))
        z = (torch.outer(x_height, 1 + y_height) + y_height - c * (x @ y.mT)).clamp(min=0)
        distance = torch.log1p(z + torch.sqrt(z * (z + 2))) / torch.sqrt(c)
        return {"dist": distance, "sqdist": distance**2, "inner": (1 + z) / c}[similarity]

    return gap


def assert_close(actual: Results, expected: Results, tolerance: Tolerance) -> None:
    bounds = (tolerance.losses, tolerance.points, tolerance.points, tolerance.curv, tolerance.scale)
    for name, a, b, bound in zip(Results._fields, actual, expected, bounds, strict=True):
        error, size = (a.double() - b).norm().item(), b.norm().item()
        assert error <= bound * size, f"{name}: {error / size:.1e} > {bound:.1e}"


CASES = [
    *((torch.float32, similarity, symmetric) for similarity in SIMILARITIES for symmetric in (True, False)),
    *((torch.bfloat16, similarity, True) for similarity in SIMILARITIES),
    (torch.float16, "dist", True),
]


@pytest.mark.parametrize(("dtype", "similarity", "symmetric"), CASES)
def test_losses_and_gradients(dtype, similarity, symmetric):
    given = inputs(dtype)
    expected = defined(given, similarity, symmetric)
    actual = computed(given, similarity, symmetric)
    tolerance = TOLERANCES[dtype]
    if similarity == "inner":  # 1/1400 of its terms, which a rounding of logits of 40 bits changes by 8e-7
        tolerance = tolerance._replace(curv=1.2e-3)
    assert_close(actual, expected, tolerance)
    for name in Results._fields:
        with pytest.raises(AssertionError, match=name):
            assert_close(actual._replace(**{name: 0.9 * getattr(actual, name)}), expected, tolerance)


@pytest.mark.parametrize("workspace_bytes", [1, 1 << 30])
def test_any_workspace(workspace_bytes):
    given = inputs()
    actual = computed(given, plan=PLAN._replace(workspace_bytes=workspace_bytes))
    assert_close(actual, defined(given), FLOAT32)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (33, 64)])
def test_shapes(shape):
    given = inputs(rows=shape[0], columns=shape[1], width=5)
    if shape[1] == 1:
        given = given._replace(targets=torch.zeros(shape[0], dtype=torch.int64))
    actual, expected = computed(given), defined(given)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("columns", [ROWS, COLUMNS])
@pytest.mark.parametrize(
    ("dtype", "similarity"), [(torch.float32, "dist"), (torch.bfloat16, "dist"), (torch.float32, "angle")]
)
def test_each_row_belongs_to_its_own_column(dtype, similarity, columns):
    given = inputs(dtype, columns=columns)._replace(targets=None)
    assert_close(computed(given, similarity), defined(given, similarity), TOLERANCES[dtype])


def test_no_rows():
    for columns in (0, 3):
        actual = computed(inputs(rows=0, columns=columns))
        assert actual.losses.shape == actual.scale.shape == (0,)
        assert actual.y.shape == (columns, WIDTH)
        assert not actual.y.any()
        assert actual.curv == 0


def test_only_what_learns():
    given = inputs(rows=20, columns=20)
    whole = computed(given)
    part = computed(given, learns=Learns(x=False, y=True, curv=True, scale=True))
    assert part.x is None
    assert torch.equal(part.y, whole.y)
    assert torch.equal(part.curv, whole.curv)


def test_rows_without_scale():
    given = inputs()
    scale = given.scale.clone()
    scale[::3] = 0
    given = given._replace(scale=scale)
    assert_close(computed(given), defined(given), FLOAT32)


def test_strided_points():
    given = inputs()
    columns_first = given.x.T.contiguous().T
    every_other = torch.stack([given.y, given.y], 1)[:, 0]
    assert_close(computed(given._replace(x=columns_first, y=every_other)), defined(given), FLOAT32)


def test_overlapping_points():
    """Each the one before, shifted: of such a view ``zeros_like`` would not be dense."""
    line = torch.linspace(-1, 1, ROWS + WIDTH - 1, dtype=torch.float64).square().sub(0.3).float()
    shifted = line.unfold(0, WIDTH, 1)
    given = inputs()._replace(x=shifted)
    assert_close(computed(given), defined(given), FLOAT32)


def test_same_bits_in_every_run():
    given = inputs(torch.bfloat16)
    first, second = computed(given), computed(given)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_logits_that_share_no_exponent():
    """Rows of one tile whose sums are further apart than float32 reaches."""
    given = inputs(scale=150.0)
    sizes = torch.logspace(-1, 1.5, ROWS).unsqueeze(1)
    given = given._replace(x=given.x * sizes, y=given.y * 0.5)
    x, y, c, scale, _ = (tensor.double() for tensor in given)
    logits = -scale.unsqueeze(1) * reference.GAPS["dist"](x, y, c)
    sums = torch.logsumexp(logits, 1)[: TILE.rows] / math.log(2)
    assert sums.max() - sums.min() > 150
    # Logits up to a thousand, rounded to 24 bits.
    assert_close(computed(given), defined(given), Tolerance(1e-6, 1e-4, 1e-4, 1e-4))


@pytest.mark.parametrize("factors", [(0.01, 1.0), (1.0, 0.01)])
def test_runs_whose_tiles_share_no_exponent(factors):
    """The second tile's sums are beyond float32, and then 0, relative to the logits of the first."""
    given = inputs(scale=200.0)
    x = given.x.clone()
    for start, factor in zip((0, TILE.rows), factors, strict=True):
        x[start : start + TILE.rows] *= 40 * factor
    given = given._replace(x=x, y=given.y * 0.05)
    assert_close(computed(given), defined(given), Tolerance(1e-6, 1e-4, 1e-4, 1e-4))


@pytest.mark.parametrize("kept_rows", [1, 16])
def test_rows_in_threads_of_their_own(kept_rows):
    """As a matrix unit leaves them: sums over columns are of other rows than in order."""
    given, tile = inputs(), TILE._replace(kept_rows=kept_rows)
    assert_close(computed(given, plan=PLAN._replace(forward=tile, backward=tile)), defined(given), FLOAT32)


@pytest.mark.parametrize(("height", "width", "run"), [(1, 1, 1), (70, 100, 3), (160, 32, 3), (0, 7, 1)])
def test_runs_are_alike_and_no_longer_than_wanted(height, width, run, monkeypatch):
    tile, block = TILE._replace(run=4), Block(slice(0, height), slice(0, width))
    assert run_of_tiles(tile, block) == run
    monkeypatch.setattr(tile_plan, "_LEAST_PROGRAMS", 2048)
    assert run_of_tiles(tile, block) == 1


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("rows", [20, ROWS])
def test_rows_past_the_end_count_for_nothing(rows, similarity):
    """Also where no logit is anywhere near the 0 that a row of zeros would have."""
    given = inputs(rows=rows, columns=40, width=8, scale=150.0)
    assert_close(computed(given, similarity), defined(given, similarity), Tolerance(1e-6, 5e-5, 5e-5, 5e-5))


@pytest.mark.parametrize("similarity", ["dist", "sqdist"])
@pytest.mark.parametrize("size", [1e-3, 0.2])
def test_near_the_origin(size, similarity, monkeypatch):
    """All distances are 1e-3, or up to what their series serve: what there is of them survives."""
    monkeypatch.setitem(reference.GAPS, similarity, stable_gap(similarity))
    given = inputs(size=size, scale=1 / size if similarity == "dist" else 1 / size**2)
    farthest = sum(points.norm(dim=1).max() for points in (given.x, given.y)) * given.curv.sqrt()
    assert farthest < pair_gaps.NEAR_REACH.value
    assert_close(computed(given, similarity), defined(given, similarity), FLOAT32)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_coincident_points(similarity, monkeypatch):
    """Negatives at distance 0, at the origin and elsewhere: bounded gradients, losses as far as resolved."""
    given = inputs(rows=40, columns=40, width=20)
    x = given.x.clone()
    x[10:13] = 0
    x[20:23] = x[20]
    given = given._replace(x=x, y=x.clone(), targets=torch.arange(40))
    actual = computed(given, similarity)
    assert all(result.isfinite().all() for result in actual)
    if similarity == "angle":  # turns by 1/d at a distance d, which is resolved to 2e-3
        assert actual.x.norm(dim=1).max() < 1e3 * given.scale.max()
        return
    assert actual.x.norm(dim=1).max() < 3 * given.scale.max()
    monkeypatch.setitem(reference.GAPS, similarity, stable_gap(similarity))
    expected = reference.contrastive_loss(
        *(tensor.double() for tensor in given[:4]), given.targets, similarity=similarity
    )
    torch.testing.assert_close(actual.losses, expected, rtol=0, atol=2e-3)


def test_what_the_product_cannot_tell_apart_leaves_the_curvature_alone():
    """Of close pairs there are as many as rows: an error of one sign in each would add up."""
    given = inputs(rows=64, columns=128, width=20)
    close = given.x + 1e-5 * given.y[:64]
    given = given._replace(y=torch.cat([given.y[:64], close]), targets=torch.arange(64))
    actual, expected = computed(given).curv, defined(given).curv
    assert (actual - expected).abs() < 3e-5 * expected.abs()


@pytest.mark.parametrize(
    ("similarity", "value"), [*((s, math.nan) for s in SIMILARITIES), ("dist", math.inf), ("angle", math.inf)]
)
def test_what_is_no_point_shows(similarity, value):
    given = inputs(rows=40, columns=40, width=5)
    y = given.y.clone()
    y[7, 2] = value
    actual = computed(given._replace(y=y), similarity)
    assert actual.losses.isnan().all()
    assert actual.x.isnan().any()


def in_float64(given: Inputs, similarity: str) -> Results:
    """What a CPU makes of the same points in float64, which has the range."""
    x, y = given.x.double(), given.y.double()
    embeddings = Embeddings([x, y], given.curv, strips.summaries([x, y]))
    p = Problem(*embeddings.sides(0, 1), given.curv, given.scale, given.targets, None, in_float64=True)
    losses, saved = strips.forward(p, similarity, True)
    grads = strips.backward(upstream(len(x)), p, saved, similarity, True)
    return Results(losses, *grads[:2], grads.curv, grads.scale)


def test_a_block_of_a_larger_problem_has_no_positives():
    """Its softmaxes are over more than its own rows and columns."""
    given = inputs(rows=40, columns=50, width=8)
    results = []
    for lane, device, options in ((kernel, DEVICE, {"plan": PLAN}), (strips, "cpu", {})):
        x, y, c, scale, targets = (tensor.to(device) for tensor in given)
        if lane is strips:
            x, y = x.double(), y.double()
        embeddings = Embeddings([x, y], c, lane.summaries([x, y]))
        p = Problem(*embeddings.sides(0, 1), c, scale, torch.full_like(targets, -1), "ieee")
        sums = lane.log_sums_of_negatives(p, "dist", True, **options)
        of_rows, of_columns = ((upstream(len(one)).to(device), one + 1) for one in sums)
        softmax = SoftmaxGradient(of_rows, of_columns, of_rows[0])
        grads = lane.gradients_of_negatives(p, [softmax], "dist", True, **options)
        results.append([one.cpu().double() for one in (*sums, *grads)])
    for got, wanted in zip(*results, strict=True):
        assert (got - wanted).norm() <= 5e-6 * wanted.norm()
    pairs = -given.scale.unsqueeze(1) * stable_gap("dist")(given.x.double(), given.y.double(), given.curv)
    torch.testing.assert_close(results[1][0], pairs.logsumexp(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(results[1][1], pairs.logsumexp(0), rtol=1e-12, atol=0)


def sized(x_size, y_size, scale, dtype=torch.float32, which="all") -> Inputs:
    """Few points of these norms, or one of each set."""
    given = inputs(rows=20, columns=24, width=8, scale=scale)
    x, y = given.x.double(), given.y.double()
    x[3 if which == "one" else slice(None)] *= x_size
    y[5 if which == "one" else slice(None)] *= y_size
    return given._replace(x=x.to(dtype), y=y.to(dtype))


def assert_rows_close(actual: Tensor, expected: Tensor, bound: float) -> None:
    """Each relative to itself: beside the gradients of some points those of others are nothing."""
    assert ((actual.double() - expected).norm(dim=1) <= bound * expected.norm(dim=1)).all()


ONE_FAR_OUT = [(1e2, 1), (1e6, 1), (1e9, 1), (1, 1e2), (1, 1e9), (1e9, 1e9)]


@pytest.mark.parametrize(
    ("sizes", "precision"), [*((sizes, "ieee") for sizes in ONE_FAR_OUT), ((1e6, 1), "tf32")]
)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_one_point_far_out(similarity, sizes, precision):
    """Slopes are bounded by what the product resolves of a pair, not of its farther point."""
    given = sized(*sizes, scale=3 / math.prod(sizes) if similarity == "inner" else 3.0, which="one")
    actual, expected = computed(given, similarity, precision=precision), in_float64(given, similarity)
    coarse = precision == "tf32"
    # With one row far out the derivative by the curvature is 1e-4 of its terms, of which some are rounded.
    curv = 1e-3 if similarity == "angle" else 3e-4
    assert_close(
        actual, expected, Tolerance(*((1e-4, 1e-3, 5e-2, 1e-3) if coarse else (1e-6, 1e-6, curv, 5e-6)))
    )
    for a, b in ((actual.x, expected.x), (actual.y, expected.y)):
        assert_rows_close(a, b, 1e-2 if coarse else 1e-5)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float32, 1e-7), (torch.float32, 1e-15), (torch.float32, 2e-30), (torch.bfloat16, 1e-14)],
)
@pytest.mark.parametrize("similarity", ["dist", "sqdist", "angle"])
def test_points_that_all_are_next_to_the_origin(similarity, dtype, size):
    """Powers of their norms leave float32, what is made of them does not."""
    power = {"dist": 1, "sqdist": 2, "angle": 0}[similarity]
    scales = {3.0, 3 / size**power}
    if size < 1e-20 and similarity == "sqdist":
        scales = {1e26}
    for scale in scales:
        given = sized(size, size, scale, dtype)
        actual, expected = computed(given, similarity), in_float64(given, similarity)
        assert_close(actual, expected, TOLERANCES[dtype]._replace(curv=1e-5))
        for a, b in ((actual.x, expected.x), (actual.y, expected.y)):
            assert_rows_close(a, b, 2e-6 if dtype == torch.float32 else 2.0**-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_points_at_the_origin(similarity, dtype):
    """Where all are, and where only some are not."""
    given = sized(0.0, 0.0, 3.0, dtype)
    assert all(result.isfinite().all() for result in computed(given, similarity))
    given.x[4, 0] = 1e-10
    given.y[4, 1] = 1e-10
    assert all(result.isfinite().all() for result in computed(given, similarity))


BOTH_DISTANCES = [("dist", torch.float32), ("sqdist", torch.bfloat16)]
SHOWN = [
    *((*one, 1e9, 1e9, 0.1, False) for one in BOTH_DISTANCES),
    *((*one, 1e-5, 1e17, 0.1, False) for one in BOTH_DISTANCES),
    *((*one, 1e10, 1e10, 0.1, True) for one in BOTH_DISTANCES),
    *((*one, 1e-2, 1e22, 0.1, True) for one in BOTH_DISTANCES),
    ("angle", torch.float32, 1e11, 1e11, 3.0, False),
    ("angle", torch.float32, 1e18, 1e18, 3.0, True),
    ("angle", torch.bfloat16, 1e18, 1.0, 3.0, True),
    ("inner", torch.float32, 1e8, 1e8, 1e-12, False),
    ("inner", torch.float32, 1e10, 1e10, 1e-20, True),
    *((similarity, torch.float32, 1.0, 1.0, 1e6, False) for similarity in SIMILARITIES),
    *((similarity, torch.float32, 1.0, 1.0, 1e11, True) for similarity in SIMILARITIES),
    *((similarity, torch.float32, 1e-32, 1e-32, 3.0, True) for similarity in ("dist", "sqdist", "angle")),
    *((similarity, torch.bfloat16, 1e-17, 1e-17, 3.0, True) for similarity in ("dist", "sqdist", "angle")),
    ("sqdist", torch.float32, 1e-24, 1e-24, 0.1, True),
]


@pytest.mark.parametrize(("similarity", "dtype", "x_size", "y_size", "scale", "shows"), SHOWN)
def test_what_leaves_the_range_of_float32_shows(similarity, dtype, x_size, y_size, scale, shows):
    """Squares would be infinite or 0, and pairs so far apart as if they were not there."""
    given = sized(x_size, y_size, scale, dtype)
    actual = computed(given, similarity)
    if shows:
        assert actual.losses.isnan().all()
        assert actual.x.isnan().all()
        assert actual.y.isnan().all()
        assert actual.curv.isnan()
        assert actual.scale.isnan().all()
    else:
        expected = in_float64(given, similarity)
        torch.testing.assert_close(actual.losses, expected.losses, rtol=1e-5, atol=1e-5)
        tolerance = FLOAT32 if dtype == torch.float32 else TOLERANCES[dtype]._replace(curv=1e-3, scale=1e-3)
        # A logit that is rounded once is not the one in the total, which is rounded to float32.
        apart = 2.0**-24 * expected.losses.abs().max().item() if FMA_ROUNDS_ONCE else 0.0
        points, curv, scale = tolerance.points + apart, 1e-3 + apart, tolerance.scale + apart
        assert_close(actual, expected, Tolerance(1e-5, points, curv, scale))


# A product of tf32 is off by 1e-4 of its factors' norms at these widths, and logits are 10 times a distance.
TF32 = Tolerance(1e-5, 1e-4, 2e-5, 3e-5)


def test_coarser_products_are_close():
    """Operands reach the kernels rounded to tf32, so a product without rounding shows what a GPU's would."""
    given = inputs()
    expected = defined(given)
    assert_close(computed(given, precision="tf32x3"), expected, FLOAT32)
    actual = computed(given, precision="tf32")
    assert_close(actual, expected, TF32)
    with pytest.raises(AssertionError, match="losses"):
        assert_close(actual, expected, FLOAT32)


def test_points_of_a_narrow_cone_are_centred(monkeypatch):
    """Their products are nearly all alike, and it is the rest that matters: tf32 would round that away."""
    given = inputs(size=0.3, scale=20.0)
    given = given._replace(x=given.x + 2 / WIDTH**0.5, y=given.y + 2 / WIDTH**0.5)
    expected = defined(given)
    # The operands' rounding alone is 3.2e-6 of the gradient by the curvature; of 300 such sets, 9e-6 (rms).
    narrow = Tolerance(1e-5, 4e-4, 1e-5, 4e-5)
    assert_close(computed(given, precision="tf32"), expected, narrow)

    monkeypatch.setattr(point_kernels, "_launch_mean_direction", lambda points, out: None)
    assert_close(computed(given), expected, FLOAT32._replace(points=4e-6, curv=4e-6))
    with pytest.raises(AssertionError):
        assert_close(
            computed(given, precision="tf32"), expected, Tolerance(*(10 * bound for bound in narrow))
        )


def test_rounding_to_tf32():
    """To nearest, in the kernel and before it; what is no number stays so, with whatever bits."""
    bits = torch.tensor([0x3F800FFF, 0x3F801000, -0x40800000 + 0x2FFF, 0x7F800000, 0x7FFFFFFF, -1, 0])
    expected = torch.tensor([0x3F800000, 0x3F802000, -0x40800000 + 0x2000, 0x7F800000])
    values = bits.to(torch.int32).view(torch.float32).to(DEVICE)
    in_kernel = torch.empty_like(values)
    _round[(1,)](values, in_kernel, len(values))
    before = products.operand(values.unsqueeze(1), "tf32").squeeze(1)
    for result in (in_kernel, before):
        assert torch.equal(result[:4].view(torch.int32).cpu(), expected.to(torch.int32))
        assert result[4:6].isnan().all()
        assert result[6] == 0


@triton.jit
def _round(X, OUT, n):
    at = tl.arange(0, 8)
    tl.store(OUT + at, pair_tiles.round_to_tf32(tl.load(X + at, mask=at < n)), mask=at < n)


@pytest.mark.parametrize("workspace_bytes", [1, 10**4, 10**6, 10**9])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (70, 100), (5, 3000), (3000, 5), (1000, 900), (0, 7)])
def test_blocks(rows, columns, workspace_bytes):
    tile = TILE._replace(columns=64)
    times = torch.zeros(rows, columns, dtype=torch.int32)
    for block in blocks(rows, columns, tile, pair_bytes=2.5, workspace_bytes=workspace_bytes):
        times[block.rows, block.columns] += 1
        tiles = -(-block.height // tile.rows) * -(-block.width // tile.columns)
        assert tiles == 1 or tiles * tile.rows * tile.columns * 2.5 <= workspace_bytes
    assert (times == 1).all()
