"""Numbers with the precision of float64 and no limit of range, for the rows that float64 cannot hold.

The closed forms square and multiply: for numbers from ``2**-160`` to ``2**160`` they stay within
float64. Beyond that a row's result may be an ordinary number although its intermediates are not. For
such rows :func:`repaired` runs the same formulas on :class:`Wide` operands, each element of which has
its own exponent: much slower, for few rows if any. ``Wide`` has exactly the methods of a tensor that the
formulas use. On a GPU finding such rows would wait for the device: there the plain formulas return NaN
for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from itertools import repeat
from typing import Any, Union

import torch
from torch import Tensor

Operand = Union["Wide", Tensor, float]

_LN2_HIGH = 0.6931471803691238  # 21 trailing zero bits: products with integers below 2^21 are exact
_LN2_LOW = 1.9082149292705877e-10
# The exponent of a zero: below that of any number, and far enough from int64's limit for sums of
# exponents.
_ZERO_EXPONENT = -(1 << 40)
# The range of squares in the plain formulas.
_SMALLEST, _LARGEST = 2.0**-320, 2.0**320
NORMS = {"smallest": 2.0**-160, "largest": 2.0**160}
# The range of arguments whose hyperbolic sines have squares in that range.
EXPONENTS = {"smallest": 2.0**-160, "largest": 222.0}
# Below this, squares of norms are subnormal float64 numbers, or 0.
_UNRESOLVED = 2.0**-450
# Beyond this argument an exponential is 0 or infinite, whatever its factors.
_LARGEST_ARGUMENT = 2.0**20
# A term whose exponent is smaller by more than this does not change a sum.
_NEGLIGIBLE = -200


def power_of_two(exponent: Tensor) -> Tensor:
    """``2**exponent`` of int64 numbers in [-1022, 1023]."""
    return ((exponent + 1023) << 52).view(torch.float64)


class Wide:
    """``mantissa * 2**exponent``: float64 in [0.5, 1), or 0, and int64 of the same shape."""

    def __init__(self, mantissa: Tensor, exponent: Tensor | int = 0) -> None:
        fraction, shift = torch.frexp(mantissa)
        self.mantissa = fraction
        self.exponent = torch.where(fraction == 0, _ZERO_EXPONENT, shift.long() + exponent)

    @classmethod
    def of(cls, value: Operand) -> Wide:
        if isinstance(value, Wide):
            return value
        return cls(value.double() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64))

    def float64(self) -> Tensor:
        """Rounded once; infinite where it is too large."""
        exponent = self.exponent.clamp(-1200, 1200)
        half = exponent >> 1
        return self.mantissa * power_of_two(half) * power_of_two(exponent - half)

    def saturated(self) -> Tensor:
        """float64 rows, scaled where a component is too large: it becomes the largest number."""
        excess = (self.exponent.amax(-1, keepdim=True) - 1024).clamp(min=0)
        rows = Wide(self.mantissa, self.exponent - excess).float64()
        scaled = rows / rows.abs().amax(-1, keepdim=True) * torch.finfo(torch.float64).max
        return torch.where(excess > 0, scaled, rows)

    @property
    def shape(self) -> torch.Size:
        return self.mantissa.shape

    @property
    def device(self) -> torch.device:
        return self.mantissa.device

    @classmethod
    def __torch_function__(
        cls, function: Callable, types: Any, args: Sequence = (), kwargs: dict | None = None
    ) -> Any:
        return getattr(cls, f"_{function.__name__}")(*args, **(kwargs or {}))

    # Arithmetic

    def __neg__(self) -> Wide:
        return Wide(-self.mantissa, self.exponent)

    def __mul__(self, other: Operand) -> Wide:
        other = Wide.of(other)
        return Wide(self.mantissa * other.mantissa, self.exponent + other.exponent)

    def __truediv__(self, other: Operand) -> Wide:
        other = Wide.of(other)
        return Wide(self.mantissa / other.mantissa, self.exponent - other.exponent)

    def __add__(self, other: Operand) -> Wide:
        other = Wide.of(other)
        common = torch.maximum(self.exponent, other.exponent)
        return Wide(self._in_units_of(common) + other._in_units_of(common), common)

    def __sub__(self, other: Operand) -> Wide:
        return self + -Wide.of(other)

    def __pow__(self, power: int) -> Wide:
        return math.prod([self] * (power - 1), start=self)

    def __rsub__(self, other: Operand) -> Wide:
        return Wide.of(other) - self

    def __rtruediv__(self, other: Operand) -> Wide:
        return Wide.of(other) / self

    __radd__, __rmul__ = __add__, __mul__

    def sum(self, dim: int, keepdim: bool) -> Wide:
        common = self.exponent.amax(dim, keepdim=True)
        terms = self._in_units_of(common).sum(dim, keepdim=True)
        return Wide(terms, common if keepdim else common.squeeze(dim))

    def _in_units_of(self, exponent: Tensor) -> Tensor:
        """The number as float64 in units of ``2**exponent``, which is at least each exponent."""
        shift = self.exponent - exponent
        return torch.where(
            shift < _NEGLIGIBLE, 0.0, self.mantissa * power_of_two(shift.clamp(min=_NEGLIGIBLE))
        )

    # Comparisons, all by the sign of a difference

    def __lt__(self, other: Operand) -> Tensor:
        return (self - other).mantissa < 0

    def __le__(self, other: Operand) -> Tensor:
        return (self - other).mantissa <= 0

    def __gt__(self, other: Operand) -> Tensor:
        return (self - other).mantissa > 0

    def __eq__(self, other: object) -> Tensor:  # type: ignore[override]
        return (self - other).mantissa == 0  # type: ignore[operator]

    # Methods and functions of tensors

    def square_(self) -> Wide:
        return self * self

    def mul_(self, other: Operand) -> Wide:
        return self * other

    def add_(self, other: Operand) -> Wide:
        return self + other

    def addcmul_(self, a: Operand, b: Operand, value: float = 1) -> Wide:
        return self + Wide.of(a) * b * value

    def masked_fill_(self, mask: Tensor, value: float) -> Wide:
        return Wide._where(mask, value, self)

    def abs(self) -> Wide:
        return Wide(self.mantissa.abs(), self.exponent)

    def clamp(self, min: float | None = None, max: float | None = None) -> Wide:
        low = self if min is None else Wide._where(self < min, min, self)
        return low if max is None else Wide._where(low > max, max, low)

    def relu(self) -> Wide:
        return self.clamp(min=0.0)

    @staticmethod
    def _addcmul(base: Operand, a: Operand, b: Operand, value: float = 1) -> Wide:
        return Wide.of(base).addcmul_(a, b, value)

    @staticmethod
    def _where(mask: Tensor, a: Operand, b: Operand) -> Wide:
        a, b = Wide.of(a), Wide.of(b)
        return Wide(torch.where(mask, a.mantissa, b.mantissa), torch.where(mask, a.exponent, b.exponent))

    @staticmethod
    def _full_like(like: Wide, value: float) -> Wide:
        return Wide(torch.full_like(like.mantissa, value))

    def _sqrt(self) -> Wide:
        odd = self.exponent & 1
        return Wide(torch.sqrt(self.mantissa * (1 + odd)), (self.exponent - odd) >> 1)

    def _sign(self) -> Wide:
        return Wide(torch.sign(self.mantissa))

    def _rsqrt(self) -> Wide:
        return 1.0 / self._sqrt()

    def _linalg_vector_norm(self, dim: int, keepdim: bool) -> Wide:
        return (self * self).sum(dim, keepdim)._sqrt()

    def _sinh(self) -> Wide:
        near = self._in_float64(torch.sinh, below=1.0)
        return Wide._where(self._below(1.0), near, (_exp(self) - _exp(-self)) * 0.5)

    def _cosh(self) -> Wide:
        return (_exp(self) + _exp(-self)) * 0.5

    def _asinh(self) -> Wide:
        powers, mantissa = self.exponent.clamp(min=0).double(), self.mantissa
        logarithm = powers * _LN2_HIGH + (powers * _LN2_LOW + torch.log(2 * mantissa.abs()))
        near = self._in_float64(torch.asinh, below=2.0**100)
        return Wide._where(self._below(2.0**100), near, Wide(torch.copysign(logarithm, mantissa)))

    def _atan(self) -> Wide:
        return self._atan2(Wide.of(1.0))

    def _atan2(self, x: Wide) -> Wide:
        """``atan2`` of ``y >= 0``; tiny angles in full precision."""
        common = torch.maximum(self.exponent, x.exponent)
        angle = Wide(torch.atan2(self._in_units_of(common), x._in_units_of(common)))
        slope = self / Wide._where(x > 0, x, 1.0)
        return Wide._where((x > 0) & slope._below(2.0**-60), slope, angle)

    def _in_float64(self, function: Callable[[Tensor], Tensor], below: float) -> Wide:
        """An odd function of numbers up to ``below``, which returns tiny numbers unchanged."""
        value = Wide(function(self.float64().clamp(-below, below)))
        return Wide._where(self._below(2.0**-60), self, value)

    def _below(self, bound: float) -> Tensor:
        return self.float64().abs() < bound


def _exp(value: Wide) -> Wide:
    argument = value.float64().clamp(-_LARGEST_ARGUMENT, _LARGEST_ARGUMENT)
    powers = torch.round(argument / math.log(2))
    rest = (argument - powers * _LN2_HIGH) - powers * _LN2_LOW
    return Wide(torch.exp(rest), powers.long())


class BeyondRangeError(ArithmeticError):
    """Some rows, ``(rows, 1)``, need :class:`Wide` numbers."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__("rows beyond the range of the plain formulas")
        self.rows = rows


def resolved(norm: Tensor, rows: Tensor) -> Tensor:
    """The norm of ``rows``; rows whose squares are too small for float64 go to :class:`Wide` numbers."""
    if isinstance(norm, Wide) or (_on_cpu(norm) and norm.numel() and norm.min().item() >= _UNRESOLVED):
        return norm
    return unless(_found((norm < _UNRESOLVED) & (rows != 0).any(-1, keepdim=True)), norm)


def within(*numbers: Tensor, smallest: float = _SMALLEST, largest: float = _LARGEST) -> Tensor | None:
    """Check that numbers of rows are 0 or between these bounds, which are those of squares by default.

    On a GPU it returns the mask of the other rows, ``(rows, 1)``, for :func:`unless`.
    """
    if isinstance(numbers[0], Wide):
        return None
    together = torch.cat(numbers, -1) if len(numbers) > 1 else numbers[0]
    on_cpu = _on_cpu(together)
    if on_cpu and together.numel():
        low, high = together.aminmax()
        if low.item() >= smallest and high.item() <= largest:
            return None
    inside = (together == 0) | ((together >= smallest) & (together <= largest))
    return _found(~inside.all(-1, keepdim=True))


def unless(beyond: Tensor | None, number: Tensor) -> Tensor:
    return number if beyond is None else number.masked_fill(beyond, math.nan)


def _on_cpu(number: Tensor) -> bool:
    return number.device.type == "cpu"


def _found(beyond: Tensor) -> Tensor | None:
    if not _on_cpu(beyond):
        return beyond
    if beyond.any():
        raise BeyondRangeError(beyond)
    return None


def repaired(points: int = 0) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate ``formula(*tensors, *options)``; its tensors are float64, rows ``(*batch, columns)`` or
    0-d.

    Rows beyond the range of the plain formula are computed with :class:`Wide` numbers. Results too large
    for float64 are infinite. The first ``points`` results are gradients by points: their rows are scaled
    instead.
    """

    def decorate(formula: Callable[..., Any]) -> Callable[..., Any]:
        def beyond(*arguments: Any) -> Iterator[Tensor]:
            results = formula(*(Wide.of(one) if isinstance(one, Tensor) else one for one in arguments))
            for index, result in enumerate(_as_tuple(results)):
                yield result.saturated() if index < points else result.float64()

        whole = _in_parts(formula, beyond)

        @wraps(formula)
        def gradients(*arguments: Any) -> Any:
            results = whole(*arguments)
            rows = _overflown(results[:points], arguments)
            if rows is not None:
                for near, far in zip(
                    results, beyond(*(_of_rows(rows, one) for one in arguments)), strict=True
                ):
                    near[rows] = far
            return results

        return gradients if points else whole

    return decorate


def _overflown(results: Sequence[Tensor], arguments: Sequence[Any]) -> Tensor | None:
    """On a CPU the rows, if any, whose results are not finite though all arguments are."""
    if all(isinstance(one, Wide) or not _on_cpu(one) or math.isfinite(one.sum().item()) for one in results):
        return None
    rows = ~_finite_rows(results[0])
    for one in results[1:]:
        rows |= ~_finite_rows(one)
    for one in arguments:
        if isinstance(one, Tensor):
            rows &= _finite_rows(one) if one.dim() else one.isfinite()
    return rows if rows.any() else None


def _finite_rows(rows: Tensor) -> Tensor:
    return rows.isfinite().all(-1)


def marked(formula: Callable[..., Any]) -> Callable[..., Any]:
    """The same, with NaN in the rows beyond the range of the formula."""
    return _in_parts(formula, lambda *arguments: repeat(math.nan))


def _in_parts(
    formula: Callable[..., Any], beyond: Callable[..., Iterator[Tensor | float]]
) -> Callable[..., Any]:
    @wraps(formula)
    def whole(*arguments: Any) -> Any:
        try:
            return formula(*arguments)
        except BeyondRangeError as found:
            rows = found.rows.squeeze(-1)
        inside = whole(*(_of_rows(~rows, one) for one in arguments))
        results = []
        for near, far in zip(
            _as_tuple(inside), beyond(*(_of_rows(rows, one) for one in arguments)), strict=False
        ):
            results.append(near.new_empty(*rows.shape, near.shape[-1]))
            results[-1][~rows], results[-1][rows] = near, far
        return tuple(results) if isinstance(inside, tuple) else results[0]

    return whole


def _as_tuple(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)


def _of_rows(rows: Tensor, argument: Any) -> Any:
    return argument[rows] if isinstance(argument, Tensor) and argument.dim() else argument
