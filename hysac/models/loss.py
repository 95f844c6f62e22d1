"""The HySAC training loss: four contrastive pairings and three entailment cones on the unit hyperboloid."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hysac.models.clip_loss import ClipLikeLoss, check_features, check_same, common_dtype

CONTRASTIVE_PAIRINGS = (
    ("safe_text", "safe_image"),
    ("unsafe_text", "unsafe_image"),
    ("safe_text", "unsafe_image"),
    ("unsafe_text", "safe_image"),
)
"""The pairs whose rows are matched: (S,V), (U,G), (S,G), (U,V) in the paper's letters."""

ENTAILMENT_CONES = (
    ("safe_text", "safe_image"),
    ("unsafe_text", "unsafe_image"),
    ("safe_image", "unsafe_text"),
)
"""(apex, point): the apex is the more general of the two. S > V, U > G, V > U in the paper's letters."""


class Points(NamedTuple):
    """The four sets ``(B, D)`` of a batch of quadruplets."""

    safe_text: Tensor
    unsafe_text: Tensor
    safe_image: Tensor
    unsafe_image: Tensor

    @staticmethod
    def of(text: Tensor, image: Tensor) -> Points:
        """Views of features ``(B, 2, D)``, safe then unsafe, in their common dtype, at least float32."""
        dtype = common_dtype(image, text)
        return Points(*text.to(dtype).unbind(1), *image.to(dtype).unbind(1))


class HySACLoss(ClipLikeLoss):
    """The seven terms of HySAC (Poppi et al., CVPR 2025), with :class:`open_clip.loss.ClipLoss`'s interface.

    For text ``t`` and image ``i`` of one pairing, with the geodesic distance ``d``::

        contrastive = 1/2 [ CE(-logit_scale * d(t_k, i_j), k) + CE(-logit_scale * d(i_k, t_j), k) ]

    over the pairings (safe text, safe image), (unsafe text, unsafe image), (safe text, unsafe image) and
    (unsafe text, safe image). For each cone, with ``phi`` the exterior angle and ``omega`` the
    half-aperture::

        entailment = mean_k max(0, phi(apex_k, point_k) - aperture_scale * omega(apex_k))

    over safe text > safe image, unsafe text > unsafe image and safe image > unsafe text. The total is the
    plain sum ``contrastive + entail_weight * entailment``, as in the paper. The authors' training script
    divides by the sum of the weights and then by 7: at ``entail_weight=1`` its loss is 1/49 of this one,
    which AdamW does not notice and SGD, gradient clipping and logged values do.

    Points lie on the unit hyperboloid, curvature -1: a model of curvature ``c`` passes ``sqrt(c) * x``.

    **Several processes.** Averaged over the processes (as DDP does), every parameter's gradient equals
    that of one process holding the global batch. This holds with ``local_loss`` and ``gather_with_grad``
    (the cheapest: each process computes its own rows), with ``gather_with_grad`` alone, and with
    neither. ``local_loss`` without ``gather_with_grad`` drops part of the gradient and is refused. The
    entailment terms report this process's rows, and with ``local_loss`` so do the contrastive ones: the
    mean over processes is the global loss. Processes may hold different numbers of quadruplets, or none:
    each row counts the same. The hosts tell each other these numbers in every call. Where the default
    process group carries no CPU tensors, as with NCCL alone, the first call makes a Gloo group for that.

    ``ring=True`` gives the same averaged gradients, and no process holds the features of all. Images go
    from process to process. Memory does not grow with the number of processes, each logit is computed
    once instead of twice, and up to a quarter less is sent (docs/parallel.md). The terms report this
    process's rows.

    **Gradient accumulation.** In open_clip's scheme (``--accum-freq k``) the loss runs k times on the
    whole accumulated batch, each time with one part's features attached to the graph. The gradient of
    ``logit_scale`` would then be counted k times: pass ``accum_freq=k`` to count it once. The output of
    a HySAC model in training mode tells the number of its forward passes: another ``accum_freq`` is
    refused.

    Args:
        local_loss: compute only this process's rows against the gathered columns.
        gather_with_grad: send the gradients of gathered features back to the process that they came
            from.
        cache_labels: accepted for ClipLoss's signature; the targets are one ``arange``, never worth keeping.
        rank, world_size: this process's place in the default process group.
        use_horovod: not supported; True raises.
        entail_weight: weight of the three entailment terms, >= 0.
        aperture_scale: factor of the half-aperture, > 0. Fewer points lie outside of larger cones.
        min_radius: ``K > 0`` of the half-aperture ``asin(2K / |x|)``, which is pi/2 for ``|x| <= 2K``.
        accum_freq: the number of times open_clip's accumulation calls this loss per step.
        ring: send images from process to process instead of gathering features, see above.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range, ``local_loss`` without
            ``gather_with_grad``, or ``ring`` with one of the two.
    """

    items = "quadruplets"

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
        unit_hyperboloid: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """The seven weighted terms of a batch of quadruplets.

        Args:
            image_features: space components on the **unit** hyperboloid, ``(B, 2, D)``; index 0 of the second
                dimension is safe, 1 unsafe; float64, float32, bfloat16 or float16. ``B`` may be 0 if another
                process has quadruplets.
            text_features: the same for the texts. Everything is computed in the wider of their dtypes, and at
                least in float32.
            logit_scale: positive factor of the distances, a float or a tensor of one element. A model of
                curvature ``c`` with inverse temperature ``s`` passes ``sqrt(c) * x`` and
                ``s / sqrt(c)``.
            logit_bias: accepted for ClipLoss's signature; a constant added to all logits cancels in a
                softmax.
            output_dict: return the terms by name instead of their sum.
            unit_hyperboloid: the entry that the model adds to its output in training mode, one element
                for each forward pass. Where gradients are recorded there must be ``accum_freq`` elements.

        Returns:
            The sum, a scalar; or a dict of seven scalars named
            ``contrastive_<text>_<image>_loss`` and ``entailment_<apex>_<point>_loss``, already weighted.

        Raises:
            TypeError, ValueError: features missing, or an argument of the wrong type, layout, shape, dtype,
                device or range, by name.
        """
        for name, features in (("image_features", image_features), ("text_features", text_features)):
            _check_quadruplets(name, features)
        check_same(image_features, text_features)
        self._check_passes(unit_hyperboloid)
        with torch.autocast(image_features.device.type, enabled=False):
            local = Points.of(text_features, image_features)
            counts = self._count(local.safe_text)
            contrastive = self._contrastive(local, _PAIRINGS, counts, self._scale(logit_scale))
            entailment = self._entailment(local, _CONES, counts)
        terms = dict(zip(_NAMES, [*contrastive, *entailment], strict=True))
        return terms if output_dict else torch.stack(list(terms.values())).sum()


def _places(names: tuple[str, str]) -> tuple[int, int]:
    first, second = map(Points._fields.index, names)
    return first, second


_PAIRINGS = [_places(pairing) for pairing in CONTRASTIVE_PAIRINGS]
_CONES = [_places(cone) for cone in ENTAILMENT_CONES]
_NAMES = [
    *(f"contrastive_{text}_{image}_loss" for text, image in CONTRASTIVE_PAIRINGS),
    *(f"entailment_{apex}_{point}_loss" for apex, point in ENTAILMENT_CONES),
]


def _check_quadruplets(name: str, features: object) -> None:
    shape = check_features(name, features).shape
    if len(shape) != 3 or shape[1] != 2 or not shape[2]:
        raise ValueError(
            f"{name} must have shape (B, 2, D), safe then unsafe, with D >= 1; got {tuple(shape)}"
        )
