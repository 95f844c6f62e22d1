"""The losses of hyperbolic representation learning, as functions and as modules.

Points are space components, as in :mod:`hypkernels.lorentz`. Every geometric quantity is computed in
float32 or better whatever the points' dtype and whatever autocast says, so that all losses take the
half-precision outputs of a model directly. Results are float64 for float64 points, else float32.
``entailment_loss`` is differentiable any number of times, the contrastive losses once::

    contrastive = hk.contrastive_loss(image, text, curv, logit_scale)  # InfoNCE on -s d(image_i, text_j)
    entailment = hk.entailment_loss(text, image, curv)  # a text's cone should hold its image
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hypkernels import backend
from hypkernels.checks import (
    PRECISIONS,
    broadcast_pair,
    broadcast_rows,
    check_bool,
    check_choice,
    check_finite,
    check_matrices,
    check_not_negative,
    check_positive,
    constant,
    scalar_or_rows,
    scalar_tensor,
    scale_tensor,
    target_tensor,
)
from hypkernels.contrastive import op as contrastive
from hypkernels.contrastive.similarity import SIMILARITIES
from hypkernels.entailment import op as entailment
from hypkernels.entailment import together

REDUCTIONS = ("mean", "sum", "none")


def contrastive_loss(
    x: Tensor,
    y: Tensor,
    curv: float | Tensor = 1.0,
    logit_scale: float | Tensor = 1.0,
    *,
    similarity: str = "dist",
    targets: Tensor | None = None,
    reduction: str = "mean",
    symmetric: bool = True,
    precision: str | None = None,
) -> Tensor:
    """Contrastive (InfoNCE) loss with hyperbolic logits ``l_ij = -s_i gap(x_i, y_j)``.

    With ``t_i`` the target of row ``i`` and CE the cross entropy, the loss of row ``i`` is

        0.5 * [CE(l_i*, t_i) + CE(l_*{t_i}, i)]

    The first term runs over all ``y``. The second runs over all ``x``, in the column of the row's
    target; ``symmetric=False`` leaves it out. With the defaults this is the contrastive loss of MERU
    (Desai et al., ICML 2023), ``0.5 * [CE(-s d(x_i, y_j), i) + CE(-s d(y_i, x_j), i)]``.

    Args:
        x: ``(M, D)`` space components, float64, float32, bfloat16 or float16.
        y: ``(N, D)``, same dtype and device; ``N`` may differ from ``M``.
        curv: positive ``c`` (sectional curvature ``-c``), a float or a tensor of one element.
        logit_scale: ``s >= 0``, a float or a tensor of one element; or a tensor ``(M,)``, one scale for each
            row of logits. A row's scale goes with its logits into the columns' cross entropies too.
        similarity: which ``gap``: ``"dist"``, the geodesic distance; ``"sqdist"``, its square;
            ``"inner"``, minus the Lorentz inner product; or ``"angle"``, the exterior angle
            :func:`hypkernels.oxy_angle` at the query of the cross entropy: at ``x_i`` in the rows' term,
            at ``y_j`` in the columns'.
        targets: ``(M,)`` int64 or int32, for each row of ``x`` the index of its positive in ``y``. By default
            the positive of row ``i`` is ``y_i``. Several rows may share a target; in the target's column
            each of these rows counts the others as negatives.
        reduction: ``"mean"`` or ``"sum"`` over the rows, 0 if there are none; ``"none"``, ``(M,)``.
        symmetric: whether the columns' cross entropies take part.
        precision: the coarsest product of matrices allowed on a GPU, ``"ieee"``, ``"tf32x3"`` or
            ``"tf32"``; ``None`` leaves it to ``torch.set_float32_matmul_precision``. It makes no
            difference on a CPU, where products are float32, nor for float64 points, whose products are
            float64.

    Returns:
        A scalar, or ``(M,)``; float64 for float64 points, else float32.

    Memory beyond inputs and gradients is bounded: no matrix ``(M, N)`` is ever held. A distance of 0 has
    gradient 0.

    Positives are computed exactly and kept apart from the negatives. The loss and its gradients
    therefore keep their digits however small they are, in float32 down to a loss of about 1e-17.
    Negatives come from a product of matrices. Its rounding leaves ``cosh(sqrt(c) d)`` of a pair
    uncertain by up to ``2e-6 c|x||y|`` in float32 and ``4e-15 c|x||y|`` in float64. This error shows
    where the directions of a row and a negative from the origin nearly agree: within 2e-3 radians in
    float32, 1e-7 in float64. For points on one ray from the origin, distance and angle are lost beyond
    ``c|x||y|`` of about 1e5 in float32 and 1e14 in float64; gradients stay bounded. On a GPU, float32
    points may have norms up to ``1e9 / sqrt(c)``; beyond that the loss is NaN.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range, by name. On a CPU
            also ``sqrt(c)|x|`` outside of [1e-75, 1e44], but for 0, and a scale with which logits may pass
            1e300: float64 has no room for their products. Values on a GPU are not read back: there a bad
            curvature, scale or target is not reported in this way.
        NotImplementedError: a second or a forward-mode derivative is asked for.
    """
    check_matrices("x", x, "y", y)
    options = similarity, targets, reduction, [symmetric], precision
    (loss,) = _contrastive_losses((x, y), ((0, 1),), curv, logit_scale, *options)
    return loss


def contrastive_losses(
    points: Iterable[Tensor],
    pairings: Iterable[tuple[int, int]],
    curv: float | Tensor = 1.0,
    logit_scale: float | Tensor = 1.0,
    *,
    similarity: str = "dist",
    targets: Tensor | None = None,
    reduction: str = "mean",
    symmetric: bool | Sequence[bool] = True,
    precision: str | None = None,
) -> list[Tensor]:
    """:func:`contrastive_loss` of several pairings of shared point sets, in one call.

    Norms and directions of a set are computed once for all its pairings.
    HySAC's four terms are the pairings ``(0, 2), (1, 3), (0, 3), (1, 2)`` of safe texts, unsafe texts, safe
    images and unsafe images; HyCoCLIP's are ``(0, 1), (2, 1), (3, 0)`` of images, texts, boxes of images and
    of texts, with ``symmetric=[True, False, False]``.

    Args:
        points: at least one set, each ``(M_k, D)``; one dtype, device and ``D`` for all, those in no pairing
            included.
        pairings: for each loss the indices into ``points`` of its ``x`` and its ``y``.
        curv, logit_scale, similarity, targets, reduction, precision: of :func:`contrastive_loss`, for all
            pairings; ``targets`` and a ``logit_scale`` of one value a row need as many rows in each.
        symmetric: of :func:`contrastive_loss`, for all pairings or one for each.

    Returns:
        One loss for each pairing, as :func:`contrastive_loss` returns it.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range, by name.
    """
    sets, pairs = _checked_sets(points, pairings)
    options = similarity, targets, reduction, _for_each("symmetric", symmetric, len(pairs)), precision
    return _contrastive_losses(sets, pairs, curv, logit_scale, *options)


def ring_contrastive_losses(
    points: Iterable[Tensor],
    pairings: Iterable[tuple[int, int]],
    curv: float | Tensor = 1.0,
    logit_scale: float | Tensor = 1.0,
    *,
    similarity: str = "dist",
    precision: str | None = None,
    counts: Sequence[int] | None = None,
    group: Any = None,
) -> list[Tensor]:
    """:func:`contrastive_losses` over the points of all processes; each holds only its own.

    The positive of row ``i`` is row ``i`` of the pairing's other set on the same process. The negatives
    are the rows and columns of all processes, both ways. Each process passes the sets that are columns
    of a pairing on to the next process, until they are home again. A process therefore holds its own
    points, the columns of two other processes and the columns' gradients, however many processes there
    are. Each logit is computed by one process, once in the forward and once in the backward pass.
    docs/parallel.md has the bytes sent and held.

    All processes call this function with the same arguments except ``points``, and all call
    ``backward``.

    Args:
        points: this process's sets, each ``(B, D)``; ``B`` may be 0 and another on other processes.
        pairings: for each loss the indices into ``points`` of its ``x``, whose rows stay, and its ``y``,
            which travels. Fewer different ``y`` are less to send.
        curv, similarity, precision: of :func:`contrastive_loss`.
        logit_scale: ``s >= 0``, a float or a tensor of one element.
        counts: ``B`` of every process, in the order of ranks. ``None`` asks the processes, which makes
            the host wait for a GPU.
        group: the ``torch.distributed`` process group; ``None`` is the default one.

    Returns:
        For each pairing the losses ``(B,)`` of this process's rows; float64 for float64 points, else
        float32. The loss of a row is that of :func:`contrastive_loss` with ``reduction="none"`` on the
        points of all processes, one below the other. Gradients by the points are those of the *sum* over
        processes of what each process makes of its losses. Gradients by the scalars are this process's
        part of those, and their sum over processes is the whole. DDP and FSDP, which average parameters'
        gradients, expect this.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range, by name; on every
            process where the widths or dtypes of their points differ, if ``counts`` is ``None``.
        RuntimeError: there is no process group.
        NotImplementedError: a second or a forward-mode derivative is asked for, ``torch.func.vmap``,
            ``torch.compile``, or ``use_backend("reference")``.
    """
    sets, pairs = _checked_sets(points, pairings)
    _check_contrastive_options(similarity, "none", True, precision)
    if not pairs:
        return []
    sizes = [len(one) for one in sets]
    if len(set(sizes)) > 1:
        raise ValueError(f"points must have the same number of rows in all sets, got {sizes}")
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("ring_contrastive_losses needs torch.distributed.init_process_group() before it")
    _check_counts(counts, dist.get_rank(group), dist.get_world_size(group), sizes[0])
    from hypkernels.contrastive import ring  # when there are processes: PyTorch may be built without them

    call = contrastive.Call(
        sets,
        scalar_tensor("curv", curv, sets[0]),
        scalar_tensor("logit_scale", logit_scale, sets[0], check_not_negative),
        [torch.empty(0, dtype=torch.int64, device=sets[0].device)] * len(pairs),
        [row for row, _ in pairs],
        [column for _, column in pairs],
        similarity,
        [True] * len(pairs),
        precision,
        backend.setting(),
    )
    return ring.ring_losses(call, ring.Ring(group, counts, sets[0]))


def _check_counts(counts: Sequence[int] | None, rank: int, size: int, rows: int) -> None:
    if counts is None:
        return
    if not isinstance(counts, Sequence) or not all(type(one) is int and one >= 0 for one in counts):
        raise TypeError(f"counts must be a sequence of integers of at least 0, got {counts!r}")
    if len(counts) != size or counts[rank] != rows:
        raise ValueError(
            f"counts must be the number of rows of each of the {size} processes, {rows} of this one, "
            f"number {rank}; got {list(counts)}"
        )


def _contrastive_losses(
    points: Sequence[Tensor],
    pairings: Sequence[tuple[int, int]],
    curv: float | Tensor,
    logit_scale: float | Tensor,
    similarity: str,
    targets: Tensor | None,
    reduction: str,
    symmetric: Sequence[bool],
    precision: str | None,
) -> list[Tensor]:
    """The losses of checked points and pairings."""
    for one in symmetric or [True]:
        _check_contrastive_options(similarity, reduction, one, precision)
    if not pairings:
        return []
    scale, *_ = [scale_tensor("logit_scale", logit_scale, points[row]) for row, _ in pairings]
    losses = contrastive.contrastive_losses(
        points,
        scalar_tensor("curv", curv, points[0]),
        scale,
        [_targets(targets, points[row], points[column]) for row, column in pairings],
        [row for row, _ in pairings],
        [column for _, column in pairings],
        similarity,
        symmetric,
        precision,
    )
    return [reduce_losses(one, reduction) for one in losses]


def _check_contrastive_options(
    similarity: str, reduction: str, symmetric: bool, precision: str | None
) -> None:
    check_choice("similarity", similarity, SIMILARITIES)
    check_choice("reduction", reduction, REDUCTIONS)
    check_bool("symmetric", symmetric)
    check_choice("precision", precision, PRECISIONS)


def _for_each(name: str, value: Any, pairings: int) -> list[Any]:
    """An option that all pairings share or that each has its own of."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [value] * pairings
    if len(value) != pairings:
        raise ValueError(
            f"{name} must be one for all or one for each of the {pairings} pairings, got {len(value)}"
        )
    return list(value)


def _checked_sets(
    points: Iterable[Tensor], pairings: Iterable[tuple[int, int]]
) -> tuple[list[Tensor], list[tuple[int, int]]]:
    sets, pairs = _listed("points", points), _listed("pairings", pairings)
    _check_sets(sets)
    _check_pairings(len(sets), pairs)
    return sets, pairs


def _listed(name: str, values: Iterable[Any]) -> list[Any]:
    if not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence, got {type(values).__name__}")
    return list(values)


def _check_sets(points: Sequence[Tensor]) -> None:
    """All, also those in no pairing: compiled code reads them too, by the dtype and width of the first."""
    for index, one in enumerate(points):
        check_matrices("points[0]", points[0], f"points[{index}]", one)


def _check_pairings(sets: int, pairings: Sequence[tuple[int, int]]) -> None:
    for pairing in pairings:
        if not isinstance(pairing, Sequence) or not all(type(index) is int for index in pairing):
            raise TypeError(f"pairings must be pairs of indices of points, got {pairing!r}")
        if len(pairing) != 2 or not all(0 <= index < sets for index in pairing):
            raise ValueError(f"pairings must be pairs of indices of the {sets} point sets, got {pairing}")


def _targets(targets: Tensor | None, x: Tensor, y: Tensor) -> Tensor:
    """Empty for the default."""
    if targets is not None:
        return target_tensor("targets", targets, x)
    if x.shape[0] > y.shape[0]:
        raise ValueError(
            "targets must be given where x has more rows than y, "
            f"got shapes {tuple(x.shape)} and {tuple(y.shape)}"
        )
    return torch.empty(0, dtype=torch.int64, device=x.device)


def entailment_loss(
    apex: Tensor,
    point: Tensor,
    curv: float | Tensor = 1.0,
    *,
    aperture_scale: float = 1.0,
    min_radius: float = 0.1,
    margin: float = 0.0,
    leak: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """How far each ``point`` lies outside the entailment cone of its ``apex``, in radians.

        max(0, angle - aperture_scale * half_aperture(apex) + margin) + leak * angle

    where ``angle = oxy_angle(apex, point)``. With the defaults this is the entailment loss of MERU
    (Desai et al., ICML 2023). HyCoCLIP and HySAC set ``aperture_scale``. UNCHA sets ``leak=0.1``, so
    that points inside a cone keep moving to its axis.

    Args:
        apex: the general items, ``(..., D)`` space components, float64, float32, bfloat16 or float16.
        point: the specific items, same dtype, device and width; leading dimensions broadcast.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or one for each
            of several factors: a tensor that broadcasts against the leading dimensions.
        aperture_scale: factor of the half-aperture, not negative. 0 leaves the plain angle.
        min_radius: ``K > 0`` of the half-aperture ``asin(2K / (sqrt(c)|apex|))``, which is pi/2 inside
            ``sqrt(c)|apex| = 2K``.
        margin: radians by which a point must lie inside the cone for a loss of 0. A negative margin lets
            it lie that far outside.
        leak: weight of the plain angle, not negative.
        reduction: ``"mean"`` or ``"sum"`` over all pairs, 0 if there are none; or ``"none"``, the broadcast
            shape.

    Returns:
        A scalar, or the broadcast shape ``(...)``; float64 for float64 points, else float32. A point
        that coincides with its apex is inside the cone, and so is any point under an apex at the origin:
        loss and gradient are then 0 for ``margin = leak = 0``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range, by name.
    """
    apex, point = broadcast_pair("apex", apex, "point", point)
    check_choice("reduction", reduction, REDUCTIONS)
    losses = entailment.entailment_loss(
        *broadcast_rows(apex, point, curv=scalar_or_rows("curv", curv, apex)),
        *map(constant, _cone_options(aperture_scale, min_radius, margin, leak)),
    )
    return reduce_losses(losses, reduction)


def entailment_losses(
    points: Iterable[Tensor],
    pairings: Iterable[tuple[int, int]],
    curv: float | Tensor = 1.0,
    *,
    aperture_scale: float | Sequence[float] = 1.0,
    min_radius: float | Sequence[float] = 0.1,
    margin: float | Sequence[float] = 0.0,
    leak: float | Sequence[float] = 0.0,
    reduction: str = "mean",
) -> list[Tensor]:
    """:func:`entailment_loss` of several pairings of shared point sets, in one call.

    On a CPU, compiled code accumulates the gradient of a set in one place, for all its pairings. HySAC's
    three cones are the pairings ``(0, 2), (1, 3), (2, 1)`` of safe texts, unsafe texts, safe images and
    unsafe images; HyCoCLIP's four are ``(1, 0), (3, 2), (2, 0), (3, 1)`` of images, texts, boxes of
    images and of texts, with ``aperture_scale=[0.7, 0.7, 1.2, 1.2]``.

    Args:
        points: at least one set, each ``(M_k, D)``; one dtype, device and ``D`` for all, those in no pairing
            included.
        pairings: for each loss the indices into ``points`` of its apexes and its points, two sets of as many
            rows.
        curv: positive ``c`` (sectional curvature ``-c``), a float or a tensor of one element.
        aperture_scale, min_radius, margin, leak: of :func:`entailment_loss`, a number for all pairings or one
            for each.
        reduction: of :func:`entailment_loss`, for all pairings.

    Returns:
        One loss for each pairing, as :func:`entailment_loss` returns it.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range, by name.
    """
    sets, pairs = _checked_sets(points, pairings)
    for apex, point in pairs:
        if sets[apex].shape != sets[point].shape:
            raise ValueError(
                f"points[{apex}] and points[{point}], a pairing, must have as many rows, "
                f"got {tuple(sets[apex].shape)} and {tuple(sets[point].shape)}"
            )
    check_choice("reduction", reduction, REDUCTIONS)
    named = {"aperture_scale": aperture_scale, "min_radius": min_radius, "margin": margin, "leak": leak}
    of_each = zip(*(_for_each(name, value, len(pairs)) for name, value in named.items()), strict=True)
    cones = [
        together.Cone(apex, point, _cone_options(*options))
        for (apex, point), options in zip(pairs, of_each, strict=True)
    ]
    if not cones:
        return []
    losses = together.entailment_losses(sets, cones, scalar_tensor("curv", curv, sets[0]))
    if isinstance(losses, Tensor):
        return list(reduce_losses(losses, reduction, dim=1).unbind())
    return [reduce_losses(one, reduction) for one in losses]


def _cone_options(aperture_scale: float, min_radius: float, margin: float, leak: float) -> list[float]:
    return [
        check_not_negative("aperture_scale", aperture_scale),
        check_positive("min_radius", min_radius, "a float"),
        check_finite("margin", margin),
        check_not_negative("leak", leak),
    ]


def reduce_losses(losses: Tensor, reduction: str, dim: int | None = None) -> Tensor:
    """All, or each row of dimension ``dim``."""
    if reduction == "none":
        return losses
    if reduction == "mean" and losses.numel():
        return losses.mean(dim, dtype=torch.float64).to(losses.dtype)
    return losses.sum(dim, dtype=torch.float64).to(losses.dtype)


class LorentzContrastiveLoss(nn.Module):
    """:func:`contrastive_loss` with its options fixed; ``forward(x, y, curv, logit_scale, targets)``."""

    def __init__(
        self,
        *,
        similarity: str = "dist",
        reduction: str = "mean",
        symmetric: bool = True,
        precision: str | None = None,
    ) -> None:
        super().__init__()
        _check_contrastive_options(similarity, reduction, symmetric, precision)
        self.similarity = similarity
        self.reduction = reduction
        self.symmetric = symmetric
        self.precision = precision

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        curv: float | Tensor = 1.0,
        logit_scale: float | Tensor = 1.0,
        targets: Tensor | None = None,
    ) -> Tensor:
        return contrastive_loss(
            x,
            y,
            curv,
            logit_scale,
            similarity=self.similarity,
            targets=targets,
            reduction=self.reduction,
            symmetric=self.symmetric,
            precision=self.precision,
        )

    def extra_repr(self) -> str:
        return (
            f"similarity={self.similarity!r}, reduction={self.reduction!r}, "
            f"symmetric={self.symmetric}, precision={self.precision!r}"
        )


class EntailmentConeLoss(nn.Module):
    """:func:`entailment_loss` with its options fixed; ``forward(apex, point, curv)``."""

    def __init__(
        self,
        *,
        aperture_scale: float = 1.0,
        min_radius: float = 0.1,
        margin: float = 0.0,
        leak: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_choice("reduction", reduction, REDUCTIONS)
        self.aperture_scale = check_not_negative("aperture_scale", aperture_scale)
        self.min_radius = check_positive("min_radius", min_radius, "a float")
        self.margin = check_finite("margin", margin)
        self.leak = check_not_negative("leak", leak)
        self.reduction = reduction

    def forward(self, apex: Tensor, point: Tensor, curv: float | Tensor = 1.0) -> Tensor:
        return entailment_loss(
            apex,
            point,
            curv,
            aperture_scale=self.aperture_scale,
            min_radius=self.min_radius,
            margin=self.margin,
            leak=self.leak,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return (
            f"aperture_scale={self.aperture_scale}, min_radius={self.min_radius}, margin={self.margin}, "
            f"leak={self.leak}, reduction={self.reduction!r}"
        )
