"""Registration of the contrastive losses as ``torch.ops.hypkernels`` operators.

One operator takes several pairings of shared point sets. It returns the losses of each pairing and, for the
backward operator, the statistics of each pairing and the summaries of the points.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hypkernels import backend
from hypkernels.checks import check_curv_value, check_scale_values, check_target_values
from hypkernels.contrastive import problem, reference
from hypkernels.contrastive.problem import Learns, Problem, Statistics
from hypkernels.contrastive.similarity import logit_matrices
from hypkernels.rowwise import beside, refuse_double_backward, result_dtype

_ARGUMENTS = (
    "Tensor[] points, Tensor curv, Tensor logit_scale, Tensor[] targets, int[] rows, int[] columns, "
    "str similarity, bool symmetric, str? precision, str backend"
)
_IMPLEMENTATIONS = {"torch": "hypkernels.contrastive.strips", "triton": "hypkernels.contrastive.kernel"}


class _Call(NamedTuple):
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
    symmetric: bool
    precision: str | None
    backend: str

    def implementation(self) -> Any:
        x = self.points[0]
        refusal = "the points are float64, its logits are float32" if x.dtype == torch.float64 else None
        choice = backend.choose("contrastive_loss", x, requested=self.backend, refusal=refusal)
        return importlib.import_module(_IMPLEMENTATIONS[choice.implementation])

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
            )
            for row, column, targets in zip(self.rows, self.columns, self.targets, strict=True)
        ]


def contrastive_losses(*args: Any) -> list[Tensor]:
    """The loss of each row, for each pairing; arguments are those of :class:`_Call` without ``backend``."""
    call = _Call(*(*args, backend.setting()))
    if call.backend == "reference":
        return _by_definition(call)
    return _contrastive_losses(*call)[: len(call.rows)]


def _by_definition(call: _Call) -> list[Tensor]:
    return [
        reference.contrastive_loss(
            call.points[row].double(),
            call.points[column].double(),
            call.curv.double(),
            call.logit_scale.double(),
            targets if len(targets) else torch.arange(len(call.points[row]), device=targets.device),
            similarity=call.similarity,
            symmetric=call.symmetric,
        ).to(result_dtype(call.points[row].dtype))
        for row, column, targets in zip(call.rows, call.columns, call.targets, strict=True)
    ]


@torch.library.custom_op(
    "hypkernels::contrastive_losses", mutates_args=(), schema=f"({_ARGUMENTS}) -> Tensor[]"
)
def _contrastive_losses(*args: Any) -> list[Tensor]:
    call = _Call(*args)
    check_curv_value(call.curv)
    check_scale_values(call.logit_scale)
    for column, targets in zip(call.columns, call.targets, strict=True):
        check_target_values(targets, call.points[column].shape[0])
    implementation = call.implementation()
    with torch.autocast(call.points[0].device.type, enabled=False):
        summed = implementation.summaries(call.points)
        results = [
            implementation.forward(one, call.similarity, call.symmetric) for one in call.problems(summed)
        ]
    losses = [of_rows.to(result_dtype(call.points[0].dtype)) for of_rows, _ in results]
    return [*losses, *chain.from_iterable(statistics for _, statistics in results), *summed]


@_contrastive_losses.register_fake
def _(*args: Any) -> list[Tensor]:
    call = _Call(*args)
    x, n_sets = call.points[0], len(call.points)
    losses, statistics = [], []
    for row, column in zip(call.rows, call.columns, strict=True):
        rows, columns = call.points[row].shape[0], call.points[column].shape[0]
        losses.append(x.new_empty(rows, dtype=result_dtype(x.dtype)))
        statistics += [
            x.new_empty(len(logit_matrices(call.similarity, call.symmetric)), rows, dtype=torch.float64),
            x.new_empty(rows, dtype=torch.float64),
            x.new_empty(columns if call.symmetric else 0, dtype=torch.float64),
        ]
    shapes = [(n_sets, x.shape[1]), *((one.shape[0], 1 + n_sets) for one in call.points)]
    return [*losses, *statistics, *(x.new_empty(shape, dtype=torch.float64) for shape in shapes)]


@torch.library.custom_op(
    "hypkernels::contrastive_losses_backward",
    mutates_args=(),
    schema=f"(Tensor[] grads, Tensor[] saved, bool[] learns, {_ARGUMENTS}) -> Tensor[]",
)
def _contrastive_losses_backward(
    grads: Sequence[Tensor], saved: Sequence[Tensor], learns: Sequence[bool], *args: Any
) -> list[Tensor]:
    """The gradients by the point sets, empty for those that do not learn, by the curvature and the scale."""
    call = _Call(*args)
    implementation = call.implementation()
    total: list[Tensor | None] = [None] * len(call.points)
    scalars: list[Tensor] = []
    each = len(Statistics._fields)
    with torch.autocast(call.points[0].device.type, enabled=False):
        for index, one in enumerate(call.problems(saved[each * len(grads) :], learns)):
            statistics = Statistics(*saved[each * index : each * (index + 1)])
            part = implementation.backward(grads[index], one, statistics, call.similarity, call.symmetric)
            for place, by_points in ((call.rows[index], part.x), (call.columns[index], part.y)):
                if by_points is not None:
                    before = total[place]
                    total[place] = by_points if before is None else before.add_(by_points)
            scale = part.scale if call.logit_scale.dim() else part.scale.sum()
            scalars = [part.curv + (scalars[0] if scalars else 0), scale + (scalars[1] if scalars else 0)]
    points = [
        one.new_empty(0) if by_points is None else by_points.to(one.dtype)
        for one, by_points in zip(call.points, total, strict=True)
    ]
    return [*points, *scalars]


@_contrastive_losses_backward.register_fake
def _(grads: Sequence[Tensor], saved: Sequence[Tensor], learns: Sequence[bool], *args: Any) -> list[Tensor]:
    call = _Call(*args)
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


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    call = _Call(*inputs)
    saved = output[len(call.rows) :]
    ctx.sizes = len(call.points), len(call.targets)
    ctx.save_for_backward(*call.points, *call.targets, *saved, call.curv, call.logit_scale)
    ctx.options = inputs[4:]
    ctx.mark_non_differentiable(*saved)


def _backward(ctx: Any, grads: Sequence[Tensor]) -> tuple[Any, ...]:
    n_points, n_pairings = ctx.sizes
    points, targets = ctx.saved_tensors[:n_points], ctx.saved_tensors[n_points : n_points + n_pairings]
    saved, (curv, logit_scale) = ctx.saved_tensors[n_points + n_pairings : -2], ctx.saved_tensors[-2:]
    points_learn, curv_learns, scale_learns, *_ = ctx.needs_input_grad
    learns = [*points_learn, curv_learns, scale_learns]
    *by_points, by_curv, by_scale = _contrastive_losses_backward(
        list(grads[:n_pairings]), saved, learns, points, curv, logit_scale, targets, *ctx.options
    )
    return (
        [one if learning else None for one, learning in zip(by_points, points_learn, strict=True)],
        # Only scalars that learn are worth moving: their gradients may have to cross to another device.
        by_curv.to(curv.device, curv.dtype) if curv_learns else None,
        by_scale.to(logit_scale.device, logit_scale.dtype) if scale_learns else None,
        [None] * n_pairings,
        *(None for _ in ctx.options),
    )


_contrastive_losses.register_autograd(_backward, setup_context=_setup_context)
_contrastive_losses_backward.register_autograd(partial(refuse_double_backward, "contrastive_loss"))
