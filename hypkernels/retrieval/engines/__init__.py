"""Vector engines for points of the hyperboloid: one protocol, an adapter for each engine, measured
recall.

    index = engines.Faiss(curv=c).build(points)       # index.recall is the share of neighbours found
    distances, ids = index.search(queries, k=10, curv=c)
    index.add(more, ids=[...]); index.delete([...])
    index.save("folder"); index = engines.load("folder")

The nearest points have the largest inner products with the query whose time coordinate is negated. That
is exact if all products are taken, but graphs and clusters by inner product may find almost none of
them. Adapters give the engine vectors whose L2 order is that of hyperbolic distance
(:mod:`~hypkernels.retrieval.engines.transforms`), re-rank its proposals exactly, and measure their
recall when they are built. docs/engines.md has measurements;
``python -m hypkernels.retrieval.recall EMBEDDINGS`` measures your points.

Each engine's package is an extra, imported when an engine is made.
"""

from __future__ import annotations

import os
from typing import Any

from hypkernels.retrieval.engines.base import Engine, FarPointError, RecallWarning, read_header, recall_of
from hypkernels.retrieval.engines.exact import Exact
from hypkernels.retrieval.engines.faiss import Faiss
from hypkernels.retrieval.engines.hnswlib import Hnswlib
from hypkernels.retrieval.engines.lancedb import Lancedb
from hypkernels.retrieval.engines.milvus import Milvus
from hypkernels.retrieval.engines.ngt import Ngt
from hypkernels.retrieval.engines.pgvector import Pgvector
from hypkernels.retrieval.engines.qdrant import Qdrant
from hypkernels.retrieval.engines.sqlite_vec import SqliteVec
from hypkernels.retrieval.engines.usearch import Usearch

ENGINES: dict[str, type[Engine]] = {
    engine.name: engine
    for engine in (Exact, Faiss, Hnswlib, Usearch, Ngt, Pgvector, Qdrant, Lancedb, Milvus, SqliteVec)
}

__all__ = [
    "ENGINES",
    "Engine",
    "Exact",
    "Faiss",
    "FarPointError",
    "Hnswlib",
    "Lancedb",
    "Milvus",
    "Ngt",
    "Pgvector",
    "Qdrant",
    "RecallWarning",
    "SqliteVec",
    "Usearch",
    "load",
    "recall_of",
]


def load(folder: str | os.PathLike[str], **where: Any) -> Engine:
    """The index of a folder that :meth:`Engine.save` wrote, of any engine.

    Args:
        where: for a database, the arguments for its place, such as ``url``; they are not saved.

    Raises:
        FileNotFoundError, ValueError, ImportError: as :meth:`Engine.load`; an unknown engine.
    """
    name = read_header(folder)["engine"]
    if name not in ENGINES:
        raise ValueError(
            f"{os.fspath(folder)} is an index of {name!r}, this library knows {', '.join(ENGINES)}"
        )
    return ENGINES[name].load(folder, **where)
