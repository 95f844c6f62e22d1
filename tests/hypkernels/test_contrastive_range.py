"""The contrastive loss on a CPU at every finite number, against arithmetic of 400 digits."""

import math
from functools import partial

import mpmath as mp
import pytest
import torch
from test_contrastive import mp_loss
from torch import Tensor

import hypkernels as hk

SIMILARITIES = ("dist", "sqdist", "inner", "angle")
ROWS, COLUMNS, WIDTH = 3, 4, 3
# Beside the results: gradients by the points are rounded to the points' dtype.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8, torch.float64: 1e-10}


def points(dtype, size, which) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, WIDTH, generator=generator, dtype=torch.float64) for n in (ROWS, COLUMNS))
    if which in ("all", "all but zeros"):
        x, y = x * size, y * size
    if which in ("one", "one of each"):
        x[0] *= size
    if which == "one of each":
        y[-1] *= size
    if which == "all but zeros":
        x[0], y[1] = 0, 0
    return x.to(dtype), y.to(dtype)


def scale_for(similarity, size, which) -> float:
    """With it not all logits are alike, nor one so much larger that all the others do not count."""
    power = {"dist": 1, "sqdist": 2, "inner": 2, "angle": 0}[similarity]
    if which.startswith("one"):
        return 3 / max(size, 1.0) if similarity == "inner" else 3.0
    if similarity == "inner" or size < 1:
        return 3 / size**power
    return 3 / (1 + math.log(size)) ** (power - 1) if power else 3.0


def results(x, y, curv, scale, similarity) -> list[Tensor]:
    """The loss and its gradients, the scalars being float64."""
    inputs = [x.clone(), y.clone(), *(torch.tensor(v, dtype=torch.float64) for v in (curv, scale))]
    inputs = [one.requires_grad_() for one in inputs]
    loss = hk.contrastive_loss(*inputs, similarity=similarity)
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def truth(x, y, curv, scale, similarity) -> tuple[mp.mpf, list[mp.mpf]]:
    """The loss and its derivatives by all coordinates, the curvature and the scale."""
    with mp.workdps(400):
        flat = [mp.mpf(v) for v in [*x.double().flatten().tolist(), *y.double().flatten().tolist()]]
        flat += [mp.mpf(curv), mp.mpf(scale)]

        def loss(v):
            rows = [v[at : at + WIDTH] for at in range(0, len(v) - 2, WIDTH)]
            return mp_loss(similarity, rows[:ROWS], rows[ROWS:], v[-2], [v[-1]] * ROWS, range(ROWS))

        def derivative(i):
            first = i - i % WIDTH
            beside = flat[first : first + WIDTH] if i < len(flat) - 2 else flat[i : i + 1]
            step = max(map(abs, beside)) * mp.mpf(10) ** -60 or mp.mpf(10) ** -200
            ahead, behind = (loss([*flat[:i], flat[i] + h, *flat[i + 1 :]]) for h in (step, -step))
            return (ahead - behind) / (2 * step)

        return loss(flat), [derivative(i) for i in range(len(flat))]


def assert_right(x, y, curv, scale, similarity, tolerance) -> None:
    """The loss, each row of the gradients and the gradients by the scalars, each relative to its own size."""
    loss, *gradients = results(x, y, curv, scale, similarity)
    true_loss, derivatives = truth(x, y, curv, scale, similarity)
    assert abs(loss.item() - true_loss) <= tolerance * max(1, true_loss)
    limits = torch.finfo(x.dtype)
    for i, row in enumerate(torch.cat(gradients[:2]).tolist()):
        expected = derivatives[i * WIDTH : (i + 1) * WIDTH]
        longest = max(map(abs, expected))
        expected = [v * min(1, limits.max / max(longest, limits.tiny)) for v in expected]
        error = mp.norm([a - b for a, b in zip(row, expected, strict=True)])
        assert error <= tolerance * max(mp.norm(expected), 1e3 * limits.tiny), f"row {i}: {row} {expected}"
    by_curv, by_scale = derivatives[-2:]
    gap = {"angle": math.pi}.get(similarity, 0.0)  # of which far out nothing is left but rounding
    assert abs(gradients[2].item() - by_curv) <= tolerance * abs(by_curv)
    assert abs(gradients[3].item() - by_scale) <= tolerance * max(abs(by_scale), gap)


WHICH = ("all", "one", "one of each", "all but zeros")
CASES = [
    *((torch.float32, size, which) for size in (1e-40, 1e37) for which in WHICH),
    (torch.bfloat16, 1e37, "all"),
    *((torch.float64, size, which) for size in (1e-45, 1e43) for which in ("all", "one")),
]


@pytest.mark.parametrize(("dtype", "size", "which"), CASES)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_points_of_every_size(similarity, dtype, size, which):
    x, y = points(dtype, size, which)
    scale = scale_for(similarity, size, which)
    if similarity == "angle" and which == "all but zeros":  # a kink, which the definition divides by
        assert all(one.isfinite().all() for one in results(x, y, 1.0, scale, similarity))
        return
    assert_right(x, y, 1.0, scale, similarity, TOLERANCE[dtype])


@pytest.mark.parametrize("scale", [3.0, 1e15, 1e30])
@pytest.mark.parametrize("curv", [1e-6, 1e6])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_curvatures_and_scales(similarity, curv, scale):
    x, y = points(torch.float32, 1.0, "all")
    if similarity == "angle" and curv > 1 and scale == 3:
        pytest.skip("angles that are all alike but for 1e-3")
    assert_right(x, y, curv, scale, similarity, 1e-5)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_finite_numbers_make_no_nan(similarity, dtype):
    """And no infinity but a loss that is none of its dtype's numbers."""
    limits = torch.finfo(dtype)
    for size in (0.0, limits.tiny, 1e-20, 1e-5, 1e5, 1e18, limits.max / 8):
        for which in WHICH:
            x, y = (one.clamp(limits.min, limits.max) for one in points(dtype, size, which))
            for scale in (0.0, 1e4, 1e30):
                if dtype == torch.float64 and not (size == 0 or 1e-74 < size < 1e43):
                    continue
                loss, *gradients = results(x, y, 1.0, scale, similarity)
                assert not loss.isnan(), (size, which, scale)
                assert loss.isfinite() or scale * size >= 1e4
                assert all(one.isfinite().all() for one in gradients), (size, which, scale)


@pytest.mark.parametrize("size", [1e-200, 1e-80, 1e50, 1e200, 1e300])
def test_products_that_leave_float64_are_refused(size):
    for which in ("all", "one"):
        with pytest.raises(ValueError, match=r"points must have a norm .* leave the range of float64"):
            hk.contrastive_loss(*points(torch.float64, size, which))


def test_logits_that_leave_float64_are_refused():
    x, y = points(torch.float32, 1e30, "all")
    with pytest.raises(ValueError, match=r"logit_scale 1e\+300 is too large for these points"):
        hk.contrastive_loss(x, y, 1.0, 1e300)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_points_that_are_none_are_not_refused(similarity):
    for dtype in (torch.float64, torch.float32):
        for value in (math.nan, math.inf):
            x, y = points(dtype, 1.0, "all")
            x[1, 1] = value
            losses = hk.contrastive_loss(x, y, similarity=similarity, symmetric=False, reduction="none")
            assert losses.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_gradients_beyond_their_dtype_keep_their_direction(dtype):
    """An angle turns by ``1/|x|``."""
    size = {torch.float16: 2e-7, torch.float32: 1e-42, torch.bfloat16: 3e-40}[dtype]
    x, y = points(dtype, size, "all")
    _, by_x, by_y, *_ = results(x, y, 1.0, 1e4 if dtype == torch.float16 else 3.0, "angle")
    wide = results(
        x.double() / size, y.double() / size, size**2, 1e4 if dtype == torch.float16 else 3.0, "angle"
    )
    for gradient, expected in zip((by_x, by_y), wide[1:3], strict=True):
        longest = expected.abs().amax(1, keepdim=True)
        beyond = (longest / size > torch.finfo(dtype).max).squeeze(1)
        assert beyond.any()
        assert (gradient[beyond].abs().amax(1) == torch.finfo(dtype).max).all()
        torch.testing.assert_close(
            gradient.double()[beyond] / torch.finfo(dtype).max,
            (expected / longest)[beyond],
            rtol=2.0**-8,
            atol=2.0**-8,
        )


def test_scalars_beyond_their_dtype():
    x, y = points(torch.float32, 1e30, "all")
    scale = torch.ones((), requires_grad=True)
    hk.contrastive_loss(x, y, 1.0, scale, similarity="inner").backward()
    assert scale.grad == torch.finfo(torch.float32).max


def test_pairings_of_which_one_leaves_float32():
    """Their gradients by a set they share are added in whatever dtype is wider."""
    x, y = points(torch.float32, 1.0, "all")
    _, far = points(torch.float32, 1e25, "all")
    alone = [torch.func.grad(lambda x, z=z: hk.contrastive_loss(x, z))(x) for z in (y, far)]
    for sets in ([x, y, far], [x, far, y]):

        def both(x, sets=sets):
            return sum(hk.contrastive_losses([x, *sets[1:]], [(0, 1), (0, 2)]))

        torch.testing.assert_close(torch.func.grad(both)(x), sum(alone), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("symmetric", [True, False])
def test_inner_products_of_small_curvature_keep_their_digits(symmetric):
    """All share ``1/c``, of which a softmax of one scale knows nothing, and one of rows never does."""
    x, y = points(torch.float32, 1.0, "all")
    scale = 3.0 if symmetric else torch.tensor([3.0, 4.0, 5.0])
    loss = partial(hk.contrastive_loss, similarity="inner", symmetric=symmetric, reduction="none")
    flat = -torch.as_tensor(scale).double().reshape(-1, 1) * torch.cdist(x.double(), y.double()).square() / 2
    rows, targets = torch.nn.functional.cross_entropy, torch.arange(ROWS)
    expected = rows(flat, targets, reduction="none")
    if symmetric:
        expected = (expected + rows(flat.mT[targets], targets, reduction="none")) / 2
    torch.testing.assert_close(loss(x, y, 1e-9, scale).double(), expected, rtol=1e-6, atol=1e-6)
