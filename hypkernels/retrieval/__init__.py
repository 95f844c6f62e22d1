"""Exact nearest neighbours in hyperbolic space, in bounded memory: never a matrix of queries by gallery.

    distances, indices = topk(queries, gallery, k=10, curv=c)
    ranks = positive_rank(queries, gallery, targets, curv=c)
    limits, distances, indices = range_search(queries, gallery, radius=1.5, curv=c)

Items are ordered by ``z = cosh(sqrt(c) d) - 1`` in float64, computed from the difference of the two
points and not from a product of matrices; ties are in the order of the gallery. So there is one right
answer, whatever the device, the number of threads and the pieces in which the gallery is read. Products
in the points' own precision, with a bound of their rounding, only rule out pairs that cannot matter.

A gallery is a tensor, a NumPy array or memory map, the path of an ``.npy`` or ``.safetensors`` file, or
the result of :func:`open_gallery`. It is read once for every 64 MiB of queries, a piece of at most 64
MiB at a time, and never copied or cast as a whole. Results have no gradients.
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
