"""The vectors that engines get: the order of hyperbolic distance, in float64 and in the engines' float32."""

import math

import pytest
import torch

from hypkernels.lorentz import dist0, pairwise_dist
from hypkernels.retrieval.drawn import REGIMES, draw
from hypkernels.retrieval.engines.transforms import TRANSFORMS, radius_of, time_at

EXACT = ("inner", "augmented", "cosine", "centred")
KEYS = {
    "l2": lambda q, x: torch.cdist(q, x).square(),
    "inner": lambda q, x: -q @ x.T,
    "cosine": lambda q, x: (
        -torch.nn.functional.normalize(q, dim=1) @ torch.nn.functional.normalize(x, dim=1).T
    ),
}


def keys_and_z(name, regime, curv):
    points, queries = (one / math.sqrt(curv) for one in draw(regime, 300, 20, 12))
    longest = time_at(1.05 * dist0(points.double(), curv).max().item(), curv)
    form = TRANSFORMS[name](curv, 12, longest)
    items, asked = (torch.from_numpy(one).double() for one in (form.items(points), form.queries(queries)))
    assert items.shape[1] == asked.shape[1] == form.width
    assert items.abs().max() <= form.largest * (1 + 1e-6)
    distance = pairwise_dist(queries.double(), points.double(), curv)
    return KEYS[form.metric](asked, items), torch.cosh(math.sqrt(curv) * distance)


@pytest.mark.parametrize("curv", [0.1, 1.0, 7.0])
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", EXACT)
def test_keys_are_affine_in_cosh_of_the_distance(name, regime, curv):
    """Of each query, with a positive slope, to what float32 leaves of the vectors."""
    keys, z = keys_and_z(name, regime, curv)
    centred_keys, centred_z = (one - one.mean(1, keepdim=True) for one in (keys, z))
    slope = (centred_keys * centred_z).sum(1, keepdim=True) / centred_z.square().sum(1, keepdim=True)
    assert (slope > 0).all()
    residual = (centred_keys - slope * centred_z).abs().amax(1)
    assert (residual <= 1e-6 * keys.abs().amax(1)).all()


@pytest.mark.parametrize("curv", [0.1, 1.0, 7.0])
@pytest.mark.parametrize("name", ["tangent", "ball"])
def test_coordinates_are_nearly_in_order_near_the_origin(name, curv):
    keys, z = keys_and_z(name, "near", curv)
    nearest, found = z.topk(10, largest=False).indices, keys.topk(30, largest=False).indices
    assert (nearest[:, :, None] == found[:, None]).any(2).double().mean() > 0.95


def test_centred_vectors_are_near_their_queries():
    """Half of the items are twice as far as the nearest one; augmented, all are about as far."""
    points, queries = draw("clustered", 300, 20, 12)
    longest = time_at(1.05 * dist0(points.double()).max().item(), 1.0)
    ratios = {}
    for name in ("centred", "augmented"):
        form = TRANSFORMS[name](1.0, 12, longest)
        keys = torch.cdist(torch.from_numpy(form.queries(queries)), torch.from_numpy(form.items(points)))
        ratios[name] = (keys.median(1).values / keys.min(1).values).median().item()
    assert ratios["centred"] > 1.8
    assert ratios["augmented"] < 1.2


@pytest.mark.parametrize("curv", [0.1, 1.0, 7.0])
def test_radius_and_time(curv):
    assert time_at(0.0, curv) == pytest.approx(1 / math.sqrt(curv))
    assert radius_of(time_at(3.0, curv), curv) == pytest.approx(3.0)
    assert math.isfinite(time_at(1e9, curv))
