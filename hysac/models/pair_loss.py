"""The loss of plain image-text pairs in hyperbolic space: ``open_clip.ClipLoss`` by distance."""

from __future__ import annotations

import torch
from torch import Tensor

from hysac.models.clip_loss import ClipLikeLoss, check_features, check_same, common_dtype


class LorentzClipLoss(ClipLikeLoss):
    """MERU's objective (Desai et al., ICML 2023) with :class:`open_clip.loss.ClipLoss`'s interface.

    With the scale ``s``, the geodesic distance ``d``, the exterior angle ``phi`` and the half-aperture
    ``omega``, the terms are::

        contrastive = 1/2 [ CE(-s * d(image_i, text_j), i) + CE(-s * d(text_i, image_j), i) ]
        entailment  = mean_i max(0, phi(text_i, image_i) - aperture_scale * omega(text_i))

    The total is ``contrastive + entail_weight * entailment``: a text is more general than its image.
    Points lie on the unit hyperboloid, curvature -1. Memory beyond inputs and gradients is bounded: no
    matrix of all pairs is held.

    Args:
        local_loss, gather_with_grad, cache_labels, rank, world_size, use_horovod: as in ``ClipLoss``.
            Averaged over the processes, gradients are those of one process with the global batch;
            ``local_loss`` without ``gather_with_grad`` drops part of them and is refused, as ``use_horovod``
            is. The numbers of pairs may differ from process to process: see :class:`hysac.HySACLoss`.
        entail_weight: weight of the entailment, >= 0; 0 leaves the term out.
        aperture_scale: factor of the half-aperture, > 0. Fewer points lie outside of larger cones.
        min_radius: ``K > 0`` of the half-aperture ``asin(2K / |x|)``.
        accum_freq: the number of times open_clip's accumulation, ``--accum-freq``, calls this loss per
            step. The gradient of the scale, and with it the curvature's, is then counted once. The
            output of a HySAC model in training mode tells the number of its forward passes: another
            ``accum_freq`` is refused.
        ring: send one set of features from process to process instead of gathering: the same averaged
            gradients in memory that does not grow with the processes, see :class:`hysac.HySACLoss`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range, ``local_loss`` without
            ``gather_with_grad``, or ``ring`` with one of the two.
    """

    items = "pairs"

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        *,
        entail_weight: float = 0.2,
        aperture_scale: float = 1.0,
        min_radius: float = 0.1,
        accum_freq: int = 1,
        ring: bool = False,
    ) -> None:
        super().__init__(
            local_loss,
            gather_with_grad,
            cache_labels,
            rank,
            world_size,
            use_horovod,
            entail_weight=entail_weight,
            aperture_scale=aperture_scale,
            min_radius=min_radius,
            accum_freq=accum_freq,
            ring=ring,
        )

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
        unit_hyperboloid: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """The terms of a batch of pairs.

        Args:
            image_features: space components on the **unit** hyperboloid, ``(B, D)``, float64, float32,
                bfloat16 or float16: ``sqrt(c) * x`` of a model of curvature ``c``. ``B`` may be 0 if another
                process has pairs.
            text_features: the same for the texts, of the same shape. Everything is computed in the wider of
                their dtypes, and at least in float32.
            logit_scale: positive factor of the distances, a float or a one-element tensor: ``s / sqrt(c)``.
            logit_bias: accepted for ClipLoss's signature; a constant added to all logits cancels in a
                softmax.
            output_dict: return the terms by name instead of their sum.
            unit_hyperboloid: the entry that the model adds to its output in training mode, one element
                for each forward pass. Where gradients are recorded there must be ``accum_freq`` elements.

        Returns:
            The sum, a scalar; or a dict of scalars, already weighted: ``contrastive_loss`` and, unless
            ``entail_weight`` is 0, ``entailment_loss``.

        Raises:
            TypeError, ValueError: features missing, or an argument of the wrong type, layout, shape, dtype,
                device or range, by name.
        """
        for name, features in (("image_features", image_features), ("text_features", text_features)):
            _check_pairs(name, features)
        check_same(image_features, text_features)
        self._check_passes(unit_hyperboloid)
        dtype = common_dtype(image_features, text_features)
        with torch.autocast(image_features.device.type, enabled=False):
            local = (image_features.to(dtype), text_features.to(dtype))
            counts = self._count(local[0])
            (contrastive,) = self._contrastive(local, [(0, 1)], counts, self._scale(logit_scale))
            terms = {"contrastive_loss": contrastive}
            if self.entail_weight:
                (terms["entailment_loss"],) = self._entailment(local, [(1, 0)], counts)
        return terms if output_dict else torch.stack(list(terms.values())).sum()


def _check_pairs(name: str, features: object) -> None:
    shape = check_features(name, features).shape
    if len(shape) != 2 or not shape[1]:
        raise ValueError(f"{name} must have shape (B, D) with D >= 1, got {tuple(shape)}")
