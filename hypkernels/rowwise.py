"""Row-wise ops: one formula and its gradient become one registered PyTorch operator.

A formula sees float64 rows, whatever the caller's dtype: float64 scalars are what keeps near-coincident and
collinear points exact, and on a CPU cache-sized chunks make it as fast as a float32 expression that streams
whole tensors through memory.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hypkernels import backend
from hypkernels.checks import check_curv_value

Formula = Callable[..., Tensor]
Gradient = Callable[..., tuple[Tensor, ...]]

# On a CPU 128 Ki float64 values are 1 MiB: temporaries stay in caches, and the calls on them are few. On a
# GPU a chunk only bounds memory: 4 Mi values are 32 MiB, and a formula holds at most eight such temporaries.
CPU_CHUNK_ELEMENTS = 1 << 17
GPU_CHUNK_ELEMENTS = 1 << 22


class RowSums(NamedTuple):
    """What a value needs of its rows: ``of_rows(*points)`` returns ``numbers`` of them, ``(rows, 1)``."""

    of_rows: Callable[..., tuple[Tensor, ...]]
    numbers: int


def chunk_elements(device: torch.device) -> int:
    return CPU_CHUNK_ELEMENTS if device.type == "cpu" else GPU_CHUNK_ELEMENTS


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """Distances, angles and losses: float64 for float64 points, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def map_rows(
    formula: Callable[..., tuple[Tensor, ...]],
    operands: Sequence[Tensor],
    results: Sequence[tuple[int, torch.dtype]],
) -> tuple[Tensor, ...]:
    """Apply ``formula`` to float64 chunks of rows of ``operands``, each ``(*batch, columns)``.

    ``formula`` returns one tensor ``(rows, columns)`` for each ``(columns, dtype)`` of ``results``; each is
    rounded once, to its dtype.
    """
    batch = operands[0].shape[:-1]
    outputs = tuple(operands[0].new_empty(*batch, columns, dtype=dtype) for columns, dtype in results)
    map_rows_into(formula, operands, outputs)
    return outputs


def map_rows_into(
    formula: Callable[..., tuple[Tensor, ...]], operands: Sequence[Tensor], outputs: Sequence[Tensor]
) -> None:
    """The same, into given tensors ``(*batch, columns)``."""
    for chunk in _chunks([*operands, *outputs], chunk_elements(operands[0].device)):
        inputs, targets = chunk[: len(operands)], chunk[len(operands) :]
        for target, value in zip(targets, formula(*(rows.double() for rows in inputs)), strict=True):
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


def register_rowwise(
    name: str,
    formula: Formula,
    gradient: Gradient,
    *,
    definition: Formula,
    kernels: str,
    points: Literal[1, 2],
    returns: Literal["point", "scalar"],
    scalars: Sequence[str] = ("curv",),
    options: Sequence[str] = (),
    sums: RowSums | None = None,
) -> Callable[..., Tensor]:
    """Register ``hypkernels::name`` and its backward, and return the function that calls the operator.

    Its arguments are ``points`` tensors of equal shape ``(*batch, D)``, the 0-d tensors ``scalars`` and the
    float ``options``. There are three implementations, of which :mod:`hypkernels.backend` picks one:

    - the closed forms. ``formula(*points, *scalars, *options)`` returns ``(rows, D)`` or, for a scalar,
      ``(rows, 1)``; ``gradient(grad, *points, *scalars, *options)`` a gradient for each point and the rows'
      contributions ``(rows, 1)`` to the gradient of each scalar. Where the value depends on a few
      numbers of each row, ``sums`` are those, and ``formula`` takes them in place of the points: of all rows
      at once, not of a chunk at a time.
    - the functions ``name`` and ``name_backward`` of the module called ``kernels``, imported when first
      needed. They take whole batches, and return what the operator and its backward return.
    - ``definition``, with the arguments of ``formula`` as whole batches, differentiated by autograd.
    """
    point_names = ("x", "y")[:points]
    tensors = points + len(scalars)
    arguments = ", ".join(
        [
            *(f"Tensor {argument}" for argument in (*point_names, *scalars)),
            *(f"float {option}" for option in options),
            "str backend",
        ]
    )
    op_name = f"hypkernels::{name}"

    def output(x: Tensor) -> tuple[int, torch.dtype]:
        return (x.shape[-1], x.dtype) if returns == "point" else (1, result_dtype(x.dtype))

    def call(*args: Any) -> Tensor:
        setting = backend.setting()
        return by_definition(*args) if setting == "reference" else forward_op(*args, setting)

    def by_definition(*args: Any) -> Tensor:
        if not torch.compiler.is_compiling():
            check_curv_value(args[tensors - 1])
        wide = (tensor.double() for tensor in args[:tensors])
        return definition(*wide, *args[tensors:]).to(output(args[0])[1])

    def kernel(suffix: str, x: Tensor, requested: str) -> Callable[..., Any] | None:
        """The kernels' function, if they are to run."""
        if backend.choose(name, x, requested=requested).implementation != "triton":
            return None
        return getattr(importlib.import_module(kernels), name + suffix)

    def run_forward(*args: Any) -> Tensor:
        *operands, requested = args
        vectors, values, opts = operands[:points], operands[points:tensors], operands[tensors:]
        check_curv_value(values[-1])
        if launcher := kernel("", vectors[0], requested):
            return launcher(*vectors, *(beside(v, vectors[0]) for v in values), *opts)
        wide = [value.double() for value in values]
        columns, dtype = output(vectors[0])
        if sums:
            numbers = map_rows(sums.of_rows, vectors, [(1, torch.float64)] * sums.numbers)
            out = formula(*numbers, *wide, *opts).to(dtype)
        else:
            (out,) = map_rows(lambda *rows: (formula(*rows, *wide, *opts),), vectors, [(columns, dtype)])
        return out if returns == "point" else out.squeeze(-1)

    def fake_forward(*args: Any) -> Tensor:
        x = args[0]
        shape = x.shape if returns == "point" else x.shape[:-1]
        return x.new_empty(shape, dtype=output(x)[1])

    def run_backward(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
        *operands, requested = args
        vectors, values, opts = operands[:points], operands[points:tensors], operands[tensors:]
        if launcher := kernel("_backward", vectors[0], requested):
            return launcher(grad, *vectors, *(beside(v, vectors[0]) for v in values), *opts)
        wide = [value.double() for value in values]
        upstream = grad if returns == "point" else grad.unsqueeze(-1)
        grads = map_rows(
            lambda g, *rows: gradient(g, *rows, *wide, *opts),
            (upstream, *vectors),
            [*((v.shape[-1], v.dtype) for v in vectors), *((1, torch.float64) for _ in values)],
        )
        return (*grads[:points], *(rows.sum() for rows in grads[points:]))

    def fake_backward(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
        by_scalars = (grad.new_empty((), dtype=torch.float64) for _ in scalars)
        return (*(v.new_empty(v.shape) for v in args[:points]), *by_scalars)

    forward_op = torch.library.custom_op(
        op_name, run_forward, mutates_args=(), schema=f"({arguments}) -> Tensor"
    )
    backward_op = torch.library.custom_op(
        f"{op_name}_backward",
        run_backward,
        mutates_args=(),
        schema=f"(Tensor grad, {arguments}) -> ({', '.join(['Tensor'] * tensors)})",
    )
    forward_op.register_fake(fake_forward)
    backward_op.register_fake(fake_backward)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:tensors])
        ctx.settings = inputs[tensors:]

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        grads = list(backward_op(grad, *saved, *ctx.settings))
        for index in range(points, tensors):
            # Only a scalar that learns is worth moving: its gradient may have to cross to another device.
            learns = ctx.needs_input_grad[index]
            grads[index] = grads[index].to(saved[index].device, saved[index].dtype) if learns else None
        return (*grads, *(None for _ in ctx.settings))

    forward_op.register_autograd(backward, setup_context=setup_context)
    backward_op.register_autograd(partial(refuse_double_backward, name))
    return call


def beside(scalar: Tensor, points: Tensor) -> Tensor:
    """A 0-d tensor on the points' device, where kernels read it. Nothing waits for that device."""
    if scalar.device == points.device:
        return scalar
    return torch.full((), scalar.item(), dtype=torch.float64, device=points.device)


def refuse_double_backward(name: str, ctx: Any, *grads: Tensor) -> None:
    """The autograd formula of every backward operator: closed-form gradients are first order only."""
    raise NotImplementedError(
        f"hypkernels.{name} has no second derivative: its gradient is a closed form that autograd cannot "
        "differentiate again; use the functions of hypkernels' reference modules for double backward"
    )
