"""Signs that training leads nowhere: the numbers, and that each is told once, when it has lasted."""

import math

import pytest
import torch

import hysac
from hysac import HySACLoss
from hysac.training.health import PATIENCE, Health, geometry


def features(*radii, width=8, count=6):
    """Image and text features, all of a kind at one radius of the unit hyperboloid, in random directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(4, count, width, generator=generator), dim=-1)
    points = [math.sinh(radius) * direction for radius, direction in zip(radii, directions, strict=True)]
    return torch.stack(points[:2], 1), torch.stack(points[2:], 1)


def test_the_largest_radius_is_a_distance():
    found = geometry(*features(0.3, 2.5, 1.0, 7.0), HySACLoss())
    assert found["largest_radius"].item() == pytest.approx(7.0, rel=1e-5)


def test_apexes_near_the_origin_have_half_spaces_for_cones():
    """The apexes are safe texts, unsafe texts and safe images; a norm below 2 K = 0.2 saturates."""
    for radii, share in (
        ((0.1, 3.0, 0.1, 0.1), 1.0),
        ((1.0, 3.0, 0.1, 1.0), 1 / 3),
        ((1.0, 1.0, 1.0, 1.0), 0.0),
    ):
        assert geometry(*features(*radii), HySACLoss())["cones_saturated"].item() == pytest.approx(share)


def test_pairs_that_cost_nothing_are_counted():
    image, text = features(3.0, 3.0, 1.0, 2.0)
    assert geometry(image, text, HySACLoss())["cones_satisfied"].item() < 0.2
    along = torch.nn.functional.normalize(text[:, 0], dim=-1)
    ray = [torch.stack([math.sinh(r) * along for r in radii], 1) for radii in ((2.0, 4.0), (1.0, 3.0))]
    assert geometry(*ray, HySACLoss())["cones_satisfied"].item() == 1.0


@pytest.fixture
def model():
    return hysac.create_model("hysac-toy", scale_init=30.0)


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "hysac.training.health"]


def test_a_scalar_at_its_bound_is_told_once(model, caplog):
    health = Health()
    with torch.no_grad():
        model.curv.fill_(math.log(10.0))
    for record in range(3 * PATIENCE):
        health.look(model, {})
        assert len(warnings_of(caplog)) == (record + 1 >= PATIENCE)
    assert warnings_of(caplog) == [f"curv is at its bound, 10, for {PATIENCE} records in a row"]


def test_a_sign_that_passes_is_not_told(model, caplog):
    health = Health()
    for record in range(5 * PATIENCE):
        shows = record % PATIENCE != 0
        health.look(model, {"cones_saturated": float(shows), "cones_satisfied": float(shows)})
    assert warnings_of(caplog) == []
    for _ in range(PATIENCE):
        health.look(model, {"cones_saturated": 1.0})
    assert warnings_of(caplog) == [
        "100.0 % of the apexes have a half-space for a cone: they lie too near the origin, "
        f"for {PATIENCE} records in a row"
    ]


def test_a_frozen_scalar_may_stay_at_its_bound(caplog):
    model = hysac.create_model("hysac-toy", learn_curv=False, scale_init=30.0)
    with torch.no_grad():
        model.curv.fill_(math.log(10.0))
    health = Health()
    for _ in range(2 * PATIENCE):
        health.look(model, {})
    assert warnings_of(caplog) == []


def test_a_radius_beyond_float32_is_told_at_once(model, caplog):
    health = Health()
    for _ in range(3):
        health.look(model, {"largest_radius": 31.0})
    assert warnings_of(caplog) == ["the largest distance to the origin is 31, where float32 loses directions"]
