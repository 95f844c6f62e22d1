"""The nearest items of a gallery: ours, chunks of all distances, and faiss's exact index, in turns.

    python -m benchmarks.retrieval --items 1000000 --rounds 20 --results benchmarks/results

Apart from the other benchmarks, for a search has no gradients. What is found is first compared with float64.
Inner products are not distances: faiss computes something less, as a measure of what such a search costs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import hypkernels as hk
from benchmarks import formulas, machine
from hypkernels import retrieval

_CHUNK = 16384
# As many as these are all but sure to hold the nearest ten.
_CHECKED_QUERIES, _CANDIDATES = 50, 60


def draw(rows: int, width: int, radii: tuple[float, float], seed: int) -> Tensor:
    """Points in directions at random, at distances that are even between two."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.normalize(torch.randn(rows, width, generator=generator), dim=1)
    low, high = radii
    return x.mul_(torch.sinh(low + (high - low) * torch.rand(rows, 1, generator=generator)))


def by_chunks(distances: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The nearest of each chunk of the gallery, merged with those before."""

    def search(queries: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
        best = queries.new_full((len(queries), k), torch.inf)
        ids = torch.full((len(queries), k), -1, device=queries.device)
        for start in range(0, len(gallery), _CHUNK):
            found, places = distances(queries, gallery[start : start + _CHUNK]).topk(k, largest=False)
            best, order = torch.cat([best, found], 1).topk(k, largest=False)
            ids = torch.cat([ids, places + start], 1).gather(1, order)
        return best, ids

    return search


@cache
def _index(gallery: Tensor) -> Any:
    import faiss

    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(gallery.numpy())
    return index


def by_faiss(queries: Tensor, gallery: Tensor, k: int) -> None:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    _index(gallery).search(queries.numpy(), k)


def searches(device: torch.device) -> dict[str, Callable[..., Any]]:
    curv = torch.tensor(1.0, device=device)
    of_formula = torch.compile(lambda x, y: formulas.pairwise_dist(x, y, curv))
    found: dict[str, Callable[..., Any]] = {
        "hypkernels.retrieval.topk": retrieval.topk,
        "pairwise_dist and topk, by chunks": by_chunks(hk.pairwise_dist),
        "eager PyTorch, by chunks": by_chunks(lambda x, y: formulas.pairwise_dist(x, y, curv)),
        "torch.compile, by chunks": by_chunks(of_formula),
    }
    if device.type == "cpu" and find_spec("faiss") is not None:
        found["faiss IndexFlatIP (inner products)"] = by_faiss
    return found


def agreement(queries: Tensor, gallery: Tensor, k: int) -> tuple[float, float]:
    """The share of places with the item of float64, and the largest relative error of a distance."""
    found = retrieval.topk(queries[:_CHECKED_QUERIES], gallery, k)
    some = queries[:_CHECKED_QUERIES].double()
    _, ids = by_chunks(lambda x, y: hk.pairwise_dist(x, y.double()))(
        some, gallery, min(_CANDIDATES, len(gallery))
    )
    ids = ids.sort(1).values
    exact = hk.elementwise_dist(some[:, None].expand(-1, ids.shape[1], -1), gallery[ids].double())
    exact, order = exact.sort(dim=1, stable=True)
    matches = found.indices == ids.gather(1, order)[:, :k]
    worst = ((found.distances.double() - exact[:, :k]).abs() / exact[:, :k].clamp(min=1e-30)).max().item()
    return matches.double().mean().item(), worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--radii", type=float, nargs=2, default=(0.3, 1.2))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="words of the rows to run")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument(
        "--results", type=Path, help="folder for a file of the times, beside the other results"
    )
    parser.add_argument("--commit", help="what to record as the commit where there is no git repository")
    options = parser.parse_args()
    low, high = options.radii
    queries, gallery = (
        draw(rows, options.width, (low, high), seed).to(options.device)
        for rows, seed in ((options.queries, 1), (options.items, 2))
    )
    share, error = agreement(queries, gallery, options.k)
    print(f"as in float64: {share:.4%} of places, distances to {error:.1e}\n")
    run = {
        name: search
        for name, search in searches(options.device).items()
        if not options.only or any(word in name for word in options.only)
    }
    wall: dict[str, list[float]] = {name: [] for name in run}
    processor: dict[str, list[float]] = {name: [] for name in run}
    for search in run.values():
        search(queries[:64], gallery[: 2 * _CHUNK], options.k)
    for _ in range(options.rounds):
        for name, search in run.items():
            begin, begin_cpu = time.perf_counter(), time.process_time()
            search(queries, gallery, options.k)
            if options.device.type == "cuda":
                torch.cuda.synchronize()
            wall[name].append(time.perf_counter() - begin)
            processor[name].append(time.process_time() - begin_cpu)
    ours = next(iter(run))
    print(
        f"| {options.queries} queries, {options.items} x {options.width}, k = {options.k} | "
        "seconds, least | median | of the processor, least | ours / its time |\n|---|---:|---:|---:|---:|"
    )
    for name in run:
        print(
            f"| {name} | {min(wall[name]):.3f} | {median(wall[name]):.3f} | {min(processor[name]):.3f} "
            f"| {min(wall[ours]) / min(wall[name]):.2f} |"
        )
    if options.results is not None:
        print(f"\nall of it: {save(options, share, error, wall, processor)}")


def save(
    options: argparse.Namespace,
    share: float,
    error: float,
    wall: dict[str, list[float]],
    processor: dict[str, list[float]],
) -> Path:
    """Every sample, in seconds, and where they were taken."""
    device = machine.describe_device(options.device)
    folder = options.results / str(device["slug"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"retrieval-{options.queries}x{options.items}x{options.width}.json"
    sizes = {name: getattr(options, name) for name in ("queries", "items", "width", "k", "radii")}
    content = {
        "device": device,
        "software": machine.describe_software(),
        "commit": machine.commit() or options.commit,
        "sizes": sizes,
        "as_in_float64": share,
        "relative_error": error,
        "seconds": wall,
        "processor_seconds": processor,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


if __name__ == "__main__":
    main()
