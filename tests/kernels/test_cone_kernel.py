"""The kernels of the half-aperture and the exterior angle."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_lane import FMA_ROUNDS_ONCE
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
from rowwise_cases import (
    FLOAT32,
    MIN_RADIUS,
    REGIMES,
    Tolerance,
    assert_accurate,
    points,
    with_scaled_gradient,
)

from hypkernels.cone import closed_form, kernel

CASES = {
    "half_aperture": Case(
        "half_aperture",
        kernel,
        closed_form.half_aperture,
        closed_form.half_aperture_gradient,
        points=1,
        options=(MIN_RADIUS,),
    ),
    "oxy_angle": Case("oxy_angle", kernel, closed_form.oxy_angle, closed_form.oxy_angle_gradient, points=2),
}
ARGUMENTS = [(name, argument) for name, case in CASES.items() for argument in range(case.points + 1)]
CURV = torch.tensor(0.7)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", CASES)
def test_float32_is_rounded_once(name, regime):
    vectors = points(name, REGIMES[regime], torch.float32)
    assert_accurate(name, vectors, REGIMES[regime].curv, FLOAT32, op=CASES[name])


@pytest.mark.parametrize(
    ("name", "regime"),
    [("oxy_angle", regime) for regime in REGIMES] + [("half_aperture", "at the aperture's edge")],
)
def test_float64(name, regime):
    """As for the formulas: a unit of ``y`` is 1e-9 of an angle of 1e-7; the edge is 1e-6 of ``2K``."""
    collinear = regime in ("collinear", "opposite")
    if collinear and not FMA_ROUNDS_ONCE:
        pytest.skip("n = y - alpha x needs a fused multiply-add where it is 1e-7 of y")
    edge = name == "half_aperture" and "edge" in regime
    tolerance = Tolerance(1e3 if edge else 16, 1e-9 if collinear or edge else 1e-11, 1e-9 if edge else 1e-12)
    vectors = points(name, REGIMES[regime], torch.float64)
    assert_accurate(name, vectors, REGIMES[regime].curv, tolerance, op=CASES[name])


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_a_wrong_gradient_is_caught(name, argument):
    case, regime = CASES[name], REGIMES["embeddings, c=1.0"]
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


@pytest.mark.parametrize("name", CASES)
def test_no_rows(name):
    case = CASES[name]
    vectors = [torch.ones(0, 4, requires_grad=True) for _ in range(case.points)]
    curv = CURV.clone().requires_grad_()
    out = case(*vectors, curv, *case.options)
    *_, by_curv = torch.autograd.grad(out.sum(), [*vectors, curv])
    assert out.shape == (0,)
    assert by_curv == 0


X = torch.tensor([[0.3, -1.2, 0.7], [1e4, 2e4, -3e4], [1e-9, 0.0, 2e-9]])
ZERO = torch.zeros_like(X)


@pytest.mark.parametrize(
    ("x", "y", "angle"),
    [
        pytest.param(X, X, 0.0, id="y = x"),
        pytest.param(ZERO, ZERO, 0.0, id="y = x = 0"),
        pytest.param(ZERO, X, math.pi / 2, id="x = 0"),
        pytest.param(X, ZERO, math.pi, id="y = 0"),
        pytest.param(X, 2 * X, 0.0, id="outward"),
        pytest.param(X, 0.5 * X, math.pi, id="inward"),
        pytest.param(X, -X, math.pi, id="opposite"),
    ],
)
def test_degenerate_angles_have_a_value_and_zero_gradients(x, y, angle):
    out = run(kernel.oxy_angle, x, y, CURV)
    gradients = run(kernel.oxy_angle_backward, torch.ones(3), x, y, CURV)
    assert torch.equal(out, torch.full((3,), angle))
    assert not any(g.any() for g in gradients)


@pytest.mark.parametrize("norm", [0.0, 0.5, 1.0])
def test_cone_within_the_minimal_radius_is_a_half_space(norm):
    """The radius itself included: 2K / sqrt(c) = 0.5 exactly."""
    x, curv = norm * torch.tensor([[0.5, 0.0]]), torch.tensor(1.0)
    out = run(kernel.half_aperture, x, curv, 0.25)
    gradients = run(kernel.half_aperture_backward, torch.ones(1), x, curv, 0.25)
    assert torch.equal(out, torch.tensor([math.pi / 2]))
    assert not any(g.any() for g in gradients)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_minimal_radius_whose_double_is_no_number(dtype):
    x = torch.tensor([[3.0, 4.0], [1e-3, 0.0]], dtype=dtype)
    assert (run(kernel.half_aperture, x, CURV, 1e308) == torch.tensor(math.pi / 2, dtype=dtype)).all()
    assert not any(
        g.any() for g in run(kernel.half_aperture_backward, torch.ones(2).to(dtype), x, CURV, 1e308)
    )
