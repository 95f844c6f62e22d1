"""The lift for exporters: the operators' values and gradients, by what every runtime has."""

import pytest
import torch

import hypkernels as hk
from hypkernels import portable


def features(norms, dtype, width=24):
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(len(norms), width, generator=generator, dtype=torch.float64)
    return (norms.unsqueeze(-1) * torch.nn.functional.normalize(directions, dim=-1)).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("curv", [0.01, 1.0, 7.0])
def test_values_and_gradients_are_those_of_the_operator(dtype, tolerance, curv):
    x = features(torch.logspace(-14, 1, 60, dtype=torch.float64), dtype).requires_grad_()
    scale, c = (torch.tensor(value, dtype=dtype, requires_grad=True) for value in (0.3, curv))
    points, distances = portable.lift(x, scale, c)
    assert points.dtype == distances.dtype == dtype
    wide = [one.detach().double().requires_grad_() for one in (x, scale, c)]
    wanted = hk.scaled_exp_map0(*wide)
    of_points = (points.double() - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    assert of_points.max() < tolerance
    assert (distances.double() / hk.dist0(wanted, wide[2]) - 1).abs().max() < tolerance

    weights = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view_as(x)
    found = torch.autograd.grad((points.double() * weights).sum(), (x, scale, c))
    for one, other in zip(found, torch.autograd.grad((wanted * weights).sum(), wide), strict=True):
        assert (one.double() - other).norm() < 20 * tolerance * other.norm()


def test_the_origin_stays():
    for result in portable.lift(torch.zeros(2, 3), torch.tensor(0.5), torch.tensor(2.0)):
        assert not result.any()


def test_what_float32_has_no_place_for_is_infinite():
    points, distances = portable.lift(torch.full((1, 4), 100.0), torch.tensor(1.0), torch.tensor(1.0))
    assert points.isinf().all()
    assert distances.item() == 200.0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(2, dtype=torch.float16), torch.tensor(1.0), torch.tensor(1.0)), TypeError, "float16"),
        ((torch.ones(2), 1.0, torch.tensor(1.0)), ValueError, "scale must be a 0-d tensor, got float"),
        (
            (torch.ones(2), torch.tensor(1.0), torch.ones(1)),
            ValueError,
            r"curv must be a 0-d tensor, got \(1,\)",
        ),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        portable.lift(*arguments)
