"""Find the fastest tiles of the contrastive loss on the GPU at hand, and print them as a table.

    python -m hypkernels.contrastive.tune --rows 32768 --width 512 --dtype bfloat16

Each kernel's tile starts from the one in use; one of its numbers at a time is varied, and the best kept,
until nothing gains. A tile that does not compile, does not run or changes the result does not count. Nothing
is written: the table is for ``hypkernels/tritonlib/tile_plan.py``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from triton.testing import do_bench

from hypkernels.contrastive import kernel
from hypkernels.contrastive.problem import Embeddings, Problem
from hypkernels.tritonlib.tile_plan import Plan, Tile, default_plan

OPTIONS: Mapping[str, Sequence[int]] = {
    "rows": (64, 128, 256),
    "columns": (64, 128, 256),
    "warps": (4, 8),
    "stages": (2, 3, 4),
    "pieces": (1, 2, 4, 8, 16),
    "depth_bytes": (64, 128),
    "group": (4, 8, 16),
    "run": (4, 16, 64),
}
LEAST_GAIN = 0.01
TOLERANCE = 1e-4

Cost = Callable[[Tile], float]
Timer = Callable[[Callable[[], object]], float]
Run = Callable[[Plan], Sequence[Tensor | None]]


def search(start: Tile, cost: Cost, options: Mapping[str, Sequence[int]] = OPTIONS) -> tuple[Tile, float]:
    """The best tile by changes of one number at a time, and its cost.

    Args:
        start: must have a finite cost.
        cost: seconds, infinite for a tile that is of no use; asked once for each tile.
        options: values of each field to try.

    Raises:
        ValueError: the cost of ``start`` is infinite.
    """
    costs = {start: cost(start)}
    if costs[start] == float("inf"):
        raise ValueError(f"the tile to start from must run, and {start} does not")
    best, improved = start, True
    while improved:
        improved = False
        for field, values in options.items():
            for value in values:
                tile = best._replace(**{field: value})
                if tile not in costs:
                    costs[tile] = cost(tile)
                if costs[tile] < costs[best] * (1 - LEAST_GAIN):
                    best, improved = tile, True
    return best, costs[best]


def tune(
    p: Problem,
    similarity: str = "dist",
    *,
    plan: Plan | None = None,
    timer: Timer | None = None,
    options: Mapping[str, Sequence[int]] = OPTIONS,
    report: Callable[[str], None] = lambda line: None,
) -> Plan:
    """The plan of ``p``'s device with the fastest tiles for this problem, where it uses them.

    Args:
        p: the problem to be fast at.
        similarity: as in :func:`hypkernels.contrastive_loss`.
        plan: where to start; by default the plan in use.
        timer: seconds of a call; by default the median of Triton's ``do_bench``.
        options: see :func:`search`.
        report: takes a line of progress for each tile.
    """
    plan = default_plan(p.x.points, similarity) if plan is None else plan
    timer = _median_seconds if timer is None else timer
    grad = torch.full_like(p.scale, 1 / len(p.scale))
    losses, statistics = kernel.forward(p, similarity, True, plan=plan)
    gradients = kernel.backward(grad, p, statistics, similarity, True, plan=plan)

    def forward(trial: Plan) -> Sequence[Tensor | None]:
        return [kernel.forward(p, similarity, True, plan=trial)[0]]

    def backward(trial: Plan) -> Sequence[Tensor | None]:
        return kernel.backward(grad, p, statistics, similarity, True, plan=trial)

    kernels: list[tuple[str, Run, Sequence[Tensor | None]]]
    kernels = [("forward", forward, [losses]), ("backward", backward, gradients)]
    if kernel.uses_product_tile(p.x.points):
        kernels.append(("product", backward, gradients))
    for name, run, right in kernels:
        plan = _with_best_tile(plan, name, run, right, timer, options, report)
    return plan


def _with_best_tile(
    plan: Plan,
    name: str,
    run: Run,
    right: Sequence[Tensor | None],
    timer: Timer,
    options: Mapping[str, Sequence[int]],
    report: Callable[[str], None],
) -> Plan:
    def cost(tile: Tile) -> float:
        changed: dict[str, Any] = {name: tile}
        trial = plan._replace(**changed)
        try:
            seconds = timer(lambda: run(trial)) if _agree(run(trial), right) else float("inf")
        except Exception as error:  # a tile too large for the device, or one the compiler refuses
            report(f"{name} {tuple(tile)}: {type(error).__name__}")
            return float("inf")
        report(f"{name} {tuple(tile)}: {1e3 * seconds:.3f} ms")
        return seconds

    best, _ = search(getattr(plan, name), cost, options)
    found: dict[str, Any] = {name: best}
    return plan._replace(**found)


def _agree(got: Sequence[Tensor | None], right: Sequence[Tensor | None]) -> bool:
    return all(
        one is None or other is None or bool((one - other).norm() <= TOLERANCE * other.norm())
        for one, other in zip(got, right, strict=True)
    )


def _median_seconds(call: Callable[[], object]) -> float:
    return float(do_bench(call, return_mode="median")) / 1e3


def random_problem(
    rows: int, width: int, dtype: torch.dtype, device: torch.device, precision: str | None
) -> Problem:
    """Points at a distance of about 1 from the origin, curvature -1, scale 15."""
    generator = torch.Generator(device).manual_seed(0)

    def points() -> Tensor:
        return (torch.randn(rows, width, generator=generator, device=device) / width**0.5).to(dtype)

    c = torch.ones((), dtype=torch.float64, device=device)
    scale = torch.full((rows,), 15.0, dtype=torch.float64, device=device)
    sets = [points(), points()]
    embeddings = Embeddings(sets, c, kernel.summaries(sets))
    return Problem(*embeddings.sides(0, 1), c, scale, None, precision)


def table(plan: Plan) -> str:
    """The plan as Python source."""
    lines = [f"    {name}={value!r}," for name, value in plan._asdict().items()]
    return "\n".join(["Plan(", *lines, ")"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m hypkernels.contrastive.tune", description=__doc__)
    parser.add_argument("--rows", type=int, default=32768, help="points on either side (default: 32768)")
    parser.add_argument("--width", type=int, default=512, help="their dimension (default: 512)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--precision", choices=("ieee", "tf32x3", "tf32"), help="of float32 products")
    parser.add_argument("--similarity", choices=("dist", "sqdist", "inner", "angle"), default="dist")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("tuning needs a GPU")
    device = torch.device("cuda")
    p = random_problem(options.rows, options.width, getattr(torch, options.dtype), device, options.precision)
    plan = tune(p, options.similarity, report=lambda line: print(line, file=sys.stderr))
    print(f"# {torch.cuda.get_device_name()}: {options.rows} x {options.width}, {options.dtype}")
    print(table(plan))


if __name__ == "__main__":
    main()
