"""The engines that the tests build, and where; of those that are not there, the reason."""

import pytest

from hypkernels.retrieval import engines
from hypkernels.retrieval.drawn import draw

# Of the installed engines: their arguments, beyond where a database is.
CASES = {
    "exact": (engines.Exact, {}),
    "faiss-flat": (engines.Faiss, {"kind": "flat", "transform": "inner"}),
    "faiss-hnsw": (engines.Faiss, {}),
    "faiss-ivf": (engines.Faiss, {"kind": "ivf"}),
    "hnswlib": (engines.Hnswlib, {}),
    "hnswlib-cosine": (engines.Hnswlib, {"transform": "cosine"}),
    "usearch": (engines.Usearch, {}),
    "usearch-half": (engines.Usearch, {"dtype": "float16"}),
    "ngt": (engines.Ngt, {}),
    "pgvector": (engines.Pgvector, {}),
    "pgvector-half": (engines.Pgvector, {"dtype": "float16", "kind": "flat"}),
    "qdrant": (engines.Qdrant, {}),
    "lancedb": (engines.Lancedb, {}),
    "lancedb-ivf": (engines.Lancedb, {"kind": "ivf", "dtype": "float16"}),
    "milvus": (engines.Milvus, {}),
    "sqlite-vec": (engines.SqliteVec, {}),
}
# All vectors are compared, in single precision, and the candidates re-ranked.
EXHAUSTIVE = ("exact", "faiss-flat", "pgvector-half", "qdrant", "sqlite-vec")


def make(case, where, **arguments):
    """An engine of a case, or a skip that says what is missing."""
    engine, own = CASES[case]
    try:
        return engine(**{**own, **where, **arguments})
    except ImportError as error:
        pytest.skip(str(error))


def points_and_queries(count=1500, queries=40, width=24, regime="clustered"):
    return draw(regime, count, queries, width)
