"""Further losses of all pairs: soft targets, scales of either sign, sigmoid loss, product spaces.

They compute in float64, a *strip* (some rows against all columns) at a time, and once more for the
gradient: a matrix of all pairs is never in memory. :mod:`hypkernels.row_strips` does this, and states
what works under which transform. The losses are differentiable any number of times. Points are space
components.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hypkernels import lorentz
from hypkernels.checks import (
    check_bool,
    check_choice,
    check_finite,
    check_matrices,
    check_not_negative,
    check_pair,
    check_scalars,
    check_target_values,
    check_values,
    scalar_or_rows,
    scalar_tensor,
    scale_tensor,
    target_tensor,
    unwrapped,
)
from hypkernels.losses import REDUCTIONS, reduce_losses
from hypkernels.row_strips import in_strips
from hypkernels.rowwise import result_dtype

# Functions that say how far apart two points are: of all pairs, and of corresponding points.
_GAPS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "dist": (lorentz.pairwise_dist, lorentz.elementwise_dist),
    "sqdist": (
        lambda x, y, c: lorentz.pairwise_dist(x, y, c).square(),
        lambda x, y, c: lorentz.elementwise_dist(x, y, c).square(),
    ),
    "inner": (
        lambda x, y, c: -lorentz.pairwise_inner(x, y, c),
        lambda x, y, c: -lorentz.elementwise_inner(x, y, c),
    ),
    "angle": (lorentz.pairwise_oxy_angle, lorentz.oxy_angle),
}
SIMILARITIES = tuple(_GAPS)
NORMS = ("l1", "l2")


def row_contrastive_loss(
    x: Tensor,
    y: Tensor,
    curv: float | Tensor = 1.0,
    logit_scale: float | Tensor = 1.0,
    *,
    similarity: str = "dist",
    targets: Tensor | None = None,
    target_weights: Tensor | None = None,
    row_weights: Tensor | None = None,
    counts: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Cross entropy of rows with several weighted targets each, and a scale of either sign.

    With logits ``l_ij = -s_i gap(x_i, y_j)``, target weights ``q``, row weights ``w`` and counts ``m``, the
    loss of row ``i`` is

        w_i sum_j q_ij (log sum_k m_k exp(l_ik) - l_ij)

    With a negative scale, points far apart count as similar. Only the rows' direction is computed:
    exchange ``x`` and ``y`` for the other. Where each row has one target and ``s >= 0``,
    :func:`hypkernels.contrastive_loss` computes the same faster; row weights are
    then ``(w * contrastive_loss(..., symmetric=False, reduction="none")).mean()``.

    Args:
        x: ``(M, D)`` space components, float64, float32, bfloat16 or float16.
        y: ``(N, D)``, same dtype and device.
        curv: positive ``c`` (sectional curvature ``-c``), a float or a tensor of one element.
        logit_scale: ``s``, any finite float, a tensor of one element or one for each row, ``(M,)``.
        similarity: which gap, of :func:`hypkernels.contrastive_loss`; an angle is that at ``x_i``.
        targets: indices of ``y``, int64 or int32: ``(M,)`` one for each row, or ``(M, K)`` several different
            ones. By default row ``i`` belongs to ``y_i``, or with ``target_weights`` to all of ``y``.
        target_weights: ``q``, floating, of the shape of ``targets``, or ``(M, N)`` without them; 1 by
            default. They need not sum to 1.
        row_weights: ``w``, floating, ``(M,)``; 1 by default.
        counts: ``m``, floating, int64 or int32, ``(N,)``, not negative: how often each ``y_k`` counts in
            the softmax, as if ``y`` held it so many times; 1 by default. Counts get no gradient.
        reduction: ``"mean"``, the sum divided by the number of rows, whatever the weights, 0 if there
            are no rows; ``"sum"``; or ``"none"``, ``(M,)``.

    Returns:
        A scalar, or ``(M,)``; float64 for float64 points, else float32. Pairs that ``targets`` names are
        computed by the exact row-wise formulas, all other pairs as by :func:`hypkernels.pairwise_dist`.
        Both kinds of weights get gradients.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range, by name. Values
            on a GPU are not read back.
    """
    check_matrices("x", x, "y", y)
    check_choice("similarity", similarity, SIMILARITIES)
    check_choice("reduction", reduction, REDUCTIONS)
    all_pairs, pairs = _GAPS[similarity]
    every = targets is None and target_weights is not None
    indices = _named_targets(targets, x, y, several=True)
    shape = (len(x), len(y)) if every else indices.shape
    log_counts = None if counts is None else _counts(counts, y).log()

    def of_strip(x: Tensor, s: Tensor, t: Tensor, q: Tensor, w: Tensor, y: Tensor, c: Tensor) -> Tensor:
        gaps = all_pairs(x, y, c)
        if not every:
            gaps = gaps.scatter(1, t, pairs(x.unsqueeze(1), y[t], c))
        logits = -s.unsqueeze(1) * gaps
        if log_counts is None:
            log_likelihood = logits.log_softmax(1)
        else:
            log_likelihood = logits - (logits + log_counts).logsumexp(1, keepdim=True)
        return -w * (q * (log_likelihood if every else log_likelihood.gather(1, t))).sum(1)

    rows = [
        x.double(),
        _scale_of_rows(logit_scale, x),
        indices,
        _weights("target_weights", target_weights, shape, x),
        _weights("row_weights", row_weights, (len(x),), x),
    ]
    numbers = len(y) + indices.shape[1] * x.shape[1]
    losses = in_strips(of_strip, rows, [y.double(), _curvature(curv, x)], numbers)
    return reduce_losses(losses.to(result_dtype(x.dtype)), reduction)


def sigmoid_loss(
    x: Tensor,
    y: Tensor,
    curv: float | Tensor = 1.0,
    logit_scale: float | Tensor = 1.0,
    logit_bias: float | Tensor = 0.0,
    *,
    similarity: str = "dist",
    targets: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """SigLIP's sigmoid loss on hyperbolic logits: each pair is classified by itself, without a softmax.

    With ``l_ij = b - s_i gap(x_i, y_j)`` and ``t_i`` the target of row ``i``, the loss of row ``i`` is

        softplus(-l_{i t_i}) + sum_{j != t_i} softplus(l_ij)

    Args:
        x: ``(M, D)`` space components, float64, float32, bfloat16 or float16.
        y: ``(N, D)``, same dtype and device.
        curv: positive ``c`` (sectional curvature ``-c``), a float or a tensor of one element.
        logit_scale: ``s``, any finite float, a tensor of one element or one for each row, ``(M,)``.
        logit_bias: ``b``, any finite float or a tensor of one element.
        similarity: which gap, of :func:`hypkernels.contrastive_loss`; an angle is that at ``x_i``.
        targets: ``(M,)`` int64 or int32, for each row of ``x`` the index of its positive in ``y``. By default
            row ``i`` belongs to ``y_i``.
        reduction: ``"mean"``, the sum over all pairs divided by the number of rows, 0 if there are no
            rows; ``"sum"``; or ``"none"``, ``(M,)``.

    Returns:
        A scalar, or ``(M,)``; float64 for float64 points, else float32. Positives are computed by the exact
        row-wise formulas, negatives as by :func:`hypkernels.pairwise_dist`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range, by name. Values
            on a GPU are not read back.
    """
    check_matrices("x", x, "y", y)
    check_choice("similarity", similarity, SIMILARITIES)
    check_choice("reduction", reduction, REDUCTIONS)
    all_pairs, pairs = _GAPS[similarity]

    def of_strip(x: Tensor, s: Tensor, t: Tensor, y: Tensor, c: Tensor, b: Tensor) -> Tensor:
        negatives = F.softplus(b - s.unsqueeze(1) * all_pairs(x, y, c)).scatter(1, t, 0.0)
        return negatives.sum(1) + F.softplus(s * pairs(x, y[t.squeeze(1)], c) - b)

    rows = [x.double(), _scale_of_rows(logit_scale, x), _named_targets(targets, x, y)]
    bias = scalar_tensor("logit_bias", logit_bias, x, check_finite).to(x.device).double()
    losses = in_strips(of_strip, rows, [y.double(), _curvature(curv, x), bias], len(y) + x.shape[1])
    return reduce_losses(losses.to(result_dtype(x.dtype)), reduction)


def product_contrastive_loss(
    x: Tensor,
    y: Tensor,
    curv: float | Tensor = 1.0,
    logit_scale: float | Tensor = 1.0,
    *,
    norm: str = "l1",
    averaged: bool = False,
    targets: Tensor | None = None,
    reduction: str = "mean",
    symmetric: bool = True,
) -> Tensor:
    """:func:`hypkernels.contrastive_loss` in a product of hyperbolic spaces with curvatures of their own.

    The logits are ``-s d(x_i, y_j)``. With ``d_n`` the distance in factor ``n``, the distance of two
    points is

        d = sum_n d_n  ("l1")  or  sqrt(sum_n d_n^2)  ("l2", the geodesic distance)

    PHyCLIP takes means instead of sums (``averaged``).

    Args:
        x: ``(M, N, D)`` space components of ``N`` factors, float64, float32, bfloat16 or float16.
        y: ``(B, N, D)``, same dtype and device.
        curv: positive ``c`` (sectional curvatures ``-c``), a float, a tensor of one element, or ``(N,)``.
        logit_scale: ``s >= 0``, a float or a tensor of one element.
        norm: ``"l1"`` or ``"l2"``.
        averaged: whether the sum over factors is a mean: ``mean_n d_n`` and ``sqrt(mean_n d_n^2)``.
        targets, reduction, symmetric: of :func:`hypkernels.contrastive_loss`.

    Returns:
        A scalar, or ``(M,)``; float64 for float64 points, else float32. No tensor ``(N, M, B)`` nor
        ``(M, B)`` is ever held.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range, by name. Values
            on a GPU are not read back.
    """
    _check_products(x, y)
    check_choice("norm", norm, NORMS)
    check_choice("reduction", reduction, REDUCTIONS)
    check_bool("averaged", averaged)
    check_bool("symmetric", symmetric)
    of_factors, per_unit = _over_factors(norm, x.shape[1] if averaged else 1)
    scale = scale_tensor("logit_scale", logit_scale, x[:1]).to(x.device).double() * per_unit
    c = _curvatures_of_factors(curv, x)
    targets = _named_targets(targets, x, y).squeeze(1)
    wide_x, wide_y = x.double(), y.double()
    positives = scale * of_factors(lorentz.elementwise_dist(wide_x, wide_y[targets], c), -1)

    def gaps(one: Tensor, other: Tensor, scale: Tensor, c: Tensor) -> Tensor:
        one, other = one.transpose(0, 1), other.transpose(0, 1)
        return scale * of_factors(lorentz.pairwise_dist(one, other, c.unsqueeze(1)), 0)

    def of_rows(x: Tensor, t: Tensor, exact: Tensor, y: Tensor, *shared: Tensor) -> Tensor:
        return (-gaps(x, y, *shared).scatter(1, t.unsqueeze(1), exact.unsqueeze(1))).logsumexp(1)

    def of_columns(y: Tensor, j: Tensor, x: Tensor, t: Tensor, exact: Tensor, *shared: Tensor) -> Tensor:
        return (-torch.where(j.unsqueeze(1) == t, exact, gaps(y, x, *shared))).logsumexp(1)

    factors = x.shape[1] + 1
    losses = positives + in_strips(
        of_rows, [wide_x, targets, positives], [wide_y, scale, c], len(y) * factors
    )
    if symmetric:
        columns = torch.arange(len(y), device=y.device)
        shared = [wide_x, targets, positives, scale, c]
        sums = in_strips(of_columns, [wide_y, columns], shared, len(x) * factors)
        losses = (losses + positives + sums[targets]) / 2
    return reduce_losses(losses.to(result_dtype(x.dtype)), reduction)


def _over_factors(norm: str, averaged_over: int) -> tuple[Callable[[Tensor, int], Tensor], float]:
    """A function from the distances in factors to that of points, and the factor of a mean."""
    if norm == "l1":
        return (lambda distances, dim: distances.sum(dim)), 1 / averaged_over
    return (lambda distances, dim: torch.linalg.vector_norm(distances, dim=dim)), averaged_over**-0.5


def _check_products(x: Tensor, y: Tensor) -> None:
    check_pair("x", x, "y", y)
    if x.dim() != 3 or y.dim() != 3 or x.shape[1] != y.shape[1]:
        raise ValueError(
            "x and y must have shapes (M, N, D) and (B, N, D), N factors of width D, "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )


def _curvature(curv: float | Tensor, points: Tensor) -> Tensor:
    return scalar_tensor("curv", curv, points).to(points.device).double()


def _curvatures_of_factors(curv: float | Tensor, points: Tensor) -> Tensor:
    """The curvatures of the factors, ``(N,)``."""
    c = scalar_or_rows("curv", curv, points).to(points.device).double()
    if c.dim() and c.shape != points.shape[1:2]:
        raise ValueError(
            f"curv must be a float, a one-element tensor or one of shape ({points.shape[1]},), "
            f"got shape {tuple(c.shape)}"
        )
    return c.expand(points.shape[1])


def _scale_of_rows(value: float | Tensor, points: Tensor) -> Tensor:
    """The scale of each row, of either sign: float64, ``(M,)``."""
    sized = value if isinstance(value, Tensor) else abs(check_finite("logit_scale", value))
    scale = scale_tensor("logit_scale", sized, points)
    if not isinstance(value, Tensor) and value < 0:
        scale = -scale
    return scale.to(points.device).double().expand(len(points))


def _named_targets(targets: Tensor | None, x: Tensor, y: Tensor, *, several: bool = False) -> Tensor:
    """The targets ``(M, K)``; ``K`` is 1 unless rows may have several."""
    if targets is None:
        if len(x) > len(y):
            raise ValueError(
                "targets must be given where x has more rows than y, "
                f"got shapes {tuple(x.shape)} and {tuple(y.shape)}"
            )
        return torch.arange(len(x), device=x.device).unsqueeze(1)
    if not (several and isinstance(targets, Tensor) and targets.dim() == 2):
        indices = target_tensor("targets", targets, x).unsqueeze(1)
    else:
        # Each column has one target for each row.
        columns = [target_tensor("targets", column, x) for column in targets.unbind(1)]
        indices = torch.stack(columns, 1) if columns else targets.long()
        _check_different(indices)
    check_target_values(indices, len(y))
    return indices


def _counts(counts: Tensor, y: Tensor) -> Tensor:
    """The counts, checked, in float64."""
    if not isinstance(counts, Tensor):
        raise TypeError(f"counts must be a tensor, got {type(counts).__name__}")
    if counts.dtype not in (torch.int64, torch.int32):
        check_scalars("counts", counts)
    if counts.shape != y.shape[:1]:
        raise ValueError(f"counts must have shape ({len(y)},), one for each of y, got {tuple(counts.shape)}")
    if counts.device != y.device:
        raise ValueError(f"counts must be on {y.device} as the points are, got {counts.device}")
    counts = counts.detach().double()
    check_values("counts", counts, check_not_negative)
    return counts


def _check_different(indices: Tensor) -> None:
    """Refuse rows that name a target twice; on a GPU the indices are not read back."""
    indices = unwrapped(indices)
    if indices.device.type == "cpu" and not indices.sort(1).values.diff(dim=1).all():
        raise ValueError("targets of one row must differ: one that counts twice has a weight of 2")


def _weights(name: str, weights: Tensor | None, shape: Sequence[int], points: Tensor) -> Tensor:
    """The weights, checked, in float64; all 1 by default."""
    if weights is None:
        return torch.ones(tuple(shape), dtype=torch.float64, device=points.device)
    if not isinstance(weights, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(weights).__name__}")
    check_scalars(name, weights)
    if weights.shape == shape[:1] and len(shape) == 2 and shape[1] == 1:
        weights = weights.unsqueeze(1)
    if weights.shape != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(weights.shape)}")
    if weights.device != points.device:
        raise ValueError(f"{name} must be on {points.device} as the points are, got {weights.device}")
    return weights.double()
