"""The definitions of the Lorentz model in 240-digit arithmetic: the truth for the tests of the row-wise ops.

Every op is a function of the inner products of its points, so its gradients are combinations of the points
(and of the upstream gradient) with partial derivatives as coefficients. Those are central differences of the
definition itself, exact to more than 50 digits: nothing here is shared with the formulas under test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mpmath as mp
import torch
from mpmath import mpf
from rowwise_ops import OPS
from torch import Tensor

DIGITS = 240
STEP = mpf(10) ** -80

ULP = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def _time(square, c):
    return mp.sqrt(1 / c + square)


def _inner(xx, xy, yy, c):
    return xy - _time(xx, c) * _time(yy, c)


def _dist(xx, xy, yy, c):
    return mp.acosh(-c * _inner(xx, xy, yy, c)) / mp.sqrt(c)


def _dist0(xx, c):
    return mp.acosh(mp.sqrt(c) * _time(xx, c)) / mp.sqrt(c)


def _busemann(xx, xw, ww, c):
    return mp.log(mp.sqrt(1 + c * xx) - mp.sqrt(c / ww) * xw) / mp.sqrt(c)


def _half_aperture(xx, c, min_radius):
    sine = 2 * mpf(min_radius) / mp.sqrt(c * xx)
    return mp.asin(sine) if sine < 1 else mp.pi / 2


def _oxy_angle(xx, xy, yy, c):
    inner = c * _inner(xx, xy, yy, c)
    return mp.acos((_time(yy, c) + inner * _time(xx, c)) / mp.sqrt(xx * (inner**2 - 1)))


def _entailment_loss(xx, xy, yy, c, aperture_scale, min_radius, margin, leak):
    angle = _oxy_angle(xx, xy, yy, c)
    outside = angle - mpf(aperture_scale) * _half_aperture(xx, c, min_radius) + mpf(margin)
    return max(outside, 0) + mpf(leak) * angle


def _exp_map0(xx, c):
    t = mp.sqrt(c * xx)
    return (mp.sinh(t) / t,)


def _log_map0(xx, c):
    t = mp.sqrt(c * xx)
    return (mp.asinh(t) / t,)


def _exp_map(xx, xv, vv, c):
    tau = mp.sqrt(c * (vv - xv**2 / (1 / c + xx)))
    return mp.cosh(tau), mp.sinh(tau) / tau


def _log_map(xx, xy, yy, c):
    tau = mp.sqrt(c) * _dist(xx, xy, yy, c)
    f = tau / mp.sinh(tau)
    return -f * mp.cosh(tau), f


# A map returns the coefficients of the points in its result.
DEFINITIONS: dict[str, Callable] = {
    "elementwise_inner": _inner,
    "elementwise_dist": _dist,
    "dist0": _dist0,
    "busemann": _busemann,
    "half_aperture": _half_aperture,
    "oxy_angle": _oxy_angle,
    "entailment_loss": _entailment_loss,
    "exp_map0": _exp_map0,
    "log_map0": _log_map0,
    "exp_map": _exp_map,
    "log_map": _log_map,
}
MAPS = tuple(name for name in DEFINITIONS if OPS[name].returns_points)
ONE_POINT = tuple(name for name in DEFINITIONS if OPS[name].points == 1)
# The functions of points and curvature: of the loss, options are keywords and the mean is taken.
FUNCTIONS = tuple(name for name in DEFINITIONS if name != "entailment_loss")


def _dot(a, b):
    return mp.fdot(a, b)


def _combine(coefficients, vectors):
    return [_dot(coefficients, column) for column in zip(*vectors, strict=True)]


def _partials(function, arguments):
    """Partial derivatives of ``function`` by central differences relative to each argument."""
    for index, argument in enumerate(arguments):
        step = STEP * (abs(argument) if argument else 1)
        values = [
            function(*arguments[:index], argument + sign * step, *arguments[index + 1 :]) for sign in (1, -1)
        ]
        yield (values[0] - values[1]) / (2 * step)


@dataclass
class Truth:
    """One row: the value (a list of components for a map) and the gradients of ``upstream . value``."""

    value: list
    gradients: list[list]
    curv_gradient: object


def truth(
    name: str, points: Sequence[Tensor], curv: float, upstream: Tensor, options: Sequence = ()
) -> Truth:
    """The truth for one row of each of ``points``."""
    with mp.workdps(DIGITS):
        vectors = [[mpf(v) for v in point.tolist()] for point in points]
        g = [mpf(v) for v in upstream.reshape(-1).tolist()]
        return exact_truth(name, vectors, mpf(curv), g, options)


def exact_truth(name: str, vectors: Sequence[list], c, g: list, options: Sequence = ()) -> Truth:
    """The same of exact numbers, within ``mp.workdps(DIGITS)``."""
    definition = DEFINITIONS[name]
    pairs = [(0, 0)] if len(vectors) == 1 else [(0, 0), (0, 1), (1, 1)]
    gram = [_dot(vectors[i], vectors[j]) for i, j in pairs]
    result = definition(*gram, c, *options)
    if name in MAPS:
        value = _combine(result, vectors)
        projections = [_dot(vector, g) for vector in vectors]

        def loss(*args):
            return _dot(definition(*args), projections)
    else:
        value = [result]

        def loss(*args):
            return g[0] * definition(*args, *options)

    *by_gram, by_curv = _partials(loss, [*gram, c])
    gradients = []
    for index in range(len(vectors)):
        weights = [mpf(0)] * len(vectors)
        for (i, j), partial in zip(pairs, by_gram, strict=True):
            if i == index:
                weights[j] += partial
            if j == index:
                weights[i] += partial
        gradient = _combine(weights, vectors)
        if name in MAPS:
            gradient = [a + result[index] * b for a, b in zip(gradient, g, strict=True)]
        gradients.append(gradient)
    return Truth(value, gradients, by_curv)


def ulp_error(actual: Tensor, expected: Sequence) -> float:
    """Largest error of the elements of ``actual``, in units in the last place of the expected ones."""
    ulp, tiny = ULP[actual.dtype], torch.finfo(actual.dtype).tiny
    errors = []
    for value, true in zip(actual.reshape(-1).tolist(), expected, strict=True):
        spacing = ulp * 2.0 ** int(mp.floor(mp.log(max(abs(true), tiny), 2)))
        errors.append(float(abs(mpf(value) - true) / spacing))
    return max(errors)


def relative_error(actual: Tensor, expected: Sequence) -> float:
    """2-norm of the error over the 2-norm of what is expected."""
    difference = [
        mpf(value) - true for value, true in zip(actual.reshape(-1).tolist(), expected, strict=True)
    ]
    return float(mp.norm(difference) / mp.norm(list(expected)))
