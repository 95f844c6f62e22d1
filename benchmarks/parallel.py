"""What HySACLoss sends and holds over several processes, gathered and round a ring: docs/parallel.md's table.

    python -m benchmarks.parallel

Bytes are counted in the calls of ``torch.distributed``: what one process sends in a forward and a backward
pass, collectives as rings make them. Memory is the peak of a process's resident set beyond its features and
their gradients; both forms on PyTorch's strips: what the compiled lane keeps of small batches would hide it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.memory import CHILD_ENVIRONMENT, peak_of_resident_set
from hysac import HySACLoss

ROWS, WIDTH, PROCESSES = 512, 512, (2, 3, 4)
FORMS: dict[str, dict[str, Any]] = {
    "gathered": {"local_loss": True, "gather_with_grad": True},
    "ring": {"ring": True},
}


class Count:
    """The bytes that this process sends within."""

    def __init__(self) -> None:
        self.sent = 0

    def __enter__(self) -> Count:
        self._patches = [
            patch.object(dist, "all_gather_into_tensor", self._of_collective(dist.all_gather_into_tensor)),
            patch.object(dist, "reduce_scatter_tensor", self._of_collective(dist.reduce_scatter_tensor)),
            patch.object(dist, "batch_isend_irecv", self._of_messages(dist.batch_isend_irecv)),
        ]
        for one in self._patches:
            one.start()
        return self

    def __exit__(self, *_: Any) -> None:
        for one in self._patches:
            one.stop()

    def _of_collective(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(output: torch.Tensor, given: torch.Tensor, **options: Any) -> Any:
            self.sent += min(output.nbytes, given.nbytes) * (dist.get_world_size() - 1)
            return call(output, given, **options)

        return counted

    def _of_messages(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(messages: list[dist.P2POp]) -> Any:
            self.sent += sum(one.tensor.nbytes for one in messages if one.op is dist.isend)
            return call(messages)

        return counted


def formula(form: str, size: int, rows: int = ROWS, width: int = WIDTH) -> int:
    """Bytes that a process of ``size`` sends; ``rows`` quadruplets each, float32."""
    told = 3 * 8 * (size - 1)  # the numbers of rows
    points = 2 * rows * width * 4  # images
    if form == "gathered":
        return told + 2 * (size - 1) * 2 * points
    sums = 4 * rows * 8
    return told + (size - 1) * points + size * sums + (size - 1) * (points + 2 * sums) + size * points


def worker(rank: int, size: int, form: str, directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{directory}/store", rank=rank, world_size=size)
    loss = HySACLoss(rank=rank, world_size=size, **FORMS[form])
    generator = torch.Generator().manual_seed(rank)

    def passes(rows: int) -> Callable[[], None]:
        image, text = torch.randn(2, rows, 2, WIDTH, generator=generator).div_(WIDTH**0.5).requires_grad_()
        image.grad, text.grad = torch.zeros_like(image), torch.zeros_like(text)
        return lambda: loss(image, text, 10.0).backward()

    passes(64)()
    run = passes(ROWS)
    with Count() as count:
        peak = peak_of_resident_set(run)
    torch.save((count.sent, peak), f"{directory}/{rank}.pt")
    dist.destroy_process_group()


def main() -> None:
    os.environ.update(CHILD_ENVIRONMENT, HYPKERNELS_BACKEND="torch")
    get_context("forkserver").set_forkserver_preload(["torch", "hysac"])
    for size in PROCESSES:
        for form in FORMS:
            with tempfile.TemporaryDirectory() as directory:
                mp.start_processes(worker, (size, form, directory), nprocs=size, start_method="forkserver")
                results = [torch.load(Path(directory) / f"{rank}.pt") for rank in range(size)]
            sent, peak = (max(of_each) for of_each in zip(*results, strict=True))
            assert sent == formula(form, size), (sent, formula(form, size))
            print(f"{size} processes, {form}: {sent / 1e6:.1f} MB sent, {peak / 1e6:.0f} MB held")
    for size in (8, 32, 128, 512):
        print(size, {form: f"{formula(form, size) / 1e6:.0f} MB" for form in FORMS})


if __name__ == "__main__":
    main()
