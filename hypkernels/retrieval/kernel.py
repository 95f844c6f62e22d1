"""The searches on a GPU: kernels bound all pairs, and pairs that the bounds leave open are computed
exactly.

Bounds are kept for bundles of adjacent items, see :mod:`hypkernels.retrieval.bound_kernels`. float64
points, and points of different dtypes, are multiplied as float32. The exact part consists of PyTorch
calls in float64, :mod:`hypkernels.retrieval.pairs`, and waits for the device once for each part of the
gallery. A list of the ``k`` nearest in each program would be sorted by float32 numbers, and could not be
exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from hypkernels.retrieval import bound_kernels
from hypkernels.retrieval.pairs import CountedPairs, NearestPairs, Pairs, PairSearch, PairsWithin, Side
from hypkernels.retrieval.pairs import z_of_pairs as z_of_pairs
from hypkernels.retrieval.problem import Block, Piece, first_not_finite
from hypkernels.tritonlib.launch import allocate
from hypkernels.tritonlib.manifest import TARGETS, Variant
from hypkernels.tritonlib.tile_plan import INTERPRETED, Plan, Tile, default_plan, plan_for

# In float32 products ``P`` and norms must be 0, or between this and its inverse.
_LARGEST = 1e15
# Memory for bounds, and bytes of the two bounds of a bundle.
_BOUND_BYTES, _BYTES_A_BUNDLE = 128 << 20, 2 * 4
# Items of a bundle, if the gallery's part has at least so many bundles for each neighbour.
_BUNDLE, _BUNDLES_A_NEIGHBOUR = 8, 4
_WARPS = 8
# What is compiled ahead of time.
_RECORDED, _RECORDED_WIDTH = (1024, 1 << 16), 512


class _Part(NamedTuple):
    """Items of a gallery: the size of bundles, the operand of the product, and lines of scalars."""

    items: Piece
    bundle: int
    y: Side
    operands: tuple[Tensor, Tensor]
    lines: Tensor

    @property
    def bundles(self) -> int:
        return triton.cdiv(len(self.items.rows), self.bundle)


class _Bundles(PairSearch):
    """What the searches share."""

    def __init__(self, block: Block) -> None:
        super().__init__(block, _LARGEST)
        self.lines = self._lines(self.x)

    def add(self, piece: Piece) -> int | None:
        bad = first_not_finite(piece.rows)
        if bad is None and len(self.x.points):
            for part in self._parts(piece):
                self.add_part(part)
        return bad

    def add_part(self, part: _Part) -> None:
        raise NotImplementedError

    def bundle_of(self, items: int) -> int:
        return _BUNDLE

    def _parts(self, piece: Piece) -> Iterator[_Part]:
        """Parts of whole bundles, as many as the memory for bounds holds."""
        bundle = self.bundle_of(len(piece.rows))
        step = bundle * max(1, _BOUND_BYTES // (_BYTES_A_BUNDLE * len(self.x.P)))
        queries = _operand(self.x.points, piece.rows.dtype)
        for start in range(0, len(piece.rows), step):
            place = slice(start, start + step)
            allowed, groups = (None if one is None else one[place] for one in (piece.allowed, piece.groups))
            items = Piece(piece.first + start, piece.rows[place], allowed, groups)
            y = self.side(items.rows)
            operands = queries, _operand(items.rows, self.x.points.dtype)
            yield _Part(items, bundle, y, operands, self._lines(y))

    def _lines(self, side: Side) -> Tensor:
        turn = torch.zeros_like(side.P)
        if side.aperture is not None:
            narrow = side.aperture <= torch.pi / 2
            turn = torch.where(narrow, side.P * torch.cos(side.aperture), torch.nan)
        return torch.stack([side.P, side.h, turn]).float()

    def launch(self, kernel: Any, part: _Part, *tensors: Tensor) -> None:
        """``tensors``: arguments of this kernel only; the last ones are ``(B, bundles)``."""
        groups = self.query_groups
        cone = bound_kernels.NO_CONE
        if self.cones is not None:
            cone = bound_kernels.CONE_OF_QUERY if self.cones.at_query else bound_kernels.CONE_OF_ITEM
        launch_bounds(
            kernel,
            part.operands,
            (self.lines, part.lines),
            (part.items.allowed, part.items.groups, groups),
            tensors,
            None if groups is None or groups.dim() == 1 else groups.stride(0),
            self.curv,
            _tile(default_plan(part.operands[0], "inner")),
            CONE=cone.value,
            BUNDLE=part.bundle,
        )

    def bounds(self, part: _Part) -> tuple[Tensor, Tensor]:
        """The smallest lower and the smallest upper bound of each bundle, float32 ``(B, bundles)``."""
        shape = len(self.x.P), part.bundles
        least, most = (allocate(self.c, shape, torch.float32) for _ in range(2))
        self.launch(bound_kernels.bounds_of_bundles, part, least, most)
        return least, most

    def pairs(self, open: Tensor, part: _Part) -> Pairs:
        """The pairs of open bundles, ``open (B, bundles)``, that may be found, computed exactly."""
        query, bundle = open.nonzero(as_tuple=True)
        items = bundle[:, None] * part.bundle + torch.arange(part.bundle, device=bundle.device)
        query, item = query[:, None].expand_as(items).reshape(-1), items.reshape(-1)
        kept = item < len(part.items.rows)
        query, item = query[kept], item[kept]
        if part.items.allowed is not None:
            kept = part.items.allowed[item]
            query, item = query[kept], item[kept]
        if part.items.groups is not None and self.query_groups is not None:
            group, several = part.items.groups[item], self.query_groups.dim() == 2
            kept = self.query_groups[query, group] if several else self.query_groups[query] == group
            query, item = query[kept], item[kept]
        return self.exactly(query, item, part.items.first, part.y)


class Nearest(_Bundles):
    def __init__(self, block: Block, k: int) -> None:
        super().__init__(block)
        self.k, self.found = k, NearestPairs(len(block.queries), k, self.c.device)

    def bundle_of(self, items: int) -> int:
        return _BUNDLE if items >= _BUNDLE * _BUNDLES_A_NEIGHBOUR * self.k else 1

    def add_part(self, part: _Part) -> None:
        least, most = self.bounds(part)
        within = self.found.within
        # ``k`` bundles have an item each that is at least this near; with cones it may be outside of
        # them.
        if self.cones is None and part.bundles >= self.k:
            within = torch.minimum(within, most.kthvalue(self.k, dim=1).values)
        self.found.add(self.pairs(least < _above(within)[:, None], part))

    def result(self) -> tuple[Tensor, Tensor]:
        return self.found.z, self.found.ids


class Counts(_Bundles):
    def __init__(self, block: Block, targets: Tensor, limits: Tensor) -> None:
        super().__init__(block)
        self.found = CountedPairs(targets, limits)
        self._around = -_above(-limits), _above(limits)

    def add_part(self, part: _Part) -> None:
        counts = allocate(self.c, (len(self.x.P), part.bundles), torch.int8)
        self.launch(bound_kernels.counts_of_bundles, part, *self._around, counts)
        self.found.counts[0] += counts.clamp(min=0).sum(1)
        self.found.add(self.pairs(counts < 0, part))

    def result(self) -> Tensor:
        return self.found.counts


class Within(_Bundles):
    def __init__(self, block: Block, limit: float) -> None:
        super().__init__(block)
        self.found = PairsWithin(limit)
        self._above = _above(self.c.new_tensor(limit))

    def add_part(self, part: _Part) -> None:
        least, _ = self.bounds(part)
        self.found.add(self.pairs(least < self._above, part))

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.found.result()


def launch_bounds(
    kernel: Any,
    points: tuple[Tensor, Tensor],
    lines: tuple[Tensor, Tensor],
    restrictions: tuple[Tensor | None, Tensor | None, Tensor | None],
    tensors: tuple[Tensor, ...],
    query_groups_row: int | None,
    c: float,
    tile: Tile,
    **constants: Any,
) -> None:
    (x, y), (of_x, of_y) = points, lines
    (rows, width), columns = x.shape, len(y)
    programs = triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns)
    with torch.cuda.device_of(x):
        kernel[(programs,)](
            x,
            y,
            of_x,
            of_y,
            *restrictions,
            *tensors,
            rows,
            columns,
            x.stride(0),
            y.stride(0),
            of_x.stride(0),
            of_y.stride(0),
            query_groups_row,
            c,
            (width + 24) * 2.0**-22,
            D=width,
            BLOCK_M=tile.rows,
            BLOCK_N=tile.columns,
            BLOCK_K=tile.depth_bytes // x.element_size(),
            PIECES=tile.pieces,
            GROUP=tile.group,
            PRECISION=_precision(x),
            UPCAST=INTERPRETED,
            num_warps=tile.warps,
            num_stages=tile.stages,
            enable_fp_fusion=True,  # no longer the default of Triton 3.10
            **constants,
        )


def _tile(plan: Plan) -> Tile:
    """A tile with more warps: restrictions need more registers than fewer warps have."""
    return plan.separate._replace(warps=_WARPS)


def _precision(points: Tensor) -> str:
    """The precision of products of float32; the bounds allow four roundings a component for it."""
    return "tf32x3" if points.dtype == torch.float32 and torch.version.hip is None else "ieee"


def _operand(points: Tensor, other: torch.dtype) -> Tensor:
    """Points with dense rows, in the dtype of their product with points of dtype ``other``."""
    if points.dtype != other or points.dtype == torch.float64:
        points = points.float()
    return points if points.stride(-1) == 1 or points.shape[1] == 1 else points.contiguous()


def _above(z: Tensor) -> Tensor:
    """The next float32 number above each float64 number."""
    return torch.nextafter(z.float(), torch.full((), torch.inf, device=z.device))


def aot_variants() -> Iterator[Variant]:
    """Both kernels with the tiles of every plan, and with the restrictions that take most registers."""
    for target in TARGETS:
        for dtype in (torch.bfloat16, torch.float32):
            yield _variant("bounds_of_bundles", target, dtype, cone=False)
            yield _variant("counts_of_bundles", target, dtype, cone=True)


def _variant(name: str, target: str, dtype: torch.dtype, *, cone: bool) -> Variant:
    from hypkernels.tritonlib.recording import recorded_launches

    meta = torch.device("meta")
    points = [torch.empty((n, _RECORDED_WIDTH), dtype=dtype, device=meta) for n in _RECORDED]
    lines = [torch.empty((3, n), dtype=torch.float32, device=meta) for n in _RECORDED]
    groups = torch.empty(_RECORDED[1], dtype=torch.int64, device=meta) if cone else None
    of_queries = torch.empty((_RECORDED[0], 16), dtype=torch.bool, device=meta) if cone else None
    limits = [torch.empty(_RECORDED[0], dtype=torch.float32, device=meta) for _ in range(2)]
    shape = _RECORDED[0], _RECORDED[1] // _BUNDLE
    counts = torch.empty(shape, dtype=torch.int8, device=meta)
    bounds = [torch.empty(shape, dtype=torch.float32, device=meta) for _ in range(2)]
    tile = _tile(plan_for(target, dtype, "inner"))
    with recorded_launches() as launches:
        launch_bounds(
            getattr(bound_kernels, name),
            (points[0], points[1]),
            (lines[0], lines[1]),
            (None, groups, of_queries),
            (*limits, counts) if cone else tuple(bounds),
            16 if cone else None,
            1.0,
            tile,
            CONE=(bound_kernels.CONE_OF_QUERY if cone else bound_kernels.NO_CONE).value,
            BUNDLE=_BUNDLE,
        )
    (launched,) = launches
    constexprs = dict(launched.constexprs)
    if target == "gfx942":
        constexprs["PRECISION"] = "ieee"
    return launched._replace(constexprs=constexprs).variant(
        f"retrieval.{name}[{str(dtype)[6:]},{target}]",
        targets=(target,),
        expect_mma=True,
        units=tile.rows * tile.columns,
    )
