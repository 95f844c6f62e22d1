"""The contrastive loss on a GPU: what there is one of per pair is computed by Triton kernels, tile by tile.

The forward pass reduces every tile of logits to log-sum-exps of its rows and columns. The backward pass
computes the logits again, a block at a time, stores the negatives' gradient by the inner product of each pair
in a workspace of bounded size, and multiplies it with the points: four products of matrices in all, twice as
many where the softmaxes of rows and columns are of different logits. Nothing is summed in order of arrival.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from hypkernels.contrastive import pair_kernels as device
from hypkernels.contrastive import problem, tile_plan
from hypkernels.contrastive.problem import Gradients, Part, Problem, Side, SoftmaxGradient, Statistics
from hypkernels.contrastive.similarity import Gap, Logits, logit_matrices
from hypkernels.contrastive.tile_plan import INTERPRETED, Block, Plan, Tile, default_plan, plan_for
from hypkernels.pair_geometry import ratio
from hypkernels.pairwise.geometry import PointScalars
from hypkernels.tritonlib.launch import allocate
from hypkernels.tritonlib.manifest import TARGETS, Variant

_LN2 = math.log(2)
# Up to this distance, with curvature -1, the kernels' series serves: its last term is a rounding.
_NEAR = 0.5
# What the product of matrices leaves uncertain, in units of the norms.
_RESOLUTION = {"ieee": 16 * 2.0**-23, "tf32x3": 16 * 2.0**-23, "tf32": 2.0**-12}
# What is compiled ahead of time.
_RECORDED_POINTS, _RECORDED_WIDTH = 4096, 768
# Items and tiles that are merged at a time.
_MERGED_ITEMS, _MERGED_TILES = 128, 16
# Of the partial sums over a tile's rows or columns: a largest logit and a sum; or own terms, gaps, curvature.
_LOG_SUM_BYTES, _ROW_SUMS_BYTES, _COLUMN_SUM_BYTES = 8, 12, 4


class _Form(NamedTuple):
    """A matrix of logits as the kernels know it: its formula's number, and what one unit of its gap is."""

    formula: int
    unit: float = 1.0


_FORMS = {
    "dist": (_Form(device.DIST.value, _LN2),),
    "sqdist": (_Form(device.SQDIST.value, _LN2**2),),
    "inner": (_Form(device.INNER.value),),
    "angle": (_Form(device.ANGLE_AT_X.value), _Form(device.ANGLE_AT_Y.value)),
}


def forward(
    p: Problem, similarity: str, symmetric: bool, *, plan: Plan | None = None
) -> tuple[Tensor, Statistics]:
    """Loss of each row, float64, and the statistics for :func:`backward`."""
    pairs = _Pairs(p, plan or default_plan(p.x.points, similarity))
    matrices = logit_matrices(similarity, symmetric)
    rows = columns = p.scale.new_empty(0)
    for matrix, form in zip(matrices, _FORMS[similarity], strict=False):
        by_row, by_column = pairs.log_sums(matrix, form)
        rows = by_row if matrix.rows else rows
        columns = by_column if matrix.columns else columns
    positives = torch.stack([problem.positive_gaps(p, matrix.gap) for matrix in matrices])
    saved = Statistics(positives, rows, columns)
    return problem.losses(p, saved, similarity, symmetric), saved


def backward(
    grad: Tensor,
    p: Problem,
    saved: Statistics,
    similarity: str,
    symmetric: bool,
    *,
    plan: Plan | None = None,
) -> Gradients:
    """``grad`` is the upstream gradient of each row's loss."""
    pairs = _Pairs(p, plan or default_plan(p.x.points, similarity))
    matrices = logit_matrices(similarity, symmetric)
    weights = grad.double() / (1 + symmetric)
    softmaxes = [
        problem.softmax_gradient(weights, gaps, p, matrix, saved)
        for matrix, gaps in zip(matrices, saved.positives, strict=True)
    ]
    negatives = _Negatives(pairs)
    for matrix, softmax, form in zip(matrices, softmaxes, _FORMS[similarity], strict=False):
        negatives.add(softmax, matrix.gap, form)
    total = negatives.gradients()
    for matrix, softmax, gaps in zip(matrices, softmaxes, saved.positives, strict=True):
        total.scale.sub_(softmax.pull * gaps * p.c**-matrix.gap.of_pairs.curv_power)
        problem.add_positives(total, -softmax.pull * p.scale, p, matrix.gap)
    return total


class _Tables(NamedTuple):
    """Scalars of the rows and of the columns, float32, one line of the table for each name in the kernels."""

    rows: Tensor
    columns: Tensor


class _Pairs:
    """A problem as kernels take it: ``u`` and ``v`` make the logits; pairs' weights meet ``x`` and ``y``."""

    def __init__(self, p: Problem, plan: Plan) -> None:
        self.problem = p
        self.plan = plan
        self.precision = _precision(p)
        self.x, self.y = (_operand(side.points, self.precision) for side in (p.x, p.y))
        self.centred = self.x.dtype == torch.float32
        self.u, self.v = self.x, self.y
        self.rows, self.columns = p.x.part(), p.y.part()
        if self.centred:
            self.u = _centred_operand(p.x, self.rows, self.precision)
            self.v = _centred_operand(p.y, self.columns, self.precision)
        self.targets = _target_indices(p)
        self.c = p.c.float()
        self.near = _all_near(self.rows, self.columns)

    def blocks(self, tile: Tile, pair_bytes: float) -> list[Block]:
        return tile_plan.blocks(len(self.x), len(self.y), tile, pair_bytes, self.plan.workspace_bytes)

    def log_sums(self, matrix: Logits, form: _Form) -> tuple[Tensor, Tensor]:
        """Over the negatives of each row and of each column, float64; ``-inf`` where not asked for."""
        tables = self.tables(matrix.gap, form)
        rows = self.problem.scale.new_full((len(self.x),), -math.inf)
        columns = rows.new_full((len(self.y),), -math.inf)
        tile = self.plan.forward
        for block in self.blocks(tile, _LOG_SUM_BYTES * (1 / tile.columns + 1 / tile.rows)):
            by_row, by_column = self._log_sums(block, tables, matrix, form)
            if matrix.rows:
                rows[block.rows] = torch.logaddexp(rows[block.rows], by_row)
            if matrix.columns:
                columns[block.columns] = torch.logaddexp(columns[block.columns], by_column)
        return rows, columns

    def _log_sums(self, block: Block, tables: _Tables, matrix: Logits, form: _Form) -> tuple[Tensor, Tensor]:
        """By the maximum of each tile; where that is unsafe, as the device alone knows, by each its own."""
        rows, columns = (allocate(self.x, (n,), torch.float64) for n in (block.height, block.width))
        unsafe = torch.zeros((), dtype=torch.int32, device=self.x.device)

        def reduce_tiles(tile: Tile, shared: bool) -> None:
            by_row, by_column = self.row_sums(tile, block, 2), self.column_sums(tile, block, 2)
            self.launch(
                device.log_sums,
                tile,
                block,
                tables,
                [*by_row, *by_column, unsafe],
                FORMULA=form.formula,
                BY_ROW=matrix.rows,
                BY_COLUMN=matrix.columns,
                SHARED=shared,
            )
            if matrix.rows:
                _merge_log_sums(by_row, rows, unsafe, block.width, shared)
            if matrix.columns:
                _merge_log_sums(by_column, columns, unsafe, block.height, shared)

        reduce_tiles(self.plan.forward, shared=True)
        reduce_tiles(self.plan.separate, shared=False)
        return rows, columns

    def row_sums(self, tile: Tile, block: Block, count: int) -> list[Tensor]:
        """For partial sums: one line for each column of tiles."""
        shape = (triton.cdiv(block.width, tile.columns), block.height)
        return [allocate(self.x, shape, torch.float32) for _ in range(count)]

    def column_sums(self, tile: Tile, block: Block, count: int) -> list[Tensor]:
        """For partial sums: one line for each row of tiles."""
        shape = (triton.cdiv(block.height, tile.rows), block.width)
        return [allocate(self.x, shape, torch.float32) for _ in range(count)]

    def tables(self, gap: Gap, form: _Form, softmax: SoftmaxGradient | None = None) -> _Tables:
        p = self.problem
        per_unit = p.logits_per_unit(gap).double()
        return _Tables(
            _table(self.rows, [per_unit * (form.unit / _LN2), per_unit], softmax and softmax.rows),
            _table(self.columns, [], softmax and softmax.columns),
        )

    def launch(
        self,
        kernel: Any,
        tile: Tile,
        block: Block,
        tables: _Tables,
        outputs: Sequence[Tensor | None],
        strides: Sequence[int] = (),
        **constants: Any,
    ) -> None:
        u, v = self.u[block.rows], self.v[block.columns]
        rows, columns = tables.rows[:, block.rows], tables.columns[:, block.columns]
        programs = triton.cdiv(block.height, tile.rows) * triton.cdiv(block.width, tile.columns)
        with torch.cuda.device_of(u):
            kernel[(programs,)](
                u,
                v,
                rows,
                columns,
                self.targets[block.rows] - block.columns.start,
                self.c,
                self.near,
                *outputs,
                block.height,
                block.width,
                u.stride(0),
                v.stride(0),
                rows.stride(0),
                columns.stride(0),
                *strides,
                D=u.shape[1],
                BLOCK_M=tile.rows,
                BLOCK_N=tile.columns,
                BLOCK_K=tile.depth_bytes // u.element_size(),
                CENTRED=self.centred,
                PIECES=tile.pieces,
                GROUP=tile.group,
                PRECISION=self.precision,
                UPCAST=INTERPRETED,
                INLINE_PTX=self.plan.inline_ptx,
                num_warps=tile.warps,
                num_stages=tile.stages,
                enable_fp_fusion=True,  # no longer the default of Triton 3.10
                **constants,
            )


class _Sums(NamedTuple):
    """Over the pairs of each row, column and row: weights of the points themselves, and push times gap."""

    own_x: Tensor
    own_y: Tensor
    gaps: Tensor


class _Negatives:
    """Gradients by the negatives' logits, summed over blocks of pairs and over matrices of logits.

    With ``G`` the gradient by the inner product of each pair, divided by ``c``, those by the points are
    ``c (G y - own_x x)`` and ``c (G^T x - own_y y)``.
    """

    def __init__(self, pairs: _Pairs) -> None:
        p = pairs.problem
        self.pairs = pairs
        self.own_x, self.own_y = (
            torch.zeros(len(side.points), dtype=torch.float64, device=p.c.device) for side in (p.x, p.y)
        )
        self.total = Gradients(
            torch.zeros_like(pairs.x, dtype=torch.float32) if p.learns.x else None,
            torch.zeros_like(pairs.y, dtype=torch.float32) if p.learns.y else None,
            p.c.new_zeros(()),
            torch.zeros_like(self.own_x),
        )
        # float16 has not the range of a gradient. Its points are exact in tf32, which not all GPUs have.
        self.dtype = torch.bfloat16 if pairs.x.dtype == torch.bfloat16 else torch.float32
        in_tf32 = pairs.x.dtype == torch.float16 and torch.version.hip is None
        self.precision = "tf32" if in_tf32 else pairs.precision

    def add(self, softmax: SoftmaxGradient, gap: Gap, form: _Form) -> None:
        p, tile = self.pairs.problem, self.pairs.plan.backward
        tables = self.pairs.tables(gap, form, softmax)
        sums = _Sums(*(torch.zeros_like(like) for like in (self.own_x, self.own_y, self.own_x)))
        pair_bytes = self.dtype.itemsize + _ROW_SUMS_BYTES / tile.columns + _COLUMN_SUM_BYTES / tile.rows
        blocks = self.pairs.blocks(tile, pair_bytes)
        workspace = self._workspace(tile, blocks)
        for block in blocks:
            self._add_sums(sums, block, workspace, tables, softmax, form)
            self._add_products(workspace[: block.height, : block.width], block)
        x_norm, y_norm = _own_norms(self.pairs.rows.scalars, self.pairs.columns.scalars, form)
        self.own_x += ratio(sums.own_x, x_norm)
        self.own_y += ratio(sums.own_y, y_norm)
        self.total.scale.sub_(sums.gaps * (form.unit * p.c**-gap.of_pairs.curv_power))

    def _add_sums(
        self,
        sums: _Sums,
        block: Block,
        workspace: Tensor,
        tables: _Tables,
        softmax: SoftmaxGradient,
        form: _Form,
    ) -> None:
        tile = self.pairs.plan.backward
        own_x, gaps, curv = self.pairs.row_sums(tile, block, 3)
        (own_y,) = self.pairs.column_sums(tile, block, 1)
        self.pairs.launch(
            device.pair_weights,
            tile,
            block,
            tables,
            [workspace, own_x, own_y, gaps, curv],
            [workspace.stride(0)],
            FORMULA=form.formula,
            BY_ROW=softmax.rows is not None,
            BY_COLUMN=softmax.columns is not None,
            RESOLUTION=_RESOLUTION[self.pairs.precision],
            ROUND_TF32=self.dtype == torch.float32 and self.precision == "tf32",
        )
        sums.own_x[block.rows] += own_x.sum(0, dtype=torch.float64)
        sums.own_y[block.columns] += own_y.sum(0, dtype=torch.float64)
        sums.gaps[block.rows] += gaps.sum(0, dtype=torch.float64)
        self.total.curv.add_(curv.sum(dtype=torch.float64) / self.pairs.problem.c)

    def _workspace(self, tile: Tile, blocks: list[Block]) -> Tensor:
        """For the largest block, in whole tiles: kernels store them without a mask."""
        height = max((triton.cdiv(block.height, tile.rows) for block in blocks), default=0) * tile.rows
        width = max((triton.cdiv(block.width, tile.columns) for block in blocks), default=0) * tile.columns
        return allocate(self.pairs.x, (height, width), self.dtype)

    def _add_products(self, weights: Tensor, block: Block) -> None:
        if self.total.x is not None:
            self._add_product(self.total.x[block.rows], weights, self.pairs.y[block.columns])
        if self.total.y is not None:
            self._add_product(self.total.y[block.columns], weights.mT, self.pairs.x[block.rows])

    def _add_product(self, out: Tensor, a: Tensor, b: Tensor) -> None:
        """``out += a @ b``, with the weights ``a`` of pairs and points ``b``."""
        if not uses_product_tile(b):
            torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
            return
        tile = self.pairs.plan.product
        (rows, depth), columns = a.shape, b.shape[1]
        programs = triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns)
        with torch.cuda.device_of(out):
            device.add_product[(programs,)](
                a,
                b,
                out,
                rows,
                columns,
                depth,
                *a.stride(),
                b.stride(0),
                out.stride(0),
                BLOCK_M=tile.rows,
                BLOCK_N=tile.columns,
                BLOCK_K=tile.depth_bytes // a.element_size(),
                GROUP=tile.group,
                PRECISION=self.precision,
                UPCAST=INTERPRETED,
                num_warps=tile.warps,
                num_stages=tile.stages,
            )

    def gradients(self) -> Gradients:
        p = self.pairs.problem
        for total, own, side in ((self.total.x, self.own_x, p.x), (self.total.y, self.own_y, p.y)):
            if total is not None:
                total.addcmul_(own.float().unsqueeze(1), side.points, value=-1).mul_(self.pairs.c)
        return self.total


def _table(part: Part, others: Sequence[Tensor], softmax: tuple[Tensor, Tensor] | None) -> Tensor:
    """In the order of the kernels' names for the lines."""
    s = part.scalars
    lines = [scalar.squeeze(1) for scalar in (s.A_minus_1, s.P, s.growth, s.shrink, s.P * part.offset)]
    if softmax is not None:
        weights, totals = softmax
        bits = totals / _LN2
        rounded = bits.float().double()
        lines += [rounded, weights * torch.exp2(rounded - bits)]
    elif others:
        lines += [lines[0], lines[0]]
    return torch.stack([*lines, *others]).float()


def _merge_log_sums(parts: list[Tensor], out: Tensor, unsafe: Tensor, terms: int, shared: bool) -> None:
    largest, sums = parts
    tiles, items = largest.shape
    with torch.cuda.device_of(out):
        device.merge_log_sums[(triton.cdiv(items, _MERGED_ITEMS),)](
            largest,
            sums,
            out,
            unsafe,
            items,
            tiles,
            terms,
            SHARED=shared,
            ITEMS=_MERGED_ITEMS,
            TILES=_MERGED_TILES,
            num_warps=4,
        )


def _target_indices(p: Problem) -> Tensor:
    if p.targets is None:
        return torch.arange(len(p.x.points), dtype=torch.int32, device=p.c.device)
    return p.targets.to(torch.int32)


def _operand(points: Tensor, precision: str) -> Tensor:
    """Rows without gaps. For tf32 to nearest: matrix units only drop bits, which would bias every product."""
    if precision != "tf32":
        return points if points.stride(1) == 1 else points.contiguous()
    bits = points.contiguous().view(torch.int32)
    nearest = ((bits + 0x1000) & -0x2000).view(torch.float32)
    return torch.where(points.isfinite(), nearest, points)


def _centred_operand(side: Side, part: Part, precision: str) -> Tensor:
    centred = side.points.new_empty(side.points.shape, dtype=torch.float32)
    problem.fill_centred(centred, side, part)
    return _operand(centred, precision)


def _all_near(rows: Part, columns: Part) -> Tensor:
    """Whether no two points are farther apart than ``_NEAR``, as an integer on the device."""
    P, Q = rows.scalars.P, columns.scalars.P
    if not len(P):
        return torch.zeros((), dtype=torch.int32, device=P.device)
    return (P.amax() + Q.amax() < _NEAR).to(torch.int32)


def uses_product_tile(points: Tensor) -> bool:
    """Whether weights of pairs are multiplied with these points by ``add_product``.

    PyTorch's own serves where it has the wanted precision, whatever its settings: bfloat16 on NVIDIA.
    """
    on_nvidia = points.device.type == "cuda" and torch.version.hip is None
    return not (on_nvidia and points.dtype == torch.bfloat16)


def _precision(p: Problem) -> str:
    """Of the products of float32 points; those of narrower ones are exact."""
    if p.x.points.dtype != torch.float32 or torch.version.hip is not None:
        return "ieee"
    if p.precision is not None:
        return p.precision
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _own_norms(x: PointScalars, y: PointScalars, form: _Form) -> tuple[Tensor, Tensor]:
    """What the sums of own terms are still to be divided by."""
    x_norm, y_norm = x.A, y.A
    if form.formula == device.ANGLE_AT_X.value:
        x_norm = x.P * x.P
    if form.formula == device.ANGLE_AT_Y.value:
        y_norm = y.P * y.P
    return x_norm.squeeze(1), y_norm.squeeze(1)


def aot_variants() -> Iterator[Variant]:
    """Every tile of every plan, with the dtype and the similarity that need the most registers in it."""
    for target in TARGETS:
        for dtype in (torch.bfloat16, torch.float32):
            for similarity in ("dist", "angle"):
                wanted = ["log_sums", "log_sums,separate", "pair_weights"]
                if similarity == "dist":
                    wanted += ["add_product"] if dtype == torch.float32 else ["merge_log_sums"]
                yield from _variants(target, dtype, similarity, wanted)
    yield from _variants("sm_80", torch.float16, "dist", ["add_product"])
    for target in ("sm_90", "gfx942"):
        yield from _variants(target, torch.float16, "dist", ["pair_weights", "add_product"])


def _variants(target: str, dtype: torch.dtype, similarity: str, wanted: Sequence[str]) -> Iterator[Variant]:
    found = {}
    for launched in _recorded(target, dtype, similarity):
        separate = "" if launched.constexprs.get("SHARED", True) else ",separate"
        found[launched.kernel.__name__ + separate] = launched
    for kernel in wanted:
        constants = found[kernel].constexprs
        yield found[kernel].variant(
            f"contrastive.{kernel}[{str(dtype)[6:]},{similarity},{target}]",
            targets=(target,),
            expect_mma="BLOCK_K" in constants,
            units=constants.get("ITEMS") or constants["BLOCK_M"] * constants["BLOCK_N"],
        )


def _recorded(target: str, dtype: torch.dtype, similarity: str) -> list[Any]:
    """The launches of a forward and a backward pass."""
    from hypkernels.tritonlib.recording import recorded_launches

    points = torch.empty((_RECORDED_POINTS, _RECORDED_WIDTH), dtype=dtype, device="meta")
    rows = torch.empty(_RECORDED_POINTS, dtype=torch.float64, device="meta")
    precision = "ieee" if target == "gfx942" else "tf32x3"
    p = Problem(*problem.sides(points, points, rows[0]), rows[0], rows, rows.long(), precision)
    pairs = _Pairs(p, plan_for(target, dtype, similarity))
    matrix, form = logit_matrices(similarity, True)[-1], _FORMS[similarity][-1]
    by_row = (rows, rows) if matrix.rows else None
    with recorded_launches() as launches:
        pairs.log_sums(matrix, form)
        _Negatives(pairs).add(SoftmaxGradient(by_row, (rows, rows), rows), matrix.gap, form)
    return launches
