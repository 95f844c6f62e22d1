"""The kernels of the inner product and the distances."""

from __future__ import annotations

import pytest
import torch
from row_kernel_cases import (
    DTYPES,
    LAYOUTS,
    SHAPES_AND_DTYPES,
    Case,
    assert_matches_formula,
    random_points,
    run,
    strided_points,
)
from rowwise_cases import FLOAT32, REGIMES, Tolerance, assert_accurate, points, with_scaled_gradient

from hypkernels.distance import closed_form, kernel
from hypkernels.pair_geometry import norm

CASES = {
    "elementwise_inner": Case(
        "elementwise_inner",
        kernel,
        closed_form.elementwise_inner,
        closed_form.elementwise_inner_gradient,
        points=2,
    ),
    "elementwise_dist": Case(
        "elementwise_dist",
        kernel,
        closed_form.elementwise_dist,
        closed_form.elementwise_dist_gradient,
        points=2,
    ),
    "dist0": Case(
        "dist0",
        kernel,
        lambda x, c: closed_form.dist0_by_norm(norm(x), c),
        closed_form.dist0_gradient,
        points=1,
    ),
}
ARGUMENTS = [(name, argument) for name, case in CASES.items() for argument in range(case.points + 1)]
CURV = torch.tensor(0.7)
# As for the formulas themselves: n is computed to a unit of y, and it is 1e-7 of y in the collinear regimes.
FLOAT64 = Tolerance(16, 1e-9, 1e-12)


# The inner product shares all that can cancel with the distance: where the two differ is far out.
@pytest.mark.parametrize(
    ("name", "regime"),
    [(name, regime) for name in ("elementwise_dist", "dist0") for regime in REGIMES]
    + [("elementwise_inner", regime) for regime in REGIMES if regime.startswith(("far", "huge", "near"))],
)
def test_float32_is_rounded_once(name, regime):
    vectors = points(name, REGIMES[regime], torch.float32)
    assert_accurate(name, vectors, REGIMES[regime].curv, FLOAT32, op=CASES[name])


@pytest.mark.parametrize("regime", REGIMES)
def test_float64(regime):
    name = "elementwise_dist"
    vectors = points(name, REGIMES[regime], torch.float64)
    assert_accurate(name, vectors, REGIMES[regime].curv, FLOAT64, op=CASES[name])


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_a_wrong_gradient_is_caught(name, argument):
    case, regime = CASES[name], REGIMES["close, r=1"]
    wrong = with_scaled_gradient(case, argument)
    with pytest.raises(AssertionError):
        assert_accurate(name, points(name, regime, torch.float32), regime.curv, FLOAT32, op=wrong)
    for dtype in DTYPES:
        with pytest.raises(AssertionError):
            assert_matches_formula(case, random_points((3,), 5, dtype, case.points), CURV, op=wrong)


@pytest.mark.parametrize(("shape", "dtype"), SHAPES_AND_DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_shapes_and_dtypes(name, shape, dtype):
    case = CASES[name]
    assert_matches_formula(case, random_points(*shape, dtype, case.points), CURV)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_strides(name, layout):
    case = CASES[name]
    assert_matches_formula(case, strided_points(layout)[: case.points], CURV)


@pytest.mark.parametrize(
    "curv", [CURV.double(), CURV, CURV.bfloat16(), CURV.half()], ids=lambda c: str(c.dtype)
)
def test_curvature_of_any_dtype(curv):
    case = CASES["elementwise_dist"]
    assert_matches_formula(case, random_points((3,), 5, torch.float32, 2), curv)


@pytest.mark.parametrize("batch", [(0,), (3, 0), ()])
@pytest.mark.parametrize("name", CASES)
def test_no_rows_and_a_single_one(name, batch):
    case = CASES[name]
    vectors = [torch.ones(*batch, 4, requires_grad=True) for _ in range(case.points)]
    curv = CURV.clone().requires_grad_()
    out = case(*vectors, curv)
    assert out.shape == batch
    *grads, by_curv = torch.autograd.grad(out.sum(), [*vectors, curv])
    assert all(torch.isfinite(g).all() and g.shape == v.shape for g, v in zip(grads, vectors, strict=True))
    if 0 in batch:
        assert by_curv == 0


@pytest.mark.parametrize("x", [torch.zeros(2, 5), torch.randn(2, 5), 1e8 * torch.randn(2, 5)])
def test_coincident_points(x):
    distance = run(kernel.elementwise_dist, x, x, CURV)
    grads = run(kernel.elementwise_dist_backward, torch.ones(2), x, x, CURV)
    inner = run(kernel.elementwise_inner, x, x, CURV)
    by_x, by_y, by_curv = run(kernel.elementwise_inner_backward, torch.ones(2), x, x, CURV)
    assert not distance.any()
    assert not any(g.any() for g in grads)
    torch.testing.assert_close(inner, torch.full((2,), -1 / 0.7))
    assert not by_x.any()
    assert not by_y.any()
    torch.testing.assert_close(by_curv.item(), 2 / CURV.item() ** 2)


def test_points_on_one_ray_have_no_lateral_gradient():
    x = torch.tensor([[3e7, 0.0, 0.0]])
    for grad in run(kernel.elementwise_dist_backward, torch.ones(1), x, x * (1 + 2e-7), CURV)[:2]:
        assert grad[0, 0] != 0
        assert not grad[0, 1:].any()


def test_the_origin():
    zero, y = torch.zeros(2, 5), torch.randn(2, 5)
    by_zero, _, _ = run(kernel.elementwise_dist_backward, torch.ones(2), zero, y, CURV)
    torch.testing.assert_close(by_zero, -y / y.norm(dim=-1, keepdim=True), rtol=1e-6, atol=0)
    assert not run(kernel.dist0, zero, CURV).any()
    assert not any(g.any() for g in run(kernel.dist0_backward, torch.ones(2), zero, CURV))
