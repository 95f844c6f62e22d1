"""Losses of all pairs in bounded memory: a strip of rows at a time, computed again going backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hypkernels import backend
from hypkernels.operators import transformed

# For the matrices of one strip, forward or backward.
CPU_BYTES, GPU_BYTES = 32 << 20, 256 << 20
# Float64 matrices that are held at a time of one strip.
_MATRICES = 6


def in_strips(
    function: Callable[..., Tensor], rows: Sequence[Tensor], shared: Sequence[Tensor], pairs_of_row: int
) -> Tensor:
    """``function(*rows, *shared)``, one number for each row, without matrices of all rows.

    Args:
        function: of some rows of each of ``rows`` and all of ``shared``; it is called again for the gradient,
            in the backend that is in force now.
        rows: tensors of as many rows.
        shared: what all strips use.
        pairs_of_row: how many numbers of one row there are in each matrix that ``function`` makes.

    Within transforms of ``torch.func``, which know no recomputation, strips are kept for the gradient: there
    memory grows with the pairs.

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
