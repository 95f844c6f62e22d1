"""The programs: recall of a file of embeddings, and the example that fills PostgreSQL."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_cases import points_and_queries

from hypkernels.lorentz import dist0
from hypkernels.retrieval import engines, recall
from hypkernels.retrieval.drawn import REGIMES, draw

ROOT = Path(__file__).parents[2]


def rows(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_recall_of_a_file(tmp_path, capsys):
    points, queries = points_and_queries(300, 20, 8)
    np.save(tmp_path / "points.npy", points.numpy())
    np.save(tmp_path / "queries.npy", queries.numpy())
    files = [str(tmp_path / "points.npy"), "--queries", str(tmp_path / "queries.npy"), "--curv", "0.5"]
    recall.main([*files, "--engines", "exact", "pgvector", "--postgresql", ""])
    header, ruler, exact, *rest = rows(capsys.readouterr().out)
    assert header == ["engine", "settings", "recall", "build, s", "query, ms"]
    assert ruler == ["---", "---", *["---:"] * 3]
    assert re.fullmatch(r"exact [0-9.]+", exact[0])
    assert exact[1:3] == ["as it comes", "1.000 / 1.000"]
    assert float(exact[3]) >= 0
    assert float(exact[4]) > 0
    assert {row[0] for row in rest} == {"pgvector"}
    assert all(row[2].startswith("not measured: no server") for row in rest)


def test_recall_of_held_out_rows(tmp_path, capsys):
    np.save(tmp_path / "points.npy", points_and_queries(60, 1, 8)[0].numpy())
    recall.main([str(tmp_path / "points.npy"), "--count", "10", "--engines", "exact"])
    assert "1.000 / 1.000" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--count must be less than the 60 embeddings"):
        recall.main([str(tmp_path / "points.npy"), "--engines", "exact"])


def test_recall_of_drawn_sets_in_a_page(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("# Engines\n<!-- recall-6:begin -->\nold\n<!-- recall-6:end -->\nThe end.\n")
    drawn = ["--rows", "200", "--count", "10", "--width", "6", "--regimes", "near", "tree"]
    recall.main([*drawn, "--engines", "exact", "--write", str(page)])
    assert page.read_text() == (
        f"# Engines\n<!-- recall-6:begin -->\n{capsys.readouterr().out}<!-- recall-6:end -->\nThe end.\n"
    )


@pytest.mark.slow
def test_graphs_by_inner_product_find_little():
    """What docs/engines.md says of them, on few points."""
    pytest.importorskip("faiss")
    points, queries = draw("near", 4000, 50, 16)
    inner = recall.measure(recall.Recipe("faiss", {"transform": "inner"}), points, queries, 1.0, {})
    centred = recall.measure(recall.Recipe("faiss"), points, queries, 1.0, {})
    assert inner.recall < 0.5 < 0.97 < centred.recall


@pytest.mark.parametrize("regime", REGIMES)
def test_drawn_sets(regime):
    points, queries = draw(regime, 100, 7, 5)
    assert (points.shape, queries.shape) == ((100, 5), (7, 5))
    again, _ = draw(regime, 100, 7, 5)
    assert points.equal(again)
    assert points.isfinite().all()


def radii(regime):
    """Of drawn points, doubles that float32 has rounded by 1 part in 2**24."""
    return dist0(torch.cat(draw(regime, 4000, 21, 5)).double())


def test_branches_of_a_tree_come_closer():
    """Noise of ``exp(-r/2)`` is added to a parent at ``r``, whose length is that of all noise before."""
    points = REGIMES["tree"](1365, 16, torch.Generator().manual_seed(0))
    for level in (3, 4, 5):
        children = torch.arange((4**level - 1) // 3, (4 ** (level + 1) - 1) // 3)
        cosines = torch.cosine_similarity(points[children], points[(children - 1) // 4])
        length = (1 + sum(math.exp(-0.8 * above) for above in range(level - 1))) ** 0.5
        tangent = math.exp(-0.4 * (level - 1)) / length
        assert cosines.min() > 0
        # The root's 16 normal numbers are in all of them: their length is within a third.
        assert (1 / cosines.square() - 1).sqrt().median().item() == pytest.approx(tangent, rel=1 / 3)


def test_drawn_sets_lie_where_their_names_say():
    for regime, low, high in (("near", 0.3, 1.2), ("far", 0.5, 6.0)):
        least, most = radii(regime).aminmax()
        width = high - low
        assert low - 1e-6 < least < low + 0.01 * width  # 4021 are within: all miss in 1 of e**40 draws
        assert high - 0.01 * width < most < high + 1e-6
    levels = radii("tree") / 0.8
    torch.testing.assert_close(levels, levels.round(), rtol=1e-6, atol=0)
    assert levels.round().long().bincount().tolist() == [1, 4, 16, 64, 256, 1024, 2656]
    spread = draw("clustered", 4000, 1, 400)[0].double().norm(dim=1)
    assert (math.sinh(0.5) ** 2 + 0.35**2) ** 0.5 - 0.1 < spread.min()
    assert spread.max() < (math.sinh(1.5) ** 2 + 0.35**2) ** 0.5 + 0.1


@pytest.mark.slow
def test_the_example_in_postgresql(postgresql_url, tmp_path):
    """With few rows; docs/engines.md has the command for a million, and what it printed."""
    command = [sys.executable, "docs/examples/search_in_postgresql.py", postgresql_url, "--table", "example"]
    command += ["--rows", "3000", "--queries", "20", "--ef", "200", "400", "--save", str(tmp_path / "saved")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^pgvector .*: 3,000 rows of width 64$", done.stdout, re.M)
    found = re.findall(r"^ef (\d+): recall@10 ([0-9.]+), ([0-9.]+) ms a query", done.stdout, re.M)
    assert [int(ef) for ef, *_ in found] == [200, 400]
    assert all(float(share) > 0.97 and float(taken) > 0 for _, share, taken in found)
    assert (tmp_path / "saved" / "index.json").exists()


PAGE = (ROOT / "docs/engines.md").read_text()


def test_the_pages_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(compile(example, "docs/engines.md", "exec"), {"__name__": "__main__"})


def test_the_page_measures_every_engine_and_names_its_extra():
    for table in re.findall(r"<!-- recall-\d+:begin -->\n(.*?)<!-- recall", PAGE, re.S):
        measured = {(row[0].split()[0], row[1]) for row in rows(table)[2:]}
        assert measured == {(recipe.engine, recipe.settings) for recipe in recall.RECIPES}
    assert {recipe.engine for recipe in recall.RECIPES} == set(engines.ENGINES)
    named = set(re.findall(r"`(engines-[a-z-]+)`", PAGE))
    declared = set(re.findall(r"^(engines-[a-z-]+) = ", (ROOT / "pyproject.toml").read_text(), re.M))
    assert named == declared
