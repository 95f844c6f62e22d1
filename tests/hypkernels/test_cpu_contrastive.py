"""The compiled contrastive losses: accuracy, every option, layouts, edge cases, threads."""

import math
import subprocess
import sys
from functools import partial

import native_contrastive as by_library
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_rows import ISAS, needs_library
from test_contrastive import TRAINING, assert_meets_the_gates, embeddings

import hypkernels as hk
from hypkernels.cpu import contrastive as native
from hypkernels.cpu import library

pytestmark = needs_library
SIMILARITIES = tuple(native.SIMILARITIES)


@pytest.fixture(params=ISAS)
def isa(request):
    yield library.use_isa(request.param)
    library.use_isa(None)


def sets(*shapes, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5).to(dtype)
        for shape in shapes
    ]


def with_gradients(function, points, curv, scale):
    """Losses and gradients by each set, the curvature and the scale, the losses' weights differing."""
    points = [p.detach().requires_grad_() for p in points]
    c, s = (v.detach().clone().requires_grad_() for v in (curv, scale))
    results = function(points, c, s)
    weights = [(1.5 + torch.cos(torch.arange(one.numel()))).view(one.shape).to(one.dtype) for one in results]
    return [*(r.detach() for r in results), *torch.autograd.grad(results, [*points, c, s], weights)]


def assert_like_float64(points, pairings, curv, scale, tolerance, **options):
    """``tolerance`` is relative to the norm of each tensor; points' last rounding comes on top."""
    actual = with_gradients(
        lambda p, c, s: by_library.losses(p, pairings, c, s, **options), points, curv, scale
    )
    with hk.use_backend("torch"):
        expected = with_gradients(
            lambda p, c, s: hk.contrastive_losses(p, pairings, c, s, reduction="none", **options),
            [p.double() for p in points],
            curv.double(),
            scale.double(),
        )
    for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
        is_points = a.dtype == points[0].dtype and a.dim() == 2
        rounding = torch.finfo(a.dtype).eps if is_points else 0.0
        error, size = (a.double() - b).norm(), b.norm()
        if options.get("similarity") == "inner" and index == len(actual) - 2:
            size = max(size, len(points[0]) * scale.max() / curv**2)  # its two parts cancel
        assert error <= (tolerance + rounding) * size + 1e-300, (index, error / size)


SHAPES = [(64, 64, 32), (37, 77, 19), (300, 310, 7), (1, 1, 3), (1, 5, 3), (2, 1, 4), (33, 600, 12)]


@pytest.mark.parametrize("per_row", [False, True], ids=["one scale", "row scales"])
@pytest.mark.parametrize("with_targets", [False, True], ids=["matched", "targets"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["both ways", "one way"])
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_option(shape, similarity, symmetric, with_targets, per_row, isa):
    M, N, D = shape
    if M > N and not with_targets:
        pytest.skip("needs targets")
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(0, N, (M,), generator=generator) if with_targets else None
    scale = torch.rand(M, generator=generator) * 9 + 1 if per_row else torch.tensor(8.0)
    options = {"similarity": similarity, "symmetric": symmetric, "targets": targets}
    for dtype, tolerance in ((torch.float32, 3e-6), (torch.float64, 1e-10)):
        points = sets((M, D), (N, D), dtype=dtype)
        curv = torch.tensor(0.7, dtype=dtype)
        assert_like_float64(points, [(0, 1)], curv, scale.double(), tolerance, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_half_precision(similarity, dtype, isa):
    points = sets((64, 33), (70, 33), dtype=dtype)
    curv, scale = torch.tensor(0.7), torch.tensor(8.0)
    assert_like_float64(points, [(0, 1)], curv, scale, 3e-6, similarity=similarity)


@pytest.mark.parametrize(("scenario", "scale"), TRAINING)
def test_gates_in_training(scenario, scale, isa):
    x, y = embeddings(scenario, 640)
    assert_meets_the_gates(x, y, scale, by_library.loss)


def hard_points():
    """Where a part of the computation is worst: relative errors of loss, gradients by points, by scalars."""
    u, v = (p / p.norm(dim=1, keepdim=True) for p in sets((300, 512), (300, 512)))
    axis = u[:1]
    zeros, other_zeros, outlier, far_outlier = u.clone(), v.clone(), u.clone(), v.clone()
    zeros[::3], other_zeros[::2] = 0, 0
    outlier[3] *= 1e5
    far_outlier[7] *= 1e6

    def cone(p):
        p = axis + 0.2 * p
        return p / p.norm(dim=1, keepdim=True)

    yield pytest.param(1e-8 * u, 2e-8 * v, 14.0, 5e-5, id="tiny")
    yield pytest.param(1e-8 * u, 2e-8 * v, 100.0, 1e-4, id="tiny, scale 100")
    yield pytest.param(zeros, other_zeros, 100.0, 1e-6, id="zero rows")
    yield pytest.param(outlier, far_outlier, 100.0, 3e-6, id="outliers")
    yield pytest.param(1.2 * cone(u), 1.3 * cone(v), 100.0, 2e-5, id="narrow cone")
    yield pytest.param(3e7 * u, 3e7 * v, 100.0, 2e-5, id="far")


@pytest.mark.parametrize(("x", "y", "scale", "by_scalars"), [*hard_points()])
def test_hard_points(x, y, scale, by_scalars, isa):
    """Far out a distance's last digit is 2e-6 of a logit of 1,700, which is the error of its weight."""
    curv, scale = (torch.tensor(v, dtype=torch.float64) for v in (0.7, scale))
    x, y = x.float(), y.float()
    actual = with_gradients(lambda p, c, s: [by_library.loss(*p, c, s)], (x, y), curv, scale)
    with hk.use_backend("torch"):
        curv32 = torch.tensor(0.7).double()
        expected = with_gradients(
            lambda p, c, s: [hk.contrastive_loss(*p, c, s)], (x.double(), y.double()), curv32, scale
        )
    errors = [((a.double() - b).norm() / b.norm()).item() for a, b in zip(actual, expected, strict=True)]
    by_points = 6e-5 if x.abs().max() > 1e3 else 2e-6
    assert errors[0] <= (1e-6 if x.abs().max() > 1e3 else 2e-7)
    assert max(errors[1:3]) <= by_points, errors
    assert max(errors[3:]) <= by_scalars, errors


HYSAC = ((0, 2), (1, 3), (0, 3), (1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_several_pairings_of_strided_sets(dtype):
    """HySAC's sets are every second row of what the model returns; and a set may be paired with itself."""
    text, image = sets((90, 2, 24), (90, 2, 24), dtype=dtype)
    points = (*text.unbind(1), *image.unbind(1))
    tolerance = 3e-6 if dtype == torch.float32 else 1e-10
    curv, scale = torch.tensor(0.7, dtype=dtype), torch.tensor(9.0)
    for pairings in (HYSAC, ((0, 1), (1, 0), (2, 3), (2, 2))):
        assert_like_float64(points, pairings, curv, scale.double(), tolerance)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_shape(data):
    M, N, D = (
        data.draw(st.integers(least, 70)) for least in (1, 1, 3)
    )  # in a plane some points all but coincide
    targets = None
    if M > N or data.draw(st.booleans()):
        targets = torch.tensor(data.draw(st.lists(st.integers(0, N - 1), min_size=M, max_size=M)))
    x, y = sets((M, D), (N, D), dtype=torch.float32, seed=data.draw(st.integers(0, 999)))
    if data.draw(st.booleans()):
        x = torch.stack([x, x], 1)[:, 1]
    options = {"similarity": data.draw(st.sampled_from(SIMILARITIES)), "symmetric": data.draw(st.booleans())}
    scale = torch.tensor(data.draw(st.floats(0, 20)), dtype=torch.float64)
    x, y, curv = x.double(), y.double(), torch.tensor(0.7, dtype=torch.float64)
    assert_like_float64((x, y), [(0, 1)], curv, scale, 1e-8, targets=targets, **options)


# More pairs than a stage has, of points that are all centred at once, and of more than that.
STAGED = {
    "rectangles": ([(1500, 40), (1800, 40)], [(0, 1), (1, 1), (0, 0)]),
    "few rows": ([(3, 12), (700_000, 12)], [(0, 1)]),
    "windows": ([(1100, 1024), (3100, 1024)], [(0, 1), (0, 0)]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "similarity", "symmetric"),
    [
        ("rectangles", "dist", True),
        ("rectangles", "angle", True),
        ("few rows", "sqdist", False),
        ("windows", "dist", True),
        ("windows", "inner", False),
    ],
)
def test_what_is_made_in_stages(shape, similarity, symmetric, dtype):
    """To what dense sets leave of digits; the last blocks are ragged, and a set is paired with itself."""
    shapes, pairings = STAGED[shape]
    options = {"similarity": similarity, "symmetric": symmetric}
    tolerance = 1e-7 if dtype == torch.float64 else 2e-4
    curv, scale = (torch.tensor(one, dtype=torch.float64) for one in (0.7, 8.0))
    assert_like_float64(sets(*shapes, dtype=dtype), pairings, curv, scale, tolerance, **options)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_pairs():
    """Of a process, beyond points and gradients: a number of each row for each tile would be more."""
    script = """
import resource, torch, hypkernels as hk
def step(rows):
    x, y = (0.3 * torch.randn(rows, 8) for _ in range(2))
    hk.contrastive_loss(x.requires_grad_(), y.requires_grad_()).backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
step(2000)
print(step(16384) - step(2000))
"""
    grown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert float(grown) <= 32


def run(points, pairings=((0, 1),), **options):
    curv, scale = torch.tensor(0.7), torch.tensor(9.0)
    return with_gradients(
        lambda p, c, s: by_library.losses(p, pairings, c, s, **options), points, curv, scale
    )


@pytest.mark.parametrize(
    "shapes", [((999, 65), (1100, 65)), STAGED["rectangles"][0]], ids=["one stage", "two"]
)
def test_the_number_of_threads_changes_no_bit(shapes, isa):
    points = sets(*shapes, dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(run(points))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_what_is_kept_changes_no_bit(monkeypatch):
    points = sets((200, 65), (333, 65), dtype=torch.float32)
    kept = run(points)
    assert native.kept_bytes(points, [0], [1]) > native.NOTHING_KEPT
    monkeypatch.setattr(native, "KEPT_BYTES", 0)
    assert native.kept_bytes(points, [0], [1]) == native.NOTHING_KEPT
    assert all(torch.equal(a, b) for a, b in zip(run(points), kept, strict=True))


def test_a_second_backward_pass_is_the_first():
    x, y = (p.requires_grad_() for p in sets((50, 9), (50, 9), dtype=torch.float32))
    loss = by_library.loss(x, y, torch.tensor(0.7), torch.tensor(9.0))
    first = torch.autograd.grad(loss, (x, y), retain_graph=True)
    second = torch.autograd.grad(loss, (x, y))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("learning", [(True, False), (False, True), (False, False)])
def test_only_what_learns_has_a_gradient(learning):
    points = sets((40, 9), (50, 9), dtype=torch.float32)
    _, *all_gradients = run(points)
    inputs = [p.requires_grad_(learns) for p, learns in zip(points, learning, strict=True)]
    curv, scale = (torch.tensor(v, requires_grad=True) for v in (0.7, 9.0))
    (losses,) = by_library.losses(inputs, ((0, 1),), curv, scale)
    wanted = [*(p for p in inputs if p.requires_grad), curv, scale]
    gradients = torch.autograd.grad(losses, wanted, 1.5 + torch.cos(torch.arange(40)))
    expected = [g for g, learns in zip(all_gradients, (*learning, True, True), strict=True) if learns]
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(0, 0), (0, 5)])
def test_empty_sets(shape):
    M, N = shape
    losses, by_x, by_y, by_curv, by_scale = run(sets((M, 4), (N, 4), dtype=torch.float32))
    assert losses.shape == (M,)
    assert by_x.shape == (M, 4)
    assert by_y.shape == (N, 4)
    assert not by_y.any()
    assert by_curv == by_scale == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_out_of_range_are_left_to_others(bad, dtype):
    x, y = sets((20, 4), (20, 4), dtype=dtype)
    x[3, 2] = bad if dtype == torch.float32 else bad**12
    none = [by_library.NO_TARGETS]
    arguments = (torch.tensor(0.7), torch.tensor(9.0), none, [0], [1], "dist", [True])
    assert native.forward((x, y), *arguments) is None


def test_products_of_its_own(monkeypatch, isa):
    """Where PyTorch exports none."""
    points = sets((130, 65), (203, 65), dtype=torch.float32)
    expected = run(points)
    runtime = library._torch_runtime()
    bare = library._Runtime(runtime.parallel, runtime.thread_number, runtime.team_size, None, None)
    try:
        library.load().hk_set_runtime(bare)
        own = run(points)
    finally:
        library.load().hk_set_runtime(runtime)
    for a, b in zip(own, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_saved_statistics_are_those_of_the_pytorch_path():
    """So that the backward pass of the one can follow the forward pass of the other."""
    points = sets((40, 9), (50, 9), dtype=torch.float32)
    arguments = (points, torch.tensor(0.7), torch.tensor(9.0), [by_library.NO_TARGETS], [0], [1])
    _, saved = native.forward(*arguments, "dist", [True])
    _, *expected = torch.ops.hypkernels.contrastive_losses(*arguments, "dist", [True], None, "torch")
    for a, b in zip(saved[:3], expected[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    for a, b in zip(saved[4:-1], expected[4:], strict=True):
        assert a.shape == b.shape


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_gradcheck(similarity, symmetric):
    x, y = (p.requires_grad_() for p in sets((4, 3), (5, 3)))
    curv = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    scale = torch.linspace(1, 3, 4, dtype=torch.float64).requires_grad_()
    targets = torch.tensor([2, 2, 0, 4])
    options = {"similarity": similarity, "symmetric": symmetric, "targets": targets, "reduction": "none"}
    assert torch.autograd.gradcheck(partial(by_library.loss, **options), (x, y, curv, scale))
