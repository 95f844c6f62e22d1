"""Values and gradients in 100-digit arithmetic, of the exact numbers that a package is given.

Every function is one of the inner products of its points, so that its gradients are combinations of the
points with partial derivatives as coefficients: central differences of the definition, right to 50 digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

try:
    import mpmath as mp
    from mpmath import mpf
except ImportError as error:
    raise ImportError(f"benchmarks.errors needs mpmath, pip install 'hysac[bench]': {error}") from error

DIGITS = 100
STEP = mpf(10) ** -33
MIN_RADIUS = mpf(0.1)
LOGIT_SCALE = mpf(10)

Number = Any
Vector = list[Number]


@dataclass(frozen=True)
class Truth:
    """Of one row: the value, a list of one number or of a point's, and the gradient by all its points."""

    value: Vector
    gradient: Vector


# ---------------------------------------------------------------- definitions, of inner products


def _time(square: Number, c: Number) -> Number:
    return mp.sqrt(1 / c + square)


def _inner(xx: Number, xy: Number, yy: Number, c: Number) -> Number:
    return xy - _time(xx, c) * _time(yy, c)


def _distance(xx: Number, xy: Number, yy: Number, c: Number) -> Number:
    return mp.acosh(-c * _inner(xx, xy, yy, c)) / mp.sqrt(c)


def _distance_in_ball(xx: Number, xy: Number, yy: Number, c: Number) -> Number:
    apart = xx - 2 * xy + yy
    return mp.acosh(1 + 2 * c * apart / ((1 - c * xx) * (1 - c * yy))) / mp.sqrt(c)


def _half_aperture(xx: Number, c: Number) -> Number:
    sine = 2 * MIN_RADIUS / mp.sqrt(c * xx)
    return mp.asin(sine) if sine < 1 else mp.pi / 2


def _exterior_angle(xx: Number, xy: Number, yy: Number, c: Number) -> Number:
    inner = c * _inner(xx, xy, yy, c)
    return mp.acos((_time(yy, c) + inner * _time(xx, c)) / mp.sqrt(xx * (inner**2 - 1)))


def _along(function: Callable[[Number], Number]) -> Callable[[Number, Number], Number]:
    """A map at the origin: what its argument is multiplied with."""

    def factor(xx: Number, c: Number) -> Number:
        length = mp.sqrt(c * xx)
        return function(length) / length

    return factor


SCALARS: dict[tuple[str, str], Callable[..., Number]] = {
    ("distance", "space"): _distance,
    ("distance", "ball"): _distance_in_ball,
    ("half_aperture", "space"): _half_aperture,
    ("exterior_angle", "space"): _exterior_angle,
}
MAPS: dict[tuple[str, str], Callable[..., Number]] = {
    ("exp_map0", "space"): _along(mp.sinh),
    ("exp_map0", "ball"): _along(mp.tanh),
    ("log_map0", "space"): _along(mp.asinh),
    ("log_map0", "ball"): _along(mp.atanh),
}


# ---------------------------------------------------------------- values and gradients


def truth(
    function: str, coordinates: str, points: Sequence[Sequence[float]], curv: float, upstream: Sequence[float]
) -> Truth:
    """Of one row of each of ``points``; ``upstream`` multiplies the value's components in the gradient."""
    with mp.workdps(DIGITS):
        vectors, c, up = [_exact(one) for one in points], mpf(curv), _exact(upstream)
        gram = _gram(vectors)
        definition = SCALARS.get((function, coordinates))
        if definition is not None:
            return Truth([definition(*gram, c)], _gradient(definition, vectors, gram, c, up[0]))
        factor, (x,) = MAPS[function, coordinates], vectors
        along = mp.fdot(x, up)
        of_square = [along * one for one in _gradient(factor, vectors, gram, c, mpf(1))]
        scale = factor(*gram, c)
        return Truth(
            [scale * one for one in x], [scale * u + one for u, one in zip(up, of_square, strict=True)]
        )


def contrastive_truth(x: Sequence[Sequence[float]], y: Sequence[Sequence[float]], curv: float) -> Truth:
    """The mean of both cross entropies of ``-10 d(x_i, y_j)``, and its gradient by all points."""
    with mp.workdps(DIGITS):
        rows, columns, c = [_exact(one) for one in x], [_exact(one) for one in y], mpf(curv)
        distance = SCALARS["distance", "space"]
        count = len(rows)
        grams = [[_gram([one, other]) for other in columns] for one in rows]
        logits = [[-LOGIT_SCALE * distance(*gram, c) for gram in line] for line in grams]
        by_rows = [_log_sum(line) for line in logits]
        by_columns = [_log_sum(line) for line in zip(*logits, strict=True)]
        value = mp.fsum(by_rows[i] + by_columns[i] - 2 * logits[i][i] for i in range(count)) / (2 * count)
        gradients = [[mpf(0)] * len(rows[0]) for _ in range(2 * count)]
        for i in range(count):
            for j in range(count):
                share = mp.exp(logits[i][j] - by_rows[i]) + mp.exp(logits[i][j] - by_columns[j])
                weight = -LOGIT_SCALE * (share - 2 * (i == j)) / (2 * count)
                pair = _gradient(distance, [rows[i], columns[j]], grams[i][j], c, weight)
                for place, part in ((i, pair[: len(rows[0])]), (count + j, pair[len(rows[0]) :])):
                    gradients[place] = [a + b for a, b in zip(gradients[place], part, strict=True)]
        return Truth([value], [number for one in gradients for number in one])


def on_hyperboloid(gradient: Sequence[float], point: Sequence[float], curv: float) -> Vector:
    """The gradient by the space components of one by a full vector, whose time depends on them."""
    with mp.workdps(DIGITS):
        of_time, *of_space = _exact(gradient)
        x = _exact(point)
        slope = of_time / _time(mp.fdot(x, x), mpf(curv))
        return [g + slope * one for g, one in zip(of_space, x, strict=True)]


def relative_error(found: Sequence[Number], expected: Vector) -> float:
    """In the norm; of an expected 0 it is 0 or infinite."""
    with mp.workdps(DIGITS):
        numbers = [mpf(one) for one in found]
        if not all(mp.isfinite(one) for one in numbers):
            return float("inf")
        error = mp.norm([a - b for a, b in zip(numbers, expected, strict=True)])
        size = mp.norm(expected)
        return float(error / size) if size else (float("inf") if error else 0.0)


def _exact(numbers: Sequence[float]) -> Vector:
    return [mpf(one) for one in numbers]


def _gram(vectors: Sequence[Vector]) -> Vector:
    pairs = [(0, 0)] if len(vectors) == 1 else [(0, 0), (0, 1), (1, 1)]
    return [mp.fdot(vectors[i], vectors[j]) for i, j in pairs]


def _gradient(
    definition: Callable[..., Number], vectors: Sequence[Vector], gram: Vector, c: Number, weight: Number
) -> Vector:
    """Of a function of the gram, by all points, one after another."""
    partials = [weight * one for one in _partials(definition, gram, c)]
    if len(vectors) == 1:
        return [2 * partials[0] * one for one in vectors[0]]
    x, y = vectors
    of_x = [2 * partials[0] * a + partials[1] * b for a, b in zip(x, y, strict=True)]
    return of_x + [partials[1] * a + 2 * partials[2] * b for a, b in zip(x, y, strict=True)]


def _partials(definition: Callable[..., Number], gram: Vector, c: Number) -> Vector:
    found = []
    for index, argument in enumerate(gram):
        step = STEP * max(map(abs, gram))
        low, high = (
            definition(*gram[:index], argument + sign * step, *gram[index + 1 :], c) for sign in (-1, 1)
        )
        found.append((high - low) / (2 * step))
    return found


def _log_sum(logits: Sequence[Number]) -> Number:
    return mp.log(mp.fsum(mp.exp(one) for one in logits))
