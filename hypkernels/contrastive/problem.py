"""What implementations of the contrastive loss share: inputs, results, and everything row-wise.

With ``l_ij`` the logits and ``t_i`` the target of row ``i``, the loss of row ``i`` is
``softplus(logsumexp_{j != t_i} l_ij - l_{i t_i})``, and so for columns. The logits of positives
come from exact row-wise formulas and stay out of the sum: a loss far below the rounding of the logits
keeps its digits, as do its gradients. An implementation computes what needs all pairs: the log-sum-exp
over the negatives, and their part of the gradients. Numbers per row and per column are float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hypkernels.contrastive.similarity import Gap, Logits, logit_matrices
from hypkernels.pair_geometry import dot, ratio
from hypkernels.pairwise.closed_form import PairFunction
from hypkernels.pairwise.geometry import PointScalars, scalars_of_square
from hypkernels.rowwise import chunk_elements, map_rows, map_rows_into, result_dtype

# Rows from which the centre of the points is estimated.
_CENTRE_SAMPLE = 128


class Part(NamedTuple):
    """Some points of a :class:`Side` with their scalars ``(M, 1)``, float64.

    ``rapidity`` is ``asinh(k|x|)`` less that of a typical point. With ``o_x`` the centre of this side
    and ``o_y`` of the other, ``offset`` is ``(1 + o_x.o_y)/2 - o_y.x/|x|``, so that
    ``1 - cos(x, y) = offset_x + offset_y - (x/|x| - o_x).(y/|y| - o_y)``.
    """

    points: Tensor
    scalars: PointScalars
    rapidity: Tensor
    offset: Tensor


class Side(NamedTuple):
    """One of the two sets of a pairing, with what it needs to know of the other set.

    ``centre``, ``(D,)``, is the direction in which the points lie. Results are right with any vector;
    the nearer it is to the points, the smaller are the rounding errors of a product of matrices.
    ``square`` and ``along``, each ``(M, 1)``, are ``|x|^2`` and ``x`` times the other set's centre. All
    other numbers per point are computed from these when they are needed: stored for all
    points, they would take most of the memory.
    """

    points: Tensor
    square: Tensor
    along: Tensor
    centre: Tensor
    other_centre: Tensor
    embeddings: Embeddings
    sets: tuple[int, int]

    @property
    def c(self) -> Tensor:
        return self.embeddings.c

    @property
    def typical_rapidity(self) -> Tensor:
        return self.embeddings.typical_rapidity(*self.sets)

    def part(self, place: slice = slice(None)) -> Part:
        scalars = scalars_of_square(self.square[place], self.c)
        cosine = ratio(self.along[place] * torch.sqrt(self.c), scalars.P)
        return Part(
            self.points[place],
            scalars,
            torch.asinh(scalars.P) - self.typical_rapidity,
            (1 + self.centre.dot(self.other_centre)) / 2 - cosine,
        )


class Learns(NamedTuple):
    """Which gradients are asked for."""

    x: bool = True
    y: bool = True
    curv: bool = True
    scale: bool = True


@dataclass(frozen=True, eq=False)
class Problem:
    """Points ``(M, D)`` and ``(N, D)``, the curvature ``c``, one scale and one target for each row.

    ``targets``: indices into ``y``. ``None``: the target of row ``i`` is ``y_i``, which saves copies of
    points. If all are -1 every pair is a negative, as in a block of a larger problem. ``one_scale``: all
    rows have the same scale. ``in_float64``: logits are float64, whatever the points are.
    """

    x: Side
    y: Side
    c: Tensor
    scale: Tensor
    targets: Tensor | None
    precision: str | None
    learns: Learns = field(default_factory=Learns)
    one_scale: bool = False
    in_float64: bool = False
    # By the power of the curvature.
    _units: dict[float, Tensor] = field(default_factory=dict, init=False, repr=False)
    _per_unit: dict[float, Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the logits: float64 for float64 points or with ``in_float64``, else float32."""
        return torch.float64 if self.in_float64 else result_dtype(self.x.points.dtype)

    def unit(self, pairs: PairFunction) -> Tensor:
        """The unit of a gap: a power of the curvature, 1 where the curvature is -1."""
        power = pairs.curv_power
        if power not in self._units:
            self._units[power] = self.c**-power
        return self._units[power]

    def logits_per_unit(self, gap: Gap) -> Tensor:
        """Minus the logit of one unit of ``gap.of_pairs``, for each row.

        It is rounded to the logits' dtype even where it is used in float64: positives and negatives must
        have the same scale.
        """
        power = gap.of_pairs.curv_power
        if power not in self._per_unit:
            self._per_unit[power] = (self.scale * self.unit(gap.of_pairs)).to(self.dtype)
        return self._per_unit[power]

    def rows_and_targets(self, *, in_chunks: bool = True) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Chunks of rows, or all at once: where they are, their points and those of their targets."""
        rows, width = self.x.points.shape
        chunk_rows = chunk_elements(self.x.points.device) // max(width, 1)
        step = max(1, chunk_rows if in_chunks else rows)
        for start in range(0, rows, step):
            chunk = slice(start, start + step)
            yield chunk, self.x.points[chunk], self.at_targets(self.y.points, chunk)

    def at_targets(self, of_columns: Tensor, rows: slice = slice(None)) -> Tensor:
        """The numbers of each row's target, out of those of the columns."""
        if self.targets is None:
            return of_columns[: len(self.x.points)][rows]
        return of_columns[self.targets[rows]]

    def add_at_targets(self, total: Tensor, terms: Tensor, rows: slice = slice(None)) -> Tensor:
        """``total[target] += term`` for each row, in place, in the same order on every run."""
        if self.targets is None:
            total[: len(self.x.points)][rows].add_(terms)
        elif total.device.type == "cpu":
            total.index_add_(0, self.targets[rows], terms)
        else:
            total.index_put_((self.targets[rows],), terms, accumulate=True)
        return total


class Statistics(NamedTuple):
    """What the backward pass needs besides the inputs, float64.

    ``positives``: for each matrix of logits, the gap of each row to its target, in units of ``gap.of_pairs``.
    ``row_negatives``, ``column_negatives``: log-sum-exp over everything that is no positive; columns are
    empty if unused.
    """

    positives: Tensor
    row_negatives: Tensor
    column_negatives: Tensor


class Gradients(NamedTuple):
    """The gradients by points (or ``None``), in the logits' dtype; by each row's scale; by ``c``."""

    x: Tensor | None
    y: Tensor | None
    curv: Tensor
    scale: Tensor


def summaries(points: Sequence[Tensor]) -> list[Tensor]:
    """Everything that needs one pass over the points' coordinates and depends on nothing else.

    float64: the centres of the sets, ``(n, D)``, and for each set the squared norms and the products
    with all centres, ``(M, 1 + n)``.
    """
    centres = torch.stack([_centre(one) for one in points])

    def of_rows(rows: Tensor) -> tuple[Tensor]:
        return (torch.cat([dot(rows, rows), rows @ centres.mT], 1),)

    return [centres, *(map_rows(of_rows, [one], [(1 + len(points), torch.float64)])[0] for one in points)]


def _centre(points: Tensor) -> Tensor:
    """Mean direction of a few rows; a row that is no finite point does not count."""
    sample = sample_of(points).double()
    directions = ratio(sample, torch.linalg.vector_norm(sample, dim=1, keepdim=True))
    return torch.nanmean(directions, 0).nan_to_num(0).to(result_dtype(points.dtype)).double()


def sample_of(points: Tensor) -> Tensor:
    """The rows from which the centre is estimated."""
    return points[:: max(1, len(points) // _CENTRE_SAMPLE)]


class Embeddings:
    """Point sets that share ``D``, dtype and device, with what all their pairings use."""

    def __init__(self, points: Sequence[Tensor], c: Tensor, summed: Sequence[Tensor]) -> None:
        """``summed`` is what :func:`summaries` returns."""
        self._points, self.c = points, c
        self._centres, *self._tables = summed
        self._typical: dict[tuple[int, int], Tensor] = {}

    def typical_rapidity(self, one: int, other: int) -> Tensor:
        """A rapidity near those of both sets. As with the centres, any number gives the right result."""
        pair = min(one, other), max(one, other)
        if pair not in self._typical:
            middles = torch.stack([self._middles[index] for index in pair])
            self._typical[pair] = torch.nanmean(middles).nan_to_num(0, posinf=0)
        return self._typical[pair]

    @cached_property
    def _middles(self) -> list[Tensor]:
        return [
            torch.nanmedian(torch.asinh(torch.sqrt(self.c * sample_of(table)[:, 0])))
            for table in self._tables
        ]

    def sides(self, row: int, column: int) -> tuple[Side, Side]:
        """A pairing of two sets."""
        return self._side(row, column), self._side(column, row)

    def _side(self, one: int, other: int) -> Side:
        table, centres = self._tables[one], self._centres
        square, along = table[:, :1], table[:, 1 + other : 2 + other]
        return Side(self._points[one], square, along, centres[one], centres[other], self, (one, other))


def fill_centred(out: Tensor, side: Side, part: Part, factor: float = 1.0) -> None:
    """``factor (k x - P o)``: the points less their norms times the centre, rounded once."""
    step = factor * torch.sqrt(side.c)

    def formula(rows: Tensor, P: Tensor) -> tuple[Tensor]:
        return ((rows * step).addcmul_(P, side.centre, value=-factor),)

    map_rows_into(formula, [part.points, part.scalars.P], [out])


def positive_gaps(p: Problem, gap: Gap) -> Tensor:
    """The gap of each row to its target, in units of ``gap.of_pairs``."""
    gaps = p.scale.new_empty(p.scale.shape)
    for rows, x, y in p.rows_and_targets():
        gaps[rows] = gap.of_rows(x.double(), y.double(), p.c).squeeze(1)
    return gaps / p.unit(gap.of_pairs)


def add_positives(total: Gradients, by_gap: Tensor, p: Problem, gap: Gap) -> None:
    """Add the positives' exact gradients, given the gradient of the loss by their gaps."""
    for rows, x, y in p.rows_and_targets():
        by_x, by_y, by_curv = gap.of_rows_gradient(by_gap[rows].unsqueeze(1), x.double(), y.double(), p.c)
        if total.x is not None:
            total.x[rows] += by_x
        if total.y is not None:
            p.add_at_targets(total.y, by_y.to(total.y.dtype), rows)
        total.curv.add_(by_curv.sum())


def losses(p: Problem, saved: Statistics, similarity: str, symmetric: bool) -> Tensor:
    """Loss of each row, float64."""
    terms = []
    for matrix, gaps in zip(logit_matrices(similarity, symmetric), saved.positives, strict=True):
        positives = gaps * -p.logits_per_unit(matrix.gap)
        if matrix.rows:
            terms.append(F.logsigmoid(positives - saved.row_negatives))
        if matrix.columns:
            rivals, _ = _column_sums(p, positives, saved.column_negatives)
            terms.append(F.logsigmoid(positives - rivals))
    return sum(terms[1:], terms[0]) / -(1.0 + symmetric)


class SoftmaxGradient(NamedTuple):
    """Gradient of the loss by one matrix of logits.

    By the negative ``l_ij`` it is ``row_weights_i exp(l_ij - row_totals_i)`` plus
    ``column_weights_j exp(l_ij - column_totals_j)``, by each row's positive it is ``by_positive``. A
    direction in which no softmax is taken is ``None``.
    """

    rows: tuple[Tensor, Tensor] | None
    columns: tuple[Tensor, Tensor] | None
    by_positive: Tensor


def softmax_gradients(
    grad: Tensor, p: Problem, saved: Statistics, similarity: str, symmetric: bool
) -> list[SoftmaxGradient]:
    """The gradient by each matrix of logits; ``grad`` is the upstream gradient of each row's loss."""
    weights = grad.double() / (1 + symmetric)
    matrices = logit_matrices(similarity, symmetric)
    return [
        _softmax_gradient(weights, gaps, p, matrix, saved)
        for matrix, gaps in zip(matrices, saved.positives, strict=True)
    ]


def _softmax_gradient(
    weights: Tensor, gaps: Tensor, p: Problem, matrix: Logits, saved: Statistics
) -> SoftmaxGradient:
    """``weights`` is the gradient by the loss of each row and direction, ``gaps`` the positives'."""
    positives = gaps * -p.logits_per_unit(matrix.gap)
    rows = columns = None
    by_positive = torch.zeros_like(positives)
    if matrix.rows:
        rows = (weights, torch.logaddexp(saved.row_negatives, positives))
        by_positive -= weights * torch.sigmoid(saved.row_negatives - positives)
    if matrix.columns:
        rivals, totals = _column_sums(p, positives, saved.column_negatives)
        column_weights = p.add_at_targets(torch.zeros_like(totals), weights)
        columns = (column_weights, totals)
        by_positive -= weights * torch.sigmoid(rivals - positives)
        if p.targets is not None:
            by_positive += (p.at_targets(column_weights) - weights) * torch.sigmoid(positives - rivals)
    return SoftmaxGradient(rows, columns, by_positive)


def _column_sums(p: Problem, positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of each positive's column without itself, ``(M,)``, and of whole columns, ``(N,)``.

    If several rows share a target, each is a negative of the others in that column.
    """
    of_targets = p.at_targets(negatives)
    if p.targets is None:
        totals = torch.logaddexp(of_targets, positives)
        return of_targets, torch.cat([totals, negatives[len(totals) :]])
    top = torch.full_like(negatives, -math.inf).scatter_reduce(0, p.targets, positives, "amax")
    mass = torch.exp(positives - p.at_targets(top))
    column_mass = p.add_at_targets(torch.zeros_like(negatives), mass)
    others = (p.at_targets(column_mass) - mass).clamp_(min=0)
    rivals = torch.logaddexp(of_targets, p.at_targets(top) + torch.log(others))
    return rivals, torch.logaddexp(negatives, top + torch.log(column_mass))
