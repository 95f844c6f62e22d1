"""How much each engine finds of your embeddings: ``python -m hypkernels.retrieval.recall EMBEDDINGS``.

Builds every installed engine by each of its recipes below, searches it, and prints the share of the 10
nearest items that it finds, in its own order and re-ranked exactly, and the times of building and
searching. Without EMBEDDINGS it takes drawn sets of points, as for the tables of docs/engines.md.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hypkernels.retrieval.drawn import REGIMES, draw
from hypkernels.retrieval.engines import ENGINES, Pgvector, RecallWarning, recall_of
from hypkernels.retrieval.gallery import open_gallery

POSTGRESQL = "HYPKERNELS_POSTGRESQL"  # its URL, in the environment
K = 10
IN_FILES = {"lancedb": {"uri": "lance"}, "milvus": {"uri": "milvus.db"}, "sqlite-vec": {"path": "vec.sqlite"}}


@dataclass(frozen=True)
class Recipe:
    """An engine, and those of its arguments that are not the defaults."""

    engine: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.arguments.items()) or "as it comes"


RECIPES = [
    Recipe("exact"),
    Recipe("faiss"),
    Recipe("faiss", {"transform": "inner"}),
    Recipe("faiss", {"transform": "augmented"}),
    Recipe("faiss", {"transform": "tangent"}),
    Recipe("faiss", {"transform": "ball"}),
    Recipe("faiss", {"kind": "ivf"}),
    Recipe("faiss", {"kind": "ivf", "transform": "inner"}),
    Recipe("faiss", {"kind": "flat", "transform": "inner"}),
    Recipe("hnswlib"),
    Recipe("hnswlib", {"transform": "inner"}),
    Recipe("hnswlib", {"transform": "cosine"}),
    Recipe("usearch"),
    Recipe("usearch", {"transform": "inner"}),
    Recipe("usearch", {"dtype": "bfloat16"}),
    Recipe("usearch", {"dtype": "bfloat16", "transform": "inner", "exhaustive": True}),
    Recipe("ngt"),
    Recipe("pgvector"),
    Recipe("pgvector", {"ef": 1000}),
    Recipe("pgvector", {"transform": "inner"}),
    Recipe("pgvector", {"transform": "augmented"}),
    Recipe("pgvector", {"transform": "cosine"}),
    Recipe("pgvector", {"dtype": "float16"}),
    Recipe("qdrant"),
    Recipe("lancedb"),
    Recipe("lancedb", {"kind": "ivf", "lists": 141, "probes": 20}),
    Recipe("lancedb", {"kind": "ivf", "lists": 141, "probes": 20, "transform": "inner"}),
    Recipe("milvus"),
    Recipe("milvus", {"transform": "inner"}),
    Recipe("sqlite-vec"),
    Recipe("sqlite-vec", {"transform": "augmented"}),
    Recipe("sqlite-vec", {"transform": "cosine"}),
]


class Measured(NamedTuple):
    """``alone`` is the recall of the engine's own order."""

    version: str
    alone: float
    recall: float
    build_seconds: float
    query_milliseconds: float


def measure(recipe: Recipe, points: Tensor, queries: Tensor, curv: float, where: dict[str, Any]) -> Measured:
    """Build an index, and search it for all queries at once.

    Args:
        where: the arguments for the place of a database.
    """
    engine = ENGINES[recipe.engine](curv=curv, **recipe.arguments, **where)
    try:
        version, began = engine.version(), time.perf_counter()
        engine.build(points, sample=queries[:0])
        built = time.perf_counter()
        k = min(K, len(points))
        engine.search(queries[:1], k, curv)
        searched = time.perf_counter()
        found = engine.search(queries, k, curv)
        ended = time.perf_counter()
        recall = recall_of(engine, queries, points, k, found)
        engine.candidates = k
        alone = recall_of(engine, queries, points, k)
    finally:
        engine.close()
    return Measured(version, alone, recall, built - began, 1000 * (ended - searched) / len(queries))


def location(engine: str, folder: str, postgresql: str | None) -> dict[str, Any]:
    """The place of a database: a file in the folder, or for pgvector a server."""
    if engine == Pgvector.name:
        if not postgresql:
            raise LookupError(f"no server: --postgresql URL, or {POSTGRESQL} in the environment")
        return {"url": postgresql, "table": "hypkernels_recall", "replace": True}
    return {name: os.path.join(folder, file) for name, file in IN_FILES.get(engine, {}).items()}


def rows(
    recipes: Sequence[Recipe], sets: Sequence[tuple[Tensor, Tensor]], curv: float, postgresql: str | None
) -> Iterator[list[str]]:
    """A row of the table for each recipe; for an engine that is not installed, the reason."""
    for recipe in recipes:
        measured = []
        try:
            for points, queries in sets:
                with tempfile.TemporaryDirectory() as folder:
                    where = location(recipe.engine, folder, postgresql)
                    measured.append(measure(recipe, points, queries, curv, where))
        except (ImportError, LookupError) as error:
            yield [recipe.engine, recipe.settings, f"not measured: {error}"]
        else:
            yield [f"{recipe.engine} {measured[0].version}", recipe.settings, *_cells(measured)]


def _cells(measured: Sequence[Measured]) -> list[str]:
    recalls = [f"{one.alone:.3f} / {one.recall:.3f}" for one in measured]
    build = sum(one.build_seconds for one in measured) / len(measured)
    query = sum(one.query_milliseconds for one in measured) / len(measured)
    return [*recalls, f"{build:.1f}", f"{query:.2f}"]


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def replace_between(path: Path, name: str, text: str) -> None:
    """Put a text between ``<!-- name:begin -->`` and ``<!-- name:end -->`` of a file."""
    content = path.read_text()
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    head, tail = content[: content.index(begin) + len(begin)], content[content.index(end) :]
    path.write_text(f"{head}{text}\n{tail}")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hypkernels.retrieval.recall", description=(__doc__ or "").split("\n\n")[1]
    )
    parser.add_argument("embeddings", nargs="?", help="an .npy or .safetensors file of points (N, D)")
    parser.add_argument(
        "--queries", help="a file of queries (Q, D); by default --count of the embeddings, held out"
    )
    parser.add_argument("--count", type=int, default=200, help="how many queries (default %(default)s)")
    parser.add_argument("--curv", type=float, default=1.0, help="of the hyperboloid (default %(default)s)")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), help="only these")
    parser.add_argument(
        "--postgresql",
        default=os.environ.get(POSTGRESQL),
        help=f"a URL for pgvector (default: ${POSTGRESQL})",
    )
    parser.add_argument("--rows", type=int, default=20_000, help="of drawn sets (default %(default)s)")
    parser.add_argument("--width", type=int, default=64, help="of drawn sets (default %(default)s)")
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=list(REGIMES), help="of drawn sets")
    parser.add_argument("--write", type=Path, help="also put the table into this page, between its marks")
    return parser


def sets_of(arguments: argparse.Namespace) -> dict[str, tuple[Tensor, Tensor]]:
    """Points and queries by name."""
    if arguments.embeddings is None:
        drawn = {
            name: draw(name, arguments.rows, arguments.count, arguments.width) for name in arguments.regimes
        }
        return drawn
    points = open_gallery(arguments.embeddings).points
    if arguments.queries is not None:
        return {"recall": (points, open_gallery(arguments.queries).points[: arguments.count])}
    if len(points) <= arguments.count:
        raise SystemExit(f"--count must be less than the {len(points)} embeddings, got {arguments.count}")
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))
    return {"recall": (points[order[arguments.count :]], points[order[: arguments.count]])}


def main(argv: Sequence[str] | None = None) -> None:
    warnings.simplefilter("ignore", RecallWarning)
    arguments = parser().parse_args(argv)
    sets = sets_of(arguments)
    recipes = [recipe for recipe in RECIPES if recipe.engine in arguments.engines]
    ruler = ["---", "---", *["---:"] * (len(sets) + 2)]
    lines = [line(["engine", "settings", *sets, "build, s", "query, ms"]), line(ruler)]
    print(*lines, sep="\n", flush=True)
    for row in rows(recipes, list(sets.values()), arguments.curv, arguments.postgresql):
        lines.append(line(row))
        print(lines[-1], flush=True)
    if arguments.write is not None:
        replace_between(arguments.write, f"recall-{arguments.width}", "\n".join(lines))


if __name__ == "__main__":
    main()
