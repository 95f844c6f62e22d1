"""Exact nearest neighbours in hyperbolic space, in bounded memory: never a matrix of queries by gallery.

    distances, indices = topk(queries, gallery, k=10, curv=c)
    ranks = positive_rank(queries, gallery, targets, curv=c)
    limits, distances, indices = range_search(queries, gallery, radius=1.5, curv=c)

The order is that of ``z = cosh(sqrt(c) d) - 1`` in float64, made of the two points' difference and not of a
product of matrices, with ties in the order of the gallery: one right answer, whatever the device, the number
of threads and the pieces that the gallery came in. Products in the points' own precision only tell which
pairs cannot matter, by a bound of their rounding.

A gallery is a tensor, a NumPy array or memory map, the path of an ``.npy`` or ``.safetensors`` file, or what
:func:`open_gallery` returns. It is read once for every 64 MiB of queries, a piece of at most 64 MiB at a
time, and never copied or cast as a whole. Nothing here has gradients: results are detached.
"""

from hypkernels.retrieval.gallery import Gallery, open_gallery
from hypkernels.retrieval.search import (
    Neighbours,
    RangeResult,
    RankCounts,
    positive_rank,
    range_search,
    rank_counts,
    rerank,
    topk,
)

__all__ = [
    "Gallery",
    "Neighbours",
    "RangeResult",
    "RankCounts",
    "open_gallery",
    "positive_rank",
    "range_search",
    "rank_counts",
    "rerank",
    "topk",
]
