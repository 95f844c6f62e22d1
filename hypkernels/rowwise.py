"""Row-wise ops: one formula and its gradient become one registered PyTorch operator.

A formula sees float64 rows, whatever the caller's dtype: float64 keeps near-coincident and collinear
points exact. On a CPU it is as fast as a float32 expression that streams whole tensors through memory,
because the rows come in chunks that fit a cache.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, reduce
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hypkernels import backend
from hypkernels.checks import Check, check_differentiable_range, check_positive, check_values
from hypkernels.operators import Keeping, Operator, batched, differentiable, dispatched, register
from hypkernels.saturation import copy_gradient

Formula = Callable[..., Tensor]
Gradient = Callable[..., tuple[Tensor, ...]]

CURV: Mapping[str, Check] = {"curv": check_positive}
NO_OPTIONS: Mapping[str, Check] = {}

# On a CPU 128 Ki float64 values are 1 MiB: temporaries stay in caches, and the calls on them are few. On a
# GPU a chunk only bounds memory: 4 Mi values are 32 MiB, and a formula holds at most eight such temporaries.
CPU_CHUNK_ELEMENTS = 1 << 17
GPU_CHUNK_ELEMENTS = 1 << 22


class RowSums(NamedTuple):
    """Numbers of each row, such as norms, that a value is made of.

    ``of_rows(*points)`` returns as many tensors ``(rows, 1)`` as ``numbers`` says. A row beyond the
    range of the plain formulas is NaN.
    """

    of_rows: Callable[..., tuple[Tensor, ...]]
    numbers: int


class BySums(NamedTuple):
    """A value as ``formula(*sums, *scalars, *options)``, NaN where that is beyond its range."""

    sums: RowSums
    formula: Formula


def chunk_elements(device: torch.device) -> int:
    return CPU_CHUNK_ELEMENTS if device.type == "cpu" else GPU_CHUNK_ELEMENTS


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """Distances, angles and losses: float64 for float64 points, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def map_rows(
    formula: Callable[..., tuple[Tensor, ...]],
    operands: Sequence[Tensor],
    results: Sequence[tuple[int, torch.dtype]],
    *,
    gradients: int = 0,
) -> tuple[Tensor, ...]:
    """Apply ``formula`` to float64 chunks of rows of ``operands``, each ``(*batch, columns)``.

    ``formula`` returns one tensor ``(rows, columns)`` for each ``(columns, dtype)`` of ``results``; each is
    rounded once, to its dtype. The first ``gradients`` of them are gradients by points, which saturate.
    """
    batch = operands[0].shape[:-1]
    outputs = tuple(operands[0].new_empty(*batch, columns, dtype=dtype) for columns, dtype in results)
    map_rows_into(formula, operands, outputs, gradients=gradients)
    return outputs


def map_rows_into(
    formula: Callable[..., tuple[Tensor, ...]],
    operands: Sequence[Tensor],
    outputs: Sequence[Tensor],
    *,
    gradients: int = 0,
) -> None:
    """The same, into given tensors ``(*batch, columns)``."""
    for chunk in _chunks([*operands, *outputs], chunk_elements(operands[0].device)):
        inputs, targets = chunk[: len(operands)], chunk[len(operands) :]
        values = formula(*(rows.double() for rows in inputs))
        for index, (target, value) in enumerate(zip(targets, values, strict=True)):
            if index < gradients:
                copy_gradient(target, value)
            else:
                target.copy_(value)


def _chunks(tensors: Sequence[Tensor], limit: int) -> Iterator[list[Tensor]]:
    """Cut ``tensors``, ``(*batch, columns)``, along their batch: views of ``limit`` elements or one row."""
    tensors = _flatten(tensors)
    batch = tensors[0].shape[:-1]
    if 0 in batch:
        return
    elements = math.prod(batch[1:]) * max(tensor.shape[-1] for tensor in tensors)
    if elements > limit and len(batch) > 1:
        for index in range(batch[0]):
            yield from _chunks([tensor[index] for tensor in tensors], limit)
        return
    step = max(1, limit // elements)
    for start in range(0, batch[0], step):
        yield [tensor[start : start + step] for tensor in tensors]


def _flatten(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """All tensors as ``(rows, columns)`` views; unchanged if one, broadcast or permuted, has no such view."""
    try:
        return [tensor.view(-1, tensor.shape[-1]) for tensor in tensors]
    except RuntimeError:
        return tensors


class Family(NamedTuple):
    """The modules in which each op of a family has its functions; that of the kernels by its name."""

    closed_form: ModuleType
    reference: ModuleType
    smooth: ModuleType
    kernels: str


class RowwiseOp:
    """A row-wise function of points: the operator ``hypkernels::name``, its backward, and calls of them.

    Its arguments are ``points`` tensors of equal shape ``(*batch, D)``, the tensors ``scalars``, each
    0-d or ``(*batch)``, and the ``options``, 0-d float64 tensors on the CPU. (Operators take no Python
    floats: a compiled graph would keep their old values.) ``scalars`` and ``options`` map names to
    checks. The operator checks the values, because a compiled graph cannot. :mod:`hypkernels.backend`
    picks one of three implementations, in the modules of the ``family``:

    - the closed forms. ``name(*points, *scalars, *options)`` returns ``(rows, D)`` or, for a scalar,
      ``(rows, 1)``; ``name_gradient(grad, *points, *scalars, *options)`` a gradient for each point and the
      rows' contributions ``(rows, 1)`` to the gradient of each scalar. Points are float64 rows, scalars 0-d
      or ``(rows, 1)``, options floats. Where the value depends on a few numbers of each row, ``by_sums`` is
      tried first: it computes the value of all rows at once, not of a chunk at a time.
    - compiled code, imported when first needed, which takes whole batches and returns what the operator and
      its backward return: for Triton the functions ``name`` and ``name_backward`` of the kernels' module, on
      a CPU :mod:`hypkernels.cpu.rows`.
    - ``name`` of the reference, with the same arguments as whole batches, differentiated by autograd.

    ``name`` of the smooth formulas is the reference in a form that is stable and differentiable any number
    of times, for transforms that need more than one gradient: see :mod:`hypkernels.operators`.
    """

    def __init__(
        self,
        name: str,
        family: Family,
        *,
        points: Literal[1, 2],
        returns: Literal["point", "scalar"],
        scalars: Mapping[str, Check] = CURV,
        options: Mapping[str, Check] = NO_OPTIONS,
        by_sums: BySums | None = None,
    ) -> None:
        self.name, self.kernels, self.by_sums = name, family.kernels, by_sums
        self.formula: Formula = getattr(family.closed_form, name)
        self.gradient: Gradient = getattr(family.closed_form, f"{name}_gradient")
        self.definition: Formula = getattr(family.reference, name)
        self.smooth: Formula = getattr(family.smooth, name)
        self.points, self.tensors = points, points + len(scalars)
        self.returns_points = returns == "point"
        self.checks = {**scalars, **options}
        names = [*("x", "y")[:points], *self.checks]
        arguments = ", ".join([*(f"Tensor {argument}" for argument in names), "str backend"])
        self._operators = register(
            name,
            Operator(f"({arguments}) -> Tensor", self._forward, self._fake_forward, self._vmap_forward),
            Operator(
                f"(Tensor grad, {arguments}) -> ({', '.join(['Tensor'] * self.tensors)})",
                self._backward,
                self._fake_backward,
                self._vmap_backward,
            ),
            self.tensors,
        )
        self._call = differentiable(
            self._operators[0],
            dispatched(self._operators[0], self._forward),
            dispatched(self._operators[1], self._backward),
            self._by_smooth_formula,
            self.tensors,
            Keeping(self._value_and_splits, self._gradients_with_splits),
        )

    def __call__(self, *arguments: Tensor) -> Tensor:
        setting = backend.setting()
        if setting == "reference":
            return self._by_definition(*arguments)
        return self._call(*arguments, setting)

    def _forward(self, *arguments: Any) -> Tensor:
        return self._value(*self._unpack("", arguments))

    def _value(
        self, points: Sequence[Tensor], scalars: Sequence[Tensor], options: Any, choice: str, launcher: Any
    ) -> Tensor:
        if launcher:
            out = launcher(points, scalars, options)
        else:
            out = self._by_closed_form(points, scalars, options)
        if _unfinished([out], choice):
            points, scalars = _on_cpu(points), _on_cpu(scalars)
            out = self._by_closed_form(points, scalars, options).to(out.device)
        return out

    def _value_and_splits(self, *arguments: Any) -> tuple[Tensor, Tensor | None]:
        points, scalars, options, choice, launcher = self._unpack("", arguments)
        if choice == "native":
            return native_module().value_and_splits(self.name, points, scalars, options)
        return self._value(points, scalars, options, choice, launcher), None

    def _gradients_with_splits(self, grad: Tensor, splits: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        points, scalars, options, *_ = self._unpack("_backward", arguments)
        return native_module().backward(self.name, grad, points, scalars, options, splits)

    def of_batch(self, *operands: Tensor) -> Tensor:
        """The closed form of points and scalars, for other operators; without options."""
        return self._by_closed_form(operands[: self.points], operands[self.points :], ())

    def _by_closed_form(
        self, points: Sequence[Tensor], scalars: Sequence[Tensor], options: Sequence[float]
    ) -> Tensor:
        out = self._of_sums(points, scalars, options)
        if out is None:
            operands, arranged = _operands(points, scalars)
            (out,) = map_rows(
                lambda *rows: (self.formula(*arranged(rows), *options),), operands, [self._result(points[0])]
            )
        return out if self.returns_points else out.squeeze(-1)

    def _of_sums(
        self, points: Sequence[Tensor], scalars: Sequence[Tensor], options: Sequence[float]
    ) -> Tensor | None:
        """The value by sums; ``None`` where there is no such form, or some row is beyond its range."""
        if self.by_sums is None or points[0].device.type != "cpu":
            return None
        sums, formula = self.by_sums
        numbers = map_rows(sums.of_rows, points, [(1, torch.float64)] * sums.numbers)
        out = formula(*numbers, *map(_column, scalars), *options)
        return None if out.isnan().any() else out.to(self._result(points[0])[1])

    def _fake_forward(self, *arguments: Any) -> Tensor:
        x = arguments[0]
        return x.new_empty(x.shape if self.returns_points else x.shape[:-1], dtype=self._result(x)[1])

    def _backward(self, grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        points, scalars, options, choice, launcher = self._unpack("_backward", arguments)
        if launcher:
            grads = launcher(grad, points, scalars, options)
        else:
            grads = self._gradients_by_closed_form(grad, points, scalars, options)
        if _unfinished(grads, choice):
            points, scalars = _on_cpu(points), _on_cpu(scalars)
            found = self._gradients_by_closed_form(grad.cpu(), points, scalars, options)
            grads = tuple(one.to(grad.device) for one in found)
        return grads

    def gradients_of_batch(self, grad: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
        """The gradients that belong to :meth:`of_batch`."""
        return self._gradients_by_closed_form(grad, operands[: self.points], operands[self.points :], ())

    def _gradients_by_closed_form(
        self,
        grad: Tensor,
        points: Sequence[Tensor],
        scalars: Sequence[Tensor],
        options: Sequence[float],
    ) -> tuple[Tensor, ...]:
        upstream = grad if self.returns_points else grad.unsqueeze(-1)
        operands, arranged = _operands((upstream, *points), scalars)
        grads = map_rows(
            lambda *rows: self.gradient(*arranged(rows), *options),
            operands,
            [*((one.shape[-1], one.dtype) for one in points), *((1, torch.float64) for _ in scalars)],
            gradients=self.points,
        )
        by_scalars = (
            rows.squeeze(-1) if one.dim() else _finite_sum(rows)
            for rows, one in zip(grads[self.points :], scalars, strict=True)
        )
        return (*grads[: self.points], *by_scalars)

    def _fake_backward(self, grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        by_points = (one.new_empty(one.shape) for one in arguments[: self.points])
        by_scalars = (
            grad.new_empty(one.shape, dtype=torch.float64) for one in arguments[self.points : self.tensors]
        )
        return (*by_points, *by_scalars)

    def _by_definition(self, *arguments: Tensor) -> Tensor:
        scalars, options = arguments[self.points : self.tensors], arguments[self.tensors :]
        self._check_values(*scalars, *options)
        wide = (one.double() for one in (*arguments[: self.points], *scalars))
        return self.definition(*wide, *options).to(self._result(arguments[0])[1])

    def _by_smooth_formula(self, *arguments: Any) -> Tensor:
        points, scalars = arguments[: self.points], arguments[self.points : self.tensors]
        wide = [*(one.double() for one in points), *map(_column, scalars)]
        marks = check_differentiable_range(self.name, points, scalars, self.checks)
        if marks:
            mark = reduce(torch.mul, (*marks[: self.points], *map(_column, marks[self.points :])))
            out = mark * self.smooth(*(mark * one for one in wide), *arguments[self.tensors : -1])
        else:
            out = self.smooth(*wide, *arguments[self.tensors : -1])
        return (out if self.returns_points else out.squeeze(-1)).to(self._result(points[0])[1])

    def _check_values(self, *scalars: Tensor) -> None:
        """Scalars and options; not in a graph that is being compiled, where values are unknown."""
        if not torch.compiler.is_compiling():
            for (name, check), one in zip(self.checks.items(), scalars, strict=False):
                check_values(name, one, check)

    def _result(self, x: Tensor) -> tuple[int, torch.dtype]:
        """The columns and the dtype of the value."""
        return (x.shape[-1], x.dtype) if self.returns_points else (1, result_dtype(x.dtype))

    def _unpack(self, suffix: str, arguments: Sequence[Any]) -> tuple[Any, ...]:
        """Points, scalars, options as floats, the implementation, and its function if it is compiled."""
        *operands, requested = arguments
        points, scalars = operands[: self.points], operands[self.points : self.tensors]
        if not suffix:
            self._check_values(*operands[self.points :])
        choice = backend.choose(self.name, points[0], requested=requested).implementation
        options = [one.item() for one in operands[self.tensors :]]
        return points, scalars, options, choice, self._launcher(choice, suffix)

    def _launcher(self, choice: str, suffix: str) -> Callable[..., Any] | None:
        """Compiled code, called as ``launcher(*grad, points, scalars, options)``."""
        if choice == "native":
            return partial(getattr(native_module(), "backward" if suffix else "forward"), self.name)
        if choice == "triton":
            return partial(_launch, getattr(importlib.import_module(self.kernels), self.name + suffix))
        return None

    def _vmap_forward(self, info: Any, in_dims: Sequence[int | None], *arguments: Any) -> tuple[Tensor, int]:
        samples = self._samples(info.batch_size, in_dims, arguments)
        return self._operators[0](*samples, *arguments[self.tensors :]), 0

    def _vmap_backward(
        self, info: Any, in_dims: Sequence[int | None], grad: Tensor, *arguments: Any
    ) -> tuple[list[Tensor], list[int]]:
        """A scalar's gradient is one for each sample: the sum over the sample's rows."""
        samples = self._samples(info.batch_size, in_dims[1:], arguments)
        batch = samples[0].shape[:-1]
        samples[self.points :] = [_of_rows(one, batch) for one in samples[self.points :]]
        upstream = batched(grad, in_dims[0], info.batch_size)
        grads = list(self._operators[1](upstream, *samples, *arguments[self.tensors :]))
        for index in range(self.points, self.tensors):
            of_rows = arguments[index].dim() - (in_dims[1 + index] is not None) > 0
            if not of_rows and len(batch) > 1:
                grads[index] = grads[index].flatten(1).sum(1)
        return grads, [0] * len(grads)

    def _samples(self, size: int, in_dims: Sequence[int | None], arguments: Sequence[Any]) -> list[Tensor]:
        """Points and scalars with the samples' dimension first; 0-d scalars that all samples share stay."""
        tensors = list(zip(arguments[: self.tensors], in_dims, strict=False))
        points = [batched(one, dim, size) for one, dim in tensors[: self.points]]
        batch = points[0].shape[:-1]
        scalars = [
            one if dim is None and one.dim() == 0 else _of_rows(batched(one, dim, size), batch)
            for one, dim in tensors[self.points :]
        ]
        return [*points, *scalars]


def _launch(kernel: Callable[..., Any], *arguments: Any) -> Any:
    *grad, points, scalars, options = arguments
    return kernel(*grad, *points, *(beside(one, points[0]) for one in scalars), *options)


def native_module() -> Any:
    return importlib.import_module("hypkernels.cpu.rows")


def _on_cpu(operands: Sequence[Tensor]) -> list[Tensor]:
    return [one.cpu() for one in operands]


def _unfinished(results: Sequence[Tensor], choice: str) -> bool:
    """Whether kernels or formulas on a GPU gave NaN for rows beyond their range.

    Only float64 points have such rows. The check waits for the GPU: float64 serves comparison more than
    training.
    """
    x = results[0]
    if x.dtype != torch.float64 or (x.device.type == "cpu" and choice != "triton"):
        return False
    if x.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return False
    return any(bool(one.isnan().any()) for one in results)


def _finite_sum(terms: Tensor) -> Tensor:
    """The sum of float64 terms, finite even if some are infinite with different signs."""
    limit = torch.finfo(terms.dtype).max / max(terms.numel(), 1)
    return terms.clamp(-limit, limit).sum()


def _of_rows(scalar: Tensor, batch: Sequence[int]) -> Tensor:
    """A scalar with some of the first dimensions of ``batch``, expanded to all of them."""
    return scalar.reshape(*scalar.shape, *[1] * (len(batch) - scalar.dim())).expand(batch)


def _column(scalar: Tensor) -> Tensor:
    """float64, ``(*batch, 1)`` or 0-d."""
    return scalar.double().unsqueeze(-1) if scalar.dim() else scalar.double()


def _operands(
    rows: Sequence[Tensor], scalars: Sequence[Tensor]
) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], list[Tensor]]]:
    """Tensors for :func:`map_rows` to cut into chunks, and a function from a chunk to the arguments."""
    columns = [_column(one) for one in scalars]
    operands = [*rows, *(one for one in columns if one.dim())]

    def arranged(chunk: Sequence[Tensor]) -> list[Tensor]:
        of_rows = iter(chunk[len(rows) :])
        return [*chunk[: len(rows)], *(next(of_rows) if one.dim() else one for one in columns)]

    return operands, arranged


def beside(scalar: Tensor, points: Tensor) -> Tensor:
    """A scalar on the points' device, where kernels read it; nothing waits for that device."""
    if scalar.device == points.device or scalar.dim():
        return scalar
    return torch.full((), scalar.item(), dtype=torch.float64, device=points.device)
