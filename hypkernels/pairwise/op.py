"""Registration of the pairwise functions as ``torch.ops.hypkernels`` operators.

The matrix is computed tile by tile in float64, whatever the points' dtype: the rounding of the product is
what limits a pairwise distance, and the tiles keep the float64 temporaries small and in cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hypkernels import backend
from hypkernels.checks import check_curv_value
from hypkernels.pairwise import closed_form, reference
from hypkernels.pairwise.closed_form import PairFunction
from hypkernels.pairwise.geometry import PairTile, pair_tile, point_scalars
from hypkernels.rowwise import chunk_elements, refuse_double_backward, result_dtype

Cut = tuple[slice, slice, slice]


def register_pairwise(
    name: str, function: PairFunction, definition: Callable[..., Tensor], sign: int = 1
) -> Callable[..., Tensor]:
    """Register ``hypkernels::name(x, y, curv)``: ``sign * function / curv**power`` of each pair."""

    def call(x: Tensor, y: Tensor, curv: Tensor) -> Tensor:
        setting = backend.setting()
        if setting == "triton":
            raise RuntimeError(f"hypkernels.{name} cannot run with backend 'triton': it has no kernels")
        return by_definition(x, y, curv) if setting == "reference" else forward_op(x, y, curv)

    def by_definition(x: Tensor, y: Tensor, curv: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            check_curv_value(curv)
        return definition(x.double(), y.double(), curv.double()).to(result_dtype(x.dtype))

    def run_forward(x: Tensor, y: Tensor, curv: Tensor) -> Tensor:
        check_curv_value(curv)
        out = fake_forward(x, y, curv)
        unit = sign * curv.double() ** -function.curv_power
        for (batch, rows, columns), _, _, tile in _tiles(x, y, curv):
            _by_batch(out)[batch, rows, columns] = unit * function.value(tile)
        return out

    def fake_forward(x: Tensor, y: Tensor, curv: Tensor) -> Tensor:
        return x.new_empty((*x.shape[:-1], y.shape[-2]), dtype=result_dtype(x.dtype))

    def run_backward(grad: Tensor, x: Tensor, y: Tensor, curv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        unit = sign * curv.double() ** -function.curv_power
        upstream = _by_batch(grad)
        grad_x, grad_y = (_by_batch(x.new_zeros(p.shape, dtype=torch.float64)) for p in (x, y))
        grad_curv = x.new_zeros((), dtype=torch.float64)
        for (batch, rows, columns), x_rows, y_rows, tile in _tiles(x, y, curv):
            weight = unit * upstream[batch, rows, columns].double()
            part = function.gradient(weight, function.value(tile), tile)
            grad_x[batch, rows] += part.x_coefficient * x_rows + part.cross @ y_rows
            grad_y[batch, columns] += part.y_coefficient.mT * y_rows + part.cross.mT @ x_rows
            grad_curv += part.curv
        return grad_x.to(x.dtype).view(x.shape), grad_y.to(y.dtype).view(y.shape), grad_curv

    def fake_backward(grad: Tensor, x: Tensor, y: Tensor, curv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x.new_empty(x.shape), y.new_empty(y.shape), grad.new_empty((), dtype=torch.float64)

    arguments = "Tensor x, Tensor y, Tensor curv"
    forward_op = torch.library.custom_op(
        f"hypkernels::{name}", run_forward, mutates_args=(), schema=f"({arguments}) -> Tensor"
    )
    backward_op = torch.library.custom_op(
        f"hypkernels::{name}_backward",
        run_backward,
        mutates_args=(),
        schema=f"(Tensor grad, {arguments}) -> (Tensor, Tensor, Tensor)",
    )
    forward_op.register_fake(fake_forward)
    backward_op.register_fake(fake_backward)

    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, curv = ctx.saved_tensors
        grad_x, grad_y, grad_curv = backward_op(grad, x, y, curv)
        return grad_x, grad_y, grad_curv.to(curv.device, curv.dtype) if ctx.needs_input_grad[2] else None

    forward_op.register_autograd(backward, setup_context=setup_context)
    backward_op.register_autograd(partial(refuse_double_backward, name))
    return call


def _tiles(x: Tensor, y: Tensor, curv: Tensor) -> Iterator[tuple[Cut, Tensor, Tensor, PairTile]]:
    """Each tile with where it lies and its float64 points."""
    c = curv.double()
    x, y = _by_batch(x), _by_batch(y)
    x_scalars, y_scalars = (point_scalars(points, c) for points in (x, y))
    for cut in _cuts(x.shape[0], x.shape[1], y.shape[1], chunk_elements(x.device)):
        batch, rows, columns = cut
        x_rows, y_rows = x[batch, rows].double(), y[batch, columns].double()
        x_part = x_scalars.at(batch, rows)
        y_part = y_scalars.at(batch, columns).along_columns()
        lateral = x_part.P * y_part.P - c * (x_rows @ y_rows.mT)
        yield cut, x_rows, y_rows, pair_tile(x_part, y_part, lateral, c)


def _cuts(batch: int, rows: int, columns: int, elements: int) -> Iterator[Cut]:
    """Cut ``(batch, rows, columns)`` into tiles of at most ``elements``, or of one row."""
    if batch * rows * columns == 0:
        return
    width = min(columns, 2 * math.isqrt(elements))
    height = min(rows, max(1, elements // width))
    depth = min(batch, max(1, elements // (width * height)))
    for b in range(0, batch, depth):
        for r in range(0, rows, height):
            for c in range(0, columns, width):
                yield slice(b, b + depth), slice(r, r + height), slice(c, c + width)


def _by_batch(matrices: Tensor) -> Tensor:
    """``(..., M, D)`` as ``(batch, M, D)``."""
    return matrices.reshape(math.prod(matrices.shape[:-2]), *matrices.shape[-2:])


pairwise_inner = register_pairwise(
    "pairwise_inner", closed_form.NEGATIVE_INNER, reference.pairwise_inner, sign=-1
)
pairwise_dist = register_pairwise("pairwise_dist", closed_form.DISTANCE, reference.pairwise_dist)
pairwise_oxy_angle = register_pairwise(
    "pairwise_oxy_angle", closed_form.ANGLE_AT_X, reference.pairwise_oxy_angle
)
