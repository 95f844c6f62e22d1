"""The contrastive loss on a GPU: Triton kernels compute what needs all pairs, tile by tile.

The forward pass reduces every tile of logits to log-sum-exps of its rows and columns. The backward pass
computes the logits again, a block at a time, stores the negatives' gradient by the inner product of each pair
in a workspace of bounded size, and multiplies it with the points: four products of matrices in all,
eight where the softmaxes of rows and columns are of different logits. All sums are in a fixed order.

Logits are float32. With ``P`` and ``Q`` the largest ``sqrt(c)|x|`` and ``sqrt(c)|y|``, losses and gradients
are right, to float32's rounding of logits, where all of this holds; elsewhere all of them are NaN:

- ``(1 + P)(1 + Q) <= 4e18``, both up to 2e9 or one up to 1e18: "dist", "sqdist" and "inner". Of an angle
  ``(1 + P)(1 + Q) max(P, Q) <= 1e36``, both up to 1e12 or one up to 1e18.
- The largest of all norms is 0 or at least 1e-30 (bfloat16: 1e-15): "dist", "sqdist" and angles. Smaller
  points are allowed beside it, but beside points at 1 two points that are both within 1e-18 of the
  origin coincide.
- No logit is beyond 1e9. Logits are rounded to float32: where several share the weight of a softmax,
  gradients are off by ``2^-22`` of the largest logit. Every logit of "inner" contains ``1/c``: points
  near the origin differ by what rounding leaves beside it.
- The largest logit scale, times ``1/sqrt(c)`` for "dist" and ``1/c`` for "sqdist" and "inner", is 0 or at
  least 1e-34, and in float32. Where ``P`` and ``Q`` are below 5e-7, that times ``max(P, Q) / 1e-6`` for
  "dist", and times the square of it for "sqdist", is 0 or at least 1e-34 too.

On a CPU, numbers beyond the range of float32 are computed in float64
(:mod:`hypkernels.contrastive.strips`). On a GPU that decision would have to wait for numbers on the
device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from hypkernels.contrastive import pair_kernels as device
from hypkernels.contrastive import point_kernels, problem
from hypkernels.contrastive.point_kernels import RowGap, is_centred, summaries
from hypkernels.contrastive.problem import Embeddings, Gradients, Problem, Side, SoftmaxGradient, Statistics
from hypkernels.contrastive.similarity import SIMILARITIES, Gap, Logits, logit_matrices
from hypkernels.tritonlib import pair_gaps, pair_tiles, tile_plan
from hypkernels.tritonlib.launch import MAX_HELD_WIDTH, allocate
from hypkernels.tritonlib.manifest import TARGETS, Variant
from hypkernels.tritonlib.pair_sums import add_tiles
from hypkernels.tritonlib.products import RESOLUTION, launch_product, operand, precision_of
from hypkernels.tritonlib.tile_plan import INTERPRETED, Block, Plan, Tile, default_plan, plan_for

_LN2 = math.log(2)
# What is compiled ahead of time.
_RECORDED_POINTS, _RECORDED_WIDTH = 4096, 768
_POINT_KERNELS = (
    "mean_direction",
    "products_with_centres",
    "centre",
    "nearest_tf32",
    "frame",
    "scalars",
    "sum_tiles",
    "subtract_own_terms",
    "pair_forward",
    "pair_backward",
)
# The least value of the largest norm: gradients are float32 sums of weighted points; of points that are
# not centred, logits are made of float32 products.
_LEAST_NORM, _LEAST_NORM_OF_PRODUCTS = 1e-30, 1e-15
# Items and tiles that are merged at a time.
_MERGED_ITEMS, _MERGED_TILES = 128, 16
# Sums over the pairs of each row and of each column in the backward pass, see :class:`_Sums`.
_ROW_SUMS, _COLUMN_SUMS = 3, 1
# Bytes of the partial sums of a tile's row or column: a largest logit and a sum; or one of the above.
_LOG_SUM_BYTES, _SUM_BYTES = 8, 4


class _Form(NamedTuple):
    """A matrix of logits as the kernels know it: its formula's number, and what one unit of its gap is."""

    formula: int
    of_rows: RowGap
    unit: float = 1.0

    @property
    def launches(self) -> tuple[bool, ...]:
        """``NEAR`` of the kernels: a distance has another formula where all points are near each other."""
        return (False, True) if self.of_distance else (False,)

    @property
    def of_distance(self) -> bool:
        return self.formula <= pair_gaps.SQDIST.value

    @property
    def at_x(self) -> bool:
        return self.formula == pair_gaps.ANGLE_AT_X.value

    @property
    def at_y(self) -> bool:
        return self.formula == pair_gaps.ANGLE_AT_Y.value


_FORMS = {
    "dist": (_Form(pair_gaps.DIST.value, point_kernels.DIST, _LN2),),
    "sqdist": (_Form(pair_gaps.SQDIST.value, point_kernels.SQUARED_DIST, _LN2**2),),
    "inner": (_Form(pair_gaps.INNER.value, point_kernels.NEGATIVE_INNER),),
    "angle": (
        _Form(pair_gaps.ANGLE_AT_X.value, point_kernels.ANGLE),
        _Form(pair_gaps.ANGLE_AT_Y.value, point_kernels.ANGLE),
    ),
}


def forward(
    p: Problem, similarity: str, symmetric: bool, *, plan: Plan | None = None
) -> tuple[Tensor, Statistics]:
    """Loss of each row, float64, and the statistics for :func:`backward`."""
    negatives = log_sums_of_negatives(p, similarity, symmetric, plan=plan)
    saved = Statistics(positive_gaps(p, similarity, symmetric), *negatives)
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
    softmaxes = problem.softmax_gradients(grad, p, saved, similarity, symmetric)
    total = gradients_of_negatives(p, softmaxes, similarity, symmetric, plan=plan)
    add_positives(total, p, softmaxes, saved, similarity, symmetric)
    return total


def in_range(p: Problem, similarity: str) -> Problem:
    """The problem as it is: beyond the range of the kernels the results are NaN."""
    return p


def log_sums_of_negatives(
    p: Problem, similarity: str, symmetric: bool, *, plan: Plan | None = None
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over the negatives of each row and column, float64; empty for unused columns."""
    pairs = _Pairs(p, similarity, plan or default_plan(p.x.points, similarity))
    rows = columns = p.scale.new_empty(0)
    for matrix, form in _matrices(p, similarity, symmetric):
        by_row, by_column = pairs.log_sums(matrix, form)
        rows = by_row if matrix.rows else rows
        columns = by_column if matrix.columns else columns
    return rows, columns


def gradients_of_negatives(
    p: Problem,
    softmaxes: Sequence[SoftmaxGradient],
    similarity: str,
    symmetric: bool,
    *,
    plan: Plan | None = None,
) -> Gradients:
    """The gradients through the negatives, given the gradient by each matrix of logits."""
    negatives = _Negatives(_Pairs(p, similarity, plan or default_plan(p.x.points, similarity)))
    matrices = _matrices(p, similarity, symmetric)
    for (matrix, form), softmax in zip(matrices, softmaxes, strict=True):
        negatives.add(softmax, matrix.gap, form)
    return negatives.gradients()


def positive_gaps(p: Problem, similarity: str, symmetric: bool) -> Tensor:
    """The gap of each row to its target, for each matrix of logits, in units of ``gap.of_pairs``."""
    matrices = _matrices(p, similarity, symmetric)
    return torch.stack([_positive_gaps(p, form) / p.unit(matrix.gap.of_pairs) for matrix, form in matrices])


def add_positives(
    total: Gradients,
    p: Problem,
    softmaxes: Sequence[SoftmaxGradient],
    saved: Statistics,
    similarity: str,
    symmetric: bool,
) -> None:
    """Add the positives' part to that of the negatives, in place."""
    matrices = _matrices(p, similarity, symmetric)
    for (matrix, form), softmax, gaps in zip(matrices, softmaxes, saved.positives, strict=True):
        total.scale.sub_(softmax.by_positive * gaps * p.unit(matrix.gap.of_pairs))
        _add_positives(total, -softmax.by_positive * p.scale, p, form)


def _matrices(p: Problem, similarity: str, symmetric: bool) -> list[tuple[Logits, _Form]]:
    return list(zip(logit_matrices(similarity, symmetric), _FORMS[similarity], strict=False))


def _positive_gaps(p: Problem, form: _Form) -> Tensor:
    gaps = [p.c.new_empty(0)]
    for _, x, y in p.rows_and_targets(in_chunks=p.targets is not None):
        apex, other = (y, x) if form.at_y else (x, y)
        gaps.append(point_kernels.gap_of_rows(form.of_rows, apex, other, p.c))
    return torch.cat(gaps)


def _add_positives(total: Gradients, by_gap: Tensor, p: Problem, form: _Form) -> None:
    """Add the positives' exact gradients, given the gradient of the loss by their gaps."""
    for rows, x, y in p.rows_and_targets(in_chunks=p.targets is not None):
        by_x = None if total.x is None else total.x[rows]
        by_y = None if total.y is None else _sum_by_target(p, total.y, rows)
        points, sums = ([y, x], [by_y, by_x]) if form.at_y else ([x, y], [by_x, by_y])
        by_curv = point_kernels.add_gradients_of_rows(form.of_rows, by_gap[rows], points, sums, p.c)
        total.curv.add_(by_curv)
        if p.targets is not None and total.y is not None and by_y is not None:
            p.add_at_targets(total.y, by_y, rows)


def _sum_by_target(p: Problem, total: Tensor, rows: slice) -> Tensor:
    """Sums for rows' targets: in ``total`` itself if no two rows share one, else for the caller to add."""
    if p.targets is None:
        return p.at_targets(total, rows)
    return total.new_zeros(len(p.targets[rows]), total.shape[1])


class _Tables(NamedTuple):
    """Tables of rows and of columns, see :func:`~hypkernels.contrastive.point_kernels.table`."""

    rows: Tensor
    columns: Tensor


class _Pairs:
    """A problem as kernels take it: logits are made of ``u, v``, weights are multiplied with ``x, y``."""

    def __init__(self, p: Problem, similarity: str, plan: Plan) -> None:
        self.problem = p
        self.plan = plan
        self.precision = precision_of(p.x.points, p.precision)
        self.resolution = RESOLUTION[self.precision]
        self.x, self.y = (operand(side.points, self.precision) for side in (p.x, p.y))
        self.centred = is_centred(p.x.points)
        gap = logit_matrices(similarity, True)[0].gap  # all have the same unit
        # In float32 inner products of points near the origin are 1/c: there are no digits to protect.
        least = 0.0 if similarity == "inner" else _LEAST_NORM if self.centred else _LEAST_NORM_OF_PRODUCTS
        self.units = point_kernels.frame_of(
            [_largest(side.square) for side in (p.x, p.y)],
            _largest(p.logits_per_unit(gap)),
            p.c,
            curv_power=gap.of_pairs.curv_power,
            least_norm=least,
        )
        self.sides = [_at_curvature(side, self.units.c) for side in (p.x, p.y)]
        self.u, self.v = self.x, self.y
        if self.centred:
            self.u, self.v = (point_kernels.centred_points(side, self.precision) for side in self.sides)
        self.targets = None if p.targets is None else p.targets.to(torch.int32)
        self.c = self.units.c.float()

    def blocks(self, tile: Tile, pair_bytes: float) -> list[Block]:
        return tile_plan.blocks(len(self.x), len(self.y), tile, pair_bytes, self.plan.workspace_bytes)

    def log_sums(self, matrix: Logits, form: _Form) -> tuple[Tensor, Tensor]:
        """Log-sum-exp over negatives of each row and each column, float64; undefined where not wanted."""
        tables = self.tables(matrix.gap, form)
        tile, other = self.plan.forward, self.plan.separate
        tile = tile._replace(rows=max(tile.rows, other.rows), columns=max(tile.columns, other.columns))
        blocks = self.blocks(tile, _LOG_SUM_BYTES * (1 / tile.columns + 1 / tile.rows))
        if len(blocks) == 1:
            return self._log_sums(blocks[0], tables, matrix, form)
        rows = self.problem.scale.new_full((len(self.x),), -math.inf)
        columns = rows.new_full((len(self.y),), -math.inf)
        for block in blocks:
            by_row, by_column = self._log_sums(block, tables, matrix, form)
            if matrix.rows:
                rows[block.rows] = torch.logaddexp(rows[block.rows], by_row)
            if matrix.columns:
                columns[block.columns] = torch.logaddexp(columns[block.columns], by_column)
        return rows, columns

    def _log_sums(self, block: Block, tables: _Tables, matrix: Logits, form: _Form) -> tuple[Tensor, Tensor]:
        """Relative to one reference a run of tiles, or to each row's own if the device finds that unsafe."""
        sums = [allocate(self.x, (n,), torch.float64) for n in (block.height, block.width)]
        unsafe = torch.zeros((), dtype=torch.int32, device=self.x.device)
        logits = device.Logits(form.formula, self.centred, matrix.rows, matrix.columns)
        tile = self.plan.forward
        run = tile_plan.run_of_tiles(tile, block)
        parts = [row_sums(tile, block, 2, self.x), column_sums(tile, block, 2, self.x, run)]
        for near in form.launches:
            self.launch(
                device.log_sums,
                tile,
                block,
                tables,
                logits._replace(near=near),
                device.LogSums(*parts[0], *parts[1]),
                run=run,
            )
        self._merge(parts, sums, unsafe, block, matrix, shared=True)

        tile = self.plan.separate
        parts = [row_sums(tile, block, 2, self.x), column_sums(tile, block, 2, self.x)]
        self.launch(
            device.separate_log_sums,
            tile,
            block,
            tables,
            logits,
            device.LogSums(*parts[0], *parts[1]),
            UNSAFE=unsafe,
        )
        self._merge(parts, sums, unsafe, block, matrix, shared=False)
        return sums[0], sums[1]

    def _merge(
        self,
        parts: Sequence[Tensor],
        sums: Sequence[Tensor],
        unsafe: Tensor,
        block: Block,
        matrix: Logits,
        *,
        shared: bool,
    ) -> None:
        if matrix.rows:
            _merge_log_sums(parts[0], sums[0], unsafe, block.width, shared)
        if matrix.columns:
            _merge_log_sums(parts[1], sums[1], unsafe, block.height, shared)

    def tables(self, gap: Gap, form: _Form, softmax: SoftmaxGradient | None = None) -> _Tables:
        p = self.problem
        x, y = self.sides
        common: dict[str, Any] = {
            "resolution": self.resolution,
            "formula": form.formula,
            "units": self.units,
        }
        return _Tables(
            point_kernels.table(
                x,
                per_unit=p.logits_per_unit(gap).double(),
                unit=form.unit,
                softmax=softmax and softmax.rows,
                **common,
            ),
            point_kernels.table(y, softmax=softmax and softmax.columns, **common),
        )

    def launch(
        self,
        kernel: Any,
        tile: Tile,
        block: Block,
        tables: _Tables,
        logits: device.Logits,
        results: NamedTuple,
        **others: Any,
    ) -> None:
        """A program for each tile, or for each ``run`` of tiles."""
        chunk = pair_tiles.CHUNK.value
        if tile.rows % chunk or tile.columns % chunk:
            raise ValueError(f"rows and columns of a tile must be multiples of {chunk}, got {tile}")
        height = tile.rows * others.get("run", 1)
        programs = triton.cdiv(block.height, height) * triton.cdiv(block.width, tile.columns)
        operands = self._operands(block, tables)
        first_row = block.rows.start if self.targets is None else 0
        with torch.cuda.device_of(self.u):
            kernel[(programs,)](
                operands,
                results,
                M=block.height,
                N=block.width,
                offset=first_row - block.columns.start,
                LOGITS=logits,
                ARITHMETIC=device.Arithmetic(
                    self.u.shape[1], self.precision, INTERPRETED, self.plan.inline_ptx
                ),
                TILE=tile._replace(kept_rows=tile.kept),
                num_warps=tile.warps,
                num_stages=tile.stages,
                enable_fp_fusion=True,  # no longer the default of Triton 3.10
                **others,
            )

    def _operands(self, block: Block, tables: _Tables) -> device.Operands:
        u, v = self.u[block.rows], self.v[block.columns]
        chunk = pair_tiles.CHUNK.value
        return device.Operands(
            X=u,
            Y=v,
            x_stride=u.stride(0),
            y_stride=v.stride(0),
            ROWS=tables.rows[block.rows.start // chunk :],
            COLUMNS=tables.columns[block.columns.start // chunk :],
            TARGETS=None if self.targets is None else self.targets[block.rows],
            C=self.c,
            X_EXTENT=self.units.extents[0],
            Y_EXTENT=self.units.extents[1],
        )


class _Sums(NamedTuple):
    """Sums of the backward pass over the pairs of one matrix of logits, float64.

    ``rows (3, M)``: for each row the sums of own terms (weights of the point itself), of gradients by
    logits times gaps, and of the gradient by the curvature. ``columns (1, N)``: for each column the own
    terms.
    """

    rows: Tensor
    columns: Tensor
    form: _Form


class _Negatives:
    """Gradients by the negatives' logits, summed over blocks of pairs and over matrices of logits.

    With ``G`` the gradient by the inner product of each pair, divided by ``c``, those by the points are
    ``c (G y - own_x x)`` and ``c (G^T x - own_y y)``.
    """

    def __init__(self, pairs: _Pairs) -> None:
        p = pairs.problem
        self.pairs = pairs
        self.sums: list[_Sums] = []
        self.total = Gradients(
            p.c.new_zeros(pairs.x.shape, dtype=torch.float32) if p.learns.x else None,
            p.c.new_zeros(pairs.y.shape, dtype=torch.float32) if p.learns.y else None,
            p.c.new_zeros(()),
            p.c.new_zeros(len(pairs.x)),
        )
        # Gradients leave the range of float16. float16 points are exact in tf32, which not all GPUs
        # have.
        self.dtype = torch.bfloat16 if pairs.x.dtype == torch.bfloat16 else torch.float32
        in_tf32 = pairs.x.dtype == torch.float16 and torch.version.hip is None
        self.precision = "tf32" if in_tf32 else pairs.precision

    def add(self, softmax: SoftmaxGradient, gap: Gap, form: _Form) -> None:
        p, tile = self.pairs.problem, self.pairs.plan.backward
        tables = self.pairs.tables(gap, form, softmax)
        sums = _Sums(
            p.c.new_zeros(_ROW_SUMS, len(self.pairs.x)), p.c.new_zeros(_COLUMN_SUMS, len(self.pairs.y)), form
        )
        sum_bytes = _SUM_BYTES * (_ROW_SUMS / tile.columns + _COLUMN_SUMS / tile.rows)
        blocks = self.pairs.blocks(tile, self.dtype.itemsize + sum_bytes)
        workspace = self._workspace(tile, blocks)
        for block in blocks:
            self._add_sums(sums, block, workspace, tables, softmax)
            self._add_products(workspace[: block.height, : block.width], block)
        self.sums.append(sums)
        _, gaps, curv = sums.rows
        self.total.scale.sub_(gaps * (form.unit * self.pairs.units.gap_unit))
        self.total.curv.add_(curv.sum() * self.pairs.units.curv_unit)

    def _add_sums(
        self, sums: _Sums, block: Block, workspace: Tensor, tables: _Tables, softmax: SoftmaxGradient
    ) -> None:
        tile = self.pairs.plan.backward
        by_row = row_sums(tile, block, _ROW_SUMS, workspace)
        by_column = column_sums(tile, block, _COLUMN_SUMS, workspace)
        own_x, gaps, curv = by_row
        form = sums.form
        by_softmax = softmax.rows is not None, softmax.columns is not None
        logits = device.Logits(form.formula, self.pairs.centred, *by_softmax)
        round_tf32 = self.dtype == torch.float32 and self.precision == "tf32"
        for near in form.launches:
            self.pairs.launch(
                device.pair_weights,
                tile,
                block,
                tables,
                logits._replace(near=near),
                device.Weights(workspace, workspace.stride(0), own_x, by_column[0], gaps, curv),
                SLOPES=device.Slopes(_LN2 / form.unit, self.pairs.resolution, round_tf32),
            )
        add_tiles(by_row, sums.rows[:, block.rows])
        add_tiles(by_column, sums.columns[:, block.columns])

    def _workspace(self, tile: Tile, blocks: list[Block]) -> Tensor:
        """Memory for the largest block, in whole tiles: kernels store weights without a mask."""
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
        launch_product(out[None], a[None], b[None], self.pairs.plan.product, self.precision)

    def gradients(self) -> Gradients:
        own_x = {sums.form.at_x: sums.rows[0] for sums in self.sums}
        own_y = {sums.form.at_y: sums.columns[0] for sums in self.sums}
        totals = (self.total.x, self.total.y)
        for total, side, own in zip(totals, self.pairs.sides, (own_x, own_y), strict=True):
            if total is not None:
                point_kernels.finish_gradient(
                    total, side, self.pairs.units.weight_unit, by_height=own.get(False), by_norm=own.get(True)
                )
        return self.total


def _largest(numbers: Tensor) -> Tensor:
    """The largest of the numbers, 0 if there are none."""
    return numbers.amax() if numbers.numel() else numbers.new_zeros(())


def _at_curvature(side: Side, c: Tensor) -> Side:
    return side._replace(embeddings=Embeddings([side.points], c, [side.centre]))


def row_sums(tile: Tile, block: Block, count: int, like: Tensor) -> Tensor:
    """Memory for partial sums of rows: one line for each column of tiles."""
    tiles = triton.cdiv(block.width, tile.columns)
    return allocate(like, (count, tiles, block.height), torch.float32)


def column_sums(tile: Tile, block: Block, count: int, like: Tensor, run: int = 1) -> Tensor:
    """Memory for partial sums of columns: one line for each ``run`` of rows of tiles."""
    runs = triton.cdiv(triton.cdiv(block.height, tile.rows), run)
    return allocate(like, (count, runs, block.width), torch.float32)


def _merge_log_sums(parts: Tensor, out: Tensor, unsafe: Tensor, terms: int, shared: bool) -> None:
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


def uses_product_tile(points: Tensor) -> bool:
    """Whether weights of pairs are multiplied with these points by ``add_product``.

    For bfloat16 on NVIDIA they are not: there PyTorch's product has float32 results under every setting.
    """
    on_nvidia = points.device.type == "cuda" and torch.version.hip is None
    return not (on_nvidia and points.dtype == torch.bfloat16)


def aot_variants() -> Iterator[Variant]:
    """Every tile of every plan; for weights that take the most registers, every similarity."""
    for target in TARGETS:
        for dtype in (torch.bfloat16, torch.float32):
            for similarity in SIMILARITIES:
                wanted = ["pair_weights"]
                if similarity in ("dist", "angle"):
                    wanted += ["log_sums", "log_sums,separate"]
                if similarity in ("dist", "sqdist"):
                    wanted += ["pair_weights,near"]
                if similarity == "dist":
                    wanted += ["log_sums,near"]
                    wanted += ["add_product"] if dtype == torch.float32 else ["merge_log_sums"]
                yield from _variants(target, dtype, similarity, wanted)
    for target in ("sm_80", "sm_120"):
        yield from _variants(target, torch.float16, "dist", ["add_product"])
    for target in ("sm_90", "gfx942"):
        yield from _variants(target, torch.float16, "dist", ["pair_weights", "add_product"])
    for width in (_RECORDED_WIDTH, 2 * MAX_HELD_WIDTH):
        yield from _point_variants(width)


def _variants(target: str, dtype: torch.dtype, similarity: str, wanted: Sequence[str]) -> Iterator[Variant]:
    found: dict[str, Any] = {}
    plan, precision = plan_for(target, dtype, similarity), "ieee" if target == "gfx942" else "tf32x3"
    for launched in _recorded(plan, dtype, similarity, precision):
        found.setdefault(_name(launched), launched)
    for kernel in wanted:
        constants = found[kernel].constexprs
        yield found[kernel].variant(
            f"contrastive.{kernel}[{str(dtype)[6:]},{similarity},{target}]",
            targets=(target,),
            expect_mma="ARITHMETIC" in constants or "BLOCK_K" in constants,
            units=_units(constants),
        )


def _units(constants: Mapping[str, Any]) -> int:
    if "TILE" in constants:
        return constants["TILE"].rows * constants["TILE"].columns
    return constants.get("ITEMS") or constants["BLOCK_M"] * constants["BLOCK_N"]


def _name(launched: Any) -> str:
    name = launched.kernel.__name__.replace("separate_log_sums", "log_sums,separate")
    logits = launched.constexprs.get("LOGITS")
    return f"{name},near" if logits and logits.near else name


def _point_variants(width: int) -> Iterator[Variant]:
    """The kernels of single points, which are the same for all targets."""
    plan = plan_for("sm_90", torch.float32, "dist")
    found = {one.kernel.__name__: one for one in _recorded(plan, torch.float32, "dist", "tf32", width)}
    for kernel in _POINT_KERNELS:
        constants = found[kernel].constexprs
        of_scalars = "ITEMS" in constants
        yield found[kernel].variant(
            f"contrastive.{kernel}[float32,D={width}]",
            units=constants["ITEMS"] if of_scalars else constants["ROWS"] * min(width, constants["BLOCK_D"]),
            input_tiles=() if of_scalars else None,
        )


def _recorded(
    plan: Plan,
    dtype: torch.dtype,
    similarity: str,
    precision: str,
    width: int = _RECORDED_WIDTH,
) -> list[Any]:
    """The launches of a forward and a backward pass."""
    from hypkernels.tritonlib.recording import recorded_launches

    points = torch.empty((_RECORDED_POINTS, width), dtype=dtype, device="meta")
    scale = torch.empty(_RECORDED_POINTS, dtype=torch.float64, device="meta")
    with recorded_launches() as launches:
        embeddings = Embeddings([points, points], scale[0], summaries([points, points]))
        p = Problem(*embeddings.sides(0, 1), scale[0], scale, None, precision)
        losses, saved = forward(p, similarity, True, plan=plan)
        backward(losses, p, saved, similarity, True, plan=plan)
    return launches
