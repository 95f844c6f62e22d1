"""Points in PostgreSQL with pgvector: load them, search them, and print the recall and the latency.

    python docs/examples/search_in_postgresql.py postgresql://me@127.0.0.1/mine --rows 1000000

The points are drawn; with ``--points FILE`` they are those of an ``.npy`` or ``.safetensors`` file, which is
read in pieces. The table stays, and the folder ``--save`` tells ``hypkernels.retrieval.engines.load`` what is
in it. docs/engines.md has what a million rows took.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from hypkernels.retrieval import open_gallery
from hypkernels.retrieval.drawn import REGIMES, draw
from hypkernels.retrieval.engines import Engine, Pgvector, recall_of

K = 10


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("url", help="of the database, such as postgresql://me@127.0.0.1/mine")
    parser.add_argument(
        "--table", default="hypkernels_points", help="replaced if it is there (default %(default)s)"
    )
    parser.add_argument("--points", help="a file of points (N, D), instead of drawn ones")
    parser.add_argument("--curv", type=float, default=1.0, help="of their hyperboloid (default %(default)s)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of drawn points (default %(default)s)")
    parser.add_argument("--width", type=int, default=64, help="of drawn points (default %(default)s)")
    parser.add_argument(
        "--regime", choices=REGIMES, default="clustered", help="of drawn points (default %(default)s)"
    )
    parser.add_argument("--queries", type=int, default=200, help="how many (default %(default)s)")
    parser.add_argument(
        "--ef", type=int, nargs="+", default=[200, 400, 1000], help="search efforts (default 200 400 1000)"
    )
    parser.add_argument(
        "--links", type=int, default=32, help="of a node of the graph, pgvector's m (default %(default)s)"
    )
    parser.add_argument(
        "--build-effort", type=int, default=200, help="pgvector's ef_construction (default %(default)s)"
    )
    parser.add_argument("--build-memory", default="2GB", help="maintenance_work_mem (default %(default)s)")
    parser.add_argument("--save", help="a folder for what engines.load needs")
    return parser


def latencies(index: Engine, queries: Tensor) -> Tensor:
    """Milliseconds of each query, asked for one at a time."""
    taken = []
    for query in queries:
        began = time.perf_counter()
        index.search(query[None], K, index.curv)
        taken.append(1000 * (time.perf_counter() - began))
    return torch.tensor(taken)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    if arguments.points is None:
        points, queries = draw(arguments.regime, arguments.rows, arguments.queries, arguments.width)
    else:
        points = open_gallery(arguments.points).points
        queries = points[:: max(1, len(points) // arguments.queries)][: arguments.queries]
    index = Pgvector(
        url=arguments.url,
        table=arguments.table,
        curv=arguments.curv,
        replace=True,
        m=arguments.links,
        ef_construction=arguments.build_effort,
        settings={"maintenance_work_mem": arguments.build_memory},
    )
    began = time.perf_counter()
    index.build(points, sample=queries)
    print(f"pgvector {index.version()}: {len(index):,} rows of width {points.shape[1]}")
    print(f"loaded, indexed and measured in {time.perf_counter() - began:.0f} s")
    if arguments.save is not None:
        index.save(arguments.save)
    for index.ef in arguments.ef:
        taken = latencies(index, queries)
        recall = recall_of(index, queries, points, K)
        median, slow = taken.quantile(torch.tensor([0.5, 0.95])).tolist()
        print(f"ef {index.ef}: recall@{K} {recall:.4f}, {median:.1f} ms a query, 95 % within {slow:.1f} ms")
    index.close()


if __name__ == "__main__":
    main()
