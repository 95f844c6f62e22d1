"""The index: what is added is found by its distance, whatever is deleted or breaks off; and policies."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from scoring import calibrate, make_model, pictures

import hypkernels as hk
import hysac
from hysac.cli import main
from hysac.index import Index, redirection_path, search
from hysac.index.path import geodesic
from hysac.index.search import Redirection, encode_query
from hysac.models.pretrained import model_directory
from hysac.scoring import SafetyScorer
from hysac.scoring.identity import weights_digest
from hysac.scoring.items import find_items
from hysac.scoring.streaming import encode_items

WORDS = ["dog", "cat", "bird", "house", "tree", "storm", "boat", "road", "river", "lamp", "hill", "cloud"]
CAPTIONS = [f"a {colour} {word}" for colour in ("red", "small") for word in WORDS]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("index")
    pictures(directory / "photos", 6)
    return make_model(directory / "model")


@pytest.fixture(scope="module")
def scorer(model_dir):
    return SafetyScorer.from_pretrained(model_dir, calibrated=False)


def empty(path, scorer, model_dir):
    curv = float(scorer.model.curvature.detach())
    digest = weights_digest(model_directory(model_dir))
    return Index.create(path, model=digest, model_dir=str(model_dir), curv=curv, width=scorer.model.embed_dim)


@pytest.fixture
def index(tmp_path, model_dir, scorer):
    index = empty(tmp_path / "x.index", scorer, model_dir)
    items = find_items([str(model_dir.parent / "photos")], texts=CAPTIONS)
    assert index.add(encode_items(scorer, items)) == []
    return index


def points_of(scorer, texts):
    with torch.no_grad():
        return scorer.model.eval().encode_text(scorer.tokenizer(texts), normalize=True)


def contents(answer):
    return [hit.item.content if hit.item.modality == "text" else hit.item.content.name for hit in answer.hits]


def test_the_nearest_are_found(index, scorer):
    query = points_of(scorer, ["a dark road"])[0]
    distances = hk.elementwise_dist(query.double(), points_of(scorer, CAPTIONS).double(), index.curv)
    wanted = distances.argsort()[:5].tolist()
    answer = search(index, scorer, text="a dark road", k=5, modality="text")
    assert contents(answer) == [CAPTIONS[place] for place in wanted]
    np.testing.assert_allclose([hit.distance for hit in answer.hits], distances[wanted], rtol=1e-4, atol=1e-6)
    (score,) = scorer(texts=[CAPTIONS[wanted[0]]])
    assert answer.hits[0].score.distance == pytest.approx(score.distance, rel=1e-5)
    assert answer.moved == 0


def test_what_is_searched(index, scorer, model_dir):
    image = model_dir.parent / "photos" / "0.png"
    assert {hit.item.modality for hit in search(index, scorer, text="a dog", k=50).hits} == {"image"}
    assert {hit.item.modality for hit in search(index, scorer, image=image, k=50).hits} == {"text"}
    assert contents(search(index, scorer, image=image, k=1, modality="image")) == ["0.png"]
    assert len(search(index, scorer, text="a dog", k=50, modality="any").hits) == 30
    index.delete([name for name in index.names() if name.endswith(".png")])
    assert {hit.item.modality for hit in search(index, scorer, text="a dog", k=50).hits} == {"text"}
    with pytest.raises(ValueError, match="has no image"):
        search(index, scorer, text="a dog", modality="image")


def test_additions_and_deletions(index, scorer):
    assert len(index) == 30
    index.delete(["text:1"])
    assert len(index) == 29
    assert contents(search(index, scorer, text=CAPTIONS[0], k=1, modality="text")) != [CAPTIONS[0]]
    with pytest.raises(ValueError, match="has no text:1"):
        index.delete(["text:2", "text:1"])
    assert len(index) == 29, "nothing of a refused deletion is done"
    again = Index.open(index.path)
    items = find_items([], texts=[CAPTIONS[0]])
    again.add(encode_items(scorer, items))
    assert contents(search(again, scorer, text=CAPTIONS[0], k=1, modality="text")) == [CAPTIONS[0]]
    with pytest.raises(ValueError, match="text:1: there already"):
        again.add(encode_items(scorer, items))
    assert len(Index.open(index.path)) == len(again) == 30


def test_a_search_goes_on_while_another_process_adds(index, scorer):
    """What is open finds what was there when it was opened."""
    wanted = contents(search(index, scorer, text="a dog", k=50, modality="text"))
    new = [replace(item, name="late") for item in find_items([], texts=["a dog"])]
    Index.open(index.path).add(encode_items(scorer, new))
    assert contents(search(index, scorer, text="a dog", k=50, modality="text")) == wanted
    assert "a dog" in contents(search(Index.open(index.path), scorer, text="a dog", k=50, modality="text"))


def test_an_addition_that_breaks_off_leaves_the_index_as_it_was(index, scorer, tmp_path):
    before = index.names()

    def broken():
        yield from encode_items(scorer, find_items(["-"], lines=["a new dog", "a new cat"]))
        raise RuntimeError("out of power")

    with pytest.raises(RuntimeError):
        index.add(broken())
    for one in (index, Index.open(index.path)):
        assert one.names() == before
        assert contents(search(one, scorer, text=CAPTIONS[3], k=1, modality="text")) == [CAPTIONS[3]]
    index.add(encode_items(scorer, find_items(["-"], lines=["another new dog"])))
    assert Index.open(index.path).names() == [*before, "-:1"]
    assert contents(search(index, scorer, text="another new dog", k=1, modality="text")) == [
        "another new dog"
    ]


def test_what_cannot_be_read_is_named_and_left_out(index, scorer, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"junk")
    ((name, fault),) = index.add(encode_items(scorer, find_items([str(tmp_path / "broken.png")])))
    assert name.endswith("broken.png")
    assert "cannot be read" in fault
    assert len(index) == 30


def test_points_are_a_plain_npy_file(index, scorer):
    points = np.load(index.points_file, mmap_mode="r")
    assert points.shape == (30, scorer.model.embed_dim)
    np.testing.assert_allclose(points[6:], points_of(scorer, CAPTIONS), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["points.npy", "distances.f32", "images.u8", "offsets.i64"])
def test_a_file_that_was_cut_is_named(index, name):
    path = index.path / name
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ValueError, match=rf"{name} has \d+ bytes, fewer than"):
        Index.open(index.path)


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 2},
        {"count": -1},
        {"curv": "1"},
        {"deleted": [99]},
        {"deleted": 3},
        {"extra": 1},
        {"width": 0},
    ],
)
def test_damaged_settings(index, change):
    path = index.path / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=r"index\.json is damaged"):
        Index.open(index.path)


def test_another_model_is_refused(index):
    with pytest.raises(ValueError, match="was made by other weights"):
        index.check_model("0" * 64)


@pytest.fixture
def calibrated(model_dir, scorer, index):
    """Thresholds in the middle of what the index holds, and bounds below it."""
    distances, images = index.distances(), index.is_image()
    middles = {"text": float(np.median(distances[~images])), "image": float(np.median(distances[images]))}
    calibrate(model_dir, **middles, spread=1e-3)
    try:
        yield SafetyScorer.from_pretrained(model_dir)
    finally:
        (model_directory(model_dir) / "safety.json").unlink()


def extreme(index, scorer):
    """The captions nearest to and farthest from the origin."""
    distances = [score.distance for score in scorer(texts=CAPTIONS)]
    return CAPTIONS[int(np.argmin(distances))], CAPTIONS[int(np.argmax(distances))]


@pytest.mark.slow
def test_block_answers_safe_queries_with_safe_items(index, calibrated):
    safe, unsafe = extreme(index, calibrated)
    answer = search(index, calibrated, text=safe, k=50, modality="any", policy="block")
    assert {hit.score.decision for hit in answer.hits} == {"safe"}
    everything = search(index, calibrated, text=safe, k=50, modality="any")
    assert len(answer.hits) == sum(hit.score.decision == "safe" for hit in everything.hits)
    blocked = search(index, calibrated, text=unsafe, policy="block")
    assert blocked.is_blocked
    assert blocked.hits == ()


def test_redirect_moves_an_unsafe_query_to_the_bound(index, calibrated):
    safe, unsafe = extreme(index, calibrated)
    bound = calibrated(texts=[unsafe])[0].distance / 2
    how = Redirection(margin=bound - calibrated.bounds["V"].avg)
    answer = search(index, calibrated, text=unsafe, policy="redirect", redirection=how)
    assert float(hk.dist0(answer.point, index.curv)) == pytest.approx(bound, rel=1e-4)
    assert answer.moved == pytest.approx(bound, rel=1e-3), "along the geodesic to the origin"
    assert search(index, calibrated, text=safe, policy="redirect", redirection=how).moved == 0


@pytest.mark.slow
def test_redirect_to_the_nearest_safe_item(index, calibrated):
    _, unsafe = extreme(index, calibrated)
    how = Redirection("nearest-safe")
    answer = search(index, calibrated, text=unsafe, modality="text", policy="redirect", redirection=how)
    as_asked = search(index, calibrated, text=unsafe, modality="text", k=50)
    wanted = next(hit for hit in as_asked.hits if hit.score.decision == "safe")
    assert answer.hits[0].item == wanted.item
    assert answer.hits[0].distance == pytest.approx(0, abs=1e-3)
    assert answer.moved == pytest.approx(wanted.distance, rel=1e-4)


def test_the_way_is_a_geodesic(index, calibrated):
    _, unsafe = extreme(index, calibrated)
    how = Redirection("nearest-safe")
    score, steps = redirection_path(index, calibrated, text=unsafe, redirection=how, steps=5)
    assert score.decision == "unsafe"
    assert [step.share for step in steps] == [0, 0.25, 0.5, 0.75, 1]
    assert steps[0].text.item.content == unsafe
    start, _ = encode_query(calibrated, text=unsafe)
    end = search(index, calibrated, text=unsafe, policy="redirect", redirection=how).point
    way = geodesic(start, end, torch.linspace(0, 1, 5), index.curv).double()
    whole = hk.elementwise_dist(start.double(), end.double(), index.curv)
    for share, place in zip((0, 0.25, 0.5, 0.75, 1), way, strict=True):
        one, other = (hk.elementwise_dist(place, point.double(), index.curv) for point in (start, end))
        assert float(one) == pytest.approx(share * float(whole), abs=2e-3 * float(whole))
        assert float(other) == pytest.approx((1 - share) * float(whole), abs=2e-3 * float(whole))
    assert [step.distance for step in steps] == pytest.approx(hk.dist0(way, index.curv).tolist(), rel=1e-5)


@pytest.mark.parametrize("curv", [0.1, 1.0, 5.0])
def test_geodesics_at_any_curvature(curv):
    generator = torch.Generator().manual_seed(0)
    start, end = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    way = geodesic(start, end, torch.tensor([0.0, 0.3, 1.0]), curv)
    torch.testing.assert_close(way[[0, 2]], torch.stack([start, end]))
    whole = hk.elementwise_dist(start, end, curv)
    torch.testing.assert_close(hk.elementwise_dist(start, way[1], curv), 0.3 * whole, rtol=1e-6, atol=0)
    near = geodesic(start, start * (1 + 1e-9), torch.tensor([0.5]), curv)
    torch.testing.assert_close(near[0], start, rtol=1e-8, atol=0)


def test_other_weights_are_refused(index, scorer, tmp_path):
    other = SafetyScorer.from_pretrained(make_model(tmp_path / "other", seed=1))
    for ask in (search, redirection_path):
        with pytest.raises(ValueError, match="was made by other weights"):
            ask(index, other, text="a dog")
    other.weights = None  # of a model that was not loaded from a directory: nothing is known
    assert search(index, other, text="a dog").hits


def test_without_thresholds_nothing_is_safe(index, scorer):
    with pytest.raises(ValueError, match="--policy block needs thresholds"):
        search(index, scorer, text="a dog", policy="block")
    with pytest.raises(ValueError, match="nearest-safe needs thresholds"):
        search(index, scorer, text="a dog", policy="redirect", redirection=Redirection("nearest-safe"))
    unbound = SafetyScorer(scorer.model, scorer.preprocess, scorer.tokenizer)
    with pytest.raises(ValueError, match="needs bounds"):
        search(index, unbound, text="a dog", policy="redirect")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": "a", "k": 0}, "k must be a positive integer"),
        ({"text": "a", "policy": "trust"}, "policy must be one of as-asked, redirect, block"),
        ({"text": "a", "modality": "video"}, "modality must be image, text or any"),
        ({}, "a query is a text or an image"),
        ({"text": "a", "image": "b"}, "a query is a text or an image"),
    ],
)
def test_bad_searches(index, scorer, options, message):
    with pytest.raises(ValueError, match=message):
        search(index, scorer, **options)


class TestCommands:
    def run(self, *arguments):
        return main([str(argument) for argument in arguments])

    @pytest.mark.slow
    def test_from_photographs_to_what_is_found(self, model_dir, tmp_path, capsys):
        photos, out = model_dir.parent / "photos", tmp_path / "photos.index"
        common = ["--device", "cpu"]
        assert self.run("index", "build", "--model-dir", model_dir, photos, "--out", out, *common) == 0
        assert f"6 items added; 6 in {out}" in capsys.readouterr().out
        assert self.run("index", "add", "--index", out, "--text", "a red dog", *common) == 0
        assert self.run("index", "info", "--index", out) == 0
        assert "7 items: 6 images, 1 texts" in capsys.readouterr().out
        assert (
            self.run("search", photos / "2.png", "--index", out, "--modality", "image", "-k", "1", *common)
            == 0
        )
        assert capsys.readouterr().out.splitlines()[1].endswith("2.png")
        show = tmp_path / "found.png"
        assert self.run("search", "a red dog", "--index", out, "--show", show, *common) == 0
        assert show.is_file()
        strip = tmp_path / "strip.png"
        how = ["--margin", "-0.39", "--show", strip]
        assert self.run("redirect", "a red dog", "--index", out, *how, *common) == 0
        told = capsys.readouterr().out
        assert " 100%  0.0100  a red dog  |  " in told
        assert strip.is_file()
        assert self.run("index", "delete", "--index", out, photos / "2.png") == 0
        assert self.run("index", "info", "--index", out, "--names") == 0
        assert str(photos / "2.png") not in capsys.readouterr().out.splitlines()[1:]

    def test_another_model(self, model_dir, tmp_path, capsys):
        out, other = tmp_path / "x.index", make_model(tmp_path / "other", seed=3)
        build = ["index", "build", "--model-dir", model_dir, "--text", "a", "--out", out, "--device", "cpu"]
        assert self.run(*build) == 0
        assert self.run("search", "a", "--index", out, "--model-dir", other) == 2
        assert "was made by other weights" in capsys.readouterr().err
        assert self.run(*build) == 2
        assert "is there already" in capsys.readouterr().err
        assert self.run("search", "a", "--index", tmp_path / "gone") == 2
        assert "is no index" in capsys.readouterr().err


def test_hysac_names():
    assert hysac.SafetyScorer is SafetyScorer
