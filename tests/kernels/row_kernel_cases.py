"""What the tests of the distance, cone and entailment kernels share.

A launcher and its backward become one differentiable function. It is compared with 240 digits at the points
where cancellation is worst, and with the float64 formulas of the CPU over shapes, dtypes and strides.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from kernel_lane import DEVICE
from torch import Tensor
from torch.utils._pytree import tree_map_only

sys.path.append(str(Path(__file__).parents[1] / "hypkernels"))

# (batch, D): a single column, several tiles of rows and a ragged last one, widths around powers of two, the
# widest row of one tile, and rows of several tiles.
SHAPES = [((130,), 1), ((67,), 5), ((3, 3), 100), ((2,), 768), ((2,), 4096), ((3,), 5000), ((2,), 8192)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Every shape, and every dtype at a ragged tile of many rows, at one row a tile and at several tiles a row.
SHAPES_AND_DTYPES = [(shape, torch.float32) for shape in SHAPES] + [
    (shape, dtype)
    for shape in SHAPES
    if shape[1] in (5, 768, 5000)
    for dtype in DTYPES
    if dtype != torch.float32
]
# Half a unit in the last place, and for float64 what two orders of summation leave of each other.
ROUNDING = {torch.float64: 1e-12, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Uninitialised memory reads NaN: an element that no kernel writes shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def run(launch: Callable, *args):
    """``launch(*args)`` where kernels run, on poisoned memory; the results on the CPU."""
    with poisoned_memory():
        results = launch(*tree_map_only(Tensor, lambda t: t.to(DEVICE), args))
    return tree_map_only(Tensor, lambda t: t.cpu(), results)


class _Kernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx, case, options, *tensors):
        ctx.save_for_backward(*tensors)
        ctx.case, ctx.options = case, options
        return run(getattr(case.module, case.name), *tensors, *options)

    @staticmethod
    def backward(ctx, grad):
        *vectors, curv = ctx.saved_tensors
        backward = getattr(ctx.case.module, f"{ctx.case.name}_backward")
        *grads, by_curv = run(backward, grad, *vectors, curv, *ctx.options)
        assert by_curv.shape == ()
        assert by_curv.dtype == torch.float64
        return None, None, *grads, by_curv.to(curv.dtype)


@dataclass(frozen=True)
class Case:
    """One op: its kernels, and its formula and gradient on float64 rows."""

    name: str
    module: ModuleType
    formula: Callable
    gradient: Callable
    points: int
    options: tuple[float, ...] = ()

    def __call__(self, *args):
        """``op(*points, curv, *options)`` through the kernels, forward and backward."""
        return _Kernel.apply(self, args[self.points + 1 :], *args[: self.points + 1])


def random_points(batch: Sequence[int], width: int, dtype: torch.dtype, count: int) -> list[Tensor]:
    """Points with norms from 0.2 to 3; of many rows, some are the origin, coincident or opposite."""
    generator = torch.Generator().manual_seed(width)
    tensors = []
    for _ in range(count):
        directions = torch.randn(*batch, width, generator=generator, dtype=torch.float64) * width**-0.5
        radii = torch.linspace(0.2, 3, batch[0]).reshape(-1, *[1] * len(batch))
        tensors.append((directions * radii).to(dtype))
    first, last = (t.view(-1, width) for t in (tensors[0], tensors[-1]))
    if len(first) > 8:
        first[3] = 0
        last[4] = 0
        last[5] = first[5]
        last[6] = -first[6]
    return tensors


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Every row's error, in the 2-norm, relative to the row; a row of zeros must be exactly that."""
    assert actual.shape == expected.shape
    assert torch.isfinite(actual).all()
    error = (actual.double() - expected).norm(dim=-1)
    assert (error <= tolerance * expected.norm(dim=-1)).all(), (error / expected.norm(dim=-1)).max()


def assert_matches_formula(
    case: Case, vectors: Sequence[Tensor], curv: Tensor, op: Callable | None = None
) -> None:
    """Forward and backward of the kernels against the float64 formulas, row by row."""
    dtype, batch, width = vectors[0].dtype, vectors[0].shape[:-1], vectors[0].shape[-1]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = [v.detach().requires_grad_() for v in vectors]
    c = curv.detach().clone().requires_grad_()
    rows = [v.detach().double().reshape(-1, width) for v in vectors]

    out = (op or case)(*leaves, c, *case.options)
    assert out.shape == batch
    assert out.dtype == wide
    expected = case.formula(*rows, c.detach().double(), *case.options)
    assert_close(out.detach().reshape(-1, 1), expected, 1.01 * ROUNDING[wide])

    generator = torch.Generator().manual_seed(1)
    upstream = (0.5 + torch.rand(out.shape, generator=generator, dtype=torch.float64)).to(out.dtype)
    *grads, by_curv = torch.autograd.grad(out, [*leaves, c], upstream)
    *true_grads, true_rows = case.gradient(
        upstream.double().reshape(-1, 1), *rows, c.detach().double(), *case.options
    )
    for actual, v, true in zip(grads, vectors, true_grads, strict=True):
        assert actual.shape == v.shape
        assert actual.dtype == v.dtype
        assert_close(actual.reshape(-1, width), true, 1.01 * ROUNDING[dtype])
    error = (by_curv.double() - true_rows.sum()).abs()
    assert error <= (1e-12 + ROUNDING[c.dtype]) * true_rows.abs().sum()


def strided_points(layout: str) -> list[Tensor]:
    """A pair of float32 points ``(4, 6, 5)`` that is not dense."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "rows of wider rows": lambda: [randn(4, 6, 9)[..., 2:7], randn(4, 6, 8)[..., :5]],
        "every other row": lambda: [randn(8, 6, 5)[::2], randn(4, 12, 5)[:, 1::2]],
        "transposed batch": lambda: [randn(6, 4, 5).transpose(0, 1), randn(4, 6, 5)],
        "strided columns": lambda: [randn(4, 6, 10)[..., ::2], randn(4, 5, 6).transpose(1, 2)],
        "one row for all": lambda: [randn(5).expand(4, 6, 5), randn(4, 6, 5)],
        "broadcast pair": lambda: [randn(4, 1, 5).expand(4, 6, 5), randn(6, 5).expand(4, 6, 5)],
        "single rows": lambda: [randn(4, 6, 5)[:, 2:3], randn(4, 1, 5)],
    }[layout]()


LAYOUTS = [
    "rows of wider rows",
    "every other row",
    "transposed batch",
    "strided columns",
    "one row for all",
    "broadcast pair",
    "single rows",
]
