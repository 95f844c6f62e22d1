"""The pairwise functions on a GPU: one kernel computes the product of matrices and the functions of it.

Points are float32 or narrower. float32 points are multiplied in the wanted precision, narrower ones as
they are. In *near* pairs the product cancels: they are marked, and a second kernel computes them from
differences, in float64 except for the sums over components. Where norms or the curvature leave the range
of float32, all pairs of a matrix count as near.

The backward pass computes the products again, a block of pairs at a time. It stores the gradient by
``x.y`` of each pair in a workspace of bounded size and multiplies that with the points. All sums are in
a fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from hypkernels.pairwise import near_kernels, tile_kernels
from hypkernels.rowwise import result_dtype
from hypkernels.saturation import copy_gradient
from hypkernels.tritonlib import pair_gaps, pair_tiles, tile_plan
from hypkernels.tritonlib.launch import MAX_GRID_Y, allocate, launch_rows
from hypkernels.tritonlib.manifest import TARGETS, Variant
from hypkernels.tritonlib.pair_sums import add_tiles, subtract_own
from hypkernels.tritonlib.products import RESOLUTION, launch_product, operand, precision_of
from hypkernels.tritonlib.tile_plan import (
    INTERPRETED,
    Block,
    Plan,
    Tile,
    default_pairwise_plan,
    pairwise_plan_for,
)

# The range of float32 computations: least ``k|x|``; curvatures, and products of two or three norms.
_LEAST_REACH, _LEAST_PRODUCT, _LARGEST_PRODUCT = 1e-6, 1e-30, 1e30
# Tables are padded to a multiple of the widest tile.
_PADDED_POINTS = 256
# Bytes of a partial sum of a tile's row or column.
_SUM_BYTES = 4
# The sizes for which kernels are compiled ahead of time.
_RECORDED_POINTS, _RECORDED_WIDTH = 4096, 768
# Rows, columns and components of the near pairs that are computed at a time, and warps. Triton before
# 3.8 computes much of it in several layouts at once, which needs the registers of more warps.
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8):
    _NEAR_VALUES: dict[str, Any] = {"ROWS": 16, "COLUMNS": 16, "DEPTH": 8, "num_warps": 4}
    _NEAR_GRADIENTS: dict[str, Any] = {"ROWS": 16, "COLUMNS": 16, "DEPTH": 8, "num_warps": 8}
    _NEAR_ANGLE_DEPTH = 4  # their gradients need the most registers; with 4, others spill some for sm_120
else:
    _NEAR_VALUES = {"ROWS": 16, "COLUMNS": 16, "DEPTH": 8, "num_warps": 2}
    _NEAR_GRADIENTS = {"ROWS": 16, "COLUMNS": 16, "DEPTH": 16, "num_warps": 4}
    _NEAR_ANGLE_DEPTH = 16


class _Function(NamedTuple):
    """The kernels' formula, that with ``x`` and ``y`` exchanged, and the loss that has the same tiles."""

    formula: int
    swapped: int
    similarity: str


_FUNCTIONS = {
    "pairwise_inner": _Function(pair_gaps.INNER.value, pair_gaps.INNER.value, "inner"),
    "pairwise_dist": _Function(pair_gaps.DIST.value, pair_gaps.DIST.value, "dist"),
    "pairwise_oxy_angle": _Function(pair_gaps.ANGLE_AT_X.value, pair_gaps.ANGLE_AT_Y.value, "angle"),
}


class _Set(NamedTuple):
    """Points ``(matrices, M, D)``; their operand of the products; ``|x|^2``; the table of their scalars."""

    points: Tensor
    operand: Tensor
    square: Tensor
    table: Tensor

    def at(self, matrices: slice, rows: slice) -> _Set:
        chunk = pair_tiles.CHUNK.value
        return _Set(
            self.points[matrices, rows],
            self.operand[matrices, rows],
            self.square[matrices, rows],
            self.table[matrices, rows.start // chunk :],
        )


class _Pairs(NamedTuple):
    """All pairs of the matrices of a batch. ``c`` is float64, ``(matrices,)``; ``exact`` int32."""

    x: _Set
    y: _Set
    c: Tensor
    exact: Tensor
    precision: str
    plan: Plan
    function: _Function

    @property
    def shape(self) -> tuple[int, int, int]:
        matrices, rows, _ = self.x.points.shape
        return matrices, rows, self.y.points.shape[1]

    @property
    def constants(self) -> dict[str, Any]:
        return {"D": self.x.points.shape[2], "FORMULA": self.function.formula}

    def at(self, matrices: slice, block: Block) -> _Pairs:
        return self._replace(
            x=self.x.at(matrices, block.rows),
            y=self.y.at(matrices, block.columns),
            c=self.c[matrices],
            exact=self.exact[matrices],
        )

    def launch(self, kernel: Any, tile: Tile, outputs: list[Tensor], strides: list[int], **more: Any) -> None:
        """A program for each tile."""
        matrices, rows, columns = self.shape
        u, v = self.x.operand, self.y.operand
        chunk = pair_tiles.CHUNK.value
        if tile.rows % chunk or tile.columns % chunk:
            raise ValueError(f"rows and columns of a tile must be multiples of {chunk}, got {tile}")
        programs = matrices * triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns)
        with torch.cuda.device_of(u):
            kernel[(programs,)](
                u,
                v,
                self.x.table,
                self.y.table,
                self.c,
                self.exact,
                *outputs,
                rows,
                columns,
                *u.stride()[:2],
                *v.stride()[:2],
                self.x.table.stride(0),
                self.y.table.stride(0),
                self.c.stride(0),
                *strides,
                BLOCK_M=tile.rows,
                BLOCK_N=tile.columns,
                BLOCK_K=tile.depth_bytes // u.element_size(),
                PIECES=tile.pieces,
                GROUP=tile.group,
                PRECISION=self.precision,
                UPCAST=INTERPRETED,
                INLINE_PTX=self.plan.inline_ptx,
                num_warps=tile.warps,
                num_stages=tile.stages,
                enable_fp_fusion=True,  # no longer the default of Triton 3.10
                **self.constants,
                **more,
            )


def pairwise_inner(x: Tensor, y: Tensor, curv: Tensor, precision: str | None) -> Tensor:
    return values("pairwise_inner", x, y, curv, precision)


def pairwise_inner_backward(
    grad: Tensor, x: Tensor, y: Tensor, curv: Tensor, precision: str | None
) -> tuple[Tensor, ...]:
    return gradients("pairwise_inner", grad, x, y, curv, precision)


def pairwise_dist(x: Tensor, y: Tensor, curv: Tensor, precision: str | None) -> Tensor:
    return values("pairwise_dist", x, y, curv, precision)


def pairwise_dist_backward(
    grad: Tensor, x: Tensor, y: Tensor, curv: Tensor, precision: str | None
) -> tuple[Tensor, ...]:
    return gradients("pairwise_dist", grad, x, y, curv, precision)


def pairwise_oxy_angle(x: Tensor, y: Tensor, curv: Tensor, precision: str | None) -> Tensor:
    return values("pairwise_oxy_angle", x, y, curv, precision)


def pairwise_oxy_angle_backward(
    grad: Tensor, x: Tensor, y: Tensor, curv: Tensor, precision: str | None
) -> tuple[Tensor, ...]:
    return gradients("pairwise_oxy_angle", grad, x, y, curv, precision)


def values(
    name: str, x: Tensor, y: Tensor, curv: Tensor, precision: str | None, *, plan: Plan | None = None
) -> Tensor:
    """``(..., M, N)`` of ``(..., M, D)`` and ``(..., N, D)``; ``curv`` is 0-d or ``(...)``."""
    out = allocate(x, (*x.shape[:-1], y.shape[-2]), result_dtype(x.dtype))
    if not out.numel():
        return out
    pairs = _pairs(name, x, y, curv, precision, plan)
    tile = pairs.plan.forward
    near = _tiles_with_near(pairs, tile)
    pairs.launch(tile_kernels.pair_values, tile, [out, near], [])
    matrices, rows, columns = pairs.shape
    x_set, y_set = pairs.x.points, pairs.y.points
    with torch.cuda.device_of(out):
        near_kernels.near_values[(matrices * triton.cdiv(rows, _NEAR_VALUES["ROWS"]),)](
            x_set,
            y_set,
            pairs.x.square,
            pairs.y.square,
            pairs.c,
            near,
            out,
            rows,
            columns,
            *x_set.stride()[:2],
            *y_set.stride()[:2],
            pairs.c.stride(0),
            BLOCK_M=tile.rows,
            BLOCK_N=tile.columns,
            **_NEAR_VALUES,
            **pairs.constants,
        )
    return out


def gradients(
    name: str,
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    curv: Tensor,
    precision: str | None,
    *,
    plan: Plan | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by the points, in their dtype, and by the curvature, float64."""
    if not grad.numel():
        zeros = torch.zeros(curv.shape, dtype=torch.float64, device=x.device)
        return torch.zeros_like(x), torch.zeros_like(y), zeros
    pairs = _pairs(name, x, y, curv, precision, plan)
    total = _Gradients(pairs, _matrices(grad))
    for matrices, block in _blocks(pairs, total.pair_bytes):
        total.add(matrices, block)
    by_x, by_y, by_curv = total.finished()
    return (
        _rounded(by_x, x),
        _rounded(by_y, y),
        by_curv.view(curv.shape) if curv.dim() else by_curv.sum(),
    )


class _Gradients:
    """Sums over blocks of pairs, with ``W`` the gradient by ``x.y`` of each: ``W y - own_x x``.

    ``own_x`` and ``own_y`` are sums over the pairs of each row and column, ``curv`` over those of each row:
    of the gradient by ``log c``, times ``c``, and of near pairs of that by ``c``.
    """

    def __init__(self, pairs: _Pairs, grad: Tensor) -> None:
        self.pairs, self.grad = pairs, grad
        x, y = pairs.x, pairs.y
        self.x, self.y = (
            torch.zeros(one.points.shape, dtype=torch.float32, device=grad.device) for one in (x, y)
        )
        self.own_x, self.own_y = torch.zeros_like(x.square), torch.zeros_like(y.square)
        self.curv, self.near_curv = torch.zeros_like(x.square), torch.zeros_like(x.square)
        # Gradients leave the range of float16. float16 points are exact in tf32, which not all GPUs
        # have.
        self.dtype = torch.bfloat16 if x.points.dtype == torch.bfloat16 else torch.float32
        in_tf32 = x.points.dtype == torch.float16 and torch.version.hip is None
        self.precision = "tf32" if in_tf32 else pairs.precision

    @property
    def pair_bytes(self) -> float:
        tile = self.pairs.plan.backward
        return self.dtype.itemsize + _SUM_BYTES * (2 / tile.columns + 1 / tile.rows)

    def add(self, matrices: slice, block: Block) -> None:
        pairs, tile = self.pairs.at(matrices, block), self.pairs.plan.backward
        count, rows, columns = pairs.shape
        grad = self.grad[matrices, block.rows, block.columns]
        tiles = triton.cdiv(rows, tile.rows), triton.cdiv(columns, tile.columns)
        padded = allocate(grad, (count, tiles[0] * tile.rows, tiles[1] * tile.columns), self.dtype)
        by_row = allocate(grad, (2, count, tiles[1], rows), torch.float32)
        by_column = allocate(grad, (count, tiles[0], columns), torch.float32)
        near = _tiles_with_near(pairs, tile)
        pairs.launch(
            tile_kernels.pair_weights,
            tile,
            [grad, padded, by_row[0], by_column, by_row[1], near],
            [*grad.stride(), *padded.stride()[:2]],
            RESOLUTION=RESOLUTION[pairs.precision],
            ROUND_TF32=self.dtype == torch.float32 and self.precision == "tf32",
        )
        weights = padded[:, :rows, :columns]
        by_x, by_y = self.x[matrices, block.rows], self.y[matrices, block.columns]
        product, precision = self.pairs.plan.product, self.precision
        launch_product(by_x, weights, pairs.y.operand, product, precision)
        launch_product(by_y, weights.mT, pairs.x.operand, product, precision)
        add_tiles(by_row[0], self.own_x[matrices, block.rows])
        add_tiles(by_row[1], self.curv[matrices, block.rows])
        add_tiles(by_column, self.own_y[matrices, block.columns])
        near_curv = self.near_curv[matrices, block.rows]
        _add_near(pairs, near, tile.rows, tile.columns, grad, weights, by_x, near_curv)
        function = pairs.function
        turned = pairs._replace(x=pairs.y, y=pairs.x, function=function._replace(formula=function.swapped))
        transposed = (near.mT, tile.columns, tile.rows, grad.mT, weights.mT)
        _add_near(turned, *transposed, by_y, None)

    def finished(self) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients by the points, float32, and by the curvature of each matrix."""
        pairs = self.pairs
        angle = pairs.function.formula == pair_gaps.ANGLE_AT_X.value
        own_of_x = {"by_norm" if angle else "by_height": self.own_x}
        for total, one, own in ((self.x, pairs.x, own_of_x), (self.y, pairs.y, {"by_height": self.own_y})):
            c = pairs.c[:, None].expand(one.square.shape)
            subtract_own(total, one.points, one.square[..., None], c, **own)
        return self.x, self.y, self.curv.sum(1) / pairs.c**2 + self.near_curv.sum(1)


def _add_near(
    pairs: _Pairs,
    near: Tensor,
    near_rows: int,
    near_columns: int,
    grad: Tensor,
    weights: Tensor,
    by_x: Tensor,
    by_curv: Tensor | None,
) -> None:
    """The near pairs' gradients by the points of rows, where ``near`` has tiles of this size."""
    matrices, rows, columns = pairs.shape
    x, y = pairs.x, pairs.y
    depth = {"DEPTH": _NEAR_ANGLE_DEPTH} if pairs.function.similarity == "angle" else {}
    with torch.cuda.device_of(by_x):
        near_kernels.near_gradients[(matrices * triton.cdiv(rows, _NEAR_GRADIENTS["ROWS"]),)](
            x.points,
            y.points,
            x.square,
            y.square,
            pairs.c,
            near,
            grad,
            weights,
            by_x,
            by_curv,
            rows,
            columns,
            *x.points.stride()[:2],
            *y.points.stride()[:2],
            x.square.stride(0),
            y.square.stride(0),
            pairs.c.stride(0),
            *near.stride(),
            *grad.stride(),
            *weights.stride(),
            *by_x.stride()[:2],
            BLOCK_M=near_rows,
            BLOCK_N=near_columns,
            **(_NEAR_GRADIENTS | depth),
            **pairs.constants,
        )


def _pairs(name: str, x: Tensor, y: Tensor, curv: Tensor, precision: str | None, plan: Plan | None) -> _Pairs:
    function = _FUNCTIONS[name]
    precision = precision_of(x, precision)
    c = curv.to(x.device, torch.float64)
    x_set, y_set = _set(x, c, precision), _set(y, c, precision)
    of_matrices = c.reshape(-1).expand(len(x_set.points))
    exact = _leaves_float32(x_set.square.amax(1), y_set.square.amax(1), of_matrices).int()
    plan = plan or default_pairwise_plan(x, function.similarity)
    return _Pairs(x_set, y_set, of_matrices, exact, precision, plan, function)


def _set(points: Tensor, c: Tensor, precision: str) -> _Set:
    """A set with its table. Past the end of the set scalars are 0, those of the origin."""
    points = _matrices(points if points.stride(-1) == 1 else points.contiguous())
    matrices, size, _ = points.shape
    square = allocate(points, (matrices, size), torch.float64)
    chunk, lines = pair_tiles.CHUNK.value, pair_tiles.LINES.value
    chunks = triton.cdiv(size, _PADDED_POINTS) * (_PADDED_POINTS // chunk)
    table = torch.zeros((matrices, chunks, lines, chunk), dtype=torch.float32, device=points.device)
    of_rows = c.reshape(-1, 1).expand(matrices, size) if c.dim() else c
    launch_rows(tile_kernels.scalars_of_points, [points], [square, table, size, table.stride(0)], [of_rows])
    return _Set(points, operand(points, precision), square, table)


def _leaves_float32(x_square: Tensor, y_square: Tensor, c: Tensor) -> Tensor:
    """Whether products and formulas of points up to these norms may leave the range of float32."""
    x, y, k = torch.sqrt(x_square), torch.sqrt(y_square), torch.sqrt(c)
    P, Q = k * x, k * y
    larger = torch.maximum(P, Q)
    in_formulas = (1 + P) * (1 + Q) * (1 + larger)
    product = x * y
    least = torch.minimum(torch.minimum(product, product * c), c)
    largest = torch.maximum(torch.maximum(in_formulas, product), c)
    return (larger < _LEAST_REACH) | (least < _LEAST_PRODUCT) | (largest > _LARGEST_PRODUCT)


def _tiles_with_near(pairs: _Pairs, tile: Tile) -> Tensor:
    matrices, rows, columns = pairs.shape
    shape = matrices, triton.cdiv(rows, tile.rows), triton.cdiv(columns, tile.columns)
    return allocate(pairs.c, shape, torch.int32)


def _blocks(pairs: _Pairs, pair_bytes: float) -> Iterator[tuple[slice, Block]]:
    """Blocks: as many matrices at a time as the workspace holds, or parts of one matrix."""
    matrices, rows, columns = pairs.shape
    tile = pairs.plan.backward
    blocks = tile_plan.blocks(rows, columns, tile, pair_bytes, pairs.plan.workspace_bytes)
    padded = math.prod(triton.cdiv(n, t) * t for n, t in ((rows, tile.rows), (columns, tile.columns)))
    together = min(max(int(pairs.plan.workspace_bytes / pair_bytes) // padded, 1), MAX_GRID_Y)
    for first in range(0, matrices, together):
        for block in blocks:
            yield slice(first, min(first + together, matrices)), block


def _matrices(tensor: Tensor) -> Tensor:
    """``(..., M, D)`` as ``(matrices, M, D)``."""
    return tensor.reshape(math.prod(tensor.shape[:-2]), *tensor.shape[-2:])


def _rounded(by: Tensor, points: Tensor) -> Tensor:
    """A gradient in the points' dtype and shape."""
    by = by.view(points.shape)
    if points.dtype == by.dtype:
        return by
    out = allocate(points, points.shape, points.dtype)
    copy_gradient(out, by)
    return out


def aot_variants() -> Iterator[Variant]:
    """Every function with the tiles of every plan; the near kernels, which are the same for all of them."""
    for target in TARGETS:
        for dtype in (torch.bfloat16, torch.float32):
            for name in _FUNCTIONS:
                yield from _variants(target, dtype, name)
    yield from _variants("sm_90", torch.float16, "pairwise_dist")
    for name in _FUNCTIONS:
        found = _recorded("sm_90", torch.float32, name)
        for kernel in ("near_values", "near_gradients", "near_gradients,turned"):
            constants = found[kernel].constexprs
            pairs_at_a_time = constants["ROWS"] * constants["COLUMNS"]
            yield found[kernel].variant(
                f"pairwise.{kernel}[{name},float32]", units=pairs_at_a_time, input_tiles=()
            )
    scalars = _recorded("sm_90", torch.float32, "pairwise_dist")["scalars_of_points"]
    yield scalars.variant(
        "pairwise.scalars_of_points[float32]", units=scalars.constexprs["ROWS"] * _RECORDED_WIDTH
    )


def _variants(target: str, dtype: torch.dtype, name: str) -> Iterator[Variant]:
    found = _recorded(target, dtype, name)
    for way, kernel in (("forward", "pair_values"), ("backward", "pair_weights")):
        constants = found[kernel].constexprs
        yield found[kernel].variant(
            f"pairwise.{name}_{way}[{str(dtype)[6:]},{target}]",
            targets=(target,),
            expect_mma=True,
            units=constants["BLOCK_M"] * constants["BLOCK_N"],
        )


def _recorded(target: str, dtype: torch.dtype, name: str) -> dict[str, Any]:
    """The launches of a forward and a backward pass by their kernels."""
    from hypkernels.tritonlib.recording import recorded_launches

    plan = pairwise_plan_for(target, dtype, _FUNCTIONS[name].similarity)
    precision = "ieee" if target == "gfx942" else "tf32x3"
    points = torch.empty((_RECORDED_POINTS, _RECORDED_WIDTH), dtype=dtype, device="meta")
    curv = torch.empty((), dtype=torch.float64, device="meta")
    with recorded_launches() as launches:
        out = values(name, points, points, curv, precision, plan=plan)
        gradients(name, out, points, points, curv, precision, plan=plan)
    found: dict[str, Any] = {}
    for launched in launches:
        kernel = launched.kernel.__name__
        turned = kernel == "near_gradients" and launched.constexprs.get("BY_CURV", 0) is None
        found.setdefault(f"{kernel},turned" if turned else kernel, launched)
    return found
