"""The kernels of the entailment loss.

The formulas in float64 are the truth here: their own tests compare them with 240 digits.
"""

from __future__ import annotations

from dataclasses import replace

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
from rowwise_cases import REGIMES, with_scaled_gradient

from hypkernels.entailment import closed_form, kernel
from hypkernels.pair_geometry import pair_geometry

# aperture_scale, min_radius, margin, leak: all of them matter, and none is a float32.
ALL_OPTIONS = (1.2, 0.05, 0.3, 0.25)
CASE = Case(
    "entailment_loss",
    kernel,
    lambda x, y, c, *options: closed_form.pair_entailment_loss(pair_geometry(x, y, c)[0], *options),
    closed_form.entailment_loss_gradient,
    points=2,
    options=ALL_OPTIONS,
)
DEFAULTS = replace(CASE, options=(1.0, 0.1, 0.0, 0.0))
CURV = torch.tensor(0.7)


@pytest.mark.parametrize("case", [DEFAULTS, CASE], ids=["defaults", "all options"])
@pytest.mark.parametrize("regime", REGIMES)
def test_regimes(regime, case):
    regime = REGIMES[regime]
    assert_matches_formula(case, [regime.x.float(), regime.y.float()], torch.tensor(regime.curv).double())


@pytest.mark.parametrize(
    "options",
    [
        (0.0, 0.1, 0.0, 0.0),
        (0.7, 0.1, 0.0, 0.0),
        (1.0, 0.3, 0.2, 0.0),
        (1.0, 0.1, -0.5, 0.0),
        (1.0, 0.1, 0.0, 0.1),
    ],
)
def test_options_outside_and_inside_the_cone(options):
    apex, point = random_points((20,), 6, torch.float64, 2)
    point[10:] = 2 * apex[10:] + 0.01 * point[10:]
    assert_matches_formula(replace(CASE, options=options), [apex, point], CURV)


@pytest.mark.parametrize("argument", range(3))
def test_a_wrong_gradient_is_caught(argument):
    wrong = with_scaled_gradient(CASE, argument)
    for dtype in DTYPES:
        with pytest.raises(AssertionError):
            assert_matches_formula(CASE, random_points((3,), 5, dtype, 2), CURV, op=wrong)


@pytest.mark.parametrize(("shape", "dtype"), SHAPES_AND_DTYPES)
def test_shapes_and_dtypes(shape, dtype):
    assert_matches_formula(CASE, random_points(*shape, dtype, 2), CURV)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(layout):
    assert_matches_formula(CASE, strided_points(layout), CURV)


def test_no_rows():
    apex, point = torch.ones(2, 0, 4)
    loss = CASE(apex, point, CURV, *ALL_OPTIONS)
    by_apex, by_point, by_curv = run(kernel.entailment_loss_backward, loss, apex, point, CURV, *ALL_OPTIONS)
    assert loss.shape == (0,)
    assert by_apex.shape == by_point.shape == (0, 4)
    assert by_curv == 0


def test_a_point_in_the_cone_costs_nothing():
    apex = torch.tensor([[0.6, 0.3]])
    for point in (apex, 2 * apex):
        assert run(kernel.entailment_loss, apex, point, CURV, *DEFAULTS.options) == 0
        gradients = run(kernel.entailment_loss_backward, torch.ones(1), apex, point, CURV, *DEFAULTS.options)
        assert not any(g.any() for g in gradients)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_minimal_radius_whose_double_is_no_number(dtype):
    apex = torch.tensor([[3.0, 4.0], [0.5, 1.0]], dtype=dtype)
    point = torch.tensor([[-3.0, 5.0], [-2.0, 1.0]], dtype=dtype)
    upstream = torch.ones(2, dtype=dtype)
    results = [
        (
            run(kernel.entailment_loss, apex, point, CURV, 0.5, radius, 0.0, 0.1),
            *run(kernel.entailment_loss_backward, upstream, apex, point, CURV, 0.5, radius, 0.0, 0.1),
        )
        for radius in (1e308, 1e10)
    ]
    assert (results[0][0] > 0).all()
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
