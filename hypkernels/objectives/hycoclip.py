"""HyCoCLIP's objective: boxes beside whole images and texts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hypkernels.checks import check_matrices, check_not_negative, check_points, check_positive
from hypkernels.losses import entailment_losses
from hypkernels.objectives.terms import FixedOptions, Objective, both_directions, check_as_many, weighted


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
    """HyCoCLIP's objective (Pal et al., ICLR 2025): boxes entail their wholes, texts entail images.

    A box is a part of an image, or of a text. With ``CE(x, Y)`` the mean cross entropy of the logits
    ``-s d(x_i, Y_j)`` with the target ``i``, and ``H(a, p, e)`` the mean of
    ``max(0, oxy_angle(a_i, p_i) - e half_aperture(a_i))``, the objective is

        1/4 [CE(image, text) + CE(text, image) + CE(box_image, text) + CE(box_text, image)]
            + entail_weight / 2 [H(text, image, inter) + H(box_text, box_image, inter)
                                 + H(box_image, image, intra) + H(box_text, text, intra)]

    Args:
        image: ``(B, D)`` space components, float64, float32, bfloat16 or float16.
        text, box_image, box_text: ``(B, D)``, same dtype and device; row ``i`` of all four belongs together.
        curv: positive ``c`` (sectional curvature ``-c``), a float or a tensor of one element.
        logit_scale: ``s >= 0``, a float or a tensor of one element.
        entail_weight: weight of the entailment term, not negative.
        inter_aperture_scale: ``inter``, the factor of the half-aperture of texts over images.
        intra_aperture_scale: ``intra``, the factor of the half-aperture of boxes over wholes.
        min_radius: ``K > 0`` of :func:`hypkernels.half_aperture`.
        all_image, all_text, offset: of :func:`meru_loss`.

    Returns:
        An :class:`Objective` of three scalars. Memory beyond inputs and gradients is bounded.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range, by name.
    """
    check_points("image", image)
    for name, one in (("text", text), ("box_image", box_image), ("box_text", box_text)):
        check_matrices("image", image, name, one)
        check_as_many("image", image, name, one)
    weight = check_not_negative("entail_weight", entail_weight)
    points = [image, text, box_image, box_text]
    contrastive = both_directions(points, all_image, all_text, offset, curv, logit_scale)
    entailment = entailment_losses(
        points,
        [(1, 0), (3, 2), (2, 0), (3, 1)],
        curv,
        aperture_scale=[inter_aperture_scale] * 2 + [intra_aperture_scale] * 2,
        min_radius=min_radius,
    )
    return weighted(contrastive, torch.stack(entailment).sum() / 2, weight)


class HyCoCLIPLoss(FixedOptions):
    """:func:`hycoclip_loss` with its options fixed.

    ``forward(image, text, box_image, box_text, curv, logit_scale)``.
    """

    OPTIONS = ("entail_weight", "inter_aperture_scale", "intra_aperture_scale", "min_radius")

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
        return hycoclip_loss(
            image, text, box_image, box_text, curv, logit_scale, **self.options(), **gathered
        )
