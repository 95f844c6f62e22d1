"""The reference definitions in float64 against 240 digits, where they are well conditioned."""

import pytest
import torch
from lorentz_oracle import FUNCTIONS, ONE_POINT
from rowwise_cases import ROWS, Tolerance, assert_accurate, with_scaled_gradient
from rowwise_ops import OPS
from transforms import SUBJECTS

import hypkernels as hk

TOLERANCE = Tolerance(1e4, 1e-12, 1e-12)


def reference(name):
    return OPS[name].definition


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


@pytest.mark.parametrize("name", SUBJECTS)
def test_ensembles_of_every_scalar(name):
    """Checks of values see those of all samples."""
    subject = SUBJECTS[name]
    arguments, count = subject.arguments(), len(subject.shapes)
    several = [one * torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64) for one in arguments[count:]]

    def total(*scalars):
        return subject.function(*arguments[:count], *scalars).sum()

    def gradient(*scalars):
        with hk.use_backend("reference"):
            return torch.func.grad(total, tuple(range(len(scalars))))(*scalars)

    together = torch.vmap(gradient)(*several)
    for index in range(3):
        for of_all, alone in zip(together, gradient(*(one[index] for one in several)), strict=True):
            torch.testing.assert_close(of_all[index], alone)


@pytest.mark.parametrize("name", [name for name in SUBJECTS if name != "HySACLoss"])
def test_shapes_on_the_meta_device(name):
    """Scalars may stay on the CPU, as beside points on a GPU."""
    subject = SUBJECTS[name]
    arguments, count = subject.arguments(), len(subject.shapes)
    sets = [one.to("meta") for one in arguments[:count]]
    with hk.use_backend("reference"):
        shape = subject.function(*arguments).shape
        assert subject.function(*sets, *arguments[count:]).shape == shape
        assert subject.function(*sets, **subject.numbers).shape == shape
