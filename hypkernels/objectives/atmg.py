"""ATMG's loss of exterior angles."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hypkernels.checks import check_matrices, scale_tensor
from hypkernels.losses import contrastive_loss
from hypkernels.objectives.terms import check_as_many, targets_from
from hypkernels.row_losses import row_contrastive_loss


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
    """ATMG's contrastive loss of exterior angles: small at texts, large at images.

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
    check_as_many("image", image, "text", text)
    images = image if all_image is None else all_image
    texts = text if all_text is None else all_text
    check_matrices("image", image, "all_image", images)
    check_matrices("image", image, "all_text", texts)
    targets = targets_from(offset, image, images, texts)
    scale = scale_tensor("logit_scale", logit_scale, image[:1])
    options: dict[str, Any] = {"similarity": "angle", "targets": targets}
    of_texts = contrastive_loss(text, images, curv, scale, symmetric=False, **options)
    return (of_texts + row_contrastive_loss(image, texts, curv, -scale, **options)) / 2
