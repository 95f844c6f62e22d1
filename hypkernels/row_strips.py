"""Losses of all pairs in bounded memory: a strip of rows at a time, computed again going backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hypkernels import backend
from hypkernels.operators import transformed

# Memory for the matrices of one strip, in the forward and in the backward pass.
CPU_BYTES, GPU_BYTES = 32 << 20, 256 << 20
# How many float64 matrices of one strip are in memory at a time.
_MATRICES = 6


def in_strips(
    function: Callable[..., Tensor], rows: Sequence[Tensor], shared: Sequence[Tensor], pairs_of_row: int
) -> Tensor:
    """``function(*rows, *shared)``, one number for each row, without matrices of all rows.

    Args:
        function: of a strip (some rows of each of ``rows``) and all of ``shared``. It is called once
            more for the gradient, with the backend of the first call.
        rows: tensors with equal numbers of rows.
        shared: what all strips use.
        pairs_of_row: how many numbers of one row there are in each matrix that ``function`` makes.

    ``torch.func`` cannot recompute: under its transforms all strips are kept for the gradient, and
    memory grows with the number of pairs.

    Raises:
        NotImplementedError: in a graph that is being compiled. ``torch.compile`` leaves the function to eager
            PyTorch, but for ``fullgraph=True``.
    """
    if torch.compiler.is_compiling():
        raise NotImplementedError(
            "hypkernels' losses in strips run outside of compiled graphs: compile without fullgraph=True"
        )
    requested = backend.setting()
    budget = CPU_BYTES if rows[0].device.type == "cpu" else GPU_BYTES
    step = max(1, budget // (8 * _MATRICES * max(pairs_of_row, 1)))

    def of_strip(*tensors: Tensor) -> Tensor:
        with backend.use_backend(requested):
            return function(*tensors)

    def of_rows(*strip: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or transformed():
            return of_strip(*strip, *shared)
        return checkpoint(of_strip, *strip, *shared, use_reentrant=False, preserve_rng_state=False)

    # An empty batch is one strip too. The gradient of a split is one tensor; that of slices, one for each.
    return torch.cat([of_rows(*strip) for strip in zip(*(one.split(step) for one in rows), strict=True)])
