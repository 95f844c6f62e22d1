"""The reference definitions in float64 against 240 digits, where they are well conditioned."""

import pytest
import torch
from lorentz_oracle import FUNCTIONS, ONE_POINT
from rowwise_cases import ROWS, Tolerance, assert_accurate, with_scaled_gradient

from hypkernels.cone import reference as cone
from hypkernels.distance import reference as distance
from hypkernels.maps import reference as maps

MODULES = {
    "half_aperture": cone,
    "oxy_angle": cone,
    "exp_map0": maps,
    "log_map0": maps,
    "exp_map": maps,
    "log_map": maps,
}
TOLERANCE = Tolerance(1e4, 1e-12, 1e-12)


def reference(name):
    return getattr(MODULES.get(name, distance), name)


def vectors(name):
    generator = torch.Generator().manual_seed(4)
    count = 1 if name in ONE_POINT else 2
    return [torch.randn(ROWS, 6, generator=generator, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("curv", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_reference_is_the_definition(name, curv):
    assert_accurate(name, vectors(name), curv, TOLERANCE, op=reference(name))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_wrong_gradient_is_caught(name):
    with pytest.raises(AssertionError):
        assert_accurate(name, vectors(name), 1.0, TOLERANCE, op=with_scaled_gradient(reference(name), 0))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_reference_has_second_derivatives(name):
    args = [v[:2, :3].clone().requires_grad_() for v in vectors(name)]
    curv = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(reference(name), (*args, curv))
