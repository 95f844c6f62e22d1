"""Whole objectives of hyperbolic models, each in one line and in memory that does not grow with the pairs.

Points are space components, as in :mod:`hypkernels.losses`. Curvatures and scales are positive numbers, not
their logarithms, and learn if they are tensors that do. Results are float64 for float64 points, else float32,
and gradients are exact: those of the definition in each docstring.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypkernels.checks import (
    broadcast_pair,
    check_matrices,
    check_not_negative,
    check_points,
    check_positive,
    check_scalars,
    scale_tensor,
)
from hypkernels.losses import (
    contrastive_loss,
    contrastive_losses,
    entailment_loss,
    entailment_losses,
    reduce_losses,
)
from hypkernels.row_losses import row_contrastive_loss
from hypkernels.rowwise import result_dtype
from hypkernels.translation import to_origin


class Objective(NamedTuple):
    """``loss = contrastive + entail_weight * entailment``; the terms are there to be logged."""

    loss: Tensor
    contrastive: Tensor
    entailment: Tensor


def meru_loss(
    image: Tensor,
    text: Tensor,
    curv: float | Tensor = 1.0,
    logit_scale: float | Tensor = 1.0,
    *,
    entail_weight: float = 0.2,
    min_radius: float = 0.1,
    all_image: Tensor | None = None,
    all_text: Tensor | None = None,
    offset: int = 0,
) -> Objective:
    """MERU's objective: texts entail their images, and each finds the other among all.

        1/2 [CE(-s d(image_i, text_j), i) + CE(-s d(text_i, image_j), i)]
            + entail_weight * mean_i max(0, oxy_angle(text_i, image_i) - half_aperture(text_i))

    Args:
        image: ``(B, D)`` space components, float64, float32, bfloat16 or float16.
        text: ``(B, D)``, same dtype and device.
        curv: positive ``c`` (sectional curvature ``-c``), a float or a tensor of one element.
        logit_scale: ``s >= 0``, a float or a tensor of one element.
        entail_weight: of the entailment, not negative.
        min_radius: positive, of the half-aperture.
        all_image, all_text: what rows choose among, ``(N, D)``: those gathered from all processes. By default
            ``image`` and ``text``.
        offset: row ``i`` belongs to ``all_text[offset + i]``: with as many rows a process, its rank times
            ``B``.

    Returns:
        An :class:`Objective` of three scalars. Memory beyond inputs and gradients is bounded.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range, by name.
    """
    check_matrices("image", image, "text", text)
    _check_as_many("image", image, "text", text)
    weight = check_not_negative("entail_weight", entail_weight)
    contrastive = _both_directions([image, text], all_image, all_text, offset, curv, logit_scale)
    (entailment,) = entailment_losses([image, text], [(1, 0)], curv, min_radius=min_radius)
    return _weighted(contrastive, entailment, weight)


def hycoclip_loss(
    image: Tensor,
    text: Tensor,
    box_image: Tensor,
    box_text: Tensor,
    curv: float | Tensor = 1.0,
    logit_scale: float | Tensor = 1.0,
    *,
    entail_weight: float = 0.2,
    inter_aperture_scale: float = 0.7,
    intra_aperture_scale: float = 1.2,
    min_radius: float = 0.1,
    all_image: Tensor | None = None,
    all_text: Tensor | None = None,
    offset: int = 0,
) -> Objective:
    """HyCoCLIP's objective: boxes entail the whole they are of, texts entail images.

    With ``CE(x, Y)`` the mean cross entropy of the logits ``-s d(x_i, Y_j)`` with the target ``i``, and
    ``H(a, p, e)`` the mean of ``max(0, oxy_angle(a_i, p_i) - e half_aperture(a_i))``

        1/4 [CE(image, text) + CE(text, image) + CE(box_image, text) + CE(box_text, image)]
            + entail_weight / 2 [H(text, image, inter) + H(box_text, box_image, inter)
                                 + H(box_image, image, intra) + H(box_text, text, intra)]

    Args:
        image: ``(B, D)`` space components, float64, float32, bfloat16 or float16.
        text, box_image, box_text: ``(B, D)``, same dtype and device; row ``i`` of all four belongs together.
        curv: positive ``c`` (sectional curvature ``-c``), a float or a tensor of one element.
        logit_scale: ``s >= 0``, a float or a tensor of one element.
        entail_weight: of the entailment, not negative.
        inter_aperture_scale: ``inter``, of texts over images.
        intra_aperture_scale: ``intra``, of boxes over wholes.
        min_radius: positive, of the half-aperture.
        all_image, all_text, offset: of :func:`meru_loss`.

    Returns:
        An :class:`Objective` of three scalars. Memory beyond inputs and gradients is bounded.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range, by name.
    """
    check_points("image", image)
    for name, one in (("text", text), ("box_image", box_image), ("box_text", box_text)):
        check_matrices("image", image, name, one)
        _check_as_many("image", image, name, one)
    weight = check_not_negative("entail_weight", entail_weight)
    points = [image, text, box_image, box_text]
    contrastive = _both_directions(points, all_image, all_text, offset, curv, logit_scale)
    entailment = entailment_losses(
        points,
        [(1, 0), (3, 2), (2, 0), (3, 1)],
        curv,
        aperture_scale=[inter_aperture_scale] * 2 + [intra_aperture_scale] * 2,
        min_radius=min_radius,
    )
    return _weighted(contrastive, torch.stack(entailment).sum() / 2, weight)


def _both_directions(
    points: list[Tensor],
    all_image: Tensor | None,
    all_text: Tensor | None,
    offset: int,
    curv: float | Tensor,
    logit_scale: float | Tensor,
) -> Tensor:
    """The mean of the cross entropies of images and texts, and of their boxes if there are any."""
    image, text, *boxes = points
    if all_image is None and all_text is None and offset == 0:
        pairings, symmetric = [(0, 1)], [True]
        if boxes:
            pairings, symmetric = [(0, 1), (2, 1), (3, 0)], [True, False, False]
        whole, *of_boxes = contrastive_losses(points, pairings, curv, logit_scale, symmetric=symmetric)
        return (2 * whole + sum(of_boxes)) / (2 + len(of_boxes))
    images = image if all_image is None else all_image
    texts = text if all_text is None else all_text
    check_matrices("image", image, "all_image", images)
    check_matrices("image", image, "all_text", texts)
    targets = _targets_from(offset, image, images, texts)
    first = len(points)
    pairings = [(index, first + 1 - index % 2) for index in range(first)]
    terms = contrastive_losses(
        [*points, images, texts], pairings, curv, logit_scale, targets=targets, symmetric=False
    )
    return torch.stack(terms).mean()


def _targets_from(offset: int, rows: Tensor, *gathered: Tensor) -> Tensor:
    if isinstance(offset, bool) or not isinstance(offset, int):
        raise TypeError(f"offset must be an int, got {type(offset).__name__}")
    least = min(len(one) for one in gathered)
    if offset < 0 or offset + len(rows) > least:
        raise ValueError(
            f"offset must leave {len(rows)} rows of all_image and all_text, of which there are {least}, "
            f"got {offset}"
        )
    return torch.arange(offset, offset + len(rows), device=rows.device)


def _weighted(contrastive: Tensor, entailment: Tensor, weight: float) -> Objective:
    return Objective(contrastive + weight * entailment, contrastive, entailment)


def _check_as_many(x_name: str, x: Tensor, y_name: str, y: Tensor) -> None:
    if len(x) != len(y):
        raise ValueError(f"{x_name} and {y_name} must have as many rows, got {len(x)} and {len(y)}")


def atmg_loss(
    image: Tensor,
    text: Tensor,
    curv: float | Tensor = 0.1,
    logit_scale: float | Tensor = 1.0,
    *,
    all_image: Tensor | None = None,
    all_text: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """ATMG's contrastive loss of exterior angles, small at a text and large at an image.

        1/2 [CE(-s oxy_angle(text_i, image_j), i) + CE(+s oxy_angle(image_i, text_j), i)]

    Args:
        image: ``(B, D)`` space components, float64, float32, bfloat16 or float16.
        text: ``(B, D)``, same dtype and device.
        curv: positive ``c`` (sectional curvature ``-c``), a float or a tensor of one element.
        logit_scale: ``s >= 0``, a float or a tensor of one element.
        all_image, all_text, offset: of :func:`meru_loss`.

    Returns:
        A scalar. Memory beyond inputs and gradients is bounded.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range, by name.
    """
    check_matrices("image", image, "text", text)
    _check_as_many("image", image, "text", text)
    images = image if all_image is None else all_image
    texts = text if all_text is None else all_text
    check_matrices("image", image, "all_image", images)
    check_matrices("image", image, "all_text", texts)
    targets = _targets_from(offset, image, images, texts)
    scale = scale_tensor("logit_scale", logit_scale, image[:1])
    options: dict[str, Any] = {"similarity": "angle", "targets": targets}
    of_texts = contrastive_loss(text, images, curv, scale, symmetric=False, **options)
    return (of_texts + row_contrastive_loss(image, texts, curv, -scale, **options)) / 2


def rooted_entailment_loss(
    apex: Tensor,
    point: Tensor,
    root: Tensor,
    curv: float | Tensor = 1.0,
    *,
    aperture_scale: float = 1.0,
    min_radius: float = 0.1,
    margin: float = 0.0,
    leak: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """:func:`hypkernels.entailment_loss` of cones that open away from ``root`` instead of the origin.

        max(0, angle - aperture_scale * aperture + margin) + leak * angle

    where ``angle`` is the exterior one at the apex in the triangle root, apex, point, and ``aperture`` is
    ``asin(2 min_radius / sinh(sqrt(c) d(root, apex)))``: the loss after the isometry
    :func:`hypkernels.translation.to_origin`.

    Args:
        apex: the general items, ``(..., D)`` space components, float64, float32, bfloat16 or float16.
        point: the specific items, same dtype, device and width; leading dimensions broadcast.
        root: ``(D,)`` or what broadcasts against both; it may learn.
        curv, aperture_scale, min_radius, margin, leak, reduction: of :func:`hypkernels.entailment_loss`.

    Returns:
        float64 for float64 points, else float32. An apex at the root entails everything.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range, by name.
    """
    apex, point = broadcast_pair("apex", apex, "point", point)
    options: dict[str, Any] = {"aperture_scale": aperture_scale, "min_radius": min_radius, "margin": margin}
    apexes, points = (to_origin(one, root, curv) for one in (apex, point))
    losses = entailment_loss(apexes, points, curv, leak=leak, reduction=reduction, **options)
    return losses.to(result_dtype(apex.dtype))


# ---------------------------------------------------------------- uncertainty of parts, as UNCHA has it


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


# ---------------------------------------------------------------- modules


class MERULoss(nn.Module):
    """:func:`meru_loss` with its options fixed; ``forward(image, text, curv, logit_scale)``."""

    def __init__(self, *, entail_weight: float = 0.2, min_radius: float = 0.1) -> None:
        super().__init__()
        self.entail_weight = check_not_negative("entail_weight", entail_weight)
        self.min_radius = check_positive("min_radius", min_radius, "a float")

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        curv: float | Tensor = 1.0,
        logit_scale: float | Tensor = 1.0,
        **gathered: Any,
    ) -> Objective:
        """``gathered``: ``all_image``, ``all_text`` and ``offset`` of :func:`meru_loss`."""
        options: dict[str, Any] = {"entail_weight": self.entail_weight, "min_radius": self.min_radius}
        return meru_loss(image, text, curv, logit_scale, **options, **gathered)

    def extra_repr(self) -> str:
        return f"entail_weight={self.entail_weight}, min_radius={self.min_radius}"


class HyCoCLIPLoss(nn.Module):
    """:func:`hycoclip_loss` with its options fixed.

    ``forward(image, text, box_image, box_text, curv, logit_scale)``.
    """

    def __init__(
        self,
        *,
        entail_weight: float = 0.2,
        inter_aperture_scale: float = 0.7,
        intra_aperture_scale: float = 1.2,
        min_radius: float = 0.1,
    ) -> None:
        super().__init__()
        self.entail_weight = check_not_negative("entail_weight", entail_weight)
        self.inter_aperture_scale = check_not_negative("inter_aperture_scale", inter_aperture_scale)
        self.intra_aperture_scale = check_not_negative("intra_aperture_scale", intra_aperture_scale)
        self.min_radius = check_positive("min_radius", min_radius, "a float")

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        box_image: Tensor,
        box_text: Tensor,
        curv: float | Tensor = 1.0,
        logit_scale: float | Tensor = 1.0,
        **gathered: Any,
    ) -> Objective:
        """``gathered``: ``all_image``, ``all_text`` and ``offset`` of :func:`meru_loss`."""
        options: dict[str, Any] = self._options()
        return hycoclip_loss(image, text, box_image, box_text, curv, logit_scale, **options, **gathered)

    def _options(self) -> dict[str, float]:
        return {
            "entail_weight": self.entail_weight,
            "inter_aperture_scale": self.inter_aperture_scale,
            "intra_aperture_scale": self.intra_aperture_scale,
            "min_radius": self.min_radius,
        }

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self._options().items())
