"""Registration of the pairwise functions as ``torch.ops.hypkernels`` operators.

The PyTorch implementation computes the matrix tile by tile in float64, whatever the points' dtype: the
rounding of the product limits a pairwise distance, and tiles keep the float64 temporaries small and in
cache. On a GPU it serves float64 points; narrower points have kernels.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hypkernels import backend
from hypkernels.checks import check_differentiable_range, check_positive, check_values
from hypkernels.cone import op as cone
from hypkernels.distance import op as distance
from hypkernels.operators import Keeping, Operator, batched, differentiable, dispatched, register
from hypkernels.pair_geometry import dot
from hypkernels.pairwise import closed_form, reference, smooth
from hypkernels.pairwise.closed_form import PairFunction
from hypkernels.pairwise.geometry import PairTile, pair_tile, point_scalars
from hypkernels.rowwise import RowwiseOp, chunk_elements, map_rows, result_dtype
from hypkernels.saturation import copy_gradient

Cut = tuple[slice, slice, slice]

# The range of a point's squared norm, times ``c`` or not: the formulas multiply four norms.
_SMALLEST_SQUARE, _LARGEST_SQUARE = 1e-140, 1e140


class PairwiseOp:
    """The operator ``hypkernels::name(x, y, curv)``: ``sign * function / curv**power`` of each pair.

    ``x`` is ``(*batch, M, D)``, ``y`` ``(*batch, N, D)``, ``curv`` 0-d or ``(*batch)``. ``definition``
    and ``smooth_formula`` take the same in float64 and are differentiable, as those of
    :class:`hypkernels.rowwise.RowwiseOp`. ``rowwise`` is the function of one pair: on a CPU it computes
    pairs whose products leave float64.

    ``precision``: of the products of float32 points on a GPU, see :func:`hypkernels.pairwise_dist`.
    """

    def __init__(
        self,
        name: str,
        function: PairFunction,
        *,
        rowwise: RowwiseOp,
        definition: Callable[..., Tensor],
        smooth_formula: Callable[..., Tensor],
        sign: int = 1,
    ) -> None:
        self.name, self.function, self.rowwise, self.sign = name, function, rowwise, sign
        self.definition, self.smooth_formula = definition, smooth_formula
        arguments = "Tensor x, Tensor y, Tensor curv, str? precision, str backend"
        self._operators = register(
            name,
            Operator(f"({arguments}) -> Tensor", self._forward, self._fake_forward, self._vmap_forward),
            Operator(
                f"(Tensor grad, {arguments}) -> (Tensor, Tensor, Tensor)",
                self._backward,
                self._fake_backward,
                self._vmap_backward,
            ),
            3,
        )
        self._call = differentiable(
            self._operators[0],
            dispatched(self._operators[0], self._forward),
            dispatched(self._operators[1], self._backward),
            self._by_smooth_formula,
            3,
            Keeping(self._value_and_products, self._gradients_with_products),
        )

    def __call__(self, x: Tensor, y: Tensor, curv: Tensor, precision: str | None = None) -> Tensor:
        setting = backend.setting()
        if setting == "reference":
            return self._by_definition(x, y, curv)
        return self._call(x, y, curv, precision, setting)

    def _implementation(self, x: Tensor, requested: str) -> str:
        """The implementation's name; on a GPU PyTorch for float64 points, which have no kernels."""
        of_kernels = requested == "triton" or (requested == "auto" and x.device.type == "cuda")
        float64 = of_kernels and x.dtype == torch.float64
        refusal = "the points are float64, its products are float32" if float64 else None
        return backend.choose(self.name, x, requested=requested, refusal=refusal).implementation

    def _value_and_products(
        self, x: Tensor, y: Tensor, curv: Tensor, precision: str | None, requested: str
    ) -> tuple[Tensor, Tensor | None]:
        check_values("curv", curv)
        choice = self._implementation(x, requested)
        if choice == "native":
            found = _native_module().value_and_products(self.name, x, y, curv)
            if found is not None:
                return found
        return self._value(x, y, curv, precision, choice), None

    def _gradients_with_products(
        self,
        grad: Tensor,
        products: Tensor,
        x: Tensor,
        y: Tensor,
        curv: Tensor,
        precision: str | None,
        requested: str,
    ) -> tuple[Tensor, ...]:
        return _native_module().gradients_with_products(self.name, grad, products, x, y, curv)

    def _by_definition(self, x: Tensor, y: Tensor, curv: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            check_values("curv", curv)
        return self.definition(x.double(), y.double(), curv.double()).to(result_dtype(x.dtype))

    def _by_smooth_formula(
        self, x: Tensor, y: Tensor, curv: Tensor, precision: str | None, backend: str
    ) -> Tensor:
        wide = [x.double(), y.double(), curv.double()]
        marks = check_differentiable_range(self.name, (x, y), (curv,), {"curv": check_positive})
        if marks:
            out = self.smooth_formula(*(mark * one for mark, one in zip(marks, wide, strict=True)))
            of_x, of_y, of_curv = marks
            out = out * of_x * of_y.mT * (of_curv[..., None, None] if curv.dim() else of_curv)
        else:
            out = self.smooth_formula(*wide)
        return out.to(result_dtype(x.dtype))

    def _forward(self, x: Tensor, y: Tensor, curv: Tensor, precision: str | None, requested: str) -> Tensor:
        check_values("curv", curv)
        choice = self._implementation(x, requested)
        if choice == "native":
            out = getattr(_native_module(), self.name)(x, y, curv)
            if out is not None:  # None: points beyond the range of the compiled function
                return out
        return self._value(x, y, curv, precision, choice)

    def _value(self, x: Tensor, y: Tensor, curv: Tensor, precision: str | None, choice: str) -> Tensor:
        if choice == "triton":
            return getattr(_kernel_module(), self.name)(x, y, curv, precision)
        return self._in_pytorch(x, y, curv)

    def _in_pytorch(self, x: Tensor, y: Tensor, curv: Tensor) -> Tensor:
        out = self._fake_forward(x, y, curv)
        if _beyond_range(x, y, curv):
            on_cpu = x.cpu(), y.cpu(), curv.cpu()
            for row in range(x.shape[-2]):
                out[..., row, :] = self.rowwise.of_batch(*_pairs_of_row(row, *on_cpu))
            return out
        for (batch, rows, columns), _, _, tile, unit in self._tiles(x, y, curv):
            _by_batch(out)[batch, rows, columns] = unit * self.function.value(tile)
        return out

    def _fake_forward(self, x: Tensor, y: Tensor, curv: Tensor, *options: str | None) -> Tensor:
        return x.new_empty((*x.shape[:-1], y.shape[-2]), dtype=result_dtype(x.dtype))

    def _backward(
        self, grad: Tensor, x: Tensor, y: Tensor, curv: Tensor, precision: str | None, requested: str
    ) -> tuple[Tensor, ...]:
        choice = self._implementation(x, requested)
        if choice == "triton":
            return getattr(_kernel_module(), f"{self.name}_backward")(grad, x, y, curv, precision)
        if choice == "native":
            gradients = getattr(_native_module(), f"{self.name}_backward")(grad, x, y, curv)
            if gradients is not None:
                return gradients
        return self._backward_in_pytorch(grad, x, y, curv)

    def _backward_in_pytorch(self, grad: Tensor, x: Tensor, y: Tensor, curv: Tensor) -> tuple[Tensor, ...]:
        if _beyond_range(x, y, curv):
            grads = self._backward_row_by_row(*(one.cpu() for one in (grad, x, y, curv)))
            return tuple(one.to(x.device) for one in grads)
        upstream = _by_batch(grad)
        grad_x, grad_y = (_by_batch(x.new_zeros(p.shape, dtype=torch.float64)) for p in (x, y))
        grad_curv = x.new_zeros(len(grad_x), dtype=torch.float64)
        for (batch, rows, columns), x_rows, y_rows, tile, unit in self._tiles(x, y, curv):
            weight = unit * upstream[batch, rows, columns].double()
            part = self.function.gradient(weight, self.function.value(tile), tile)
            grad_x[batch, rows] += part.x_coefficient * x_rows + part.cross @ y_rows
            grad_y[batch, columns] += part.y_coefficient.mT * y_rows + part.cross.mT @ x_rows
            grad_curv[batch] += part.curv
        by_curv = grad_curv.view(curv.shape) if curv.dim() else grad_curv.sum()
        return _rounded_gradient(grad_x, x), _rounded_gradient(grad_y, y), by_curv

    def _backward_row_by_row(
        self, grad: Tensor, x: Tensor, y: Tensor, curv: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad_x, grad_y = (x.new_zeros(points.shape, dtype=torch.float64) for points in (x, y))
        grad_curv = x.new_zeros(curv.shape, dtype=torch.float64)
        for row in range(x.shape[-2]):
            pairs = _pairs_of_row(row, *(one.double() for one in (x, y, curv)))
            by_x, by_y, by_curv = self.rowwise.gradients_of_batch(grad[..., row, :].double(), *pairs)
            grad_x[..., row, :] = by_x.sum(-2)
            grad_y += by_y
            grad_curv += by_curv.sum(-1) if curv.dim() else by_curv
        return _rounded_gradient(grad_x, x), _rounded_gradient(grad_y, y), grad_curv

    def _fake_backward(
        self, grad: Tensor, x: Tensor, y: Tensor, curv: Tensor, *options: str | None
    ) -> tuple[Tensor, ...]:
        by_curv = grad.new_empty(curv.shape, dtype=torch.float64)
        return x.new_empty(x.shape), y.new_empty(y.shape), by_curv

    def _vmap_forward(self, info: Any, in_dims: Sequence[int | None], *arguments: Any) -> tuple[Tensor, int]:
        return self._operators[0](*_samples(info.batch_size, in_dims, arguments), *arguments[3:]), 0

    def _vmap_backward(
        self, info: Any, in_dims: Sequence[int | None], grad: Tensor, *arguments: Any
    ) -> tuple[list[Tensor], list[int]]:
        """A curvature's gradient is one for each sample: the sum over the sample's matrices."""
        x, y, curv = _samples(info.batch_size, in_dims[1:], arguments)
        batch = x.shape[:-2]
        of_matrices = curv.reshape(*curv.shape, *[1] * (len(batch) - curv.dim())).expand(batch)
        upstream = batched(grad, in_dims[0], info.batch_size)
        grads = list(self._operators[1](upstream, x, y, of_matrices, *arguments[3:]))
        shared = arguments[2].dim() == (in_dims[3] is not None)
        if shared and len(batch) > 1:
            grads[2] = grads[2].flatten(1).sum(1)
        return grads, [0, 0, 0]

    def _tiles(
        self, x: Tensor, y: Tensor, curv: Tensor
    ) -> Iterator[tuple[Cut, Tensor, Tensor, PairTile, Tensor]]:
        """Each tile: its place, its float64 points, its scalars, and the unit of the function."""
        c = curv.double().reshape(-1, 1, 1) if curv.dim() else curv.double()
        x, y = _by_batch(x), _by_batch(y)
        x_scalars, y_scalars = (point_scalars(points, c) for points in (x, y))
        for cut in _cuts(x.shape[0], x.shape[1], y.shape[1], chunk_elements(x.device)):
            batch, rows, columns = cut
            x_rows, y_rows = x[batch, rows].double(), y[batch, columns].double()
            x_part = x_scalars.at(batch, rows)
            y_part = y_scalars.at(batch, columns).along_columns()
            of_batch = c[batch] if c.dim() else c
            lateral = x_part.P * y_part.P - of_batch * (x_rows @ y_rows.mT)
            unit = self.sign * of_batch**-self.function.curv_power
            yield cut, x_rows, y_rows, pair_tile(x_part, y_part, lateral, of_batch), unit


def _kernel_module() -> Any:
    return importlib.import_module("hypkernels.pairwise.kernel")


def _native_module() -> Any:
    return importlib.import_module("hypkernels.cpu.pairwise")


def _beyond_range(x: Tensor, y: Tensor, curv: Tensor) -> bool:
    """Whether products of these points may leave float64; a GPU is asked about float64 points only."""
    if x.device.type != "cpu" and x.dtype != torch.float64:
        return False
    c = curv.double().reshape(*curv.shape, 1, 1) if curv.dim() else curv.double()
    for points in (x, y):
        (square,) = map_rows(lambda rows: (dot(rows, rows),), [points], [(1, torch.float64)])
        for one in (square, square * c):
            if not ((one == 0) | ((one >= _SMALLEST_SQUARE) & (one <= _LARGEST_SQUARE))).all():
                return True
        if points.dtype == torch.float64 and points[(square == 0).squeeze(-1)].any():
            return True
    return False


def _pairs_of_row(row: int, x: Tensor, y: Tensor, curv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments of a row-wise function for a row of ``x`` and all of ``y``."""
    rows = curv.unsqueeze(-1).expand(y.shape[:-1]) if curv.dim() else curv
    return x[..., row : row + 1, :].expand(y.shape), y, rows


def _rounded_gradient(by: Tensor, points: Tensor) -> Tensor:
    """A float64 gradient of the sets one after the other, in the shape and dtype of ``points``."""
    out = points.new_empty(points.shape)
    copy_gradient(out, by.view(points.shape))
    return out


def _samples(size: int, in_dims: Sequence[int | None], arguments: Sequence[Any]) -> list[Tensor]:
    """The arguments with the samples' dimension first; a 0-d curvature that all samples share stays."""
    x, y = (batched(one, dim, size) for one, dim in zip(arguments[:2], in_dims, strict=False))
    curv, dim = arguments[2], in_dims[2]
    if dim is None and curv.dim() == 0:
        return [x, y, curv]
    of_samples = batched(curv, dim, size)
    batch = x.shape[:-2]
    return [x, y, of_samples.reshape(*of_samples.shape, *[1] * (len(batch) - of_samples.dim())).expand(batch)]


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


pairwise_inner = PairwiseOp(
    "pairwise_inner",
    closed_form.NEGATIVE_INNER,
    rowwise=distance.elementwise_inner,
    definition=reference.pairwise_inner,
    smooth_formula=smooth.pairwise_inner,
    sign=-1,
)
pairwise_dist = PairwiseOp(
    "pairwise_dist",
    closed_form.DISTANCE,
    rowwise=distance.elementwise_dist,
    definition=reference.pairwise_dist,
    smooth_formula=smooth.pairwise_dist,
)
pairwise_oxy_angle = PairwiseOp(
    "pairwise_oxy_angle",
    closed_form.ANGLE_AT_X,
    rowwise=cone.oxy_angle,
    definition=reference.pairwise_oxy_angle,
    smooth_formula=smooth.pairwise_oxy_angle,
)
