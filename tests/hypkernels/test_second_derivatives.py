"""Second derivatives of the public functions at near-coincident and collinear points, against 240 digits."""

import pytest
import torch
from rowwise_cases import REGIMES
from test_smooth import FUNCTIONS, OPTIONS, check_derivatives, vectors

import hypkernels as hk
from hypkernels.pairwise.geometry import RESOLUTION_ULPS

NEAR = [name for name in REGIMES if name.startswith(("close", "collinear", "opposite"))]
ROWWISE = {
    "pairwise_inner": hk.elementwise_inner,
    "pairwise_dist": hk.elementwise_dist,
    "pairwise_oxy_angle": hk.oxy_angle,
}


def public(name):
    if name == "entailment_loss":
        keywords = dict(zip(("aperture_scale", "min_radius", "margin", "leak"), OPTIONS[name], strict=True))
        return lambda *a: hk.entailment_loss(*a, reduction="none", **keywords)
    return lambda *a: getattr(hk, name)(*a, *OPTIONS.get(name, ()))


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
