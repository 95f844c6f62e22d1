"""A tile of pairs: gaps and their gradients, computed in place; and the sums of the gradients over all tiles.

Distances, their squares and inner products are functions of ``h = sinh^2(k d/2) = z/2`` alone, for which
short formulas serve wherever the product of matrices tells every pair of the tile apart. All else goes to the
general formulas of :mod:`hypkernels.pairwise.closed_form`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hypkernels.contrastive.problem import Gradients, Part, Problem, Side, fill_centred
from hypkernels.contrastive.similarity import EXCESS_OF_INNER
from hypkernels.pairwise.closed_form import DISTANCE, NEGATIVE_INNER, SQUARED_DISTANCE, PairFunction
from hypkernels.pairwise.geometry import RESOLUTION_ULPS, PairTile, PointScalars, pair_tile
from hypkernels.rowwise import CPU_CHUNK_ELEMENTS
from hypkernels.scalar_functions import tanh_deficit

LN2 = math.log(2)
_LATERAL_TERMS = 2

# How many terms are added in the tile's own precision, before float64 takes over.
_FEW_TERMS = 32
# The gradient by the curvature is a difference of two sums: the least part of them that must be left.
_LEAST_DIFFERENCE = 0.02
# ``h`` of pairs at a distance of 1, in units of the curvature's radius.
_LEAST_OF_COARSE_SUMS = math.sinh(0.5) ** 2
# A product with a matrix of this many columns takes no longer than with one column.
_LEAST_WIDTH = 16


class Factors(NamedTuple):
    """The points along one side of a tile: ``h`` of all pairs is the product of both sides' ``factors``.

    Rows are halved for that, columns are not. ``sums`` are scalars whose products with the pairs' slopes make
    the gradients. ``reach`` is the largest ``P``.
    """

    place: slice
    points: Tensor
    factors: Tensor
    scalars: PointScalars
    sums: Tensor
    reach: float


def row_factors(p: Problem, place: slice) -> Factors:
    part = p.x.part(place)
    s, a = part.scalars, part.rapidity
    radial = [_cosh_minus_1(a), torch.ones_like(a), -torch.sinh(a)]
    tail = torch.cat([s.P * part.offset, s.P, *radial], 1) / 2
    return _factors(p, p.x, place, part, -0.5, tail, [s.P, s.A])


def column_factors(p: Problem, place: slice) -> Factors:
    part = p.y.part(place)
    s, b = part.scalars, part.rapidity
    tail = torch.cat([s.P, s.P * part.offset, torch.cosh(b), _cosh_minus_1(b), torch.sinh(b)], 1)
    apart = _apart(s, p.y)
    columns = [s.P, s.A, 1 / s.A, apart / s.A, apart**2 / s.A]
    columns += [torch.zeros_like(s.A)] * (_LEAST_WIDTH - len(columns))
    return _factors(p, p.y, place, part, 1.0, tail, columns)


def _factors(
    p: Problem, side: Side, place: slice, part: Part, factor: float, tail: Tensor, sums: list[Tensor]
) -> Factors:
    """``factor`` times the points less their norms times the centre, and beside them ``tail``."""
    points, scalars = part.points, part.scalars
    width = points.shape[1]
    factors = points.new_empty(len(points), width + tail.shape[1], dtype=p.dtype)
    fill_centred(factors[:, :width], side, part, factor)
    factors[:, width:] = tail
    reach = scalars.P.amax().item()
    return Factors(place, points, factors, scalars, torch.cat(sums, 1).to(p.dtype), reach)


def _apart(scalars: PointScalars, side: Side) -> Tensor:
    """``A`` less that of a typical point."""
    return scalars.A_minus_1 - _cosh_minus_1(side.typical_rapidity)


def _cosh_minus_1(a: Tensor) -> Tensor:
    return 2 * torch.sinh(a / 2) ** 2


class Tile:
    """A tile of pairs, computed in five buffers of its shape that all tiles share.

    ``h`` is of the pairs, ``value`` their gaps over ``unit``, ``inverse`` is ``2 / sinh(k d)`` where a form
    wants it, ``gradient`` and ``spare`` are for what is made of them. ``general`` tells whether the general
    formulas gave the gaps; ``h`` is then what they took, and ``slopes`` the gradients that they gave by the
    points' inner products.
    """

    def __init__(self, x: Factors, y: Factors, p: Problem, buffers: Tensor) -> None:
        self.x, self.y, self.c = x, y, p.c
        self.rows, self.columns = x.place, y.place
        shape = (len(x.points), len(y.points))
        self.h, self.value, self.inverse, self.gradient, self.spare = (
            buffer[: shape[0] * shape[1]].view(shape) for buffer in buffers
        )
        self._positives = _positives(p, x.place, y.place)
        self.unit = 1.0
        self.general = False
        self.slopes: Tensor | None = None

    def set_positives(self, values: Tensor, value: float) -> None:
        if isinstance(self._positives, int):
            values.diagonal(self._positives).fill_(value)
        elif len(self._positives[0]):
            values[self._positives] = value

    def gaps(self, pairs: PairFunction) -> tuple[Tensor, float | None]:
        """The gaps of ``pairs``, over ``unit``, and the least of a negative if the short formulas gave them.

        Those of positives have no meaning.
        """
        form = _FORMS.get(pairs.value)
        least = self._separate() if form else None
        if form is None or least is None:
            self._generalise()
            for band, tile in self.bands():
                self.value[band] = pairs.value(tile)
            return self.value, None
        self.unit = form.unit
        return form.value(self, least), form.scalar(least)

    def _separate(self) -> float | None:
        """Compute ``h``; return the least of a negative if the short formulas resolve all of them."""
        torch.mm(self.x.factors, self.y.factors.mT, out=self.h)
        self.set_positives(self.h, math.inf)
        least = self.h.amin().item()
        self.set_positives(self.h, least if math.isfinite(least) else 1.0)
        farthest = math.hypot(1, self.x.reach) * math.hypot(1, self.y.reach)
        in_reach = farthest < math.sqrt(torch.finfo(self.h.dtype).max)  # h^2 is finite
        return least if in_reach and self._resolution() < least < math.inf else None

    def _resolution(self) -> float:
        """The resolution of ``h`` where it is coarsest."""
        ulps = RESOLUTION_ULPS * torch.finfo(self.h.dtype).eps
        return 0.5 * ulps * self.x.reach * self.y.reach

    def _generalise(self) -> None:
        if self.general:
            return
        terms = self.x.points.shape[1] + _LATERAL_TERMS
        torch.mm(self.x.factors[:, :terms], self.y.factors[:, :terms].mT, out=self.h).mul_(2)
        self.general, self.unit = True, 1.0

    def bands(self) -> Iterator[tuple[slice, PairTile]]:
        """What the general formulas take, a few rows at a time: they make many matrices of its shape."""
        x, y = (
            PointScalars(*(scalar.to(self.h.dtype) for scalar in side.scalars)) for side in (self.x, self.y)
        )
        rows, columns = self.h.shape
        step = max(1, CPU_CHUNK_ELEMENTS // columns)
        for start in range(0, rows, step):
            band = slice(start, start + step)
            yield band, pair_tile(x.at(band), y.along_columns(), self.h[band], self.c)


def _positives(p: Problem, rows: slice, columns: slice) -> tuple[Tensor, Tensor] | int:
    """The places of pairs of a row and its target in a tile: indices, or the number of a diagonal."""
    if p.targets is None:
        return rows.start - columns.start
    targets = p.targets[rows] - columns.start
    inside = ((targets >= 0) & (targets < columns.stop - columns.start)).nonzero().squeeze(1)
    return inside, targets[inside]


class _Form(NamedTuple):
    """A gap that depends on ``h`` alone, computed in a tile's buffers.

    ``value(tile, least)`` fills ``tile.value`` with the gap over ``unit``, and ``tile.inverse`` if the slope
    needs it, ``least`` being the least ``h``; ``scalar(h)`` is the same for a number. ``slope(tile)`` turns
    ``tile.gradient`` from the gradient by the gap into that by ``h``. ``by_curv(tile, by_gap)`` is, for each
    row, the sum of ``(curv_power * gap - dgap/dh * h)`` over its pairs, weighted with their gradients;
    ``by_gap`` is that of the gap.
    """

    unit: float
    value: Callable[[Tile, float], Tensor]
    scalar: Callable[[float], float]
    slope: Callable[[Tile], Tensor]
    by_curv: Callable[[Tile, Tensor], Tensor]


def _dist(tile: Tile, least: float) -> Tensor:
    """``log2(1 + 2w)`` with ``w = h + sinh(k d)/2`` and ``sinh(k d)/2 = sqrt(q)``, ``q = h + h^2``.

    PyTorch vectorises ``log2`` for every processor, but not ``log1p``, which takes eight times as long.
    What ``1 + 2w`` rounds away is added again, unless it is below the last digit of every distance.
    ``log2`` and not ``log``, because its roundings average out. ``rsqrt`` is the faster root, and the
    slope needs it.
    """
    h, one = tile.h, torch.ones((), dtype=tile.h.dtype)
    q = torch.addcmul(h, h, h, out=tile.value)
    torch.rsqrt(q, out=tile.inverse)
    w = torch.addcmul(h, q, tile.inverse, out=q)
    if least > _LEAST_OF_COARSE_SUMS:
        return torch.add(one, w, alpha=2, out=w).log2_()
    u = torch.add(one, w, alpha=2, out=tile.gradient)
    lost = torch.sub(u, 1, out=tile.spare).sub_(w, alpha=2).div_(u)
    return torch.sub(u.log2_(), lost, alpha=1 / LN2, out=w)


def _dist_of(h: float) -> float:
    return math.log1p(2 * (h + math.sqrt(h * (h + 1)))) / LN2


def _dist_by_curv(tile: Tile, by_gap: Tensor, power: float) -> Tensor:
    """The terms of the gradient by the curvature; for near pairs by a function that does not cancel.

    Either slope leaves the distance in ``value``.
    """
    whole = power * by_gap
    rest = whole - _row_dots(tile.gradient, tile.h, tile.spare)
    if rest.abs().sum() > _LEAST_DIFFERENCE * whole.abs().sum():
        return rest
    deficit = tanh_deficit(tile.value * (LN2 / 2), tile.h / (tile.h + 1))
    return _row_dots(tile.gradient, deficit.div_(tile.inverse), tile.spare)


def sums(terms: Tensor, dim: int) -> Tensor:
    """Sums in float64, because positives and negatives nearly cancel; before, a few terms at a time.

    Terms of a row that are far apart in memory are added first, so that many sums are made at a time.
    """
    if terms.shape[dim] % _FEW_TERMS:
        return terms.sum(dim, dtype=torch.float64)
    groups = (_FEW_TERMS, -1) if dim == 1 else (-1, _FEW_TERMS)
    return terms.unflatten(dim, groups).sum(1).sum(dim, dtype=torch.float64)


def _row_dots(a: Tensor, b: Tensor, spare: Tensor) -> Tensor:
    return sums(torch.mul(a, b, out=spare), 1)


_FORMS = {
    DISTANCE.value: _Form(
        LN2,
        _dist,
        _dist_of,
        lambda tile: tile.gradient.mul_(tile.inverse),
        lambda tile, by_gap: _dist_by_curv(tile, by_gap, 0.5),
    ),
    SQUARED_DISTANCE.value: _Form(
        LN2**2,
        lambda tile, least: _dist(tile, least).square_(),
        lambda h: _dist_of(h) ** 2,
        lambda tile: tile.gradient.mul_(tile.value.sqrt_()).mul_(tile.inverse).mul_(2 * LN2),
        lambda tile, by_gap: _dist_by_curv(tile, by_gap, 1.0),
    ),
    NEGATIVE_INNER.value: _Form(
        1.0,
        lambda tile, least: torch.mul(tile.h, 2, out=tile.value).add_(1),
        lambda h: 1 + 2 * h,
        lambda tile: tile.gradient.mul_(2),
        lambda tile, by_gap: sums(tile.gradient, 1) / 2,
    ),
    EXCESS_OF_INNER.value: _Form(
        1.0,
        lambda tile, least: torch.mul(tile.h, 2, out=tile.value),
        lambda h: 2 * h,
        lambda tile: tile.gradient.mul_(2),
        lambda tile, by_gap: torch.zeros_like(by_gap),
    ),
}


class GradientSums:
    """The gradients by the inputs, summed over tiles."""

    def __init__(self, p: Problem) -> None:
        self.p = p
        self.x = _PointSums(p.x.points, p.dtype) if p.learns.x else None
        self.y = _PointSums(p.y.points, p.dtype) if p.learns.y else None
        self.curv = p.scale.new_zeros(())
        self.scale = p.scale.new_zeros(p.scale.shape)

    def add_matrix(
        self, tile: Tile, pairs: PairFunction, gaps: Tensor, per_unit: Tensor, uniform: float | None
    ) -> None:
        """Add what comes through one matrix of logits, ``-per_unit * gaps``: ``gradient`` is that by them."""
        by_gap = _row_dots(tile.gradient, gaps, tile.spare).mul_(tile.unit)
        self.scale[tile.rows] -= by_gap * self.p.unit(pairs)
        if tile.general:
            self._add_general(tile, pairs, gaps, per_unit)
            return
        form = _FORMS[pairs.value]
        form.slope(tile)
        if self.p.learns.curv:
            self.curv += (form.by_curv(tile, by_gap) * per_unit).sum() / self.p.c
        if uniform is None:
            tile.gradient.mul_(per_unit.unsqueeze(1))
        self._add_by_h(tile, 1.0 if uniform is None else uniform)

    def _add_by_h(self, tile: Tile, factor: float) -> None:
        """Add what ``2 h = A B - 1 - c x.y`` gives for slopes ``factor * tile.gradient`` by ``h``."""
        x, y, c = tile.x, tile.y, self.p.c
        A, B = x.scalars.A, y.scalars.A
        by_row = (tile.gradient @ y.sums).double().mul_(factor / 2)
        by_column = (x.sums.mT @ tile.gradient).double().mT.mul_(factor / 2)
        if self.x:
            self.x.add(x.place, tile.gradient, y.factors, factor / 2, by_row[:, :1])
            self.x.point[x.place] -= c * by_row[:, 1:2] / A
        if self.y:
            self.y.add(y.place, tile.gradient.mT, x.factors, -factor, by_column[:, :1])
            self.y.point[y.place] -= c * by_column[:, 1:2] / B
        s_0, s_1, s_2 = by_row[:, 2:5].split(1, 1)
        apart = _apart(x.scalars, self.p.x)
        self.curv += ((apart * (apart * s_0 - 2 * s_1) + s_2) / A).sum() / (2 * c)

    def _add_general(self, tile: Tile, pairs: PairFunction, gaps: Tensor, per_unit: Tensor) -> None:
        if tile.slopes is None:
            tile.slopes = tile.inverse.zero_()
        weights = tile.gradient.mul_(-per_unit.unsqueeze(1))
        for band, pair in tile.bands():
            part = pairs.gradient(weights[band], gaps[band], pair)
            tile.slopes[band] += part.cross
            self.curv += part.curv
            if self.x:
                self.x.point[tile.rows][band] += part.x_coefficient
            if self.y:
                self.y.point[tile.columns] += part.y_coefficient.mT

    def add_products(self, tile: Tile) -> None:
        """Add the products with the general formulas' slopes, for all matrices of logits at once."""
        if tile.slopes is None:
            return
        x, y, slopes = tile.x, tile.y, tile.slopes.div_(self.p.c)
        if self.x:
            self.x.add(x.place, slopes, y.factors, 1.0, slopes @ y.sums[:, :1])
        if self.y:
            self.y.add(y.place, slopes.mT, x.factors, -2.0, slopes.mT @ x.sums[:, :1])

    def gradients(self) -> Gradients:
        p = self.p
        x, y = (
            side.gradient(embedding) if side else None for side, embedding in ((self.x, p.x), (self.y, p.y))
        )
        return Gradients(x, y, self.curv, self.scale)


class _PointSums:
    """``k (factors + centre * o) + point * x``, with ``o`` the centre of the other side."""

    def __init__(self, points: Tensor, dtype: torch.dtype) -> None:
        self.factors = points.new_zeros(points.shape, dtype=dtype)
        self.centre, self.point = points.new_zeros(2, len(points), 1, dtype=torch.float64)

    def add(self, place: slice, slopes: Tensor, factors: Tensor, factor: float, centre: Tensor) -> None:
        width = self.factors.shape[1]
        self.factors[place].addmm_(slopes, factors[:, :width], alpha=factor)
        self.centre[place] += centre

    def gradient(self, side: Side) -> Tensor:
        """The gradient, written into the memory of ``factors``."""
        k, o = torch.sqrt(side.c), side.other_centre
        step = max(1, CPU_CHUNK_ELEMENTS // max(self.factors.shape[1], 1))
        for start in range(0, len(self.factors), step):
            chunk = slice(start, start + step)
            total = torch.addcmul(self.factors[chunk].double(), self.centre[chunk], o).mul_(k)
            self.factors[chunk] = total.addcmul_(self.point[chunk], side.points[chunk].double())
        return self.factors
