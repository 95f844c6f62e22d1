"""The table of errors: ours beside a package whose error is known."""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import pytest
import torch

import hypkernels as hk
from benchmarks.errors import __main__ as errors
from benchmarks.errors.evaluate import by_numpy, by_torch
from benchmarks.errors.measure import measure
from benchmarks.errors.packages import PACKAGES, Options, Package
from benchmarks.errors.regimes import REGIMES
from benchmarks.errors.table import tables

FUNCTIONS = {"distance": hk.elementwise_dist, "exp_map0": hk.exp_map0}


def raising(x, y, c):
    raise ArithmeticError("too near")


def off_by_a_thousandth(options):
    functions = {
        "distance": by_torch(lambda x, y, c: 1.001 * hk.elementwise_dist(x, y, c)),
        "exp_map0": by_torch(lambda v, c: hk.exp_map0(v, c) + 0.001 * hk.exp_map0(v.detach(), c)),
        "exterior_angle": by_torch(raising),
    }
    return "1.0", functions


def absent(options):
    raise ImportError("no module of that name")


OURS = Package(
    "ours", "space", lambda o: ("2.0", {n: by_torch(f) for n, f in FUNCTIONS.items()}), "", "points"
)
OFF = Package("off", "space", off_by_a_thousandth, "", "points", "losses")
ABSENT = Package("absent", "space", absent, "pip install absent", "points")


@pytest.fixture(scope="module")
def content():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(errors, "PACKAGES", (OURS, OFF, ABSENT))
        return errors.run(argparse.Namespace(only=None, meru=None, rows=2, width=4))


def found(content, package, function):
    records = [r for r in content["records"] if (r["package"], r["function"]) == (package, function)]
    assert records
    return records


def test_ours_is_right(content):
    for function in FUNCTIONS:
        for record in found(content, "ours", function):
            allowed = 3e-7 if record["dtype"] == "float32" else 3e-15
            assert max(record["value"], record["gradient"]) < allowed, record


def test_a_known_error_is_found(content):
    for record in found(content, "off", "distance"):
        assert record["value"] == pytest.approx(1e-3, rel=1e-3)
        assert record["gradient"] == pytest.approx(1e-3, rel=1e-3)
    for record in found(content, "off", "exp_map0"):
        assert record["value"] == pytest.approx(1e-3, rel=1e-3)
        assert record["gradient"] < 3e-7
    assert {one["failed"] for one in found(content, "off", "exterior_angle")} == {"ArithmeticError: too near"}


def test_coordinates_do_not_add_to_an_error():
    """The same distance from full vectors and from the ball, right for what it was given."""

    def in_ball(x, y, c):
        inside = [1 - c * one.square().sum(-1) for one in (x, y)]
        gap = (x - y).norm(dim=-1) * (c / (inside[0] * inside[1])).sqrt()
        return 2 * torch.asinh(gap) / c.sqrt()

    def of_full(x, y, c):
        return hk.elementwise_dist(x[..., 1:], y[..., 1:], c)

    for coordinates, function in (("full", of_full), ("ball", in_ball)):
        records = list(measure({"distance": by_torch(function)}, coordinates, 2, 4))
        assert len(records) == 2 * len(REGIMES)
        for record in records:
            allowed = 1e-3 if record["regime"] == "radius 10" else 1e-6  # 1 - c|x|^2 cancels there
            assert max(record["value"], record["gradient"]) < allowed, record


def test_functions_without_gradients_and_with_infinities():
    function = by_numpy(lambda x, y, c: [float("inf")] * len(x))
    records = list(measure({"distance": function}, "space", 2, 4))
    assert {(one["value"], one["gradient"]) for one in records} == {(float("inf"), None)}


def test_the_contrastive_loss_has_a_truth():
    def loss(x, y, c):
        return hk.contrastive_loss(x, y, c, 10.0)

    (record, *_) = measure({"contrastive_loss": by_torch(loss)}, "space", 3, 4)
    assert record["dtype"] == "float32"
    assert max(record["value"], record["gradient"]) < 1e-6


def test_tables_and_files(content, tmp_path):
    content = copy.deepcopy(content)
    content["records"][0]["value"] = float("inf")
    path = errors.save(content, tmp_path)
    again = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    text = tables(again)
    assert text == tables(content)
    assert "| ours | not finite, " in text
    assert "| off | 1e-3, 1e-3 |" in text
    assert "| off | fails |" in text
    assert "- absent: pip install absent (no module of that name)" in text
    page = tmp_path / "page.md"
    page.write_text(f"before\n{errors.BEGIN}\nold\n{errors.END}\nafter\n")
    errors.embed(page, text)
    assert page.read_text() == f"before\n{errors.BEGIN}\n{text}\n{errors.END}\nafter\n"
    (tmp_path / "bare.md").write_text("no markers")
    with pytest.raises(SystemExit, match="no markers"):
        errors.embed(tmp_path / "bare.md", text)


def test_packages_that_are_not_there_say_how_to_get_them():
    (meru,) = (one for one in PACKAGES if one.name == "MERU")
    told, records = errors.measure_package(meru, Options(), 2, 4)
    assert told == {"missing": "give --meru the path of its lorentz.py (no --meru was given)"}
    assert not records
    told, _ = errors.measure_package(meru, Options(meru=Path("nowhere.py")), 2, 4)
    assert "nowhere.py is no Python file" in told["missing"]
