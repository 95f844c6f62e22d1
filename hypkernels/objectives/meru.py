"""MERU's objective."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hypkernels.checks import check_matrices, check_not_negative, check_positive
from hypkernels.losses import entailment_losses
from hypkernels.objectives.terms import FixedOptions, Objective, both_directions, check_as_many, weighted


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
    """MERU's objective (Desai et al., ICML 2023): InfoNCE on distances, and text cones over images.

        1/2 [CE(-s d(image_i, text_j), i) + CE(-s d(text_i, image_j), i)]
            + entail_weight * mean_i max(0, oxy_angle(text_i, image_i) - half_aperture(text_i))

    Args:
        image: ``(B, D)`` space components, float64, float32, bfloat16 or float16.
        text: ``(B, D)``, same dtype and device.
        curv: positive ``c`` (sectional curvature ``-c``), a float or a tensor of one element.
        logit_scale: ``s >= 0``, a float or a tensor of one element.
        entail_weight: weight of the entailment term, not negative.
        min_radius: ``K > 0`` of :func:`hypkernels.half_aperture`.
        all_image, all_text: the candidates of the cross entropies, ``(N, D)``: images and texts gathered
            from all processes. By default ``image`` and ``text``.
        offset: the positive of row ``i`` is ``all_text[offset + i]``. Where each process has ``B`` rows,
            it is the rank times ``B``.

    Returns:
        An :class:`Objective` of three scalars. Memory beyond inputs and gradients is bounded.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range, by name.
    """
    check_matrices("image", image, "text", text)
    check_as_many("image", image, "text", text)
    weight = check_not_negative("entail_weight", entail_weight)
    contrastive = both_directions([image, text], all_image, all_text, offset, curv, logit_scale)
    (entailment,) = entailment_losses([image, text], [(1, 0)], curv, min_radius=min_radius)
    return weighted(contrastive, entailment, weight)


class MERULoss(FixedOptions):
    """:func:`meru_loss` with its options fixed; ``forward(image, text, curv, logit_scale)``."""

    OPTIONS = ("entail_weight", "min_radius")

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
        return meru_loss(image, text, curv, logit_scale, **self.options(), **gathered)
