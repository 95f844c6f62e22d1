"""What is of databases alone: tables that are there, built anew, or in memory; a session's settings."""

import pytest
from engine_cases import points_and_queries

from hypkernels.retrieval import engines


@pytest.fixture
def table(tmp_path):
    """Makes engines on one database file, and closes them."""
    pytest.importorskip("sqlite_vec")
    pytest.importorskip("apsw")
    made = []

    def new(**arguments):
        made.append(engines.SqliteVec(path=str(tmp_path / "vec.sqlite"), **arguments))
        return made[-1]

    yield new
    for engine in made:
        engine.close()


POINTS, QUERIES = points_and_queries(60, 5, 8)


def test_a_table_is_not_replaced_unasked(table):
    table().build(POINTS)
    with pytest.raises(ValueError, match="there is a table 'points': take another name, or replace=True"):
        table().build(POINTS[:10])
    assert len(table(replace=True).build(POINTS[:10])) == 10
    assert len(table(table="others").build(POINTS)) == 60


def test_a_table_built_anew_is_not_the_saved_one(table, tmp_path):
    first = table().build(POINTS)
    first.save(tmp_path / "saved")
    table(replace=True, curv=0.3).build(POINTS)
    with pytest.raises(ValueError, match="the table 'points' was built anew by another"):
        first.save(tmp_path / "again")
    with pytest.raises(ValueError, match="the table 'points' was built anew by another"):
        engines.load(tmp_path / "saved", path=str(tmp_path / "vec.sqlite"))
    with pytest.raises(ValueError, match="there is no table 'points'"):
        engines.load(tmp_path / "saved", path=str(tmp_path / "empty.sqlite"))


def test_a_table_is_dropped_with_its_rows(table, tmp_path):
    first, other = table().build(POINTS), table(table="others").build(POINTS)
    first.save(tmp_path / "saved")
    assert first.present([3, 100]).tolist() == [3]
    first.drop()
    first.drop()  # there is none any more
    with pytest.raises(RuntimeError, match="neither built nor loaded"):
        first.search(QUERIES, 3)
    with pytest.raises(ValueError, match="there is no table 'points'"):
        engines.load(tmp_path / "saved", path=str(tmp_path / "vec.sqlite"))
    assert len(other) == 60
    assert len(table().build(POINTS)) == 60


@pytest.mark.parametrize("name", ["", "a b", "points; DROP TABLE users", 'a"b', "é", "a" * 64])
def test_names_of_tables(name):
    with pytest.raises(ValueError, match="table must be letters, digits and underscores"):
        engines.SqliteVec(table=name)


def test_rows_in_memory_are_not_saved(tmp_path):
    pytest.importorskip("apsw")
    index = engines.SqliteVec().build(POINTS)
    with pytest.raises(ValueError, match="the rows are in memory only"):
        index.save(tmp_path)
    assert index.search(QUERIES, 3).indices.shape == (5, 3)


@pytest.mark.slow
def test_passwords_are_neither_shown_nor_saved(tmp_path):
    """What says where a database is stays out of the representation and of the header."""
    pytest.importorskip("qdrant_client")
    index = engines.Qdrant(path=str(tmp_path / "secret"))
    assert "secret" not in repr(index)
    index.build(POINTS[:20]).save(tmp_path / "saved")
    assert "secret" not in (tmp_path / "saved" / "index.json").read_text()
    index.close()
    with pytest.raises(ValueError, match="url and path are alternatives"):
        engines.Qdrant(path="here", url="http://127.0.0.1:1")


def test_pgvectors_effort_is_checked_before_anything_is_loaded():
    with pytest.raises(ValueError, match=r"ef_construction must be at least 2 \* m = 64, got 40"):
        engines.Pgvector(url="postgresql://nobody@127.0.0.1:1/nothing", ef_construction=40)
    with pytest.raises(TypeError, match="m must be an integer"):
        engines.Pgvector(m=1.5)
