"""UNCHA's objective: parts of images and texts, with logits scaled down by uncertainty."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hypkernels.checks import (
    check_matrices,
    check_not_negative,
    check_points,
    check_positive,
    check_scalars,
    scale_tensor,
    target_tensor,
    unwrapped,
)
from hypkernels.losses import contrastive_loss, entailment_losses, reduce_losses
from hypkernels.objectives.terms import FixedOptions, Objective, both_directions, check_as_many, weighted
from hypkernels.row_losses import row_contrastive_loss
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
    """UNCHA's calibration of uncertainty: high for points far outside of their cones, low for others.

        mean(r / (2 exp(u)) + u / 2)

    with ``u = uncertainty(points)``. The residuals ``r`` get no gradient.

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


def uncertainty_entropy(points: Tensor) -> Tensor:
    """UNCHA's entropy of a batch of uncertainties: at most ``log P``, where all are equally uncertain.

    With ``p`` the softmax of ``uncertainty(points)`` over the points, ``-sum_i p_i log p_i``.

    Args:
        points: ``(P, D)`` space components of what is uncertain, float64, float32, bfloat16 or float16.

    Returns:
        A scalar, 0 if there are no points; float64 for float64 points, else float32.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype or shape, by name.
    """
    u = uncertainty(points).double()
    if u.dim() != 1:
        raise ValueError(f"points must have shape (P, D), got {tuple(points.shape)}")
    log_share = u.log_softmax(0)
    return -(log_share.exp() * log_share).sum().to(result_dtype(points.dtype))


def part_whole_loss(
    part: Tensor,
    whole: Tensor,
    owner: Tensor,
    curv: float | Tensor = 1.0,
    logit_scale: float | Tensor = 1.0,
    *,
    counts: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """UNCHA's contrastive loss of packed parts, each with its logits scaled down by its uncertainty.

        CE(-s T_i d(part_i, whole_j), owner_i)    with T_i = clamp(exp(-u_i / 2), 0.1, 10)

    where ``u_i = uncertainty(part_i)``. ``T_i`` gets no gradient. *Packed* parts are the parts of all
    wholes in one tensor.

    Args:
        part: all parts of all wholes, ``(P, D)`` space components, in any order; a whole may have none.
        whole: ``(N, D)``, same dtype and device.
        owner: for each part the index of its whole, ``(P,)`` int64 or int32.
        curv: positive ``c`` (sectional curvature ``-c``), a float or a tensor of one element.
        logit_scale: ``s >= 0``, a float or a tensor of one element.
        counts: ``(N,)``, how often each whole counts in the softmax, as in
            :func:`hypkernels.row_losses.row_contrastive_loss`; once by default. UNCHA's code counts a
            whole once for each of its parts.
        reduction: ``"mean"`` or ``"sum"`` over the parts, 0 if there are none; ``"none"``, ``(P,)``.

    Returns:
        A scalar, or ``(P,)``; float64 for float64 points, else float32.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range, by name.
    """
    check_matrices("part", part, "whole", whole)
    softened = torch.exp(-uncertainty(part.detach()) / 2).clamp(0.1, 10)
    scale = scale_tensor("logit_scale", logit_scale, part[:1]).to(part.device) * softened
    options: dict[str, Any] = {"targets": owner, "reduction": reduction}
    if counts is None:
        return contrastive_loss(part, whole, curv, scale, symmetric=False, **options)
    return row_contrastive_loss(part, whole, curv, scale, counts=counts, **options)


def uncha_loss(
    image: Tensor,
    text: Tensor,
    part_image: Tensor,
    part_text: Tensor,
    owner: Tensor,
    curv: float | Tensor = 1.0,
    logit_scale: float | Tensor = 1.0,
    part_logit_scale: float | Tensor = 1.0,
    part_whole_logit_scale: float | Tensor = 1.0,
    *,
    entail_weight: float = 0.2,
    calibration_weight: float = 10.0,
    inter_aperture_scale: float = 0.7,
    intra_aperture_scale: float = 1.2,
    leak: float = 0.1,
    min_radius: float = 0.1,
    all_image: Tensor | None = None,
    all_text: Tensor | None = None,
    offset: int = 0,
    all_part_image: Tensor | None = None,
    all_part_text: Tensor | None = None,
    all_owner: Tensor | None = None,
    part_offset: int = 0,
) -> Objective:
    """UNCHA's objective: InfoNCE of wholes, parts, and parts among wholes; cones with calibration.

    With ``CE`` of :func:`hycoclip_loss`, ``P`` of :func:`part_whole_loss`, where a whole counts once for each
    of its parts, and ``L(a, p, e)`` the mean of the leaky hinges
    ``max(0, oxy_angle(a_i, p_i) - e half_aperture(a_i)) + leak oxy_angle(a_i, p_i)``

        contrastive = 1/2 [CE(image, text) + CE(text, image)]                            of s
                    + 1/2 [CE(part_image, part_text) + CE(part_text, part_image)]        of s_part
                    + 1/2 [P(part_image, text) + P(part_text, image)]                    of s_part_whole

        entailment = 1/2 [L(text, image, inter) + L(part_text, part_image, inter)]
                   + 1/4 [L(part_image, its image, intra) + L(part_text, its text, intra)]
                   + calibration_weight * [C(part_image) + C(part_text)]

    where ``C`` is :func:`uncertainty_calibration` of the hinges of its intra cone, plus
    :func:`uncertainty_entropy`.

    Args:
        image: ``(B, D)`` space components, float64, float32, bfloat16 or float16.
        text: ``(B, D)``, same dtype and device.
        part_image: all parts of all images, ``(P, D)``, in any order; an image may have none.
        part_text: their texts, ``(P, D)``.
        owner: for each part the index of its image, ``(P,)`` int64 or int32.
        curv: positive ``c`` (sectional curvature ``-c``), a float or a tensor of one element.
        logit_scale, part_logit_scale, part_whole_logit_scale: at least 0, a float or a tensor of one element
            each. UNCHA starts with 1/0.07, 1/0.05 and 1/0.06.
        entail_weight: weight of the entailment term, not negative.
        calibration_weight: weight of the calibration and the entropy, not negative.
        inter_aperture_scale: ``inter``, the factor of the half-aperture of texts over images.
        intra_aperture_scale: ``intra``, the factor of the half-aperture of parts over wholes.
        leak: weight of the plain angle in a hinge, not negative.
        min_radius: ``K > 0`` of :func:`hypkernels.half_aperture`.
        all_image, all_text, offset: of :func:`meru_loss`.
        all_part_image, all_part_text: the parts of all processes, ``(Q, D)``. By default ``part_image`` and
            ``part_text``.
        all_owner: for each part of all processes the index of its image in ``all_image``, ``(Q,)``. By
            default ``owner``.
        part_offset: part ``i`` of this process is ``all_part_image[part_offset + i]``.

    Returns:
        An :class:`Objective` of three scalars; entropies are those of this process's parts. Memory beyond
        inputs and gradients is bounded.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range, by name.
    """
    weight = check_not_negative("entail_weight", entail_weight)
    calibration = check_not_negative("calibration_weight", calibration_weight)
    for name, one in (("text", text), ("part_image", part_image), ("part_text", part_text)):
        check_matrices("image", image, name, one)
    check_as_many("image", image, "text", text)
    check_as_many("part_image", part_image, "part_text", part_text)
    owner = _owners("owner", owner, part_image, image)
    wholes, parts = [image, text], [part_image, part_text]
    terms = [
        both_directions(wholes, all_image, all_text, offset, curv, logit_scale),
        both_directions(
            parts, all_part_image, all_part_text, part_offset, curv, part_logit_scale, prefix="part_"
        ),
        _parts_among_wholes(
            parts,
            image if all_image is None else all_image,
            text if all_text is None else all_text,
            owner + offset,
            owner if all_owner is None else all_owner,
            curv,
            part_whole_logit_scale,
        ),
    ]
    cones: dict[str, Any] = {"leak": leak, "min_radius": min_radius}
    (of_wholes,) = entailment_losses(wholes, [(1, 0)], curv, aperture_scale=inter_aperture_scale, **cones)
    of_pairs, *of_parts = entailment_losses(
        [*parts, *(one[owner] for one in wholes)],
        [(1, 0), (0, 2), (1, 3)],
        curv,
        aperture_scale=[inter_aperture_scale, intra_aperture_scale, intra_aperture_scale],
        reduction="none",
        **cones,
    )
    entailment = (of_wholes + reduce_losses(of_pairs, "mean")) / 2
    for residual, part in zip(of_parts, parts, strict=True):
        certainty = uncertainty_calibration(residual, part) + uncertainty_entropy(part)
        entailment = entailment + reduce_losses(residual, "mean") / 4 + calibration * certainty
    return weighted(torch.stack(terms).sum(), entailment, weight)


def _parts_among_wholes(
    parts: list[Tensor],
    images: Tensor,
    texts: Tensor,
    owner: Tensor,
    all_owner: Tensor,
    curv: float | Tensor,
    logit_scale: float | Tensor,
) -> Tensor:
    """Parts of images choose among texts, parts of texts among images."""
    all_owner = _owners("all_owner", all_owner, all_owner, images)
    counts = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    counts = counts.index_add(0, all_owner, torch.ones_like(all_owner))
    losses = [
        part_whole_loss(part, whole, owner, curv, logit_scale, counts=counts)
        for part, whole in zip(parts, (texts, images), strict=True)
    ]
    return torch.stack(losses).mean()


def _owners(name: str, owner: Tensor, parts: Tensor, wholes: Tensor) -> Tensor:
    """On a GPU values are not read back."""
    owner = target_tensor(name, owner, parts)
    values = unwrapped(owner)
    if values.device.type == "cpu" and values.numel() and not 0 <= values.min() <= values.max() < len(wholes):
        raise ValueError(
            f"{name} must be in [0, {len(wholes)}), got values in [{values.min()}, {values.max()}]"
        )
    return owner


class UNCHALoss(FixedOptions):
    """:func:`uncha_loss` with its options fixed.

    ``forward(image, text, part_image, part_text, owner, curv, logit_scale, part_logit_scale,
    part_whole_logit_scale)``.
    """

    OPTIONS = (
        "entail_weight",
        "calibration_weight",
        "inter_aperture_scale",
        "intra_aperture_scale",
        "leak",
        "min_radius",
    )

    def __init__(
        self,
        *,
        entail_weight: float = 0.2,
        calibration_weight: float = 10.0,
        inter_aperture_scale: float = 0.7,
        intra_aperture_scale: float = 1.2,
        leak: float = 0.1,
        min_radius: float = 0.1,
    ) -> None:
        super().__init__()
        self.entail_weight = check_not_negative("entail_weight", entail_weight)
        self.calibration_weight = check_not_negative("calibration_weight", calibration_weight)
        self.inter_aperture_scale = check_not_negative("inter_aperture_scale", inter_aperture_scale)
        self.intra_aperture_scale = check_not_negative("intra_aperture_scale", intra_aperture_scale)
        self.leak = check_not_negative("leak", leak)
        self.min_radius = check_positive("min_radius", min_radius, "a float")

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        part_image: Tensor,
        part_text: Tensor,
        owner: Tensor,
        curv: float | Tensor = 1.0,
        logit_scale: float | Tensor = 1.0,
        part_logit_scale: float | Tensor = 1.0,
        part_whole_logit_scale: float | Tensor = 1.0,
        **gathered: Any,
    ) -> Objective:
        """``gathered``: ``all_image`` and those after it of :func:`uncha_loss`."""
        options: dict[str, Any] = {
            "logit_scale": logit_scale,
            "part_logit_scale": part_logit_scale,
            "part_whole_logit_scale": part_whole_logit_scale,
            **self.options(),
        }
        return uncha_loss(image, text, part_image, part_text, owner, curv, **options, **gathered)
