"""The contrastive losses over the processes of a group. No process ever holds the points of all.

Every process keeps its rows. Columns go round a ring, with a stop at each process: there its rows meet
the visiting columns. One block of logits serves both softmaxes. The sums of rows stay; the sums of
columns travel on with the columns, and come home after a round with all rows in them. The backward pass
sends the columns round once more, with the results of their softmaxes, and their gradient travels with
them.

While a block is computed the columns of the next one are on their way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import forward_ad

from hypkernels.checks import SUPPORTED_DTYPES
from hypkernels.contrastive import problem
from hypkernels.contrastive.op import Call, beside_scalar, pytorch_or_triton, rounded
from hypkernels.contrastive.problem import Gradients, Problem, SoftmaxGradient, Statistics
from hypkernels.rowwise import result_dtype

_NO_TARGET = -1


class Ring:
    """A group's processes in a circle, and how many rows each has.

    ``counts`` are the numbers of rows in the order of ranks; ``None`` asks all of them.
    """

    def __init__(self, group: dist.ProcessGroup | None, counts: Sequence[int] | None, points: Tensor) -> None:
        self.group = group
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self.counts = _told(points, group) if counts is None else list(counts)
        whole = group or dist.group.WORLD
        assert whole is not None, "the caller has checked that there are processes"
        self._next, self._before = (
            dist.get_global_rank(whole, (self.rank + way) % self.size) for way in (1, -1)
        )

    def rows_at(self, stop: int) -> int:
        """How many columns visit this process at a stop; at stop 0 they are its own."""
        return self.counts[(self.rank - stop) % self.size]

    def pass_on(self, visiting: Tensor, stop: int) -> Callable[[], Tensor]:
        """Send on the visiting tensor, ``(n, rows, ...)``; the returned function waits for the next
        one."""
        if self.size == 1:
            return lambda: visiting
        visiting = visiting.contiguous()
        coming = visiting.new_empty(visiting.shape[0], self.rows_at(stop + 1), *visiting.shape[2:])
        ways = [(dist.isend, visiting, self._next), (dist.irecv, coming, self._before)]
        sent = [dist.P2POp(way, tensor, peer, self.group) for way, tensor, peer in ways if tensor.numel()]
        works = dist.batch_isend_irecv(sent) if sent else []

        def arrived() -> Tensor:
            for work in works:
                work.wait()
            return coming

        return arrived


def _told(points: Tensor, group: dist.ProcessGroup | None) -> list[int]:
    own = torch.tensor(
        [len(points), points.shape[1], SUPPORTED_DTYPES.index(points.dtype)], device=points.device
    )
    told = own.new_empty(dist.get_world_size(group) * len(own))
    dist.all_gather_into_tensor(told, own, group=group)
    counts, widths, dtypes = told.view(-1, len(own)).T.tolist()
    for what, values in (("width", widths), ("dtype", [SUPPORTED_DTYPES[index] for index in dtypes])):
        if len(set(values)) > 1:
            raise ValueError(f"points must have the same {what} on all processes, got {values} by rank")
    return counts


@dataclass(frozen=True, eq=False)
class _Round:
    """A process's pairings, and the ring. ``rows`` and ``columns`` are the sets that stay and that travel."""

    ring: Ring
    options: tuple[Any, ...]
    rows: list[int]
    columns: list[int]

    @staticmethod
    def of(call: Call, ring: Ring) -> _Round:
        return _Round(ring, call[4:], sorted(set(call.rows)), sorted(set(call.columns)))

    @property
    def pairings(self) -> int:
        return len(self.options[0])

    def call(self, curv: Tensor, scale: Tensor, points: Sequence[Tensor]) -> Call:
        """The losses' arguments, of this process's rows and its own columns."""
        own = torch.empty(0, dtype=torch.int64, device=points[0].device)
        return Call(list(points), curv, scale, [own] * self.pairings, *self.options)

    def block(self, call: Call, visiting: Tensor, stop: int) -> Call:
        """The arguments of a block: its rows and the visiting columns; after stop 0 all are
        negatives."""
        points = [*(call.points[index] for index in self.rows), *visiting.unbind(0)]
        rows = [self.rows.index(row) for row in call.rows]
        columns = [len(self.rows) + self.columns.index(column) for column in call.columns]
        if stop:
            none = call.targets[0].new_full((len(points[0]),), _NO_TARGET)
            call = call._replace(targets=[none] * self.pairings)
        return call._replace(points=points, rows=rows, columns=columns)

    def travellers(self, of_sets: Sequence[Tensor]) -> Tensor:
        return torch.stack([of_sets[index] for index in self.columns])


class _Block:
    """One process's part of one block, computed by the implementation for its points."""

    def __init__(self, call: Call, learns: Sequence[bool] | None = None) -> None:
        self.similarity = call.similarity
        self._of = pytorch_or_triton(call.implementation())
        summed = self._of.summaries(call.points)
        self.problems = [self._of.in_range(p, self.similarity) for p in call.problems(summed, learns)]

    def log_sums(self) -> list[tuple[Tensor, Tensor]]:
        return [self._of.log_sums_of_negatives(p, self.similarity, True) for p in self.problems]

    def positive_gaps(self) -> list[Tensor]:
        return [self._of.positive_gaps(p, self.similarity, True) for p in self.problems]

    def losses(self, saved: Sequence[Statistics]) -> list[Tensor]:
        pairs = zip(self.problems, saved, strict=True)
        return [problem.losses(p, one, self.similarity, True) for p, one in pairs]

    def softmaxes(
        self, upstream: Sequence[Tensor], saved: Sequence[Statistics]
    ) -> list[list[SoftmaxGradient]]:
        each = zip(upstream, self.problems, saved, strict=True)
        return [problem.softmax_gradients(grad, p, one, self.similarity, True) for grad, p, one in each]

    def gradients(self, softmaxes: Sequence[list[SoftmaxGradient]]) -> Iterator[Gradients]:
        """The gradients of one pairing after the other: each takes as much memory as the points."""
        for p, one in zip(self.problems, softmaxes, strict=True):
            yield self._of.gradients_of_negatives(p, one, self.similarity, True)

    def add_positives(
        self, total: Gradients, p: Problem, softmaxes: list[SoftmaxGradient], saved: Statistics
    ) -> None:
        self._of.add_positives(total, p, softmaxes, saved, self.similarity, True)


def ring_losses(call: Call, ring: Ring) -> list[Tensor]:
    """The loss of each of this process's rows, for each pairing; ``call`` is of its own points.

    The gradients are those of the sum over processes.
    """
    if forward_ad._current_level >= 0:
        _refuse("forward-mode derivative")
    if torch.compiler.is_compiling():
        _refuse("place in a graph of torch.compile: call it outside of the compiled function")
    if call.backend == "reference":
        _refuse("reference implementation: gather the points and call hypkernels.contrastive_losses")
    call.check_values()
    results = _RingLosses.apply(_Round.of(call, ring), call.curv, call.logit_scale, *call.points)
    return list(results[: len(call.rows)])


def _refuse(what: str) -> NoReturn:
    raise NotImplementedError(f"hypkernels.ring_contrastive_losses has no {what}")


class _RingLosses(torch.autograd.Function):
    """Losses of all pairings, then the statistics of each: positives, and sums over negatives."""

    @staticmethod
    def forward(way: _Round, curv: Tensor, scale: Tensor, *points: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(points[0].device.type, enabled=False):
            call = way.call(curv, scale, points)
            own = _Block(call)
            sums = _sums_over_negatives(way, call)
            saved = [Statistics(*one) for one in zip(own.positive_gaps(), *sums, strict=True)]
            losses = [one.to(result_dtype(points[0].dtype)) for one in own.losses(saved)]
        return *losses, *(tensor for one in saved for tensor in one)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.way, *tensors = inputs
        saved = output[ctx.way.pairings :]
        ctx.save_for_backward(*tensors, *saved)
        ctx.mark_non_differentiable(*saved)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        curv, scale, first, *_ = tensors = ctx.saved_tensors
        upstream = [
            first.new_zeros(len(first), dtype=result_dtype(first.dtype)) if grad is None else grad
            for grad in grads[: ctx.way.pairings]
        ]
        learns = ctx.needs_input_grad[1:]
        by_curv, by_scale, *by_points = _RingGradients.apply(ctx.way, learns, *tensors, *upstream)
        every = (beside_scalar(curv, by_curv), beside_scalar(scale, by_scale), *by_points)
        return None, *(one if learning else None for one, learning in zip(every, learns, strict=True))

    @staticmethod
    def vmap(*args: Any) -> NoReturn:
        _refuse("rule for torch.func.vmap")


class _RingGradients(torch.autograd.Function):
    """The backward pass: by the curvature, the scale and the points."""

    @staticmethod
    def forward(way: _Round, learns: Sequence[bool], *tensors: Tensor) -> tuple[Tensor, ...]:
        (curv, scale), rest = tensors[:2], tensors[2:]
        points = rest[: len(learns) - 2]
        statistics, upstream = rest[len(points) : -way.pairings], rest[-way.pairings :]
        each = len(Statistics._fields)
        saved = [Statistics(*statistics[each * n : each * (n + 1)]) for n in range(way.pairings)]
        with torch.autocast(points[0].device.type, enabled=False):
            return _gradients(way, way.call(curv, scale, points), upstream, saved, learns)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        _refuse("second derivative")

    vmap = staticmethod(_RingLosses.vmap)


def _sums_over_negatives(way: _Round, call: Call) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over all processes' negatives, of this one's rows and columns: ``(pairings, rows)``."""
    visiting = way.travellers(call.points)
    rows, columns = (
        visiting.new_full((way.pairings, visiting.shape[1]), -math.inf, dtype=torch.float64) for _ in range(2)
    )
    for stop in range(way.ring.size):
        last = stop + 1 == way.ring.size
        coming = None if last else way.ring.pass_on(visiting, stop)
        if rows.shape[1] and columns.shape[1]:
            by_row, by_column = zip(*_Block(way.block(call, visiting, stop)).log_sums(), strict=True)
            rows = torch.logaddexp(rows, torch.stack(by_row))
            columns = torch.logaddexp(columns, torch.stack(by_column))
        columns = way.ring.pass_on(columns, stop)()
        visiting = visiting if coming is None else coming()
    return rows, columns


def _gradients(
    way: _Round,
    call: Call,
    upstream: Sequence[Tensor],
    saved: Sequence[Statistics],
    learns: Sequence[bool],
) -> tuple[Tensor, ...]:
    """The gradients by curvature, scale and points; by the two scalars through this process's rows
    only."""
    own = _Block(call)
    softmaxes = own.softmaxes(upstream, saved)
    sums = _Sums(way, call)
    _add_negatives(sums, softmaxes, [learns[0], learns[1], *(learns[2 + index] for index in way.rows)])
    for n, (p, parts, one) in enumerate(zip(own.problems, softmaxes, saved, strict=True)):
        own.add_positives(sums.of_pairing(n), p, parts, one)
    return sums.curv, sums.scale.sum(), *sums.of_points()


def _add_negatives(sums: _Sums, softmaxes: Sequence[list[SoftmaxGradient]], learns: Sequence[bool]) -> None:
    """Add the gradients of all blocks of this process's rows and of all blocks that its columns
    visit."""
    way, call = sums.way, sums.call
    pass_on = way.ring.pass_on
    visiting, softmax_of_columns = way.travellers(call.points), _of_columns(softmaxes)
    curv_learns, scale_learns, *rows_learn = learns
    # Only the process that owns a column knows whether it needs a gradient: compute all of them.
    learns = [*rows_learn, *(True for _ in way.columns), curv_learns, scale_learns]
    for stop in range(way.ring.size):
        last = stop + 1 == way.ring.size
        coming = [] if last else [pass_on(one, stop) for one in (visiting, softmax_of_columns)]
        if visiting.shape[1] and len(call.points[0]):
            block = _Block(way.block(call, visiting, stop), learns)
            met = [
                _met(parts, *both) for parts, both in zip(softmaxes, _paired(softmax_of_columns), strict=True)
            ]
            for n, part in enumerate(block.gradients(met)):
                sums.add(n, part)
        sums.columns = pass_on(sums.columns, stop)()
        if not last:
            visiting, softmax_of_columns = (one() for one in coming)


def _of_columns(softmaxes: Sequence[list[SoftmaxGradient]]) -> Tensor:
    """What travels with the columns: their weights and totals, ``(2 pairings, rows)``."""
    both = [part.columns for parts in softmaxes for part in parts if part.columns is not None]
    return torch.stack([tensor for one in both for tensor in one])


def _paired(of_columns: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(of_columns[::2], of_columns[1::2], strict=True))


def _met(parts: list[SoftmaxGradient], weights: Tensor, totals: Tensor) -> list[SoftmaxGradient]:
    """The softmaxes of a block: this process's rows, and the columns that visit."""
    return [part._replace(columns=None if part.columns is None else (weights, totals)) for part in parts]


class _Sums:
    """Gradients: of the rows that stay and of the columns that visit, ``(sets, rows, D)``, and of scalars."""

    def __init__(self, way: _Round, call: Call) -> None:
        self.way, self.call = way, call
        points = call.points[0]
        dtype = result_dtype(points.dtype)
        self.rows, self.columns = (
            points.new_zeros((len(sets), *points.shape), dtype=dtype) for sets in (way.rows, way.columns)
        )
        self.curv = points.new_zeros((), dtype=torch.float64)
        self.scale = points.new_zeros(len(points), dtype=torch.float64)

    def of_pairing(self, n: int) -> Gradients:
        """Views of the sums of a pairing's sets."""
        row, column = self.way.rows.index(self.call.rows[n]), self.way.columns.index(self.call.columns[n])
        return Gradients(self.rows[row], self.columns[column], self.curv, self.scale)

    def add(self, n: int, part: Gradients) -> None:
        for total, one in zip(self.of_pairing(n), part, strict=True):
            if total is not None and one is not None:
                total.add_(rounded(one, total.dtype) if one.dim() == 2 else one)

    def of_points(self) -> list[Tensor]:
        """The gradient by each set of the call, in its dtype, once the columns have come home."""
        totals = []
        for index, points in enumerate(self.call.points):
            parts = [
                side[sets.index(index)]
                for sets, side in ((self.way.rows, self.rows), (self.way.columns, self.columns))
                if index in sets
            ]
            total = sum(parts[1:], parts[0]) if parts else torch.zeros_like(points)
            totals.append(rounded(total, points.dtype))
        return totals
