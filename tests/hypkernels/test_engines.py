"""Every engine: what it finds, adding and deleting, files, and what it refuses."""

import json
import math
import os
import warnings

import numpy as np
import pytest
import torch
from engine_cases import CASES, EXHAUSTIVE, make, points_and_queries

from hypkernels.lorentz import dist0, exp_map0
from hypkernels.retrieval import engines, topk

CURV = 0.7
FILES = {
    "qdrant": ("path", "qdrant"),
    "lancedb": ("uri", "lance"),
    "milvus": ("uri", "milvus.db"),
    "sqlite-vec": ("path", "vec.sqlite"),
}
SERVERS = {
    "qdrant": ("url", "HYPKERNELS_QDRANT"),
    "milvus": ("uri", "HYPKERNELS_MILVUS"),
}  # in place of files


@pytest.fixture(params=CASES)
def case(request):
    return request.param


@pytest.fixture
def where(case, request, tmp_path):
    """The arguments that say where a database is."""
    if case.startswith("pgvector"):
        return {"url": request.getfixturevalue("postgresql_url"), "replace": True}
    name = CASES[case][0].name
    if name in SERVERS and SERVERS[name][1] in os.environ:
        argument, variable = SERVERS[name]
        return {argument: os.environ[variable], "replace": True}
    argument, file = FILES.get(name, (None, None))
    return {} if argument is None else {argument: str(tmp_path / file)}


@pytest.fixture
def made(case, where):
    """Makes engines of the case, and closes them."""
    all_made = []

    def new(**arguments):
        all_made.append(make(case, where, **{"curv": CURV, **arguments}))
        return all_made[-1]

    yield new
    for engine in all_made:
        engine.close()


def few(case):
    """Qdrant's local mode writes 40 rows a second to a file."""
    return 150 if case == "qdrant" else 1500


def test_recall_and_distances(case, made):
    points, queries = points_and_queries(few(case))
    ids = 7 + 3 * np.arange(len(points))
    engine = made().build(points, ids, sample=queries)
    exact = topk(queries, points, 10, CURV)
    distances, found = engine.search(queries, 10, CURV)
    assert distances.dtype == torch.float32
    assert found.dtype == torch.int64
    rows = (found - 7) // 3
    right = rows == exact.indices
    assert right.double().mean() >= (1.0 if case in EXHAUSTIVE else 0.97)
    assert engine.recall == pytest.approx((distances <= exact.distances[:, -1:]).double().mean().item())
    assert torch.equal(distances[right], exact.distances[right])  # to the bit
    assert len(engine) == len(points)


def test_deleted_ids_are_not_found_and_may_return(case, made):
    points, queries = points_and_queries(few(case))
    engine = made().build(points)
    before = engine.search(queries, 5, CURV)
    nearest = before.indices[:, 0].unique()
    engine.delete(nearest)
    assert len(engine) == len(points) - len(nearest)
    between = engine.search(queries, 4, CURV)
    assert not torch.isin(between.indices, nearest).any()
    engine.add(points[nearest], nearest)
    assert len(engine) == len(points)
    after = engine.search(queries, 5, CURV)
    assert (after.indices[:, 0] == before.indices[:, 0]).double().mean() > 0.97
    engine.add(points[:2], [10**12, 10**12 + 1])
    assert engine.search(points[1:2], 2, CURV).indices[0].tolist() == [1, 10**12 + 1]


def test_all_may_be_deleted(case, made):
    points, _ = points_and_queries(30)
    engine = made(max_radius=5.0).build(points)
    engine.delete(range(30))
    assert len(engine) == 0
    with pytest.raises(ValueError, match="the index is empty"):
        engine.search(points, 1, CURV)
    engine.add(points[3:5], [8, 9])
    assert engine.search(points[3:5], 2, CURV).indices.tolist() == [[8, 9], [9, 8]]


def test_saved_and_loaded(case, made, where, tmp_path):
    points, queries = points_and_queries(few(case), width=8)
    engine = made(model="a model").build(points)
    engine.delete([0, 1, 2])
    before = engine.search(queries, 7, CURV)
    engine.save(tmp_path / "saved")
    engine.close()
    where.pop("replace", None)
    loaded = engines.load(tmp_path / "saved", **where)
    try:
        assert type(loaded) is CASES[case][0]
        assert (loaded.curv, loaded.model, loaded.recall) == (CURV, "a model", engine.recall)
        assert len(loaded) == len(points) - 3
        after = loaded.search(queries, 7, CURV)
        assert torch.equal(after.indices, before.indices)
        assert torch.equal(after.distances, before.distances)
        loaded.add(points[:1], [0])
        assert loaded.search(points[:1], 1, CURV).indices.item() == 0
    finally:
        loaded.close()
    with pytest.raises(ValueError, match=f"is an index of {engine.name}, not of"):
        (engines.Exact if case != "exact" else engines.Faiss).load(tmp_path / "saved")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_points_keep_their_dtype(case, made, dtype):
    points, queries = (one.to(dtype) for one in points_and_queries(100, 5))
    engine = made().build(points)
    distances, ids = engine.search(queries, 3, CURV)
    exact = topk(queries, points, 3, CURV)
    assert distances.dtype == exact.distances.dtype
    same = ids == exact.indices
    assert same.double().mean() > 0.9
    assert torch.equal(distances[same], exact.distances[same])


def test_an_index_in_place_of_another(case, made):
    points, _ = points_and_queries(40)
    engine = made().build(points)
    engine.build(points[:10, :5], ids=range(100, 110))
    assert len(engine) == 10
    assert engine.search(points[:10, :5], 1, CURV).indices[:, 0].tolist() == list(range(100, 110))


def test_few_points_and_no_queries(case, made):
    points, queries = points_and_queries(3, 2)
    engine = made().build(points)
    assert engine.search(queries, 3, CURV).indices.sort(1).values.tolist() == [[0, 1, 2]] * 2
    for found in engine.search(queries[:0], 2, CURV):
        assert found.shape == (0, 2)


# What all engines refuse the same way.


@pytest.fixture(params=["exact", "faiss-hnsw", "sqlite-vec"])
def built(request):
    points, _ = points_and_queries(50, width=8)
    return make(request.param, {}, curv=CURV, model="mine").build(points)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"queries": torch.zeros(2, 9)}, ValueError, r"queries must have shape \(n, 8\).*got \(2, 9\)"),
        ({"queries": torch.zeros(8)}, ValueError, r"queries must have shape \(n, 8\)"),
        ({"queries": [[0.0] * 8]}, TypeError, "queries must be a tensor"),
        ({"queries": torch.zeros(2, 8, dtype=torch.int64)}, TypeError, "queries must be float64"),
        (
            {"queries": torch.tensor([[0.0] * 8, [math.nan] * 8])},
            ValueError,
            "queries must be finite, row 1 is",
        ),
        ({"k": 51}, ValueError, "k must be at most the number of points, 50, got 51"),
        ({"k": 0}, ValueError, "k must be at least 1"),
        ({"k": 2.0}, TypeError, "k must be an integer"),
        ({"curv": 1.0}, ValueError, "the index is of points of curv 0.7, the queries are of 1"),
        ({"curv": -1.0}, ValueError, "curv must be positive"),
        ({"model": "another"}, ValueError, "of the model 'mine', the queries are of 'another'"),
    ],
)
def test_bad_searches(built, change, error, message):
    arguments = {"queries": torch.zeros(2, 8), "k": 2, "curv": CURV, "model": None, **change}
    with pytest.raises(error, match=message):
        built.search(**arguments)


def test_a_searchs_curvature_may_be_a_tensor(built):
    built.search(torch.zeros(1, 8), 1, torch.tensor(CURV), model="mine")


@pytest.mark.parametrize(
    ("points", "ids", "error", "message"),
    [
        (torch.zeros(2, 9), [90, 91], ValueError, r"points must have shape \(n, 8\)"),
        (torch.zeros(2, 8), [90], ValueError, "ids must be one for each of the 2 points, got 1"),
        (torch.zeros(2, 8), [90, 90], ValueError, "ids must be distinct, 90 is"),
        (torch.zeros(2, 8), [90, -1], ValueError, "ids must be from 0"),
        (torch.zeros(2, 8), [90.0, 91.0], TypeError, "ids must be integers"),
        (torch.zeros(2, 8), [90, 49], ValueError, "ids must be new, 49 is in the index"),
        (torch.tensor([[0.0] * 8, [math.inf] * 8]), [90, 91], ValueError, "points must be finite, row 1 is"),
        (
            torch.full((1, 8), 9.0),
            [90],
            ValueError,
            "points row 0 is .* from the origin, and the index was built",
        ),
    ],
)
def test_bad_additions(built, points, ids, error, message):
    with pytest.raises(error, match=message):
        built.add(points, ids)
    assert len(built) == 50


def test_bad_deletions(built):
    with pytest.raises(ValueError, match="ids must be in the index, 50 is not"):
        built.delete([3, 50])
    with pytest.raises(ValueError, match="ids must be distinct"):
        built.delete([3, 3])
    assert len(built) == 50
    built.delete([])
    built.add(torch.zeros(0, 8), [])
    assert len(built) == 50


def test_bad_builds():
    points, _ = points_and_queries(50, width=8)
    engine = engines.Exact(curv=CURV)
    with pytest.raises(RuntimeError, match="neither built nor loaded"):
        engine.search(points, 1, CURV)
    with pytest.raises(ValueError, match="N >= 1"):
        engine.build(points[:0])
    broken = points.clone()
    broken[17, 3] = math.nan
    with pytest.raises(ValueError, match="points must be finite, row 17 is"):
        engine.build(broken)
    with pytest.raises(ValueError, match="ids must be one for each of the 50 points"):
        engine.build(points, [1])
    with pytest.raises(ValueError, match=r"sample must have shape \(n, 8\)"):
        engine.build(points, sample=points[:, :3])
    with pytest.raises(ValueError, match="max_radius must be at least that of the points"):
        engines.Exact(curv=CURV, max_radius=0.1).build(points)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"curv": 0.0}, ValueError, "curv must be positive"),
        ({"transform": "klein"}, ValueError, "transform must be one of"),
        ({"dtype": "float16"}, ValueError, "dtype must be one of 'float32'"),
        ({"candidates": 0}, ValueError, "candidates must be at least 1"),
        ({"max_radius": -1.0}, ValueError, "max_radius must be positive"),
    ],
)
def test_bad_engines(arguments, error, message):
    with pytest.raises(error, match=message):
        engines.Exact(**arguments)


def test_half_precision_ends():
    """A time coordinate of 65504 is 11.78 from the origin; bfloat16 goes as far as float32."""
    pytest.importorskip("usearch")
    direction = torch.nn.functional.normalize(torch.randn(60, 8, dtype=torch.float64), dim=1)
    points = exp_map0(torch.linspace(1, 11.9, 60, dtype=torch.float64)[:, None] * direction)
    with pytest.raises(ValueError, match=r"points up to .* and float16 ends at 65504"):
        engines.Usearch(dtype="float16", transform="augmented").build(points)
    engines.Usearch(dtype="bfloat16", transform="augmented").build(points)
    engines.Usearch(dtype="float16", transform="tangent").build(points)


def test_low_recall_is_warned_of():
    pytest.importorskip("faiss")
    points, _ = points_and_queries(4000, regime="near")
    with pytest.warns(
        engines.RecallWarning, match=r"finds 0\.[0-9]+ of the 10 nearest, measured on 100 queries"
    ):
        engine = engines.Faiss(transform="inner").build(points)
    assert engine.recall < 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert engines.Faiss().build(points).recall > 0.95


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "hnswlib", None)
    with pytest.raises(ImportError, match=r"pip install 'hysac\[engines-hnswlib\]'"):
        engines.Hnswlib()


def test_headers(tmp_path):
    points, _ = points_and_queries(50, width=8)
    engine = engines.Exact(curv=CURV, model="sha256:1").build(points)
    engine.save(tmp_path)
    header = json.loads((tmp_path / "index.json").read_text())
    assert header["arguments"]["curv"] == CURV
    assert (header["engine"], header["width"], header["points"]) == ("exact", 8, "torch.float32")
    with pytest.raises(FileNotFoundError):
        engines.load(tmp_path / "nowhere")
    (tmp_path / "index.json").write_text(json.dumps(header | {"format": 9}))
    with pytest.raises(ValueError, match="has format 9, this library reads 1"):
        engines.load(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps(header | {"engine": "else"}))
    with pytest.raises(ValueError, match="is an index of 'else', this library knows exact, faiss"):
        engines.load(tmp_path)


def test_the_edge_of_what_may_be_added():
    points, _ = points_and_queries(50, width=8)
    farthest = dist0(points, CURV).max().item()
    engine = engines.Exact(curv=CURV, max_radius=2 * farthest).build(points)
    direction = torch.nn.functional.normalize(points[:1].double(), dim=1)
    engine.add(exp_map0(1.999 * farthest * direction, CURV).float(), [50])
    with pytest.raises(ValueError, match="points row 0"):
        engine.add(exp_map0(2.001 * farthest * direction, CURV).float(), [51])


def test_files_are_galleries(tmp_path):
    points, queries = points_and_queries(200)
    np.save(tmp_path / "points.npy", points.numpy())
    engine = engines.Exact(curv=CURV).build(tmp_path / "points.npy")
    assert torch.equal(engine.search(queries, 3, CURV).indices, topk(queries, points, 3, CURV).indices)
