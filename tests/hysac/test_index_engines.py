"""Engines of an index: what they propose is ranked and restricted exactly, and they stay in step with it."""

import importlib
import importlib.util
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from scoring import calibrate, make_model, pictures

import hypkernels as hk
from hypkernels.retrieval import engines
from hysac.cli import main
from hysac.index import Index
from hysac.index import engine as engine_module
from hysac.index.engine import FOLDER
from hysac.index.path import path_from
from hysac.index.search import Redirection, search_from
from hysac.scoring import SafetyScorer
from hysac.scoring.items import Item
from hysac.scoring.scorer import Score
from hysac.scoring.streaming import Encoded

CURV, WIDTH, PER_KIND = 1.0, 8, 60
WEIGHTS = "m" * 64
# In memory, and those that keep rows in the index's folder; of sets this small they find all.
CASES = {"faiss": {"ef": 64}, "usearch": {}, "ngt": {}, "sqlite-vec": {}, "lancedb": {}, "milvus": {}}
MODULES = {"ngt": ("ngtpy",), "sqlite-vec": ("sqlite_vec", "apsw"), "milvus": ("pymilvus", "milvus_lite")}


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    directory = make_model(tmp_path_factory.mktemp("engines") / "model")
    calibrate(directory, text=1.0, image=1.0, spread=1e-3, probability="none")
    scorer = SafetyScorer.from_pretrained(directory)
    scorer.weights = WEIGHTS
    return scorer


def encoded(count, kind, seed, radius=1.0, prefix=""):
    """Items about ``radius`` from the origin, half of them called safe where that is 1."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(count, WIDTH, generator=generator), dim=1)
    radii = radius * (1 + 0.4 * (torch.rand(count, 1, generator=generator) - 0.5))
    points = hk.exp_map0(radii * directions, CURV)
    contents = [Path(f"{i}.png") if kind == "image" else f"caption {i}" for i in range(count)]
    return [
        Encoded(Item(f"{prefix}{kind}:{i}", kind, content), point, float(hk.dist0(point, CURV)), None)
        for i, (point, content) in enumerate(zip(points, contents, strict=True))
    ]


def make_index(path, per_kind=PER_KIND):
    index = Index.create(path, model=WEIGHTS, model_dir="nowhere", curv=CURV, width=WIDTH)
    index.add([encoded(per_kind, "image", 1), encoded(per_kind, "text", 2)])
    return index


def installed(name):
    for module in MODULES.get(name, (name,)):
        pytest.importorskip(module)
    return name


@pytest.fixture(params=CASES)
def both(request, tmp_path):
    """An index with an engine, and an exact one of the same items."""
    name = installed(request.param)
    index = make_index(tmp_path / "engine.index")
    index.use_engine(name, CASES[name])
    return index, make_index(tmp_path / "exact.index")


def queries(count=6):
    return [one.point for one in encoded(count, "text", 9)]


UNSAFE, SAFE = (
    Score("text", distance, None, told, None) for distance, told in ((1.2, "unsafe"), (0.8, "safe"))
)


def places(index, scorer, point, score=UNSAFE, **how):
    answer = search_from(index, scorer, point, score, **how)
    return [(hit.place, round(hit.distance, 5)) for hit in answer.hits]


def is_exact_fallback(caplog):
    return "searching" in caplog.text


def test_searches_are_those_of_the_exact_index(both, scorer, caplog):
    caplog.set_level(logging.INFO)
    index, exact = both
    nearest_safe = Redirection("nearest-safe")
    for point in queries(2):
        for how in (
            {"k": 7},
            {"k": 3, "modality": "text"},
            {"k": 12, "modality": "any"},
            {"k": 5, "policy": "block", "score": SAFE},
            {"k": 5, "policy": "block", "score": UNSAFE},
            {"k": 4, "policy": "redirect"},
            {"k": 4, "policy": "redirect", "redirection": nearest_safe},
            {"k": 1000, "modality": "text"},
        ):
            assert places(index, scorer, point, **how) == places(exact, scorer, point, **how)
        one, other = (path_from(i, scorer, point, UNSAFE, redirection=nearest_safe, steps=3) for i in both)
        assert [(s.text.place, s.image.place) for s in one] == [(s.text.place, s.image.place) for s in other]
    assert not is_exact_fallback(caplog)
    safe = search_from(index, scorer, queries()[0], SAFE, k=50, policy="block").hits
    assert {hit.score.decision for hit in safe} == {"safe"}


def test_additions_and_deletions_reach_the_engine(both, scorer):
    index, exact = both
    more = [encoded(30, "text", 5, prefix="new-"), encoded(10, "image", 6, prefix="new-")]
    for one in both:
        one.add(more)
        one.delete(["text:3", "new-text:4", "image:0"])
    again = Index.open(index.path)
    for point in [*queries(1), more[0][7].point, more[0][4].point]:
        for how in ({"k": 6, "modality": "text"}, {"k": 20}):
            expected = places(exact, scorer, point, **how)
            assert places(index, scorer, point, **how) == expected
            assert places(again, scorer, point, **how) == expected
    for one in (index, again):
        loaded = one.engines._parts()
        counts = {
            kind: int((one.is_there() & (one.is_image() == (kind == "image"))).sum()) for kind in loaded
        }
        assert {kind: len(engine) for kind, engine in loaded.items()} == counts
    assert {path.name for path in (index.path / FOLDER).iterdir()} == {
        part.name for part in again.engine.parts.values()
    }, "no folder is left over"


@pytest.mark.parametrize(
    ("name", "fails"),
    [
        ("faiss", "engine"),
        ("ngt", "engine"),
        ("sqlite-vec", "engine"),
        ("sqlite-vec", "settings"),
        ("lancedb", "engine"),
        ("milvus", "settings"),
    ],
)
def test_an_addition_that_breaks_off_leaves_a_usable_index(tmp_path, scorer, monkeypatch, name, fails):
    index = make_index(tmp_path / "x.index")
    index.use_engine(installed(name))
    before = places(index, scorer, queries()[0], k=8, modality="any")
    more = [encoded(20, "image", 5, prefix="new-"), encoded(20, "text", 6, prefix="new-")]

    def broken(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        if fails == "engine":
            real, calls = engines.ENGINES[name]._insert, []

            def second_fails(*arguments):
                calls.append(1)
                return real(*arguments) if len(calls) == 1 else broken()

            patch.setattr(engines.ENGINES[name], "_insert", second_fails)
        else:
            patch.setattr(Index, "_write", broken)
        with pytest.raises(OSError, match="no space left"):
            index.add(more)
    for one in (index, Index.open(index.path)):
        assert len(one) == 2 * PER_KIND
        assert places(one, scorer, queries()[0], k=8, modality="any") == before
    exact = make_index(tmp_path / "exact.index")
    for one in (index, exact):  # some at places that the first had for images
        one.add([encoded(30, "text", 7, prefix="other-")])
        one.add([encoded(10, "text", 8, prefix="third-")])
    for point in queries(3):
        wanted = places(exact, scorer, point, k=9, modality="any")
        assert places(Index.open(index.path), scorer, point, k=9, modality="any") == wanted
    assert {kind: len(engine) for kind, engine in index.engines._parts().items()}["text"] == PER_KIND + 40


def test_a_deletion_that_breaks_off_deletes(tmp_path, scorer, monkeypatch):
    index = make_index(tmp_path / "x.index")
    index.use_engine(installed("sqlite-vec"))
    point = encoded(PER_KIND, "text", 2)[3].point
    with monkeypatch.context() as patch:
        patch.setattr(engines.SqliteVec, "_remove", lambda *_: 1 / 0)
        with pytest.raises(ValueError, match="database of the engine sqlite-vec cannot be used: division"):
            index.delete(["text:3"])
    assert PER_KIND + 3 not in [place for place, _ in places(index, scorer, point, k=5, modality="text")]
    again = Index.open(index.path)
    again.delete(["text:5"])
    assert len(again.engines._parts()["text"]) == PER_KIND - 2, "what was left went with the next change"


def test_what_an_engine_cannot_tell_is_searched_exactly(tmp_path, scorer, caplog, monkeypatch):
    """Where the restriction leaves fewer near the query than are asked for; said once."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(engine_module, "MOST", 8)
    index, exact = make_index(tmp_path / "x.index"), make_index(tmp_path / "exact.index")
    index.use_engine(installed("hnswlib"), {"candidates": 4})
    far = encoded(PER_KIND, "text", 2)
    point = max(far, key=lambda one: one.distance).point
    how = {"policy": "block", "score": SAFE, "modality": "text"}
    assert places(index, scorer, point, k=2, modality="text") == places(
        exact, scorer, point, k=2, modality="text"
    )
    assert not is_exact_fallback(caplog)
    for k in (7, 9, 20):
        found = places(index, scorer, point, k=k, **how)
        assert found == places(exact, scorer, point, k=k, **how)
    assert len(found) == 20
    assert caplog.text.count("searching texts exactly where too few") == 1


def test_threads_that_search_at_once(tmp_path, scorer):
    """An engine keeps what a search needs in itself, such as which items are deleted."""
    index, exact = make_index(tmp_path / "x.index"), make_index(tmp_path / "exact.index")
    index.use_engine(installed("faiss"))
    for one in (index, exact):
        one.delete(["text:3", "image:4"])
    several = [(point, k) for point in queries(8) for k in (1, 9)]
    wanted = [places(exact, scorer, point, k=k, modality="any") for point, k in several]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: places(index, scorer, one[0], k=one[1], modality="any"), several))
    assert found == wanted


def test_points_farther_out_than_before(tmp_path, scorer):
    index, exact = make_index(tmp_path / "x.index"), make_index(tmp_path / "exact.index")
    index.use_engine(installed("usearch"))
    far = [encoded(20, "text", 4, radius=3.0, prefix="far-")]
    for one in (index, exact):
        one.add(far)
    assert index.engine.parts["text"].built == PER_KIND + 20
    for point in (far[0][0].point, queries()[0]):
        assert places(index, scorer, point, k=5, modality="text") == places(
            exact, scorer, point, k=5, modality="text"
        )


def test_an_index_that_has_doubled_is_built_anew(tmp_path):
    index = Index.create(tmp_path / "x", model="m", model_dir="", curv=CURV, width=WIDTH)
    index.use_engine(installed("faiss"), {"kind": "ivf"})
    assert index.engine.parts == {}
    built = []
    for number, size in enumerate((5, 4, 1, 10)):
        index.add([encoded(size, "text", number, radius=0.5 if number else 1, prefix=f"{number}-")])
        built.append(index.engine.parts["text"].built)
    assert built == [5, 5, 10, 20]


def test_recall_is_measured_on_the_other_kind_and_told(tmp_path, scorer):
    index = make_index(tmp_path / "x.index")
    with pytest.warns(engines.RecallWarning, match="of the 10 nearest, measured on 60 queries"):
        index.use_engine(installed("faiss"), {"kind": "ivf", "lists": 20, "probes": 1})
    part = Index.open(index.path).engine.parts["image"]
    points = torch.from_numpy(np.load(index.points_file))
    images, sample = points[:PER_KIND], points[PER_KIND:]
    exact = hk.pairwise_dist(sample.double(), images.double(), CURV).topk(10, largest=False).indices
    engine = index.engines._parts()["image"]
    found = engine.search(sample, 10, CURV).indices
    shares = [len(set(a.tolist()) & set(b.tolist())) / 10 for a, b in zip(found, exact, strict=True)]
    assert part.recall == pytest.approx(np.mean(shares), abs=1e-9)
    assert part.recall < 0.95


@pytest.mark.parametrize("others", [("sqlite-vec", "hnswlib"), ("ngt",), ("lancedb",), ("milvus",)])
def test_another_engine_or_none(tmp_path, scorer, others):
    index = make_index(tmp_path / "x.index")
    expected = places(index, scorer, queries()[0], k=5)
    for name in map(installed, ("faiss", *others)):
        index.use_engine(name)
        assert Index.open(index.path).engine.name == name
        assert places(index, scorer, queries()[0], k=5) == expected
        assert len(list((index.path / FOLDER).iterdir())) == 2
    index.use_engine("exact")
    assert Index.open(index.path).engine is None
    assert not list((index.path / FOLDER).iterdir())
    assert places(index, scorer, queries()[0], k=5) == expected


def test_an_engine_that_cannot_be_built_leaves_the_one_that_is_there(tmp_path, scorer, monkeypatch):
    index = make_index(tmp_path / "x.index")
    index.use_engine(installed("hnswlib"))
    before = index.engine
    with monkeypatch.context() as patch:
        patch.setattr(engines.Faiss, "_put", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            index.use_engine(installed("faiss"))
    for one in (index, Index.open(index.path)):
        assert one.engine == before
        assert len(places(one, scorer, queries()[0], k=5)) == 5


@pytest.mark.parametrize(
    ("name", "options", "url", "message"),
    [
        ("nothing", {}, None, "engine must be one of faiss, .* got 'nothing'"),
        ("faiss", {"efs": 1}, None, "engine faiss has no option 'efs': it has transform, .*kind"),
        ("faiss", {"model": "x"}, None, "has no option 'model'"),
        ("qdrant", {"url": "http://x"}, None, "has no option 'url'"),
        ("faiss", {"lists": "many"}, None, "option lists must be an int of at least 1, got 'many'"),
        ("usearch", {"exhaustive": 1}, None, "option exhaustive must be a bool, got 1"),
        ("faiss", {"kind": "tree"}, None, "kind must be"),
        ("faiss", {}, "http://x", "faiss has no database elsewhere"),
        ("pgvector", {}, None, "say where with HYSAC_ENGINE_URL in the environment, or --engine-url"),
    ],
)
def test_bad_engines(tmp_path, name, options, url, message, monkeypatch):
    monkeypatch.delenv("HYSAC_ENGINE_URL", raising=False)
    index = make_index(tmp_path / "x.index", 3)
    with pytest.raises(ValueError, match=message):
        index.use_engine(name, options, url=url)
    assert Index.open(index.path).engine is None


def test_an_engine_that_lacks_items_or_is_damaged(tmp_path, scorer):
    index = make_index(tmp_path / "x.index")
    index.use_engine(installed("faiss"))
    settings = json.loads((index.path / "index.json").read_text())
    header = index.path / FOLDER / settings["engine"]["parts"]["text"]["name"] / "index.json"
    whole = header.read_text()
    for text, message in (
        (whole.replace('"width"', '"weight"'), "the engine's texts cannot be loaded: 'width'"),
        (whole.replace('"curv": 1.0', '"curv": 0.8'), "is of another index"),
    ):
        header.write_text(text)
        with pytest.raises(ValueError, match=f"{message}.*`hysac index engine`"):
            Index.open(index.path).engines.load()
    header.write_text(whole)
    engine = engines.load(header.parent)
    engine.delete([PER_KIND])
    engine.save(header.parent)
    with pytest.raises(ValueError, match=f"has {PER_KIND} texts and its engine only {PER_KIND - 1}"):
        Index.open(index.path).engines.load()
    assert len(places(Index.open(index.path, exact=True), scorer, queries()[0], k=5)) == 5
    with pytest.raises(ValueError, match="was opened without its engine"):
        Index.open(index.path, exact=True).delete(["text:0"])
    for change in (
        {"name": "x"},
        {"parts": {"video": {}}},
        {"parts": {"text": {"name": "../.."}}},
        {"remote": 1},
    ):
        damaged = settings | {"engine": settings["engine"] | change}
        (index.path / "index.json").write_text(json.dumps(damaged))
        with pytest.raises(ValueError, match=r"index\.json is damaged"):
            Index.open(index.path)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("commands")
    pictures(home / "photos", 4)
    make_model(home / "model")
    return home


class TestCommands:
    def run(self, *arguments):
        return main([str(argument) for argument in arguments])

    @pytest.mark.slow
    def test_build_search_add_delete(self, home, tmp_path, capsys):
        installed("faiss")
        out, device = tmp_path / "photos.index", ["--device", "cpu"]
        choice = ["--engine", "faiss", "--engine-option", "kind=flat", "--engine-option", "transform=inner"]
        build = ["index", "build", "--model-dir", home / "model", home / "photos"]
        assert self.run(*build, "--out", out, *choice, *device) == 0
        told = capsys.readouterr().out
        assert "searched with faiss, ranked exactly" in told
        assert "images: 1.000 of the 10 nearest found when it was built, of 4" in told
        for text in ("a cat", "a bird"):  # each under a number of its own
            assert self.run("index", "add", "--index", out, "--text", text, *device) == 0
        assert self.run("index", "delete", "--index", out, home / "photos" / "0.png") == 0
        capsys.readouterr()
        found = []
        for exact in ([], ["--exact"]):
            assert self.run("search", "a cat", "--index", out, "--modality", "any", *exact, *device) == 0
            assert self.run("redirect", "a cat", "--index", out, "--steps", "2", *exact, *device) == 0
            found.append(capsys.readouterr().out)
        assert found[0] == found[1]
        assert self.run("index", "engine", "--index", out, "--engine", "exact") == 0
        assert "searched exactly" in capsys.readouterr().out

    def test_what_is_not_installed_names_the_extra(self, home, tmp_path, capsys, monkeypatch):
        installed("hnswlib")
        out, device = tmp_path / "photos.index", ["--device", "cpu"]
        build = ["index", "build", "--model-dir", home / "model", "--text", "a dog", "--out", out, *device]
        assert self.run(*build, "--engine", "hnswlib") == 0
        real = importlib.import_module

        def without(name, package=None):
            if name in ("hnswlib", "ngtpy"):
                raise ImportError(f"No module named {name!r}")
            return real(name, package)

        monkeypatch.setattr(importlib, "import_module", without)
        capsys.readouterr()
        serve = ["serve", "--model-dir", home / "model", "--port", "0"]
        for command in (
            ["search", "a dog"],
            ["redirect", "a dog"],
            serve,
            ["index", "add", "--text", "a cat"],
        ):
            assert self.run(*command, "--index", out, *device) == 2
            assert "pip install 'hysac[engines-hnswlib]'" in capsys.readouterr().err
        assert self.run("index", "delete", "--index", out, "text:1") == 2
        assert self.run("index", "info", "--index", out) == 0
        assert "1 items" in capsys.readouterr().out
        other = tmp_path / "other.index"
        assert self.run(*build[:-4], "--out", other, *device, "--engine", "ngt") == 2
        assert "hysac[engines-ngt]" in capsys.readouterr().err
        assert not other.exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--engine", "faiss", "--engine-option", "kind"], "must be as kind=ivf, got 'kind'"),
            (["--engine-option", "kind=ivf"], "are of an engine: choose one"),
        ],
    )
    def test_bad_options(self, home, tmp_path, capsys, options, message):
        build = ["index", "build", "--model-dir", home / "model", "--text", "a", "--out", tmp_path / "x"]
        assert self.run(*build, *options) == 2
        assert message in capsys.readouterr().err


def postgresql():
    path = Path(__file__).parents[1] / "hypkernels" / "postgresql.py"
    spec = importlib.util.spec_from_file_location("postgresql", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def database():
    pytest.importorskip("psycopg")
    pytest.importorskip("pgvector")
    module = postgresql()
    try:
        module.programs()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    with module.server() as url:
        yield url.replace("tester@", "tester:open-sesame@")


@pytest.mark.slow
def test_rows_in_postgresql(database, tmp_path, scorer, monkeypatch, capsys):
    import psycopg

    index, exact = make_index(tmp_path / "x.index", 40), make_index(tmp_path / "exact.index", 40)
    monkeypatch.setenv("HYSAC_ENGINE_URL", database)
    index.use_engine("pgvector", {"m": 8, "ef_construction": 32})
    for one in (index, exact):
        one.add([encoded(20, "text", 5, prefix="new-")])
        one.add([encoded(20, "image", 5, radius=3.0, prefix="far-")])
        one.delete(["text:3"])
    again = Index.open(index.path)
    for point in queries(3):
        assert places(again, scorer, point, k=5, modality="any") == places(
            exact, scorer, point, k=5, modality="any"
        )
    tables = {row[0] for row in psycopg.connect(database).execute("SELECT tablename FROM pg_tables")}
    assert {name for name in tables if name.startswith("hysac_")} == {
        part.name for part in again.engine.parts.values()
    }, "tables that were built anew are gone"
    written = [path for path in index.path.rglob("*") if path.is_file()]
    assert not any(
        b"open-sesame" in path.read_bytes() or b"127.0.0.1" in path.read_bytes() for path in written
    )
    assert "open-sesame" not in repr(again.engine)

    monkeypatch.delenv("HYSAC_ENGINE_URL")
    with pytest.raises(ValueError, match="say where with HYSAC_ENGINE_URL in the environment"):
        search_from(Index.open(index.path), scorer, queries()[0], UNSAFE)
    with pytest.raises(ValueError, match="the database of the engine pgvector cannot be used") as told:
        Index.open(index.path, url="postgresql://me:open-sesame@127.0.0.1:1/x").engines.load()
    assert "open-sesame" not in str(told.value)
    assert main(["index", "info", "--index", str(index.path)]) == 0
    assert "rows in a database" in capsys.readouterr().out
