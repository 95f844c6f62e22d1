"""Entailment losses of several pairings: those of each, made in one call or not, and the gradients' sums."""

import pytest
import torch

import hypkernels as hk
from hypkernels.cpu import library, rows

PAIRINGS = [(1, 0), (3, 2), (2, 0), (3, 1), (0, 3)]
OPTIONS = {
    "aperture_scale": [0.7, 0.7, 1.2, 1.2, 0.0],
    "min_radius": [0.1, 0.2, 0.1, 0.05, 0.1],
    "margin": [0.0, 0.1, -0.1, 0.0, 0.3],
    "leak": [0.0, 0.0, 0.1, 0.2, 0.0],
}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
BACKENDS = ("torch",) if library.why_not() else ("torch", "native")


def sets(*shapes, dtype=torch.float64, size=0.6):
    generator = torch.Generator().manual_seed(3)
    drawn = (size * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [one.to(dtype).requires_grad_() for one in drawn]


def four(dtype=torch.float64, rows=37, width=19):
    return sets(*[(rows, width)] * 4, dtype=dtype)


def separately(points, pairings, curv, reduction="mean", **options):
    named = [dict(zip(options, values, strict=True)) for values in zip(*options.values(), strict=True)]
    return [
        hk.entailment_loss(
            points[apex], points[point], curv, reduction=reduction, **(named[n] if named else {})
        )
        for n, (apex, point) in enumerate(pairings)
    ]


def gradients(losses, inputs):
    weights = [torch.linspace(0.5, 1.5, one.numel(), dtype=one.dtype).view_as(one) for one in losses]
    total = sum(
        (n + 1) * (weight * one).sum() for n, (weight, one) in enumerate(zip(weights, losses, strict=True))
    )
    return torch.autograd.grad(total, inputs, retain_graph=True)


def assert_near(found, expected, rtol):
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * other.abs().max().item())


@pytest.fixture(params=BACKENDS)
def backend(request):
    with hk.use_backend(request.param):
        yield request.param


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_they_are_those_of_each_pairing(backend, dtype, reduction):
    points, curv = four(dtype), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    together = hk.entailment_losses(points, PAIRINGS, curv, reduction=reduction, **OPTIONS)
    alone = separately(points, PAIRINGS, curv, reduction, **OPTIONS)
    assert_near(together, alone, 2e-7 if reduction != "none" else 0)
    # A sum of up to five rounded gradients, in another order; a curvature's is rounded once.
    rounding = 5 * torch.finfo(dtype).eps
    assert_near(gradients(together, points), gradients(alone, points), rounding)
    assert_near(gradients(together, [curv]), gradients(alone, [curv]), 1e-6)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_they_are_the_definition(backend, threads):
    """With gradients that are each summed over several pairings: half of one missing would show."""
    before = torch.get_num_threads()
    points, curv = four(rows=300), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    torch.set_num_threads(threads)
    try:
        losses = hk.entailment_losses(points, PAIRINGS, curv, **OPTIONS)
        found = gradients(losses, [*points, curv])
    finally:
        torch.set_num_threads(before)
    with hk.use_backend("reference"):
        expected = hk.entailment_losses(points, PAIRINGS, curv, **OPTIONS)
        assert_near(losses, expected, 1e-12)
        assert_near(found, gradients(expected, [*points, curv]), 1e-10)


def test_one_call_makes_them(monkeypatch):
    if library.why_not():
        pytest.skip(library.why_not())
    calls = []
    for name in ("entailment_losses", "entailment_losses_backward", "forward"):
        run = getattr(rows, name)
        monkeypatch.setattr(
            rows, name, lambda *a, run=run, name=name, **k: calls.append(name) or run(*a, **k)
        )
    points = four()
    torch.stack(hk.entailment_losses(points, PAIRINGS)).sum().backward()
    assert calls == ["entailment_losses", "entailment_losses_backward"]
    with torch.no_grad():
        hk.entailment_losses(points, PAIRINGS)
    assert calls[2:] == ["entailment_losses"]


def test_a_pair_of_a_set_with_itself_and_sets_that_do_not_learn(backend):
    points, pairings = four(), [(0, 0), (1, 0), (0, 2), (2, 2)]
    points[2].requires_grad_(False)
    options = {"leak": [0.3] * 4}
    together = hk.entailment_losses(points, pairings, 0.7, **options)
    alone = separately(points, pairings, 0.7, **options)
    assert_near(together, alone, 1e-15)
    assert_near(gradients(together, points[:2]), gradients(alone, points[:2]), 1e-14)
    sum(together).backward()
    assert points[2].grad is None
    assert points[3].grad is None, "no pairing has it"


@pytest.mark.parametrize("width", [3, 100])
def test_strided_sets_are_read_in_place(backend, width):
    """Those of HySAC are views of features ``(B, 2, D)``."""
    both = torch.randn(33, 2, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    features = both.requires_grad_()
    losses = hk.entailment_losses(features.unbind(1), [(0, 1), (1, 0)])
    copies = [one.contiguous() for one in features.unbind(1)]
    expected = separately(copies, [(0, 1), (1, 0)], 1.0)
    assert_near(losses, expected, 1e-15)
    assert_near(gradients(losses, [features]), gradients(expected, [features]), 1e-14)


@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float64, 1e170), (torch.float32, 1e30), (torch.float16, 3e4)]
)
def test_rows_out_of_range_are_added_too(backend, dtype, size):
    points = four(dtype)
    with torch.no_grad():
        for one in points:
            one[::3] = (one[::3].double() / one[::3].double().norm(dim=-1, keepdim=True) * size).to(dtype)
            one[1::3] /= size**0.5
    together, alone = hk.entailment_losses(points, PAIRINGS), separately(points, PAIRINGS, 1.0)
    assert_near(together, alone, 2e-7)
    found, expected = gradients(together, points), gradients(alone, points)
    assert all(one.isfinite().all() for one in found)
    for one, other in zip(found, expected, strict=True):  # each row to its own rounding
        assert_near(one, other, 5 * torch.finfo(dtype).eps)


def test_pairings_of_different_numbers_of_rows(backend):
    points = sets((5, 4), (5, 4), (3, 4), (3, 4))
    losses = hk.entailment_losses(points, [(0, 1), (3, 2)], 0.7, reduction="none")
    assert [len(one) for one in losses] == [5, 3]
    assert_near(losses, separately(points, [(0, 1), (3, 2)], 0.7, "none"), 0)


def test_no_pairings_and_no_rows(backend):
    points = sets((0, 4), (0, 4))
    assert hk.entailment_losses(points, []) == []
    losses = hk.entailment_losses(points, [(0, 1), (1, 0)])
    assert [one.item() for one in losses] == [0, 0]
    assert [one.shape for one in gradients(losses, points)] == [(0, 4), (0, 4)]


def test_gradients_of_gradients(backend):
    points, curv = four(rows=3, width=4), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def second(losses):
        first = torch.autograd.grad(torch.stack(losses).sum(), [*points, curv], create_graph=True)
        return torch.autograd.grad(sum(one.square().sum() for one in first), [*points, curv])

    found = second(hk.entailment_losses(points, PAIRINGS, curv, **OPTIONS))
    assert_near(found, second(separately(points, PAIRINGS, curv, **OPTIONS)), 1e-12)


def test_points_and_pairings_may_be_iterators():
    points = four()
    expected = hk.entailment_losses(points, PAIRINGS)
    assert hk.entailment_losses(iter(points), iter(PAIRINGS)) == expected


ONES = torch.ones(3, 4)
TWICE = [(0, 0)] * 2


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([ONES, ONES.double()], []), {}, TypeError, r"points\[0\] and points\[1\] must have the same dtype"),
        (([ONES], [(0, 1)]), {}, ValueError, "pairings must be pairs of indices of the 1 point sets"),
        (
            ([ONES, ONES[:2]], [(0, 1)]),
            {},
            ValueError,
            r"points\[0\] and points\[1\], a pairing, must have as many rows, got \(3, 4\) and \(2, 4\)",
        ),
        (([ONES], [(0, 0)], 0.0), {}, ValueError, "curv must be positive and finite, got 0.0"),
        (
            ([ONES], [(0, 0)] * 2, torch.tensor(-1.0)),
            {},
            ValueError,
            "curv must be positive and finite, got -1.0",
        ),
        (
            ([ONES], [(0, 0)], torch.ones(3)),
            {},
            ValueError,
            r"curv must be .* one-element tensor, got shape \(3,\)",
        ),
        (
            ([ONES], [(0, 0)]),
            {"margin": [0.1, 0.2]},
            ValueError,
            "margin must be one for all or one for each of the 1",
        ),
        (([ONES], [(0, 0)]), {"leak": [-0.1]}, ValueError, "leak must not be negative, got -0.1"),
        (([ONES], [(0, 0)]), {"min_radius": "0.1"}, TypeError, "min_radius must be a float, got str"),
        (([ONES], [(0, 0)]), {"aperture_scale": float("nan")}, ValueError, "aperture_scale must be finite"),
        (([ONES], [(0, 0)]), {"reduction": "max"}, ValueError, "reduction must be one of"),
    ],
)
def test_bad_arguments_are_named(arguments, options, error, message):
    with pytest.raises(error, match=message):
        hk.entailment_losses(*arguments, **options)
