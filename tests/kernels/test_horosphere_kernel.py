"""The kernels of the Busemann function."""

from __future__ import annotations

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
from rowwise_cases import BUSEMANN_FLOAT64, FLOAT32, REGIMES, assert_accurate, points, with_scaled_gradient

from hypkernels.horosphere import closed_form, kernel

CASE = Case("busemann", kernel, closed_form.busemann, closed_form.busemann_gradient, points=2)
CURV = torch.tensor(0.7)


@pytest.mark.parametrize("regime", REGIMES)
def test_float32_is_rounded_once(regime):
    vectors = points("busemann", REGIMES[regime], torch.float32)
    assert_accurate("busemann", vectors, REGIMES[regime].curv, FLOAT32, op=CASE)


@pytest.mark.parametrize("regime", REGIMES)
def test_float64(regime):
    if regime in ("collinear", "opposite") and not FMA_ROUNDS_ONCE:
        pytest.skip("n = y - alpha x needs a fused multiply-add where it is 1e-7 of y")
    vectors = points("busemann", REGIMES[regime], torch.float64)
    assert_accurate("busemann", vectors, REGIMES[regime].curv, BUSEMANN_FLOAT64, op=CASE)


@pytest.mark.parametrize("argument", range(3))
def test_a_wrong_gradient_is_caught(argument):
    regime, wrong = REGIMES["embeddings, c=1.0"], with_scaled_gradient(CASE, argument)
    with pytest.raises(AssertionError):
        assert_accurate("busemann", points("busemann", regime, torch.float32), regime.curv, FLOAT32, op=wrong)
    for dtype in DTYPES:
        with pytest.raises(AssertionError):
            assert_matches_formula(CASE, random_points((3,), 5, dtype, 2), CURV, op=wrong)


@pytest.mark.parametrize(("shape", "dtype"), SHAPES_AND_DTYPES)
def test_shapes_and_dtypes(shape, dtype):
    assert_matches_formula(CASE, random_points(*shape, dtype, 2), CURV)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(layout):
    assert_matches_formula(CASE, strided_points(layout), CURV)


def test_the_origin_both_rays_and_no_direction():
    w = torch.tensor([0.75, -1.5, 0.25])
    x = torch.stack([0 * w, 2.0**40 * w, -(2.0**40) * w, w])
    direction = torch.stack([w, w, w, 0 * w])
    expected = closed_form.busemann(x.double(), direction.double(), CURV.double())
    grads = closed_form.busemann_gradient(
        torch.ones(4, 1).double(), x.double(), direction.double(), CURV.double()
    )
    out = run(kernel.busemann, x, direction, CURV)
    by_x, by_direction, by_curv = run(kernel.busemann_backward, torch.ones(4), x, direction, CURV)
    torch.testing.assert_close(out, expected.squeeze(1).float(), rtol=1e-7, atol=0)
    torch.testing.assert_close(by_x, grads[0].float(), rtol=1e-7, atol=0)
    torch.testing.assert_close(by_curv, grads[2].sum(), rtol=1e-13, atol=0)
    assert not by_direction.any()
