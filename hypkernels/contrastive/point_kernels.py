"""Triton kernels of the contrastive loss for numbers per point, and their launchers.

Rows of points are read as in :mod:`hypkernels.tritonlib.rows`: in float64, once or twice, however many
numbers are computed from them. Names are those of :mod:`hypkernels.contrastive.problem`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypkernels.cone.kernel import angle, angle_gradient
from hypkernels.contrastive.problem import Side, sample_of
from hypkernels.distance.kernel import dist, dist_gradient, inner, inner_gradient
from hypkernels.tritonlib import pair_gaps as gaps
from hypkernels.tritonlib import pair_tiles as lines
from hypkernels.tritonlib.launch import allocate, launch_rows
from hypkernels.tritonlib.pair_geometry import ratio
from hypkernels.tritonlib.pair_sums import subtract_own
from hypkernels.tritonlib.pair_tiles import round_to_tf32
from hypkernels.tritonlib.row_kernels import add_gradients, launch_forward, pair_forward
from hypkernels.tritonlib.rows import (
    RowTile,
    columns_from,
    dot,
    input_rows,
    load,
    load_scalar,
    load_scalars,
    output_rows,
    row_kernel,
    row_tile,
)

_LN2 = tl.constexpr(0.6931471805599453)
# Stands for the largest norm if all points are the origin.
_TINY = tl.constexpr(1e-37)
# ``(1 + P)(1 + Q)`` beyond which the square of ``z`` leaves float32; for angles times the larger of the two.
_FARTHEST, _FARTHEST_OF_ANGLE = tl.constexpr(4e18), tl.constexpr(1e36)
# Beyond this a logit's rounding is larger than what the exponentials can correct.
_LARGEST_LOGIT = tl.constexpr(1e9)
# Below this the largest logit of one unit of the gap loses digits in float32.
_LEAST_RATE = tl.constexpr(1e-34)
# Up to this ``k|x|`` the geometry is flat to 1e-12, except for the terms of the curvature, which scale.
_FLAT = tl.constexpr(1e-6)
_NUMBERS_OF_FRAME = 8
# Points whose scalars one program computes.
_ITEMS = 256
# Rows and columns of a tile of the kernels whose programs compute parts of rows.
_ROWS, _COLUMNS = 16, 256


@triton.jit(do_not_specialize=["count"])
def mean_direction(X, stride, OUT, count, D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """The mean direction of the finite ones of ``count`` rows; a program takes a block of columns."""
    index = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_D], tl.float64)
    present = 0.0
    for first in range(0, count, ROWS):
        row = first + tl.arange(0, ROWS)
        tile = RowTile(row, row, row, row < count)
        x = X + (row.to(tl.int64) * stride)[:, None]
        norm = tl.sqrt(dot(x, x, tile, D, BLOCK_D))
        counts = tile.live & (norm > 0.0) & (norm < float("inf"))
        part = tl.load(x + index[None, :], mask=counts[:, None] & (index < D)[None, :], other=0.0)
        total += tl.sum(part.to(tl.float64) / tl.where(counts, norm, 1.0)[:, None], 0)
        present += tl.sum(tl.where(counts, 1.0, 0.0), 0)
    mean = (total / tl.maximum(present, 1.0)).to(tl.float32)
    tl.store(OUT + index, mean.to(tl.float64), mask=index < D)


@row_kernel
def products_with_centres(
    X,
    x_outer,
    x_inner,
    CENTRES,
    OUT,
    outer_size,
    inner_size,
    SETS: tl.constexpr,
    COLUMNS: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Of each point ``|x|^2`` and its products with the first ``SETS`` centres: ``(points, COLUMNS)``."""
    tile = row_tile(outer_size, inner_size, ROWS)
    x = input_rows(X, x_outer, x_inner, tile)
    products = (dot(x, x, tile, D, BLOCK_D),)
    for index in tl.static_range(SETS):
        centre = CENTRES + index * D + (tile.inner * 0)[:, None]
        products += (dot(x, centre, tile, D, BLOCK_D),)  # type: ignore[assignment]
    for index in tl.static_range(1 + SETS):
        tl.store(OUT + tile.number * COLUMNS + index, products[index], mask=tile.live)


@row_kernel
def centre(
    X,
    x_outer,
    x_inner,
    SQUARE,
    square_outer,
    square_inner,
    CENTRE,
    C,
    OUT,
    outer_size,
    inner_size,
    ROUND_TF32: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``k x - P o``, with the side's own centre ``o``."""
    tile = row_tile(outer_size, inner_size, ROWS)
    x, out = input_rows(X, x_outer, x_inner, tile), output_rows(OUT, tile, D)
    k = tl.sqrt(load_scalar(C))
    P = k * tl.sqrt(load_scalars(SQUARE, square_outer, square_inner, tile))
    for start in range(0, D, BLOCK_D):
        columns = columns_from(start, tile, D, BLOCK_D)
        o = tl.load(CENTRE + columns.index, mask=columns.index < D, other=0.0)
        centred = (k * load(x, columns) - P[:, None] * o).to(tl.float32)
        if ROUND_TF32:
            centred = round_to_tf32(centred)
        tl.store(out + columns.index, centred, mask=columns.mask)


@triton.jit(do_not_specialize=["items"])
def scalars(
    SQUARE,
    ALONG,
    stride,
    CENTRE,
    OTHER_CENTRE,
    C,
    X_EXTENT,
    Y_EXTENT,
    LARGEST_RATE,
    PER_RATE,
    WEIGHT_UNIT,
    TOTALS,
    WEIGHTS,
    PER_UNIT,
    OUT,
    items,
    FORMULA: tl.constexpr,
    UNIT_BITS: tl.constexpr,
    RESOLUTION: tl.constexpr,
    CENTRED: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ITEMS: tl.constexpr,
):
    """The lines of a table of :mod:`~hypkernels.tritonlib.pair_tiles` for which there are arguments.

    Past the end the last point is repeated, as far as any tile reaches. Everything is NaN where these
    points and rates are :func:`_out_of_range`. ``PER_RATE`` and ``WEIGHT_UNIT`` are factors of
    ``PER_UNIT`` and of the weights.
    """
    item = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)
    known = tl.minimum(item, items - 1)
    row = known.to(tl.int64) * stride
    k = tl.sqrt(tl.load(C))
    P = k * tl.sqrt(tl.load(SQUARE + row))
    if LARGEST_RATE is not None:
        largest = tl.load(LARGEST_RATE)
        P = tl.where(_out_of_range(tl.load(X_EXTENT), tl.load(Y_EXTENT), largest, FORMULA), float("nan"), P)
    A = tl.sqrt(1.0 + P * P)
    height = P * P / (1.0 + A)
    steepest = RESOLUTION * P * P + _TINY
    at = OUT + lines.place(item)
    _store_line(at, lines.HEIGHT, height)
    _store_line(at, lines.ROOT, 1.0 / tl.sqrt(A))
    _store_line(at, lines.LEVER, height / tl.sqrt(A))
    _store_line(at, lines.STEEPEST, A / tl.sqrt(steepest * (steepest + 2.0)))
    _store_line(at, lines.NORM, P)
    _store_line(at, lines.GROWTH, height + P)
    _store_line(at, lines.SHRINK, 1.0 / tl.sqrt(A + P))
    if CENTRED:
        overlap = _overlap(CENTRE, OTHER_CENTRE, D, BLOCK_D)
        cosine = ratio(k * tl.load(ALONG + row), P)
        _store_line(at, lines.TILT, P * (0.5 * (1.0 + overlap) - cosine))
    if TOTALS is not None:
        bits = tl.load(TOTALS + known) / _LN2
        rounded = bits.to(tl.float32).to(tl.float64)
        weights = tl.load(WEIGHTS + known)
        if LARGEST_RATE is not None:
            weights *= tl.load(WEIGHT_UNIT)
        _store_line(at, lines.TOTAL, rounded)
        # What the total loses by rounding goes into the weight: it would be one error for a whole row or
        # column.
        _store_line(at, lines.WEIGHT, weights * tl.exp2(rounded - bits))
    if PER_UNIT is not None:
        per_unit = tl.load(PER_UNIT + known)
        if LARGEST_RATE is not None:
            per_unit *= tl.load(PER_RATE)
        _store_line(at, lines.RATE, per_unit * UNIT_BITS)


@triton.jit
def frame(
    X_SQUARE,
    Y_SQUARE,
    LARGEST,
    C,
    OUT,
    POWER: tl.constexpr,
    LEAST_NORM: tl.constexpr,
    ITEMS: tl.constexpr,
):
    """The ``ITEMS`` numbers of a :class:`Frame`, of gaps with a unit of ``c**(-POWER / 2)``.

    Near the origin the geometry is flat to 1e-12. There gaps and their derivatives, also those by the
    curvature, are the same at a larger curvature, at which powers of ``k|x|`` stay in float32. The
    factor is a power of two. It is 1 if a point is not near the origin, if all are the origin, or if
    ``LEAST_NORM`` is 0. If the larger norm is below ``LEAST_NORM`` and not 0, the extents are infinite:
    the results are NaN.
    """
    x_norm, y_norm = tl.sqrt(tl.load(X_SQUARE)), tl.sqrt(tl.load(Y_SQUARE))
    c = tl.load(C)
    norm = tl.maximum(x_norm, y_norm)
    farthest = tl.sqrt(c) * norm
    exponent, lost = c * 0.0, c * 0.0
    flat = (farthest > 0.0) & (farthest < _FLAT)
    if LEAST_NORM > 0.0:
        exponent = tl.where(flat, tl.floor(tl.log2(1.0 / tl.where(flat, farthest, 1.0) * _FLAT)), 0.0)
        lost = tl.where((norm > 0.0) & (norm < LEAST_NORM), float("inf"), 0.0)
    per_rate = tl.exp2(exponent * -POWER)
    rate = tl.load(LARGEST).to(tl.float64) * per_rate
    # Gradients of stretched points would leave float32 before they are multiplied with the curvature.
    scaled = (exponent > 0.0) & (rate > 0.0)
    weight = tl.floor(tl.log2(tl.where(scaled, rate, 1.0)) + 0.5)
    weight_unit = tl.exp2(-tl.minimum(tl.maximum(weight, -100.0), 100.0))
    unit = tl.exp2(exponent * 0.0)
    if POWER == 1:
        unit = 1.0 / tl.sqrt(c)
    if POWER == 2:
        unit = 1.0 / c
    c *= tl.exp2(2.0 * exponent)
    k = tl.sqrt(c)
    tl.store(OUT, c)
    tl.store(OUT + 1, k * x_norm + lost)
    tl.store(OUT + 2, k * y_norm + lost)
    tl.store(OUT + 3, per_rate)
    tl.store(OUT + 4, rate)
    tl.store(OUT + 5, weight_unit)
    tl.store(OUT + 6, unit * per_rate / weight_unit)
    tl.store(OUT + 7, 1.0 / (c * weight_unit))


@triton.jit
def _out_of_range(P, Q, largest_rate, FORMULA: tl.constexpr):
    """Whether pairs of points that are no farther out than this may have no right digit in float32."""
    A, B = tl.sqrt(1.0 + P * P), tl.sqrt(1.0 + Q * Q)
    reach = (1.0 + P) * (1.0 + Q)
    if FORMULA >= gaps.ANGLE_AT_X:
        gap = 2.0 * gaps.HALF_PI
        beyond = reach * tl.maximum(P, Q) > _FARTHEST_OF_ANGLE
    elif FORMULA == gaps.INNER:
        gap = A * B + P * Q
        beyond = reach > _FARTHEST
    else:
        # asinh(P) + asinh(Q), or what bounds it where a logarithm would round it away
        gap = tl.minimum(P + Q, tl.log((P + A) * (Q + B)))
        gap = gap * gap if FORMULA == gaps.SQDIST else gap
        beyond = reach > _FARTHEST
    vanishes = (largest_rate > 0.0) & (largest_rate < _LEAST_RATE)
    return beyond | vanishes | (largest_rate * gap > _LARGEST_LOGIT)


@triton.jit
def _store_line(at, LINE: tl.constexpr, value):
    tl.store(at + LINE * lines.CHUNK, value.to(tl.float32))


@triton.jit
def _overlap(A, B, D: tl.constexpr, BLOCK_D: tl.constexpr):
    total = tl.zeros([BLOCK_D], tl.float64)
    for start in range(0, D, BLOCK_D):
        index = start + tl.arange(0, BLOCK_D)
        a = tl.load(A + index, mask=index < D, other=0.0)
        total += a * tl.load(B + index, mask=index < D, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def _squared_dist(pair, options):
    distance = dist(pair, options)
    return distance * distance


@triton.jit
def _squared_dist_gradient(grad, pair, options):
    return dist_gradient(2.0 * dist(pair, options) * grad, pair, options)


@triton.jit
def _negative_inner(pair, options):
    return -inner(pair, options)


@triton.jit
def _negative_inner_gradient(grad, pair, options):
    return inner_gradient(-grad, pair, options)


class RowGap(NamedTuple):
    """A gap of the two points of a row, in the user's units: its value, and its gradient."""

    value: Any
    gradient: Any


DIST = RowGap(dist, dist_gradient)
SQUARED_DIST = RowGap(_squared_dist, _squared_dist_gradient)
NEGATIVE_INNER = RowGap(_negative_inner, _negative_inner_gradient)
ANGLE = RowGap(angle, angle_gradient)


def summaries(points: Sequence[Tensor]) -> list[Tensor]:
    """:func:`hypkernels.contrastive.problem.summaries`; points of half precision need no centres: 0."""
    x, sets = points[0], len(points)
    centres = torch.zeros((sets, x.shape[1]), dtype=torch.float64, device=x.device)
    centred = sets if is_centred(x) else 0
    for one, out in zip(points[:centred], centres, strict=False):
        _launch_mean_direction(sample_of(one), out)
    tables = []
    for one in points:
        tables.append(torch.zeros((len(one), 1 + sets), dtype=torch.float64, device=x.device))
        launch_rows(products_with_centres, [one], [centres, tables[-1]], SETS=centred, COLUMNS=1 + sets)
    return [centres, *tables]


def is_centred(points: Tensor) -> bool:
    """Whether the products are of centred points. Those of half precision are exact as they are."""
    return points.dtype == torch.float32


def _launch_mean_direction(points: Tensor, out: Tensor) -> None:
    points = points if points.stride(1) == 1 else points.contiguous()
    with torch.cuda.device_of(points):
        mean_direction[(triton.cdiv(points.shape[1], _COLUMNS),)](
            points,
            points.stride(0),
            out,
            len(points),
            D=points.shape[1],
            ROWS=_ROWS,
            BLOCK_D=_COLUMNS,
            num_warps=8,
        )


def centred_points(side: Side, precision: str) -> Tensor:
    """``k x - P o``, with the side's own centre ``o``, float32; for tf32 to nearest."""
    out = allocate(side.points, side.points.shape, torch.float32)
    launch_rows(
        centre,
        [side.points, side.square],
        [side.centre, side.c, out],
        ROUND_TF32=precision == "tf32",
    )
    return out


def table(
    side: Side,
    *,
    resolution: float,
    per_unit: Tensor | None = None,
    unit: float = 1.0,
    softmax: tuple[Tensor, Tensor] | None = None,
    formula: int = 0,
    units: Frame | None = None,
) -> Tensor:
    """Scalars of points as :mod:`hypkernels.tritonlib.pair_tiles` takes them.

    float32, ``(chunks, lines, points)``. ``resolution``: of the product, in units of the squared norm.
    ``per_unit`` and ``unit``, of rows: minus the logit of one unit of the gap, and the kernels' unit.
    ``softmax``: weights and totals. With ``units`` all is NaN where the logits of ``formula`` leave the range
    of float32.
    """
    items, width = side.points.shape
    weights, totals = softmax or (None, None)
    chunk = lines.CHUNK.value
    chunks = triton.cdiv(items, _ITEMS) * (_ITEMS // chunk)
    out = allocate(side.points, (chunks, lines.LINES.value, chunk), torch.float32)
    if items:
        with torch.cuda.device_of(out):
            scalars[(triton.cdiv(items, _ITEMS),)](
                side.square,
                side.along,
                side.square.stride(0),
                side.centre,
                side.other_centre,
                side.c,
                *((None, None) if units is None else units.extents),
                *((None,) * 3 if units is None else (units.largest_rate, units.per_rate, units.weight_unit)),
                totals,
                weights,
                per_unit,
                out,
                items,
                FORMULA=formula,
                UNIT_BITS=unit / math.log(2),
                RESOLUTION=resolution,
                CENTRED=is_centred(side.points),
                D=width,
                BLOCK_D=_COLUMNS,
                ITEMS=_ITEMS,
                num_warps=4,
            )
    return out


class Frame(NamedTuple):
    """The units in which pairs are computed, 0-d float64 tensors; see :func:`frame`.

    ``c``: the curvature; ``extents``: ``k|x|`` and ``k|y|`` of the points farthest out. ``per_rate``:
    the factor of the logits of one unit of the gap; ``largest_rate``: the largest of these.
    ``weight_unit``: the factor of weights. Sums of weights times gaps have to be multiplied with
    ``gap_unit``, sums of the gradient by ``log c`` with ``curv_unit``.
    """

    c: Tensor
    extents: tuple[Tensor, Tensor]
    per_rate: Tensor
    largest_rate: Tensor
    weight_unit: Tensor
    gap_unit: Tensor
    curv_unit: Tensor


def frame_of(
    squares: Sequence[Tensor], largest: Tensor, c: Tensor, *, curv_power: float, least_norm: float
) -> Frame:
    """``squares``: the largest squared norm of rows and of columns; ``largest``: the largest logit of one
    unit of the gap, which is ``c**-curv_power``."""
    numbers = allocate(c, (_NUMBERS_OF_FRAME,), torch.float64)
    with torch.cuda.device_of(c):
        frame[(1,)](
            *squares,
            largest,
            c,
            numbers,
            POWER=round(2 * curv_power),
            LEAST_NORM=least_norm,
            ITEMS=_NUMBERS_OF_FRAME,
            num_warps=1,
        )
    c, P, Q, *others = numbers.unbind()
    return Frame(c, (P, Q), *others)


def finish_gradient(
    total: Tensor,
    side: Side,
    weight_unit: Tensor,
    *,
    by_height: Tensor | None = None,
    by_norm: Tensor | None = None,
) -> None:
    """From products with the weights of pairs to a gradient: the points' own terms are subtracted.

    Sums of these, for each point: ``by_height``, of logits whose apex is at the other point, is divided
    by ``A``; ``by_norm``, of logits whose apex is here, by ``P^2``. Everything given is ``weight_unit``
    times too large.
    """
    subtract_own(total, side.points, side.square, side.c, by_height, by_norm, weight_unit)


def gap_of_rows(gap: RowGap, apex: Tensor, other: Tensor, c: Tensor) -> Tensor:
    return launch_forward(pair_forward, gap.value, (apex, other), c, dtype=torch.float64)


def add_gradients_of_rows(
    gap: RowGap, by_gap: Tensor, points: Sequence[Tensor], sums: Sequence[Tensor | None], c: Tensor
) -> Tensor:
    """Add the gradients by the two points of each row to ``sums``, and return that by the curvature."""
    return add_gradients(gap.gradient, by_gap, points, c, sums)
