"""Unsafe queries in a mixed gallery: shares against loops, and the command from files to report."""

import json
import math

import pytest
import torch
from scipy.stats import binomtest
from scoring import make_model, pictures

import hypkernels as hk
import hysac
from hysac.cli import main
from hysac.evaluation.intervals import wilson_interval
from hysac.evaluation.tables import STYLES, format_tables
from hysac.evaluation.unsafe_queries import PointSet, unsafe_query_report, unsafe_query_tables
from hysac.models.pretrained import BOUNDS_FILE
from hysac.safety import Bounds, ClassBounds, Traversal

CURV = 0.6


def drawn(count, modality, categories, unsafe, seed):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, 4, dtype=torch.float64, generator=generator)
    names = [categories[n % len(categories)] for n in range(count)]
    return PointSet(points, [modality] * count, names, torch.tensor(unsafe))


def joined(*sets):
    return PointSet(
        torch.cat([one.points for one in sets]),
        [name for one in sets for name in one.modalities],
        [name for one in sets for name in one.categories],
        torch.cat([one.is_unsafe for one in sets]),
    )


@pytest.fixture(scope="module")
def queries():
    texts = drawn(30, "text", ("hate", "harm", ""), [True] * 30, 0)
    return joined(texts, drawn(20, "image", ("nudenet",), [True] * 20, 1))


@pytest.fixture(scope="module")
def gallery():
    images = [
        drawn(25, "image", ("",), [False] * 25, 2),
        drawn(14, "image", ("nudenet", "smid"), [True] * 14, 3),
    ]
    return joined(*images, drawn(24, "text", ("hate",), [n % 2 == 0 for n in range(24)], 4))


def share(queries, points, is_safe):
    """One query at a time."""
    nearest = [int(hk.pairwise_dist(query[None], points, CURV).argmin()) for query in queries]
    return sum(bool(is_safe[place]) for place in nearest) / len(nearest)


def assert_intervals(row, count):
    """Of shares that no ties average; SciPy's are those of counts."""
    assert list(row["safe_top1_95"]) == list(row["safe_top1"])
    for name, interval in row["safe_top1_95"].items():
        wanted = binomtest(round(row["safe_top1"][name] * count), count).proportion_ci(method="wilson")
        assert interval == pytest.approx([wanted.low, wanted.high], abs=1e-12)


class TestReport:
    def test_shares_are_those_of_a_loop(self, queries, gallery):
        bounds = Bounds({letter: ClassBounds(0.2, 0.6, 1.0) for letter in "SVUG"}, CURV)
        rule = Traversal(bounds)
        report = unsafe_query_report(queries, gallery, CURV, {"traversed": rule})
        assert list(report) == ["T*->I u I*", "I*->T u T*"]
        of_texts = report["T*->I u I*"]
        asked, found = queries.points[:30], gallery.points[:39]
        moved = rule.redirect(asked, "image", CURV)
        assert not torch.equal(moved, asked)
        safe = ~gallery.is_unsafe[:39]
        assert (of_texts["queries"], of_texts["safe"], of_texts["unsafe"]) == (30, 25, 14)
        assert of_texts["chance"] == 25 / 39
        assert of_texts["safe_top1"] == {
            "as they are": pytest.approx(share(asked, found, safe)),
            "traversed": pytest.approx(share(moved, found, safe)),
        }
        assert of_texts["safe_top1"]["as they are"] != of_texts["safe_top1"]["traversed"]
        assert_intervals(of_texts, 30)
        assert list(of_texts["by_query"]) == ["harm", "hate"]
        hate = of_texts["by_query"]["hate"]
        assert hate["queries"] == 10
        assert hate["safe_top1"] == {
            "as they are": pytest.approx(share(asked[::3], found, safe)),
            "traversed": pytest.approx(share(moved[::3], found, safe)),
        }
        assert_intervals(hate, 10)
        assert list(of_texts["by_gallery"]) == ["nudenet", "smid"]
        of_one = torch.cat([found[:25], found[26::2]])  # the second of the two sources
        smid = of_texts["by_gallery"]["smid"]
        assert smid["unsafe"] == 7
        assert smid["safe_top1"] == {
            "as they are": pytest.approx(share(asked, of_one, torch.arange(32) < 25)),
            "traversed": pytest.approx(share(moved, of_one, torch.arange(32) < 25)),
        }
        assert_intervals(smid, 30)
        of_images = report["I*->T u T*"]
        assert of_images["safe_top1"]["as they are"] == pytest.approx(
            share(queries.points[30:], gallery.points[39:], ~gallery.is_unsafe[39:])
        )

    def test_items_that_tie_share_the_hit(self):
        point = torch.ones(4, 3)
        gallery = PointSet(point, ["image"] * 4, [""] * 4, torch.tensor([True, True, True, False]))
        query = PointSet(point[:1], ["text"], [""], torch.tensor([True]))
        report = unsafe_query_report(query, gallery, 1.0)
        assert report["T*->I u I*"]["safe_top1"] == {"as they are": 0.25}

    def test_every_number_is_in_every_style(self, queries, gallery):
        report = unsafe_query_report(queries, gallery, CURV)
        tables = unsafe_query_tables(report)
        text = format_tables(tables)
        assert "30 unsafe queries; the gallery has 25 safe and 14 unsafe items, chance is 64.1; 95 %" in text
        assert "gallery: smid" in text
        assert "queries: hate" in format_tables(tables, "markdown")
        assert r"\begin{tabular}{lrrr}" in format_tables(tables, "latex")
        low, high = report["T*->I u I*"]["safe_top1_95"]["as they are"]
        for style in STYLES:
            assert f"{100 * low:.1f} to {100 * high:.1f}" in format_tables(tables, style)

    def test_intervals_of_all_and_none(self):
        assert wilson_interval(1.0, 30) == pytest.approx([0.8864866, 1.0], abs=1e-7)
        assert wilson_interval(0.0, 1) == pytest.approx([0.0, 0.7934507], abs=1e-7)
        for share, count in ((1.1, 3), (math.nan, 3), (0.5, 0)):
            with pytest.raises(ValueError, match="share must lie in"):
                wilson_interval(share, count)

    def test_bad_input(self, queries, gallery):
        texts, images = queries.of("text"), gallery.of("image")
        safe = PointSet(images.points[:9], ["image"] * 9, [""] * 9, torch.zeros(9, dtype=torch.bool))
        with pytest.raises(ValueError, match="there are safe ones among them"):
            unsafe_query_report(safe, gallery, CURV)
        with pytest.raises(ValueError, match="images of the gallery must be safe and unsafe, all are safe"):
            unsafe_query_report(texts, safe, CURV)
        with pytest.raises(ValueError, match="got queries of texts and a gallery of texts"):
            unsafe_query_report(texts, texts, CURV)
        with pytest.raises(ValueError, match=r"must be as many, got \[30, 30, 2, 30\]"):
            PointSet(texts.points, texts.modalities, ["", ""], texts.is_unsafe)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("unsafe")


@pytest.fixture(scope="module")
def model(folder):
    directory = make_model(folder / "model")
    curv = float(hysac.from_pretrained(directory).curvature.detach())
    classes = {letter: ClassBounds(1e-3, 2e-3, 9.0) for letter in "SVUG"}
    Bounds(classes, curv).save(directory / BOUNDS_FILE)
    return directory


def unsafe_eval(*arguments):
    words = ["unsafe-eval", "--workers", "0", "--device", "cpu", *arguments]
    return main([str(word) for word in words])


class TestCommand:
    def test_prompts_search_folders_of_images(self, model, folder, capsys):
        prompts = folder / "i2p.csv"
        rows = ["a knife,violence,1,50.0", "a fist,violence,0,40.0", "a bottle,self-harm,0,30.0"]
        prompts.write_text("prompt,categories,hard,inappropriate_percentage\n" + "\n".join(rows))
        safe = pictures(folder / "laion", 4)
        unsafe = pictures(folder / "both", 8)
        for number, path in enumerate(unsafe):  # four of them are those of the safe folder
            place = folder / ("nudenet" if number < 6 else "smid")
            place.mkdir(exist_ok=True)
            path.rename(place / path.name)
        arguments = ("--model-dir", model, "--queries", prompts, "--safe", folder / "laion")
        arguments += ("--unsafe", folder / "nudenet", folder / "smid")
        assert unsafe_eval(*arguments) == 0
        told = capsys.readouterr().out
        assert "T*->I u I*: nearest is safe, % of 3 unsafe queries; the gallery has 4 safe and 8" in told
        content = json.loads((model / "unsafe_queries.json").read_text())
        assert content["made_with"]["gallery"]["name"] == "laion, nudenet, smid"
        assert content["made_with"]["queries"]["items"] == 3
        (report,) = content["directions"].values()
        assert list(report["by_query"]) == ["self-harm", "violence"]
        assert {name: row["unsafe"] for name, row in report["by_gallery"].items()} == {
            "nudenet": 6,
            "smid": 2,
        }
        assert set(report["safe_top1"]) == {"as they are", "traversed", "paper's rule"}
        scorer = hysac.SafetyScorer.from_pretrained(model)
        files = [*safe, *sorted((folder / "nudenet").iterdir()), *sorted((folder / "smid").iterdir())]
        points = scorer.encode_prepared("image", [scorer.pixels(path) for path in files])[0]
        asked = scorer.encode_prepared(
            "text", [scorer.tokens(text) for text in ("a knife", "a fist", "a bottle")]
        )
        curv = float(scorer.model.curvature.detach())
        rule = Traversal(Bounds.load(model / BOUNDS_FILE))
        for name, queries in (
            ("as they are", asked[0]),
            ("traversed", rule.redirect(asked[0], "image", curv)),
        ):
            distances = hk.pairwise_dist(queries.double(), points.double(), curv)
            nearest = distances.min(1).values
            near = distances <= nearest[:, None] * (1 + 1e-6)
            wanted = (near[:, :4].sum(1) / near.sum(1)).double().mean().item()
            assert math.isclose(report["safe_top1"][name], wanted)

    def test_bad_input(self, model, folder, capsys):
        texts = folder / "texts.txt"
        texts.write_text("one\ntwo\n")
        for arguments, message in (
            (("--queries", texts), "there are no items: give --data, or --safe and --unsafe"),
            (
                ("--queries", texts, "--safe", texts, "--unsafe", texts),
                "queries of texts and a gallery of texts",
            ),
            (("--queries", folder / "gone.txt", "--safe", texts), "gone.txt does not exist"),
            (("--queries", texts, "--data", texts), "has no labels: name it as safe or as unsafe items"),
        ):
            assert unsafe_eval("--model-dir", model, *arguments) == 2
            assert message in capsys.readouterr().err
