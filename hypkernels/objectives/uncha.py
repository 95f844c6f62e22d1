"""UNCHA's objective: parts, each softened by its uncertainty."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hypkernels.checks import check_matrices, check_points, check_scalars, scale_tensor
from hypkernels.losses import contrastive_loss, reduce_losses
from hypkernels.rowwise import result_dtype


def uncertainty(points: Tensor) -> Tensor:
    """UNCHA's uncertainty of an embedding, ``softplus(-|x|)``: large near the origin.

    Args:
        points: space components ``(..., D)``, float64, float32, bfloat16 or float16.

    Returns:
        ``(...)``, float64 for float64 points, else float32. At the origin ``log 2``, with gradient 0.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype or shape, by name.
    """
    check_points("points", points)
    norms = torch.linalg.vector_norm(points, dim=-1, dtype=torch.float64)
    return F.softplus(-norms).to(result_dtype(points.dtype))


def uncertainty_calibration(residual: Tensor, points: Tensor) -> Tensor:
    """UNCHA's calibration: points far outside of their cones are to be uncertain, others not.

    With ``u = uncertainty(points)`` and the residuals ``r``, constants to the gradient

        mean(r / (2 exp(u)) + u / 2)

    Args:
        residual: ``r >= 0``, floating, ``(...)``: of :func:`hypkernels.entailment_loss`, not reduced.
        points: ``(..., D)`` space components of what is uncertain, float64, float32, bfloat16 or float16.

    Returns:
        A scalar, 0 if there are no points; float64 for float64 points, else float32.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype or shape, by name.
    """
    u = uncertainty(points).double()
    if not isinstance(residual, Tensor):
        raise TypeError(f"residual must be a tensor, got {type(residual).__name__}")
    check_scalars("residual", residual)
    if residual.shape != u.shape:
        raise ValueError(
            "residual must have the leading dimensions of points, "
            f"got {tuple(residual.shape)} for {tuple(points.shape)}"
        )
    terms = (residual.detach().double() * torch.exp(-u) + u) / 2
    return reduce_losses(terms, "mean").to(result_dtype(points.dtype))


def part_whole_loss(
    part: Tensor,
    whole: Tensor,
    owner: Tensor,
    curv: float | Tensor = 1.0,
    logit_scale: float | Tensor = 1.0,
    *,
    reduction: str = "mean",
) -> Tensor:
    """UNCHA's contrastive loss of packed parts, each softened by its uncertainty.

    With ``u_i = uncertainty(part_i)`` and ``T_i = clamp(exp(-u_i / 2), 0.1, 10)``, a constant to the gradient

        CE(-s T_i d(part_i, whole_j), owner_i)

    Args:
        part: all parts of all wholes, ``(P, D)`` space components, in any order; a whole may have none.
        whole: ``(N, D)``, same dtype and device.
        owner: for each part the index of its whole, ``(P,)`` int64 or int32.
        curv: positive ``c`` (sectional curvature ``-c``), a float or a tensor of one element.
        logit_scale: ``s >= 0``, a float or a tensor of one element.
        reduction: ``"mean"`` or ``"sum"`` over the parts, 0 if there are none; ``"none"``, ``(P,)``.

    Returns:
        A scalar, or ``(P,)``; float64 for float64 points, else float32.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range, by name.
    """
    check_matrices("part", part, "whole", whole)
    softened = torch.exp(-uncertainty(part.detach()) / 2).clamp(0.1, 10)
    scale = scale_tensor("logit_scale", logit_scale, part[:1]).to(part.device) * softened
    return contrastive_loss(part, whole, curv, scale, targets=owner, symmetric=False, reduction=reduction)
