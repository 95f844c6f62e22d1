"""The contrastive loss and its gradients from whole matrices of logits.

With ``l_ij`` the logits and ``t_i`` the target of row ``i``, the loss of row ``i`` is
``softplus(logsumexp_{j != t_i} l_ij - l_{i t_i})``: the positives come from exact row-wise formulas in
float64 and stay out of the sum, so that a loss far below the rounding of the logits keeps its digits, as do
its gradients. Matrices are float64 for float64 points and float32 for all others; whatever there is one of
per row or column is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hypkernels.contrastive.similarity import Gap, Logits, logit_matrices
from hypkernels.pair_geometry import dot, ratio
from hypkernels.pairwise.geometry import PairTile, pair_tile, point_scalars
from hypkernels.rowwise import map_rows, result_dtype


class Problem(NamedTuple):
    """The points in the dtype of the matrices; one float64 scale and one target for each row."""

    x: Tensor
    y: Tensor
    c: Tensor
    scale: Tensor
    targets: Tensor
    precision: str | None

    def tile(self) -> PairTile:
        x, y = (point_scalars(points, self.c, points.dtype) for points in (self.x, self.y))
        y = y.along_columns()
        return pair_tile(x, y, x.P * y.P * self._one_minus_cosine(), self.c)

    def _one_minus_cosine(self) -> Tensor:
        """Of the angle at the origin between ``u = m + u'`` and ``v = n + v'``, means ``m, n``.

        ``1 - u.v = (1 - u.n) - m.v' - u'.v'``, where only the last term is a product of matrices. Its
        rounding is relative to the lengths of ``u'`` and ``v'``: short, as embeddings share narrow cones.
        """
        x_mean, y_mean = _mean_direction(self.x), _mean_direction(self.y)
        x_rest, x_term = _map_directions(lambda u: (u - x_mean, 1 - dot(u, y_mean)), self.x)
        y_rest, y_term = _map_directions(lambda v: (v - y_mean, dot(v - y_mean, x_mean)), self.y)
        return x_term - y_term.mT - self.product(x_rest, y_rest.mT)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """PyTorch's product by its own settings, or one that no setting makes coarser than float32."""
        if self.precision is None or a.device.type == "cpu":
            return a @ b
        return (a.double() @ b.double()).to(a.dtype)

    def logits_per_unit(self, gap: Gap) -> Tensor:
        """Minus the logit of one unit of ``gap.of_pairs``.

        Rounded to the matrices' dtype also where it is used in float64: positives and negatives have to agree
        on the scale.
        """
        return (self.scale * self.c**-gap.of_pairs.curv_power).to(self.x.dtype)

    def positives(self, gap: Gap) -> Tensor:
        """The gap of each row to its target, in units of ``gap.of_pairs``."""
        (gaps,) = map_rows(
            lambda x, y: (gap.of_rows(x, y, self.c) * self.c**gap.of_pairs.curv_power,),
            [self.x, self.y[self.targets]],
            [(1, torch.float64)],
        )
        return gaps.squeeze(-1)


class Statistics(NamedTuple):
    """What the backward pass needs besides the inputs, float64.

    ``positives``: for each matrix of logits, the gap of each row to its target. ``row_negatives``,
    ``column_negatives``: log-sum-exp over everything that is no positive; columns are empty if unused.
    """

    positives: Tensor
    row_negatives: Tensor
    column_negatives: Tensor


def problem(
    x: Tensor, y: Tensor, curv: Tensor, scale: Tensor, targets: Tensor, precision: str | None
) -> Problem:
    dtype = result_dtype(x.dtype)
    row_scales = scale.to(x.device, torch.float64).expand(x.shape[0])
    return Problem(x.to(dtype), y.to(dtype), curv.to(dtype).double(), row_scales, targets, precision)


def _mean_direction(points: Tensor) -> Tensor:
    (directions,) = map_rows(lambda rows: (_direction(rows),), [points], [(points.shape[1], points.dtype)])
    return torch.nanmean(directions, 0, dtype=torch.float64)


def _map_directions(formula: Callable[[Tensor], tuple[Tensor, Tensor]], points: Tensor) -> tuple[Tensor, ...]:
    """A vector and a scalar of the direction of each point, ``(M, D)`` and ``(M, 1)``."""
    results = [(points.shape[1], points.dtype), (1, points.dtype)]
    return map_rows(lambda rows: formula(_direction(rows)), [points], results)


def _direction(rows: Tensor) -> Tensor:
    return ratio(rows, torch.sqrt(dot(rows, rows)))


def forward(p: Problem, similarity: str, symmetric: bool) -> tuple[Tensor, Statistics]:
    """Loss of each row, float64, and the statistics for :func:`backward`."""
    tile = p.tile()
    losses = p.scale.new_zeros(p.scale.shape)
    all_gaps = []
    row_negatives = column_negatives = p.scale.new_empty(0)
    for matrix in logit_matrices(similarity, symmetric):
        per_unit = p.logits_per_unit(matrix.gap)
        gaps = p.positives(matrix.gap)
        positives = -per_unit.double() * gaps
        logits = _negative_logits(matrix.gap.of_pairs.value(tile), per_unit, p.targets)
        if matrix.rows:
            row_negatives = _log_sum_exp(logits, 1)
            losses -= F.logsigmoid(positives - row_negatives)
        if matrix.columns:
            column_negatives = _log_sum_exp(logits, 0)
            rivals, _ = _column_sums(positives, column_negatives, p.targets)
            losses -= F.logsigmoid(positives - rivals)
        all_gaps.append(gaps)
    return losses / (1 + symmetric), Statistics(torch.stack(all_gaps), row_negatives, column_negatives)


class Gradients(NamedTuple):
    """By the points in the matrices' dtype; by each row's scale and by the curvature in float64."""

    x: Tensor
    y: Tensor
    curv: Tensor
    scale: Tensor


def backward(grad: Tensor, p: Problem, saved: Statistics, similarity: str, symmetric: bool) -> Gradients:
    """``grad`` is the upstream gradient of each row's loss."""
    tile = p.tile()
    rows = p.scale.new_zeros(p.scale.shape)
    total = Gradients(p.x.new_zeros(p.x.shape), p.y.new_zeros(p.y.shape), rows.new_zeros(()), rows)
    for matrix, gaps in zip(logit_matrices(similarity, symmetric), saved.positives, strict=True):
        pairs = matrix.gap.of_pairs
        per_unit = p.logits_per_unit(matrix.gap)
        values = pairs.value(tile)
        push, pull = _logit_gradients(
            grad.double() / (1 + symmetric),
            _negative_logits(values, per_unit, p.targets),
            -per_unit.double() * gaps,
            matrix,
            saved,
            p.targets,
        )
        by_gap = (push * values).sum(1, dtype=torch.float64) + pull * gaps
        total.scale.sub_(by_gap * p.c**-pairs.curv_power)

        part = pairs.gradient(-per_unit.unsqueeze(1) * push, values, tile)
        total.x.addcmul_(part.x_coefficient, p.x).add_(p.product(part.cross, p.y))
        total.y.addcmul_(part.y_coefficient.mT, p.y).add_(p.product(part.cross.mT, p.x))
        total.curv.add_(part.curv)

        _add_positives(total, -pull * p.scale, p, matrix.gap)
    return total


def _negative_logits(values: Tensor, per_unit: Tensor, targets: Tensor) -> Tensor:
    logits = -per_unit.unsqueeze(1) * values
    return logits.scatter_(1, targets.unsqueeze(1), -math.inf)


def _log_sum_exp(logits: Tensor, dim: int) -> Tensor:
    if logits.numel() == 0:
        return torch.logsumexp(logits.double(), dim)
    top = logits.amax(dim, keepdim=True).clamp_(min=torch.finfo(logits.dtype).min)
    return torch.exp(logits - top).sum(dim, dtype=torch.float64).log() + top.squeeze(dim)


def _column_sums(positives: Tensor, negatives: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of each positive's column without itself, ``(M,)``, and of whole columns, ``(N,)``.

    Several rows may share a target: they are each other's rivals.
    """
    top = torch.full_like(negatives, -math.inf).scatter_reduce(0, targets, positives, "amax")
    mass = torch.exp(positives - top[targets])
    column_mass = _add_at(torch.zeros_like(negatives), targets, mass)
    others = (column_mass[targets] - mass).clamp_(min=0)
    rivals = torch.logaddexp(negatives[targets], top[targets] + torch.log(others))
    return rivals, torch.logaddexp(negatives, top + torch.log(column_mass))


def _logit_gradients(
    weights: Tensor, logits: Tensor, positives: Tensor, matrix: Logits, saved: Statistics, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient of the loss by the negatives' logits, a matrix, and by the positives', a vector."""
    push = torch.zeros_like(logits)
    pull = torch.zeros_like(positives)
    if matrix.rows:
        totals = torch.logaddexp(saved.row_negatives, positives)
        push += _weighted_softmax(logits, totals.unsqueeze(1), weights.unsqueeze(1))
        pull -= weights * torch.sigmoid(saved.row_negatives - positives)
    if matrix.columns:
        rivals, totals = _column_sums(positives, saved.column_negatives, targets)
        column_weights = _add_at(torch.zeros_like(totals), targets, weights)
        push += _weighted_softmax(logits, totals, column_weights)
        pull -= weights * torch.sigmoid(rivals - positives)
        pull += (column_weights[targets] - weights) * torch.sigmoid(positives - rivals)
    return push, pull


def _weighted_softmax(logits: Tensor, total: Tensor, weight: Tensor) -> Tensor:
    """``weight * exp(logits - total)``.

    What ``total`` loses in the logits' dtype goes to the weight: it would be one error for a whole row.
    """
    rounded = total.to(logits.dtype)
    return torch.exp(logits - rounded) * (weight * torch.exp(rounded.double() - total)).to(logits.dtype)


def _add_positives(total: Gradients, by_gap: Tensor, p: Problem, gap: Gap) -> None:
    """Add the positives' exact gradients, given the gradient of the loss by their gaps."""
    width, dtype = p.x.shape[1], p.x.dtype
    grad_x, grad_y, grad_curv = map_rows(
        lambda g, x, y: gap.of_rows_gradient(g, x, y, p.c),
        [by_gap.unsqueeze(1), p.x, p.y[p.targets]],
        [(width, dtype), (width, dtype), (1, torch.float64)],
    )
    total.x.add_(grad_x)
    _add_at(total.y, p.targets, grad_y)
    total.curv.add_(grad_curv.sum())


def _add_at(total: Tensor, index: Tensor, terms: Tensor) -> Tensor:
    """``total[index] += terms`` in place, in the same order on every run."""
    if total.device.type == "cpu":
        return total.index_add_(0, index, terms)
    return total.index_put_((index,), terms, accumulate=True)
