"""Launchers of the compiled contrastive losses: several pairings of shared point sets in one C call.

The forward pass keeps for the backward pass: the :class:`hypkernels.contrastive.problem.Statistics` of
each pairing; the :func:`hypkernels.contrastive.problem.summaries`; and for small batches the pairs'
``z``, which saves the backward pass one of its three products.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ctypes import c_char_p, c_int
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hypkernels.cpu.library import load
from hypkernels.cpu.rows import DTYPES
from hypkernels.rowwise import result_dtype

SIMILARITIES = {"dist": 0, "sqdist": 1, "inner": 2, "angle": 3}
# The most memory for ``z``. What exceeds ``LEAST_KEPT_BYTES`` must also be at most 1.5 times that of the
# points.
KEPT_BYTES, LEAST_KEPT_BYTES = 16 << 20, 1 << 20
NOTHING_KEPT = 64

_SET = struct.Struct("5q")  # the structs of src/api.h
_PAIRING = struct.Struct("10q")
_CALL = struct.Struct("8q d 6q")


@cache
def _functions() -> tuple[Any, Any]:
    library = load()
    for function in (library.hk_contrastive_forward, library.hk_contrastive_backward):
        function.argtypes, function.restype = [c_char_p] * 3, c_int
    return library.hk_contrastive_forward, library.hk_contrastive_backward


def matrices(similarity: str, symmetric: bool) -> int:
    """How many matrices of logits there are: for angles one for each direction."""
    return 2 if similarity == "angle" and symmetric else 1


def kept_bytes(points: Sequence[Tensor], rows: Sequence[int], columns: Sequence[int]) -> int | torch.SymInt:
    """The bytes for the pairs' ``z``, or ``NOTHING_KEPT`` if they are too many; by shapes alone."""
    item = result_dtype(points[0].dtype).itemsize
    lanes = 64 // item
    of_points = item * sum(one.shape[0] * one.shape[1] for one in points)
    of_pairs = item * sum(
        points[row].shape[0] * -(-points[column].shape[0] // lanes) * lanes
        for row, column in zip(rows, columns, strict=True)
    )
    # Without a branch, for symbolic sizes, and never 0 or 1: torch.export would have to prove which.
    most = torch.sym_min(KEPT_BYTES, torch.sym_max(LEAST_KEPT_BYTES, of_points + of_points // 2))
    is_kept = torch.sym_max(0, torch.sym_min(1, most + 1 - of_pairs))
    return NOTHING_KEPT + is_kept * (of_pairs + (128 - NOTHING_KEPT))


def forward(
    points: Sequence[Tensor],
    curv: Tensor,
    scale: Tensor,
    targets: Sequence[Tensor],
    rows: Sequence[int],
    columns: Sequence[int],
    similarity: str,
    symmetric: Sequence[bool],
) -> tuple[list[Tensor], list[Tensor]] | None:
    """The losses of each row, for each pairing, and what the backward pass needs.

    ``targets[i]`` is empty if the target of row ``j`` is column ``j``. The result is ``None`` if points
    or curvature are beyond the range of this implementation.
    """
    points = [_dense(one) for one in points]
    x, n_sets = points[0], len(points)
    losses, statistics = [], []
    for row, column, both_ways in zip(rows, columns, symmetric, strict=True):
        M, N = points[row].shape[0], points[column].shape[0]
        losses.append(torch.empty(M, dtype=result_dtype(x.dtype)))
        statistics += [
            torch.empty(matrices(similarity, both_ways), M, dtype=torch.float64),
            torch.empty(M, dtype=torch.float64),
            torch.empty(N if both_ways else 0, dtype=torch.float64),
        ]
    summaries = [torch.empty(n_sets, x.shape[1], dtype=torch.float64)]
    summaries += [torch.empty(one.shape[0], 1 + n_sets, dtype=torch.float64) for one in points]
    saved = [*statistics, *summaries, torch.empty(kept_bytes(points, rows, columns), dtype=torch.uint8)]
    arguments = (points, curv, scale, targets, rows, columns, similarity, symmetric)
    done = _call(_functions()[0], saved, losses, None, [None] * n_sets, (0, 0), *arguments)
    return (losses, saved) if done else None


def backward(
    grads: Sequence[Tensor],
    saved: Sequence[Tensor],
    learns: Sequence[bool],
    points: Sequence[Tensor],
    curv: Tensor,
    scale: Tensor,
    targets: Sequence[Tensor],
    rows: Sequence[int],
    columns: Sequence[int],
    similarity: str,
    symmetric: Sequence[bool],
) -> list[Tensor]:
    """The gradients by the point sets, by the curvature and by the scale.

    ``learns`` says which sets need gradients; those of the others are empty. Gradients by the scalars
    are float64, those by float16 points float32: they may leave the range of the points.
    """
    if points[0].dtype == torch.float16:
        points = [one.float() for one in points]
    points = [_dense(one) for one in points]
    by_points = [
        torch.empty(one.shape if learning else 0, dtype=one.dtype)
        for one, learning in zip(points, learns, strict=False)
    ]
    outputs = [one if learning else None for one, learning in zip(by_points, learns, strict=False)]
    by_curv, by_scale = torch.zeros((), dtype=torch.float64), torch.zeros(scale.shape, dtype=torch.float64)
    pointers = by_curv.data_ptr(), by_scale.data_ptr()
    arguments = (points, curv, scale, targets, rows, columns, similarity, symmetric)
    done = _call(_functions()[1], saved, None, grads, outputs, pointers, *arguments)
    assert done, "what the forward pass took the backward pass takes"
    return [*by_points, by_curv, by_scale]


def _call(
    function: Any,
    saved: Sequence[Tensor],
    losses: Sequence[Tensor] | None,
    grads: Sequence[Tensor] | None,
    outputs: Sequence[Tensor | None],
    scalar_outputs: tuple[int, int],
    points: Sequence[Tensor],
    curv: Tensor,
    scale: Tensor,
    targets: Sequence[Tensor],
    rows: Sequence[int],
    columns: Sequence[int],
    similarity: str,
    symmetric: Sequence[bool],
) -> bool:
    x, n_sets, n_pairings = points[0], len(points), len(rows)
    statistics, (centres, *tables) = saved[: 3 * n_pairings], saved[3 * n_pairings : -1]
    sets = b"".join(
        _SET.pack(one.data_ptr(), one.stride(0), one.shape[0], table.data_ptr(), _address(output))
        for one, table, output in zip(points, tables, outputs, strict=True)
    )
    targets = [one.contiguous() for one in targets]
    pairings = b"".join(
        _PAIRING.pack(
            *(rows[n], columns[n], symmetric[n], targets[n].data_ptr() if len(targets[n]) else 0),
            *(one.data_ptr() for one in statistics[3 * n : 3 * n + 3]),
            losses[n].data_ptr() if losses else 0,
            *((grads[n].data_ptr(), grads[n].stride(0)) if grads else (0, 0)),
        )
        for n in range(n_pairings)
    )
    c = curv.to(result_dtype(x.dtype)).item()
    wide_scale = scale.double().contiguous()
    kept = saved[-1].data_ptr() if saved[-1].numel() > NOTHING_KEPT else 0
    call = _CALL.pack(
        *(DTYPES[x.dtype], torch.get_num_threads(), x.shape[1], n_sets, n_pairings),
        *(SIMILARITIES[similarity], 0, 0),
        c,
        *(wide_scale.data_ptr(), scale.dim(), centres.data_ptr(), kept, *scalar_outputs),
    )
    return bool(function(call, sets, pairings))


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None or not tensor.numel() else tensor.data_ptr()


def _dense(points: Tensor) -> Tensor:
    """The points, or a copy, with the elements of each row side by side."""
    return points if points.stride(1) == 1 or points.shape[1] == 1 else points.contiguous()
