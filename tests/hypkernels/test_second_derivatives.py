"""Second derivatives of the public functions at near-coincident and collinear points, against 240 digits."""

import pytest
import torch
from rowwise_cases import REGIMES
from rowwise_ops import keywords_of
from test_smooth import FUNCTIONS, check_derivatives, vectors

import hypkernels as hk
from hypkernels.pairwise.geometry import RESOLUTION_ULPS

NEAR = [name for name in REGIMES if name.startswith(("close", "collinear", "opposite"))]
ROWWISE = {
    "pairwise_inner": hk.elementwise_inner,
    "pairwise_dist": hk.elementwise_dist,
    "pairwise_oxy_angle": hk.oxy_angle,
}


def public(name):
    keywords = keywords_of(name) | ({"reduction": "none"} if name == "entailment_loss" else {})
    return lambda *a: getattr(hk, name)(*a, **keywords)


@pytest.mark.parametrize("regime", NEAR)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_rowwise(name, regime):
    c = torch.tensor(REGIMES[regime].curv, dtype=torch.float64)
    check_derivatives(name, [*vectors(name, REGIMES[regime]), c], public(name))


def second(function, x, y, curv):
    """Along a direction of each argument, the derivative of the gradients by all."""
    arguments = [one.clone().requires_grad_() for one in (x, y, curv)]
    first = torch.autograd.grad(function(*arguments).sum(), arguments, create_graph=True)
    generator = torch.Generator().manual_seed(0)
    found = []
    for by in first:
        direction = torch.randn(by.shape, generator=generator, dtype=by.dtype)
        found += torch.autograd.grad((by * direction).sum(), arguments, retain_graph=True)
    return found


def unresolved(name, x, y, curv):
    """How much of a second derivative the rounding of the product of ``x`` and ``y`` may change."""
    rounding = RESOLUTION_ULPS * 2.0**-52
    near = hk.elementwise_dist(x, y, curv).item() * curv.sqrt().item()
    share = rounding * (curv * x.norm() * y.norm()).item() / near**2
    if name == "pairwise_oxy_angle":  # it turns by the part of y across x
        sine = (y - (x @ y) / (x @ x) * x).norm().item() / y.norm().item()
        share = max(share, rounding / sine**2)
    return share


@pytest.mark.parametrize("name", ROWWISE)
def test_pairwise(name):
    compared = 0
    for regime in NEAR:
        points, curv = REGIMES[regime], torch.tensor(REGIMES[regime].curv, dtype=torch.float64)
        for x, y in zip(points.x, points.y, strict=True):
            share = unresolved(name, x, y, curv)
            if share > 0.01:
                continue
            compared += 1
            expected = second(ROWWISE[name], x, y, curv)
            for a, b in zip(second(getattr(hk, name), x[None], y[None], curv), expected, strict=True):
                assert (a.squeeze() - b).norm() <= (1e-11 + 10 * share) * b.norm()
    assert compared >= 8


def squared_length(x, y):
    """Of the logarithm, by its Lorentz norm."""
    v = hk.log_map(x, y)
    return v @ v - (x @ v) ** 2 / (1 + x @ x)


@pytest.mark.parametrize("outer", [torch.func.jacfwd, torch.func.jacrev])
@pytest.mark.parametrize("inner", [torch.func.jacfwd, torch.func.jacrev])
def test_squared_distances_of_coincident_points(outer, inner):
    """A distance of 0 has derivatives of 0, and so its square has; by logarithms it has the true ones."""

    def second(function, x):
        return outer(inner(function))(x)

    x, origin = torch.tensor([0.3, 0.4], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    metric = 2 * (torch.eye(2, dtype=torch.float64) - torch.outer(x, x) / (1 + x @ x))
    for distance in (hk.elementwise_dist, lambda x, y: hk.pairwise_dist(x[None], y[None])[0, 0]):
        assert not second(lambda y, d=distance: d(x, y) ** 2, x).any()
    assert not second(lambda y: hk.dist0(y) ** 2, origin).any()
    torch.testing.assert_close(second(lambda y: squared_length(x, y), x), metric, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        second(lambda y: hk.log_map0(y).square().sum(), origin), 2 * torch.eye(2, dtype=torch.float64)
    )
    near = x + 1e-6
    torch.testing.assert_close(
        second(lambda y: hk.elementwise_dist(x, y) ** 2, near),
        second(lambda y: squared_length(x, y), near),
        rtol=1e-9,
        atol=1e-9,
    )
