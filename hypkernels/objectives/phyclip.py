"""PHyCLIP's objective: HyCoCLIP's, in a product of hyperbolic spaces with curvatures of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hypkernels.checks import check_choice, check_not_negative, check_pair, check_points, check_positive
from hypkernels.losses import entailment_loss
from hypkernels.objectives.terms import FixedOptions, Objective, check_as_many, targets_from, weighted
from hypkernels.row_losses import NORMS, product_contrastive_loss


def phyclip_loss(
    image: Tensor,
    text: Tensor,
    box_image: Tensor,
    box_text: Tensor,
    curv: float | Tensor = 1.0,
    logit_scale: float | Tensor = 1.0,
    *,
    norm: str = "l1",
    entail_weight: float = 0.2,
    inter_aperture_scale: float = 0.7,
    intra_aperture_scale: float = 1.2,
    min_radius: float = 0.1,
    all_image: Tensor | None = None,
    all_text: Tensor | None = None,
    offset: int = 0,
) -> Objective:
    """PHyCLIP's objective: distances and cones are means over the factors of a product.

    With ``d_n`` and ``H_n`` the distance and the hinge in factor ``n`` of :func:`hycoclip_loss`, the
    objective is :func:`hycoclip_loss`'s formula with

        d = mean_n d_n  ("l1")  or  sqrt(mean_n d_n^2)  ("l2"),    H = mean_n H_n

    Args:
        image: ``(B, N, D)`` space components of ``N`` factors, float64, float32, bfloat16 or float16.
        text, box_image, box_text: the same shape, dtype and device; row ``i`` of all four belongs together.
        curv: positive ``c`` (sectional curvatures ``-c``), a float, a tensor of one element, or ``(N,)``.
        logit_scale: ``s >= 0``, a float or a tensor of one element.
        norm: ``"l1"`` or ``"l2"``.
        entail_weight, inter_aperture_scale, intra_aperture_scale, min_radius: of :func:`hycoclip_loss`.
        all_image, all_text, offset: of :func:`meru_loss`, ``(M, N, D)``.

    Returns:
        An :class:`Objective` of three scalars. No tensor ``(N, B, B)`` nor ``(B, B)`` is ever held.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range, by name.
    """
    check_choice("norm", norm, NORMS)
    weight = check_not_negative("entail_weight", entail_weight)
    _check_factors(image, text=text, box_image=box_image, box_text=box_text)
    points = [image, text, box_image, box_text]
    contrastive = _four_terms(points, all_image, all_text, offset, curv, logit_scale, norm)
    hinges = [
        entailment_loss(points[apex], points[point], curv, aperture_scale=scale, min_radius=min_radius)
        for apex, point, scale in (
            (1, 0, inter_aperture_scale),
            (3, 2, inter_aperture_scale),
            (2, 0, intra_aperture_scale),
            (3, 1, intra_aperture_scale),
        )
    ]
    return weighted(contrastive, torch.stack(hinges).sum() / 2, weight)


def _four_terms(
    points: list[Tensor],
    all_image: Tensor | None,
    all_text: Tensor | None,
    offset: int,
    curv: float | Tensor,
    logit_scale: float | Tensor,
    norm: str,
) -> Tensor:
    """The mean of the cross entropies of images, texts, boxes of images and boxes of texts."""
    image, text, box_image, box_text = points
    options: dict[str, Any] = {"curv": curv, "logit_scale": logit_scale, "norm": norm, "averaged": True}
    if all_image is None and all_text is None and offset == 0:
        whole = product_contrastive_loss(image, text, **options)
        of_boxes = [
            product_contrastive_loss(one, other, symmetric=False, **options)
            for one, other in ((box_image, text), (box_text, image))
        ]
        return (2 * whole + sum(of_boxes)) / 4
    images = image if all_image is None else all_image
    texts = text if all_text is None else all_text
    for name, gathered in (("all_image", images), ("all_text", texts)):
        check_pair("image", image, name, gathered)
    targets = targets_from(offset, image, images, texts)
    terms = [
        product_contrastive_loss(one, other, targets=targets, symmetric=False, **options)
        for one, other in ((image, texts), (text, images), (box_image, texts), (box_text, images))
    ]
    return torch.stack(terms).mean()


def _check_factors(image: Tensor, **others: Tensor) -> None:
    check_points("image", image)
    if image.dim() != 3:
        raise ValueError(f"image must have shape (B, N, D), N factors of width D, got {tuple(image.shape)}")
    for name, one in others.items():
        check_pair("image", image, name, one)
        check_as_many("image", image, name, one)
        if one.shape != image.shape:
            raise ValueError(
                f"image and {name} must have the same shape (B, N, D), "
                f"got {tuple(image.shape)} and {tuple(one.shape)}"
            )


class PHyCLIPLoss(FixedOptions):
    """:func:`phyclip_loss` with its options fixed.

    ``forward(image, text, box_image, box_text, curv, logit_scale)``.
    """

    OPTIONS = ("norm", "entail_weight", "inter_aperture_scale", "intra_aperture_scale", "min_radius")

    def __init__(
        self,
        *,
        norm: str = "l1",
        entail_weight: float = 0.2,
        inter_aperture_scale: float = 0.7,
        intra_aperture_scale: float = 1.2,
        min_radius: float = 0.1,
    ) -> None:
        super().__init__()
        check_choice("norm", norm, NORMS)
        self.norm = norm
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
        """``gathered``: ``all_image``, ``all_text`` and ``offset`` of :func:`phyclip_loss`."""
        return phyclip_loss(image, text, box_image, box_text, curv, logit_scale, **self.options(), **gathered)
