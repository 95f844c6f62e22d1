"""Launchers of the compiled searches: one C call for each piece of a gallery.

The results so far are in tensors of the search, to which each call adds.
"""

from __future__ import annotations

from ctypes import POINTER, Structure, byref, c_double, c_int64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hypkernels.cpu.library import load
from hypkernels.cpu.rows import DTYPES
from hypkernels.retrieval.problem import Block, Piece

_NEAREST, _COUNT, _RANGE, _PAIRS = range(4)
_NO_CONE, _CONE_OF_QUERY, _CONE_OF_ITEM = range(3)
_NO_ROW = (1 << 63) - 1
_FIRST_HITS = 1 << 16
_POINTERS = {
    *("queries", "items", "bad", "allowed", "groups", "query_groups", "found", "ids", "z", "targets"),
    *("counts", "limits", "n_hits", "hit_queries", "hit_ids", "hit_z", "pair_queries", "pair_z"),
}


class _Call(Structure):
    """``struct Search`` of src/api.h."""

    _fields_ = [
        (name, c_void_p if name in _POINTERS else c_int64)
        for name in (
            *("mode", "query_dtype", "dtype", "threads", "width", "Q", "N"),
            *(
                "queries",
                "items",
                "query_stride",
                "stride",
                "first",
                "bad",
                "allowed",
                "groups",
                "query_groups",
            ),
            *("n_groups", "cone", "k", "found", "ids", "z", "targets", "counts", "limits"),
            *("capacity", "n_hits", "hit_queries", "hit_ids", "hit_z", "pair_queries", "pair_z"),
        )
    ] + [(name, c_double) for name in ("c", "aperture_scale", "min_radius")]


@cache
def _run() -> Any:
    run = load().hk_search
    run.argtypes, run.restype = [POINTER(_Call)], None
    return run


def _side_by_side(rows: Tensor) -> Tensor:
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def _queries_for(queries: Tensor, items: torch.dtype) -> Tensor:
    """Queries in float64, or in float32 if the items are float32 or narrower."""
    is_wide = torch.float64 in (queries.dtype, items)
    return _side_by_side(queries.to(torch.float64 if is_wide else torch.float32))


def _call(mode: int, queries: Tensor, items: Tensor, c: float, bad: Tensor | None, **fields: Any) -> None:
    rows = _side_by_side(items)
    given = {name: one.data_ptr() if isinstance(one, Tensor) else one for name, one in fields.items()}
    call = _Call(
        mode=mode,
        query_dtype=DTYPES[queries.dtype],
        dtype=DTYPES[rows.dtype],
        threads=torch.get_num_threads(),
        width=queries.shape[1],
        Q=len(queries),
        N=len(rows),
        queries=queries.data_ptr(),
        items=rows.data_ptr(),
        query_stride=queries.stride(0),
        stride=rows.stride(0),
        bad=None if bad is None else bad.data_ptr(),
        c=c,
        **given,
    )
    _run()(byref(call))


class _Search:
    mode: int

    def __init__(self, block: Block) -> None:
        self.block = block
        self._queries: Tensor | None = None

    def add(self, piece: Piece) -> int | None:
        bad = torch.tensor(_NO_ROW)
        self._search(piece, bad)
        return None if bad == _NO_ROW else int(bad)

    def _search(self, piece: Piece, bad: Tensor) -> None:
        raise NotImplementedError

    def _call(self, piece: Piece, bad: Tensor, **fields: Any) -> None:
        _, c, cones, query_groups = self.block
        if self._queries is None:
            self._queries = _queries_for(self.block.queries, piece.rows.dtype)
        if query_groups is not None:
            query_groups = query_groups.contiguous()
        kind = _NO_CONE if cones is None else _CONE_OF_QUERY if cones.at_query else _CONE_OF_ITEM
        _call(
            self.mode,
            self._queries,
            piece.rows,
            c,
            bad,
            first=piece.first,
            allowed=None if piece.allowed is None else piece.allowed.contiguous(),
            groups=None if piece.groups is None else piece.groups.contiguous(),
            query_groups=query_groups,
            n_groups=query_groups.shape[1] if query_groups is not None and query_groups.dim() == 2 else 0,
            cone=kind,
            aperture_scale=1.0 if cones is None else cones.aperture_scale,
            min_radius=1.0 if cones is None else cones.min_radius,
            **fields,
        )


class Nearest(_Search):
    mode = _NEAREST

    def __init__(self, block: Block, k: int) -> None:
        super().__init__(block)
        shape = (len(block.queries), k)
        self.z = torch.full(shape, torch.inf, dtype=torch.float64)
        self.ids = torch.full(shape, -1, dtype=torch.int64)
        self.found = torch.zeros(len(block.queries), dtype=torch.int64)

    def _search(self, piece: Piece, bad: Tensor) -> None:
        self._call(piece, bad, k=self.z.shape[1], found=self.found, ids=self.ids, z=self.z)

    def result(self) -> tuple[Tensor, Tensor]:
        """The heaps, sorted; empty places come last."""
        last = torch.where(self.ids < 0, _NO_ROW, self.ids)
        order = last.argsort(1)
        order = order.gather(1, self.z.gather(1, order).argsort(dim=1, stable=True))
        return self.z.gather(1, order), self.ids.gather(1, order)


class Counts(_Search):
    mode = _COUNT

    def __init__(self, block: Block, targets: Tensor, limits: Tensor) -> None:
        super().__init__(block)
        self.targets, self.limits = targets.contiguous(), limits.contiguous()
        self.counts = torch.zeros(3, len(targets), dtype=torch.int64)

    def _search(self, piece: Piece, bad: Tensor) -> None:
        self._call(piece, bad, targets=self.targets, limits=self.limits, counts=self.counts)

    def result(self) -> Tensor:
        return self.counts


class Within(_Search):
    mode = _RANGE

    def __init__(self, block: Block, limit: float) -> None:
        super().__init__(block)
        self.limits = torch.full((len(block.queries),), limit, dtype=torch.float64)
        self.hits: list[tuple[Tensor, Tensor, Tensor]] = []
        self._capacity = _FIRST_HITS

    def _search(self, piece: Piece, bad: Tensor) -> None:
        """Search a piece, and once more if there was not enough room for the results."""
        while True:
            query, index = (torch.empty(self._capacity, dtype=torch.int64) for _ in range(2))
            z, used = torch.empty(self._capacity, dtype=torch.float64), torch.zeros((), dtype=torch.int64)
            self._call(
                piece,
                bad,
                limits=self.limits,
                capacity=self._capacity,
                n_hits=used,
                hit_queries=query,
                hit_ids=index,
                hit_z=z,
            )
            n = int(used)
            if n <= self._capacity:
                self.hits.append((query[:n].clone(), index[:n].clone(), z[:n].clone()))
                return
            self._capacity = n

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        query, index, z = (torch.cat(part) for part in zip(*self.hits, strict=True))
        return query, index, z


def z_of_pairs(queries: Tensor, query: Tensor, items: Tensor, c: float) -> Tensor:
    """``z`` of each item and the query that ``query`` names, float64."""
    z = torch.empty(len(items), dtype=torch.float64)
    if len(items):
        _call(
            _PAIRS,
            _queries_for(queries, items.dtype),
            items,
            c,
            None,
            pair_queries=query.contiguous(),
            pair_z=z,
        )
    return z
