"""The contrastive loss on a CPU: tiles of pairs, computed in place in buffers that fit a core's caches.

A tile of logits exists only while it is summed; the backward pass computes it again. That makes four products
of matrices in all, and a workspace that does not grow with the number of pairs.

With the scalars of :class:`hypkernels.contrastive.problem.Side`, ``z = cosh(k d) - 1`` of all pairs is one
product of width ``D + 5``, halved. With ``u = x/|x| - o`` and ``v = y/|y| - p``, their offsets ``f, g``, the
centred rapidities ``a, b``, ``P = k|x|`` and ``Q = k|y|``

    z = lateral + radial,   lateral = P Q (f + g - u.v),   radial = cosh(a - b) - 1
      = -(P u).(Q v) + (P f) Q + P (Q g) + (cosh a - 1) cosh b + (cosh b - 1) - sinh a sinh b

Every term is as small as the points are near their centre, so nothing large cancels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from hypkernels.contrastive import problem
from hypkernels.contrastive.problem import Gradients, Problem, Side, SoftmaxGradient, Statistics
from hypkernels.contrastive.similarity import Gap, Logits, logit_matrices
from hypkernels.contrastive.tiles import LN2, GradientSums, Tile, column_factors, row_factors, sums

# A tile is large enough for a product of matrices to run at its speed and for the calls on it to be few, and
# small enough for its buffers to stay in caches.
ROWS, COLUMN_BYTES = 1024, 4096
# Columns whose factors are prepared at a time, in bytes.
BLOCK_BYTES = 8 << 20
# One exponential serves rows and columns as long as no sum has lost its terms to underflow, and no weight
# overflows.
_LEAST_SUM, _LARGEST_SPREAD = 1e-26, 32.0
# Up to this logit its rounding does not change an exponential.
_LARGEST_LEVEL = 1e4
# The range of float32 logits: ``k|x|`` of points that are not the origin; curvatures; scales, and scales
# times what gradients are made of; logits. Beyond it logits are float64, which is slower.
_NORMS, _CURVATURES, _TERMS, _LOGITS = (1e-12, 1e9), (1e-12, 1e12), (1e-20, 1e30), 1e5
# The range of float64 logits.
_NORMS_OF_FLOAT64, _LOGITS_OF_FLOAT64 = (1e-75, 1e44), 1e300


summaries = problem.summaries


def forward(p: Problem, similarity: str, symmetric: bool) -> tuple[Tensor, Statistics]:
    """Loss of each row, float64, and the statistics for :func:`backward`."""
    p = in_range(p, similarity)
    negatives = log_sums_of_negatives(p, similarity, symmetric)
    saved = Statistics(positive_gaps(p, similarity, symmetric), *negatives)
    return problem.losses(p, saved, similarity, symmetric), saved


def backward(grad: Tensor, p: Problem, saved: Statistics, similarity: str, symmetric: bool) -> Gradients:
    """``grad`` is the upstream gradient of each row's loss."""
    p = in_range(p, similarity)
    softmaxes = problem.softmax_gradients(grad, p, saved, similarity, symmetric)
    total = gradients_of_negatives(p, softmaxes, similarity, symmetric)
    add_positives(total, p, softmaxes, saved, similarity, symmetric)
    return total


def in_range(p: Problem, similarity: str) -> Problem:
    """The problem for the functions below, with float64 logits if those of ``p`` leave float32's range."""
    return _with_range(p, logit_matrices(similarity, True, one_scale=p.one_scale)[0].gap)


def log_sums_of_negatives(p: Problem, similarity: str, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over the negatives of each row and column, float64; empty for unused columns."""
    return _negatives(p, logit_matrices(similarity, symmetric, one_scale=p.one_scale), symmetric)


def gradients_of_negatives(
    p: Problem, softmaxes: list[SoftmaxGradient], similarity: str, symmetric: bool
) -> Gradients:
    """The gradients through the negatives, given the gradient by each matrix of logits."""
    return _negatives_gradients(p, logit_matrices(similarity, symmetric, one_scale=p.one_scale), softmaxes)


def positive_gaps(p: Problem, similarity: str, symmetric: bool) -> Tensor:
    """The gap of each row to its target, for each matrix of logits, in units of ``gap.of_pairs``."""
    matrices = logit_matrices(similarity, symmetric, one_scale=p.one_scale)
    return torch.stack([problem.positive_gaps(p, matrix.gap) for matrix in matrices])


def add_positives(
    total: Gradients,
    p: Problem,
    softmaxes: list[SoftmaxGradient],
    saved: Statistics,
    similarity: str,
    symmetric: bool,
) -> None:
    """Add the positives' part to that of the negatives, in place."""
    matrices = logit_matrices(similarity, symmetric, one_scale=p.one_scale)
    for matrix, part, gaps in zip(matrices, softmaxes, saved.positives, strict=True):
        total.scale.sub_(part.by_positive * gaps * p.unit(matrix.gap.of_pairs))
        problem.add_positives(total, -part.by_positive * p.scale, p, matrix.gap)


def _with_range(p: Problem, gap: Gap) -> Problem:
    """The problem, with float64 logits if numbers made of points and scales leave float32's range."""
    extents = [_extent(side) for side in (p.x, p.y)]
    if not p.scale.numel():
        return p
    c, scale = p.c.item(), p.scale.amax().item()
    farthest_apart = sum(math.asinh(farthest) for _, farthest in extents)
    logits = scale * c**-gap.of_pairs.curv_power * gap.largest(farthest_apart)
    if math.isfinite(scale) and math.isfinite(farthest_apart) and logits > _LOGITS_OF_FLOAT64:
        raise ValueError(
            f"logit_scale {scale:g} is too large for these points: logits may leave the range of float64"
        )
    terms = scale * max(c, 1 / c) * math.prod((1 + far) * (1 + 1 / near) for near, far in extents)
    in_range = (
        all(_NORMS[0] <= nearest and farthest <= _NORMS[1] for nearest, farthest in extents)
        and _CURVATURES[0] <= c <= _CURVATURES[1]
        and (scale == 0 or (_TERMS[0] <= scale and terms <= _TERMS[1] and logits <= _LOGITS))
    )
    return p if in_range else dataclasses.replace(p, in_float64=True)


def _extent(side: Side) -> tuple[float, float]:
    """The least and the largest ``k|x|`` of the finite points that are not the origin."""
    squares, points = side.square.squeeze(1), side.points
    present = squares[squares > 0]
    nearest = farthest = 1.0
    if len(present):
        nearest, farthest = (math.sqrt(one.item()) for one in torch.aminmax(side.c * present))
    least, largest = _NORMS_OF_FLOAT64
    vanishes = points.dtype == torch.float64 and bool(points[squares == 0].any())
    if vanishes or nearest < least or (farthest > largest and bool(points.isfinite().all())):
        raise ValueError(
            "points must have a norm of 0 or sqrt(curv) times their norm must be in "
            f"[{least:g}, {largest:g}], got {0.0 if vanishes else nearest:g} to {farthest:g}: "
            "products of them leave the range of float64"
        )
    return nearest, farthest


def _negatives(p: Problem, matrices: list[Logits], symmetric: bool) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over the negatives of each row and of each column."""
    rows = torch.full_like(p.scale, -math.inf, memory_format=torch.contiguous_format)
    columns = rows.new_full((len(p.y.points) if symmetric else 0,), -math.inf)
    scales = _scales(p, matrices)
    for tile in _tiles(p):
        for matrix, per_unit in zip(matrices, scales, strict=True):
            gaps, least = tile.gaps(matrix.gap.of_pairs)
            by_row, by_column = _log_sums(tile, gaps, least, per_unit[tile.rows], matrix)
            if by_row is not None:
                rows[tile.rows] = torch.logaddexp(rows[tile.rows], by_row)
            if by_column is not None:
                columns[tile.columns] = torch.logaddexp(columns[tile.columns], by_column)
    return rows, columns


def _negatives_gradients(p: Problem, matrices: list[Logits], parts: list[SoftmaxGradient]) -> Gradients:
    totals, scales = GradientSums(p), _scales(p, matrices)
    for tile in _tiles(p):
        for matrix, part, per_unit in zip(matrices, parts, scales, strict=True):
            gaps, least = tile.gaps(matrix.gap.of_pairs)
            of_rows = per_unit[tile.rows]
            _fill_push(tile, gaps, least, of_rows, part)
            totals.add_matrix(tile, matrix.gap.of_pairs, gaps, of_rows, _uniform(of_rows))
        totals.add_products(tile)
    return totals.gradients()


def _scales(p: Problem, matrices: list[Logits]) -> list[Tensor]:
    return [p.logits_per_unit(matrix.gap) for matrix in matrices]


def _tiles(p: Problem) -> Iterator[Tile]:
    """All pairs, a block of columns at a time, each against the rows in turn."""
    wide = COLUMN_BYTES // p.dtype.itemsize
    rows, columns = len(p.x.points), len(p.y.points)
    buffers = torch.empty(5, min(ROWS, rows) * min(wide, columns), dtype=p.dtype, device=p.x.points.device)
    block = max(1, BLOCK_BYTES // (COLUMN_BYTES * max(p.y.points.shape[1], 1))) * wide
    for first in range(0, columns, block):
        sides = [column_factors(p, place) for place in _slices(first, min(first + block, columns), wide)]
        for place in _slices(0, rows, ROWS):
            x = row_factors(p, place)
            for y in sides:
                yield Tile(x, y, p, buffers)
        sides.clear()  # frees the memory before the next block's factors take as much


def _slices(start: int, stop: int, step: int) -> Iterator[slice]:
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


def _terms(tile: Tile, gaps: Tensor, least: float | None, per_unit: Tensor) -> tuple[Tensor, float]:
    """``exp(logit - level)`` of the negatives, and the level: about the greatest logit, or 0.

    As a power of two wherever it can be: that takes a third of the time.
    """
    uniform = _uniform(per_unit)
    if uniform is None or least is None or not uniform * least < _LARGEST_LEVEL:
        logits, level = _logits(tile, gaps, per_unit)
        return logits.exp_(), level
    bits = uniform * (tile.unit / LN2)
    slope = _rounded(bits, gaps)
    top = _rounded(slope * least, gaps)
    exponents = torch.add(torch.tensor(top, dtype=gaps.dtype), gaps, alpha=-slope, out=tile.gradient)
    if slope != bits:  # rounded, it would give the negatives another scale than the positives
        exponents.add_(gaps, alpha=slope - bits)
    tile.set_positives(exponents, -math.inf)
    return exponents.exp2_(), -top * LN2


def _rounded(number: float, like: Tensor) -> float:
    return torch.tensor(number, dtype=like.dtype).item()


def _logits(tile: Tile, gaps: Tensor, per_unit: Tensor) -> tuple[Tensor, float]:
    """The negatives' logits less a level, and the level."""
    logits = torch.mul(gaps, tile.unit, out=tile.gradient).mul_(-per_unit.unsqueeze(1))
    tile.set_positives(logits, -math.inf)
    level = logits.amax().item()
    return (logits.sub_(level), level) if abs(level) < _LARGEST_LEVEL else (logits, 0.0)


def _uniform(per_unit: Tensor) -> float | None:
    """The scale of all rows, if there is one."""
    first = per_unit[0].item()
    return first if bool((per_unit == first).all()) else None


def _log_sums(
    tile: Tile, gaps: Tensor, least: float | None, per_unit: Tensor, matrix: Logits
) -> tuple[Tensor | None, Tensor | None]:
    """Log-sum-exp over the tile's negatives, of each row and of each column, float64."""
    terms, level = _terms(tile, gaps, least, per_unit)
    by_row = sums(terms, 1) if matrix.rows else None
    by_column = sums(terms, 0) if matrix.columns else None
    present = [one for one in (by_row, by_column) if one is not None]
    if all(one.amin().item() > _LEAST_SUM for one in present):
        for one in present:
            one.log_().add_(level)
        return by_row, by_column
    logits, level = _logits(tile, gaps, per_unit)
    by_row = _log_sum_exp(logits, 1).add_(level) if matrix.rows else None
    return by_row, _log_sum_exp(logits, 0).add_(level) if matrix.columns else None


def _log_sum_exp(logits: Tensor, dim: int) -> Tensor:
    top = logits.amax(dim, keepdim=True).clamp_(min=torch.finfo(logits.dtype).min)
    return torch.exp(logits - top).sum(dim, dtype=torch.float64).log() + top.squeeze(dim)


def _fill_push(
    tile: Tile, gaps: Tensor, least: float | None, per_unit: Tensor, part: SoftmaxGradient
) -> None:
    """Make ``tile.gradient`` the gradient of the loss by the negatives' logits."""
    terms, level = _terms(tile, gaps, least, per_unit)
    sides = []
    if part.rows is not None:
        sides.append(tuple(one[tile.rows].unsqueeze(1) for one in part.rows))
    if part.columns is not None:
        sides.append(tuple(one[tile.columns].unsqueeze(0) for one in part.columns))
    if all((level - totals).amax().item() < _LARGEST_SPREAD for _, totals in sides):
        factors = [(weights * torch.exp(level - totals)).to(terms.dtype) for weights, totals in sides]
        terms.mul_(factors[0] if len(factors) == 1 else torch.add(*factors, out=tile.spare))
        return
    logits, level = _logits(tile, gaps, per_unit)
    parts = [_weighted_softmax(logits, totals - level, weights) for weights, totals in sides]
    logits.copy_(parts[0] if len(parts) == 1 else parts[0] + parts[1])


def _weighted_softmax(logits: Tensor, totals: Tensor, weights: Tensor) -> Tensor:
    """``weights * exp(logits - totals)``.

    What ``totals`` lose by rounding to the logits' dtype goes into the weights: otherwise a whole row
    would have the same error.
    """
    rounded = totals.to(logits.dtype)
    return torch.exp(logits - rounded) * (weights * torch.exp(rounded.double() - totals)).to(logits.dtype)
