"""The worst error of each function of a package, in each regime and dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.errors import truth as exact
from benchmarks.errors.evaluate import Evaluated, Evaluator
from benchmarks.errors.regimes import CURVATURES, DTYPES, FUNCTIONS, Regime, as_given, inputs, regimes_of

Record = dict[str, Any]
ToSpace = Callable[[list[float], list[float]], list[Any]]
# Pairs of a contrastive loss are the square of these.
CONTRASTIVE_ROWS = 12


def measure(functions: Mapping[str, Evaluator], coordinates: str, rows: int, width: int) -> Iterator[Record]:
    """A record for each function, regime and dtype: the worst relative errors, over rows and curvatures.

    Of a loss a row is the whole of it. Errors are of the norm of a row's value, and of the gradient by all
    its points; those of functions without gradients are None. An exception is a record with its message.
    """
    for function in (one for one in FUNCTIONS if one in functions):
        for regime in regimes_of(function):
            for dtype in DTYPES:
                record: Record = {"function": function, "regime": regime.name, "dtype": dtype}
                try:
                    worst = _worst(functions[function], function, coordinates, regime, dtype, rows, width)
                except Exception as error:  # whatever another package raises
                    yield record | {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
                else:
                    yield record | worst


def _worst(
    evaluator: Evaluator, function: str, coordinates: str, regime: Regime, dtype: str, rows: int, width: int
) -> Record:
    values, gradients = [], []
    for curv in CURVATURES:
        drawn = inputs(function, regime, curv, _rows_of(function, rows), width)
        given = [as_given(one, function, coordinates, DTYPES[dtype], curv) for one in drawn]
        upstream = _upstream(function, given[0], coordinates)
        found = evaluator(given, curv, upstream)
        errors = _of_loss if function == "contrastive_loss" else _of_rows
        for value, gradient in errors(found, function, coordinates, given, curv, upstream):
            values.append(value)
            gradients.append(gradient)
    numbers = [one for one in gradients if one is not None]
    return {"value": max(values), "gradient": max(numbers) if numbers else None}


def _rows_of(function: str, rows: int) -> int:
    return min(rows, CONTRASTIVE_ROWS) if function == "contrastive_loss" else rows


def _upstream(function: str, points: Tensor, coordinates: str) -> Tensor | None:
    if (function, "space") not in exact.MAPS:
        return None
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(points.shape, generator=generator, dtype=torch.float64).to(points.dtype)
    if coordinates == "full":
        drawn[:, 0] = 0
    return drawn


def _of_rows(
    found: Evaluated,
    function: str,
    coordinates: str,
    given: list[Tensor],
    curv: float,
    upstream: Tensor | None,
) -> Iterator[tuple[float, float | None]]:
    first = 1 if coordinates == "full" else 0  # of a full vector the space components are told apart
    to_space = _to_space(function, coordinates, curv)
    for row in range(len(given[0])):
        points = [one[row, first:].tolist() for one in given]
        up = [1.0] if upstream is None else upstream[row, first:].tolist()
        expected = exact.truth(function, "ball" if coordinates == "ball" else "space", points, curv, up)
        value = found.value[row].reshape(-1).tolist()
        error = exact.relative_error(value[first:] if upstream is not None else value, expected.value)
        yield error, _gradient_error(found, expected, given, slice(row, row + 1), to_space)


def _of_loss(
    found: Evaluated,
    function: str,
    coordinates: str,
    given: list[Tensor],
    curv: float,
    upstream: Tensor | None,
) -> Iterator[tuple[float, float | None]]:
    first = 1 if coordinates == "full" else 0
    x, y = (one[:, first:].tolist() for one in given)
    expected = exact.contrastive_truth(x, y, curv)
    error = exact.relative_error(found.value.reshape(-1).tolist(), expected.value)
    yield error, _gradient_error(found, expected, given, slice(None), _to_space(function, coordinates, curv))


def _gradient_error(
    found: Evaluated, expected: exact.Truth, given: list[Tensor], rows: slice, to_space: ToSpace
) -> float | None:
    if found.gradients is None:
        return None
    gradient: list[Any] = []
    for points, of_points in zip(given, found.gradients, strict=True):
        for point, one in zip(points[rows].tolist(), of_points[rows].tolist(), strict=True):
            gradient += to_space(point, one)
    return exact.relative_error(gradient, expected.gradient)


def _to_space(function: str, coordinates: str, curv: float) -> ToSpace:
    """From a point and the gradient by it to that by the coordinates that are free."""
    if coordinates != "full":
        return lambda point, gradient: gradient
    if function == "exp_map0":  # the time of a tangent at the origin is always 0
        return lambda point, gradient: gradient[1:]
    return lambda point, gradient: exact.on_hyperboloid(gradient, point[1:], curv)
