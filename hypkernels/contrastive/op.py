"""Registration of the contrastive losses as ``torch.ops.hypkernels`` operators.

One operator takes several pairings of shared point sets. It returns the losses of each pairing and, for the
backward operator, the statistics of each pairing and the summaries of the points.

A compiled graph contains the operators, which have autograd formulas and batching rules. The derivatives
of ``torch.func`` and forward mode ignore these formulas and would take the results for constants. So
outside of graphs gradients go through autograd functions, :class:`_Losses` and :class:`_Gradients`.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, NoReturn

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.utils._pytree import tree_flatten, tree_unflatten

from hypkernels import backend
from hypkernels.checks import check_not_negative, check_target_values, check_values
from hypkernels.contrastive import problem, reference
from hypkernels.contrastive.problem import Learns, Problem, Statistics
from hypkernels.contrastive.similarity import logit_matrices
from hypkernels.operators import dispatched, qualified, transformed
from hypkernels.rowwise import beside, result_dtype

_ARGUMENTS = (
    "Tensor[] points, Tensor curv, Tensor logit_scale, Tensor[] targets, int[] rows, int[] columns, "
    "str similarity, bool[] symmetric, str? precision, str backend"
)


class Call(NamedTuple):
    """The operators' arguments: pairing ``i`` is of ``points[rows[i]]`` and ``points[columns[i]]``.

    Its targets are empty where row ``j`` belongs to column ``j``.
    """

    points: Sequence[Tensor]
    curv: Tensor
    logit_scale: Tensor
    targets: Sequence[Tensor]
    rows: Sequence[int]
    columns: Sequence[int]
    similarity: str
    symmetric: Sequence[bool]
    precision: str | None
    backend: str

    def check_values(self) -> None:
        check_values("curv", self.curv)
        check_values("logit_scale", self.logit_scale, check_not_negative)
        for column, targets in zip(self.columns, self.targets, strict=True):
            check_target_values(targets, self.points[column].shape[0])

    @property
    def may_be_native(self) -> bool:
        """Whether the compiled C++ may run: then the results include a tensor for what it keeps."""
        return self.points[0].device.type == "cpu" and self.backend in ("auto", "native")

    def implementation(self) -> str:
        x = self.points[0]
        float64 = x.dtype == torch.float64 and not self.may_be_native
        refusal = "the points are float64, its logits are float32" if float64 else None
        return backend.choose("contrastive_loss", x, requested=self.backend, refusal=refusal).implementation

    def run_native(self) -> list[Tensor] | None:
        """All that the operator returns, if the points are in range."""
        done = native_module().forward(*self[:-2])
        return None if done is None else [*done[0], *done[1], torch.ones(1, dtype=torch.bool)]

    def for_native(self, *, by_native: bool) -> list[Tensor]:
        """The last results on a CPU: what the compiled C++ keeps, and whether it computed the others.

        Sizes are the same whether the library is there or not: a compiled graph may be run elsewhere.
        """
        if not self.may_be_native:
            return []
        kept = native_module().kept_bytes(self.points, self.rows, self.columns)
        x = self.points[0]
        return [x.new_empty(kept, dtype=torch.uint8), x.new_full((1,), by_native, dtype=torch.bool)]

    def problems(self, summed: Sequence[Tensor], learns: Sequence[bool] | None = None) -> list[Problem]:
        x = self.points[0]
        c = beside(self.curv, x).to(result_dtype(x.dtype)).double()
        scale = self.logit_scale.to(x.device) if self.logit_scale.dim() else beside(self.logit_scale, x)
        embeddings = problem.Embeddings(self.points, c, summed)
        learning = learns or [True] * (len(self.points) + 2)
        return [
            Problem(
                *embeddings.sides(row, column),
                c,
                scale.double().expand(self.points[row].shape[0]),
                targets if len(targets) else None,
                self.precision,
                Learns(learning[row], learning[column], learning[-2], learning[-1]),
                one_scale=self.logit_scale.dim() == 0,
            )
            for row, column, targets in zip(self.rows, self.columns, self.targets, strict=True)
        ]


def native_module() -> Any:
    return importlib.import_module("hypkernels.cpu.contrastive")


def pytorch_or_triton(choice: str) -> Any:
    """The module of an implementation; PyTorch's for what the compiled C++ cannot take."""
    return importlib.import_module(f"hypkernels.contrastive.{'kernel' if choice == 'triton' else 'strips'}")


def contrastive_losses(*args: Any) -> list[Tensor]:
    """The loss of each row, for each pairing; arguments are those of :class:`Call` without ``backend``."""
    call = Call(*(*args, backend.setting()))
    if call.backend == "reference":
        return _by_definition(call)
    return _forward(call)[: len(call.rows)]


def _by_definition(call: Call) -> list[Tensor]:
    if not torch.compiler.is_compiling():
        call.check_values()
    return [
        reference.contrastive_loss(
            call.points[row].double(),
            call.points[column].double(),
            call.curv.double(),
            call.logit_scale.double(),
            targets if len(targets) else torch.arange(len(call.points[row]), device=targets.device),
            similarity=call.similarity,
            symmetric=symmetric,
        ).to(result_dtype(call.points[row].dtype))
        for row, column, targets, symmetric in zip(
            call.rows, call.columns, call.targets, call.symmetric, strict=True
        )
    ]


def _run_losses(*args: Any) -> list[Tensor]:
    call = Call(*args)
    call.check_values()
    choice = call.implementation()
    if choice == "native":
        results = call.run_native()
        if results is not None:
            return results
    implementation = pytorch_or_triton(choice)
    with torch.autocast(call.points[0].device.type, enabled=False):
        summed = implementation.summaries(call.points)
        parts = [
            implementation.forward(one, call.similarity, symmetric)
            for one, symmetric in zip(call.problems(summed), call.symmetric, strict=True)
        ]
    losses = [of_rows.to(result_dtype(call.points[0].dtype)) for of_rows, _ in parts]
    statistics = chain.from_iterable(one for _, one in parts)
    return [*losses, *statistics, *summed, *call.for_native(by_native=False)]


def _fake_losses(*args: Any) -> list[Tensor]:
    call = Call(*args)
    x, n_sets = call.points[0], len(call.points)
    losses, statistics = [], []
    for row, column, symmetric in zip(call.rows, call.columns, call.symmetric, strict=True):
        rows, columns = call.points[row].shape[0], call.points[column].shape[0]
        losses.append(x.new_empty(rows, dtype=result_dtype(x.dtype)))
        statistics += [
            x.new_empty(len(logit_matrices(call.similarity, symmetric)), rows, dtype=torch.float64),
            x.new_empty(rows, dtype=torch.float64),
            x.new_empty(columns if symmetric else 0, dtype=torch.float64),
        ]
    shapes = [(n_sets, x.shape[1]), *((one.shape[0], 1 + n_sets) for one in call.points)]
    summed = (x.new_empty(shape, dtype=torch.float64) for shape in shapes)
    return [*losses, *statistics, *summed, *call.for_native(by_native=True)]


def _run_gradients(
    grads: Sequence[Tensor], saved: Sequence[Tensor], learns: Sequence[bool], *args: Any
) -> list[Tensor]:
    """The gradients by the point sets, empty for those that do not learn, by the curvature and the scale."""
    call = Call(*args)
    if call.may_be_native:
        *saved, by_native = saved
        if by_native.item():
            *by_points, by_curv, by_scale = native_module().backward(grads, saved, learns[:-2], *call[:-2])
            pairs = zip(by_points, call.points, strict=True)
            return [*(rounded(by, one.dtype) for by, one in pairs), by_curv, by_scale]
        saved = saved[:-1]
    implementation = pytorch_or_triton(call.implementation())
    total: list[Tensor | None] = [None] * len(call.points)
    scalars: list[Tensor] = []
    each = len(Statistics._fields)
    with torch.autocast(call.points[0].device.type, enabled=False):
        for index, one in enumerate(call.problems(saved[each * len(grads) :], learns)):
            statistics = Statistics(*saved[each * index : each * (index + 1)])
            part = implementation.backward(
                grads[index], one, statistics, call.similarity, call.symmetric[index]
            )
            for place, by_points in ((call.rows[index], part.x), (call.columns[index], part.y)):
                if by_points is not None:
                    total[place] = _sum(total[place], by_points)
            scale = part.scale if call.logit_scale.dim() else part.scale.sum()
            scalars = [part.curv + (scalars[0] if scalars else 0), scale + (scalars[1] if scalars else 0)]
    points = [
        # A set that needs gradients may be in no pairing.
        one.new_zeros(one.shape if learning else 0) if by_points is None else rounded(by_points, one.dtype)
        for one, by_points, learning in zip(call.points, total, learns[: len(total)], strict=True)
    ]
    return [*points, *scalars]


def _sum(before: Tensor | None, gradient: Tensor) -> Tensor:
    """The sum of two gradients, written into one of them; their dtypes may differ."""
    if before is None:
        return gradient
    wide, other = (gradient, before) if gradient.dtype == torch.float64 else (before, gradient)
    return wide.add_(other)


def rounded(gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient in ``dtype``; a row out of range keeps its direction, as long as ``dtype`` allows."""
    largest = torch.finfo(dtype).max
    if gradient.numel() and torch.finfo(gradient.dtype).max > 2 * largest:
        longest = torch.linalg.vector_norm(gradient, math.inf, 1, keepdim=True)
        gradient.mul_((largest / longest).clamp_(max=1))
    return gradient.to(dtype)


def _fake_gradients(
    grads: Sequence[Tensor], saved: Sequence[Tensor], learns: Sequence[bool], *args: Any
) -> list[Tensor]:
    call = Call(*args)
    points = [
        one.new_empty(one.shape if learning else 0)
        for one, learning in zip(call.points, learns[: len(call.points)], strict=True)
    ]
    x = call.points[0]
    return [
        *points,
        x.new_empty((), dtype=torch.float64),
        x.new_empty(call.logit_scale.shape, dtype=torch.float64),
    ]


_contrastive_losses = torch.library.custom_op(
    qualified("contrastive_losses"), _run_losses, mutates_args=(), schema=f"({_ARGUMENTS}) -> Tensor[]"
)
_contrastive_losses_backward = torch.library.custom_op(
    qualified("contrastive_losses_backward"),
    _run_gradients,
    mutates_args=(),
    schema=f"(Tensor[] grads, Tensor[] saved, bool[] learns, {_ARGUMENTS}) -> Tensor[]",
)
_contrastive_losses.register_fake(_fake_losses)
_contrastive_losses_backward.register_fake(_fake_gradients)
_losses = dispatched(_contrastive_losses, _run_losses)
_gradients_of_losses = dispatched(_contrastive_losses_backward, _run_gradients)


def _each_of_a_batch(operator: Callable[..., list[Tensor]], fake: Callable[..., list[Tensor]]) -> Any:
    """The batching rule: one call of ``operator`` for each element of the batch."""

    def rule(info: Any, in_dims: Any, *args: Any) -> tuple[list[Tensor], list[int]]:
        values, form = tree_flatten(args)
        dims, _ = tree_flatten(in_dims, is_leaf=lambda one: one is None)

        def element(index: int) -> list[Tensor]:
            chosen = (v if dim is None else v.select(dim, index) for v, dim in zip(values, dims, strict=True))
            return operator(*tree_unflatten(chosen, form))

        if info.batch_size:
            results = [torch.stack(one) for one in zip(*map(element, range(info.batch_size)), strict=True)]
        else:
            shapes = (v if dim is None else v.sum(dim) for v, dim in zip(values, dims, strict=True))
            results = [one.expand(0, *one.shape) for one in fake(*tree_unflatten(shapes, form))]
        return results, [0] * len(results)

    return rule


@dataclass(frozen=True, eq=False)
class _Layout:
    """How a call's tensors lie in a flat list of arguments, and its other arguments."""

    point_sets: int
    options: tuple[Any, ...]

    @staticmethod
    def flat(call: Call) -> tuple[Any, ...]:
        """The layout and the tensors: curvature, scale, points, targets."""
        return _Layout(len(call.points), call[4:]), call.curv, call.logit_scale, *call.points, *call.targets

    def call(self, tensors: Sequence[Tensor]) -> Call:
        (curv, scale), points = tensors[:2], tensors[2 : 2 + self.point_sets]
        return Call(list(points), curv, scale, list(tensors[2 + self.point_sets :]), *self.options)

    def upstream(self, grads: Sequence[Tensor | None], tensors: Sequence[Tensor]) -> list[Tensor]:
        """The gradients by the losses; zeros for a pairing whose losses were not used."""
        points = self.call(tensors).points
        return [
            points[row].new_zeros(points[row].shape[0], dtype=result_dtype(points[row].dtype))
            if grad is None
            else grad
            for grad, row in zip(grads, self.options[0], strict=False)
        ]

    @property
    def pairings(self) -> int:
        return len(self.options[0])


class _Losses(torch.autograd.Function):
    """The operator for autograd and for the transforms of ``torch.func``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(layout: _Layout, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(_losses(*layout.call(tensors)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _save(ctx, *inputs, results=output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        curv_learns, scale_learns, *learn = ctx.needs_input_grad[1:]
        points_learn = learn[: ctx.layout.point_sets]
        by_points, by_curv, by_scale = _gradients(ctx, grads, [*points_learn, curv_learns, scale_learns])
        return None, by_curv, by_scale, *by_points, *(None for _ in range(ctx.layout.pairings))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        _refuse_forward_mode()


class _Untransformed(torch.autograd.Function):
    """The same without ``setup_context``, which costs time: PyTorch binds a signature at each call."""

    @staticmethod
    def forward(ctx: Any, layout: _Layout, *tensors: Tensor) -> tuple[Tensor, ...]:
        results = tuple(_losses(*layout.call(tensors)))
        _save(ctx, layout, *tensors, results=results)
        return results

    backward = staticmethod(_Losses.backward)


class _Gradients(torch.autograd.Function):
    """The backward operator, which has no derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(layout: _Layout, learns: tuple[bool, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        n_given = 2 + layout.point_sets + layout.pairings
        grads, saved = tensors[n_given : n_given + layout.pairings], tensors[n_given + layout.pairings :]
        call = layout.call(tensors[:n_given])
        return tuple(_gradients_of_losses(list(grads), list(saved), list(learns), *call))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        _refuse_second_derivative()

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        _refuse_forward_mode()


def _refuse_second_derivative(*_: Any) -> NoReturn:
    raise NotImplementedError(
        "hypkernels.contrastive_loss has no second derivative: its gradient is a closed form that autograd "
        "cannot differentiate again; use hypkernels.use_backend('reference')"
    )


def _refuse_forward_mode(*_: Any) -> NoReturn:
    raise NotImplementedError(
        "hypkernels.contrastive_loss has no forward-mode derivative (torch.func.jvp, jacfwd, hessian and "
        "linearize, torch.autograd.forward_ad): its gradient is a closed form for reverse mode; use "
        "torch.func.grad, vjp or jacrev, or hypkernels.use_backend('reference')"
    )


def _differentiated_in_a_graph() -> bool:
    """Whether a transform in a compiled function differentiates the operator: a constant of the graph."""
    transforms = get_interpreter_stack() or []
    return any(one.key() in (TransformType.Grad, TransformType.Jvp) for one in transforms)


# As torch.compiler.assume_constant_result does, without importing the whole compiler.
_differentiated_in_a_graph._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _takes_operator(*tensors: Tensor) -> bool:
    """Whether to call the operator itself; otherwise the autograd function around it."""
    if torch.compiler.is_compiling():
        if _differentiated_in_a_graph() or forward_ad._current_level >= 0:
            raise NotImplementedError(
                "hypkernels.contrastive_loss has no derivative by torch.func or in forward mode in a graph "
                "of torch.compile; call backward() on what the compiled function returns, or use "
                "torch.func.grad, vjp or jacrev without torch.compile"
            )
        return True
    if transformed() or forward_ad._current_level >= 0:
        return False
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))


def _forward(call: Call) -> list[Tensor]:
    if _takes_operator(call.curv, call.logit_scale, *call.points):
        return _losses(*call)
    function = _Losses if transformed() or forward_ad._current_level >= 0 else _Untransformed
    return list(function.apply(*_Layout.flat(call)))


def _save(ctx: Any, layout: _Layout, *tensors: Tensor, results: Sequence[Tensor]) -> None:
    saved = results[layout.pairings :]
    ctx.layout = layout
    ctx.save_for_backward(*tensors, *saved)
    ctx.mark_non_differentiable(*saved)
    ctx.set_materialize_grads(False)  # otherwise PyTorch makes zeros as large as everything saved


def _gradients(
    ctx: Any, grads: Sequence[Tensor | None], learns: Sequence[bool]
) -> tuple[list[Tensor | None], Tensor | None, Tensor | None]:
    """The gradients by the points, the curvature and the scale; ``None`` for what needs none."""
    layout, tensors = ctx.layout, ctx.saved_tensors  # once: activation checkpointing unpacks them once
    n_given = 2 + layout.point_sets + layout.pairings
    curv, scale = tensors[:2]
    given, saved = tensors[:n_given], tensors[n_given:]
    upstream = layout.upstream(grads, given)
    if any(torch._C._functorch.is_legacy_batchedtensor(grad) for grad in upstream):
        raise NotImplementedError(
            "hypkernels.contrastive_loss takes no batched gradients (is_grads_batched of "
            "torch.autograd.grad, vectorize of torch.autograd.functional): use torch.func.vmap or jacrev"
        )
    if _takes_operator(*tensors, *upstream):
        results = _gradients_of_losses(upstream, list(saved), learns, *layout.call(given))
    else:
        results = _Gradients.apply(layout, tuple(learns), *given, *upstream, *saved)
    *by_points, by_curv, by_scale = results
    return (
        [one if learning else None for one, learning in zip(by_points, learns[:-2], strict=True)],
        # Only scalars that learn are worth moving: their gradients may have to cross to another device.
        beside_scalar(curv, by_curv) if learns[-2] else None,
        beside_scalar(scale, by_scale) if learns[-1] else None,
    )


def beside_scalar(scalar: Tensor, gradient: Tensor) -> Tensor:
    """A scalar's gradient, on its device; on a CPU the largest number in place of infinity."""
    if gradient.device.type == "cpu" and scalar.dtype != torch.float64:
        largest = torch.finfo(scalar.dtype).max
        gradient = gradient.clamp(-largest, largest)
    return gradient.to(scalar.device, scalar.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    _save(ctx, *_Layout.flat(Call(*inputs)), results=output)


def _backward(ctx: Any, grads: Sequence[Tensor]) -> tuple[Any, ...]:
    points_learn, curv_learns, scale_learns, *_ = ctx.needs_input_grad
    layout = ctx.layout
    by_points, by_curv, by_scale = _gradients(ctx, grads, [*points_learn, curv_learns, scale_learns])
    nothing = [None] * layout.pairings
    return by_points, by_curv, by_scale, nothing, *(None for _ in layout.options)


_contrastive_losses.register_autograd(_backward, setup_context=_setup_context)
_contrastive_losses_backward.register_autograd(_refuse_second_derivative)
_contrastive_losses.register_vmap(_each_of_a_batch(_contrastive_losses, _fake_losses))
_contrastive_losses_backward.register_vmap(_each_of_a_batch(_contrastive_losses_backward, _fake_gradients))
