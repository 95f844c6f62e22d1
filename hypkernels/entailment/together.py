"""Several entailment losses of shared point sets, on a CPU in one call of compiled code.

One call saves the overhead of several, and adds the gradients of a set from all its pairings in one
place. Under transforms, in compiled graphs and on a GPU each pairing is a call of the operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hypkernels import backend
from hypkernels.checks import check_values, constant
from hypkernels.entailment.op import entailment_loss
from hypkernels.operators import carry_tangents, forward_mode, learning, seen_by_others
from hypkernels.rowwise import native_module


class Cone(NamedTuple):
    """Which sets are the apexes and the points, and the options of :func:`hypkernels.entailment_loss`."""

    apex: int
    point: int
    options: Sequence[float]


def entailment_losses(points: Sequence[Tensor], cones: Sequence[Cone], curv: Tensor) -> Tensor | list[Tensor]:
    """The losses of the rows of each cone: ``(cones, rows)`` from one call, or a list of ``(rows,)``."""
    points, cones = _of_those_used(points, cones)
    if not _in_one_call(points, cones, curv):
        return _each(points, cones, curv)
    check_values("curv", curv)
    if torch.is_grad_enabled() and any(one.requires_grad for one in (curv, *points)):
        return _Together.apply(curv, *points, cones)
    return native_module().entailment_losses(points, *_launched(cones), curv)[0]


def _of_those_used(points: Sequence[Tensor], cones: Sequence[Cone]) -> tuple[list[Tensor], list[Cone]]:
    used = sorted({index for one in cones for index in (one.apex, one.point)})
    place = {index: new for new, index in enumerate(used)}
    return [points[index] for index in used], [
        Cone(place[one.apex], place[one.point], one.options) for one in cones
    ]


def _each(points: Sequence[Tensor], cones: Sequence[Cone], curv: Tensor) -> list[Tensor]:
    return [
        entailment_loss(points[one.apex], points[one.point], curv, *map(constant, one.options))
        for one in cones
    ]


def _in_one_call(points: Sequence[Tensor], cones: Sequence[Cone], curv: Tensor) -> bool:
    if torch.compiler.is_compiling() or len(cones) < 2 or any(len(one) != len(points[0]) for one in points):
        return False
    setting = backend.setting()
    return (
        setting in ("auto", "native")
        and backend.choose("entailment_loss", points[0], requested=setting).implementation == "native"
        and not seen_by_others((curv, *points))
        and not (forward_mode() and carry_tangents((curv, *points)))
    )


def _launched(cones: Sequence[Cone]) -> tuple[list[tuple[int, int]], list[Sequence[float]]]:
    return [(one.apex, one.point) for one in cones], [one.options for one in cones]


def _gradients_of_each(grad: Tensor, cones: Sequence[Cone], saved: Sequence[Tensor]) -> Sequence[Tensor]:
    def losses(curv: Tensor, *points: Tensor) -> Tensor:
        return torch.stack(_each(points, cones, curv))

    return torch.func.vjp(losses, *saved)[1](grad)


class _Together(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        curv, *points, cones = arguments
        losses, splits = native_module().entailment_losses(points, *_launched(cones), curv, keeps=True)
        ctx.save_for_backward(curv, *points, splits)
        ctx.cones = cones
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        curv, *points, splits = ctx.saved_tensors
        saved = (curv, *points)
        if torch.is_grad_enabled() or forward_mode() or seen_by_others((grad, *saved)):
            grads = _gradients_of_each(grad, ctx.cones, saved)
        else:
            launched = _launched(ctx.cones)
            grads = native_module().entailment_losses_backward(grad, splits, points, *launched, curv)
        return learning(grads, saved, ctx)
