"""The HySAC training loss: four contrastive pairings and three entailment cones on the unit hyperboloid."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

import hypkernels as hk
from hypkernels.checks import SUPPORTED_DTYPES, check_bool, check_dense, check_number, check_positive
from hysac.models.distributed import count_rows, gather_rows

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
        dtype = torch.promote_types(torch.promote_types(text.dtype, image.dtype), torch.float32)
        return Points(*text.to(dtype).unbind(1), *image.to(dtype).unbind(1))


class HySACLoss(nn.Module):
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

    **Several processes.** Averaged over the processes (as DDP does), every parameter's gradient equals that
    of one process holding the global batch: with ``local_loss`` and ``gather_with_grad`` (cheapest: each
    process computes its own rows), with ``gather_with_grad`` alone, and with neither. ``local_loss`` without
    ``gather_with_grad`` drops part of the gradient and is refused. The entailment terms, and with
    ``local_loss`` the contrastive ones, report this process's rows: the mean over processes is the global
    loss. Processes may hold different numbers of quadruplets, also none: each row counts the same. The hosts
    tell each other the numbers in every call; where the default process group carries no tensors of the CPU,
    as with NCCL alone, the first call makes a Gloo group for it.

    ``ring=True`` gives the same averaged gradients without any process holding the features of all: images
    go from process to process, so that memory does not grow with the number of processes, each logit is
    computed once instead of twice, and up to a quarter less is sent (docs/parallel.md). The terms report this
    process's rows.

    **Gradient accumulation.** In open_clip's scheme (``--accum-freq k``) the loss runs k times on the whole
    accumulated batch, each time with one part's features attached to the graph, so that the gradient of
    ``logit_scale`` would be counted k times; pass ``accum_freq=k`` to count it once.

    Args:
        local_loss: compute only this process's rows against the gathered columns.
        gather_with_grad: return to each process the gradients that the others have for its features.
        cache_labels: accepted for ClipLoss's signature; the targets are one ``arange``, never worth keeping.
        rank, world_size: this process's place in the default process group.
        use_horovod: not supported; True raises.
        entail_weight: weight of the three entailment terms, >= 0.
        aperture_scale: factor on the half-aperture, > 0; larger cones ask for less.
        min_radius: ``K`` of the half-aperture ``asin(2K / |x|)``, > 0; within ``2K`` of the origin it is
            pi/2.
        accum_freq: the number of times open_clip's accumulation calls this loss per step.
        ring: gather nothing, see above.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range, ``local_loss`` without
            ``gather_with_grad``, or ``ring`` with one of the two.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        *,
        entail_weight: float = 1.0,
        aperture_scale: float = 1.0,
        min_radius: float = 0.1,
        accum_freq: int = 1,
        ring: bool = False,
    ) -> None:
        super().__init__()
        if local_loss and not gather_with_grad:
            raise ValueError(
                "local_loss=True needs gather_with_grad=True: without it the gradients that other processes "
                "have for this process's features are lost"
            )
        check_bool("ring", ring)
        if ring and (local_loss or gather_with_grad):
            raise ValueError(
                "ring=True gathers nothing, and every gradient comes home: leave local_loss and "
                "gather_with_grad at False"
            )
        if use_horovod:
            raise ValueError("use_horovod=True is not supported; use torch.distributed")
        for name, value in (("rank", rank), ("world_size", world_size), ("accum_freq", accum_freq)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
        if world_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size), got rank={rank}, world_size={world_size}")
        if accum_freq < 1:
            raise ValueError(f"accum_freq must be at least 1, got {accum_freq}")
        entail_weight = check_number("entail_weight", entail_weight, "a number")
        if not 0 <= entail_weight < math.inf:
            raise ValueError(f"entail_weight must be finite and not negative, got {entail_weight}")
        aperture_scale = check_positive("aperture_scale", aperture_scale, "a number")
        min_radius = check_positive("min_radius", min_radius, "a number")
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.rank = rank
        self.world_size = world_size
        self.entail_weight = entail_weight
        self.aperture_scale = aperture_scale
        self.min_radius = min_radius
        self.accum_freq = accum_freq
        self.ring = ring

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The seven weighted terms of a batch of quadruplets.

        Args:
            image_features: space components on the **unit** hyperboloid, ``(B, 2, D)``; index 0 of the second
                dimension is safe, 1 unsafe; float64, float32, bfloat16 or float16. ``B`` may be 0 if another
                process has quadruplets.
            text_features: the same for the texts. Everything is computed in the wider of their dtypes, and at
                least in float32.
            logit_scale: positive factor of the distances, a float or a one-element tensor. A model of
                curvature ``c`` with temperature ``s`` passes ``sqrt(c) * x`` and ``s / sqrt(c)``.
            logit_bias: accepted for ClipLoss's signature; a constant added to all logits cancels in a
                softmax.
            output_dict: return the terms by name instead of their sum.

        Returns:
            The sum, a scalar; or a dict of seven scalars named
            ``contrastive_<text>_<image>_loss`` and ``entailment_<apex>_<point>_loss``, already weighted.

        Raises:
            TypeError, ValueError: features missing, or an argument of the wrong type, layout, shape, dtype,
                device or range, by name.
        """
        _check_features("image_features", image_features)
        _check_features("text_features", text_features)
        if image_features.shape != text_features.shape or image_features.device != text_features.device:
            raise ValueError(
                "image_features and text_features must have the same shape and device, got "
                f"{tuple(image_features.shape)} on {image_features.device} and "
                f"{tuple(text_features.shape)} on {text_features.device}"
            )
        with torch.autocast(image_features.device.type, enabled=False):
            local = Points.of(text_features, image_features)
            counts = self._count(local)
            terms = self._contrastive_terms(local, counts, self._scale(logit_scale))
            terms |= self._entailment_terms(local, counts)
        return terms if output_dict else torch.stack(list(terms.values())).sum()

    def _scale(self, logit_scale: float | Tensor) -> float | Tensor:
        if not isinstance(logit_scale, Tensor):
            return logit_scale
        _check_floating("logit_scale", logit_scale)
        if logit_scale.numel() != 1:
            raise ValueError(f"logit_scale must have one element, got shape {tuple(logit_scale.shape)}")
        scale = _at_least_float32(logit_scale).reshape(())
        if self.accum_freq == 1:
            return scale
        return scale.detach() + (scale - scale.detach()) / self.accum_freq

    def _contrastive_terms(
        self, local: Points, counts: list[int], scale: float | Tensor
    ) -> dict[str, Tensor]:
        names = [_contrastive_key(*pairing) for pairing in CONTRASTIVE_PAIRINGS]
        if self.ring and self.world_size > 1:
            pairings = [(_place(text), _place(image)) for text, image in CONTRASTIVE_PAIRINGS]
            of_rows = hk.ring_contrastive_losses(local, pairings, 1.0, scale, counts=counts)
            weight = self.world_size / sum(counts)
            return {name: weight * losses.sum() for name, losses in zip(names, of_rows, strict=True)}
        columns = self._gather(local, counts)
        if not (self.local_loss and self.world_size > 1):
            pairings = [(_place(text), _place(image)) for text, image in CONTRASTIVE_PAIRINGS]
            return dict(zip(names, hk.contrastive_losses(columns, pairings, 1.0, scale), strict=True))
        if not counts[self.rank]:  # the backward pass of the others' rows still comes through here
            return dict.fromkeys(names, columns.safe_text[:0].sum() + 0.0 * scale)
        rows = len(local.safe_text)
        targets = torch.arange(rows, device=local.safe_text.device) + sum(counts[: self.rank])
        ways = [
            (_place(query), len(local) + _place(key))
            for pairing in CONTRASTIVE_PAIRINGS
            for query, key in (pairing, pairing[::-1])
        ]
        losses = hk.contrastive_losses([*local, *columns], ways, 1.0, scale, targets=targets, symmetric=False)
        half = 0.5 * self._share(counts)
        both = zip(losses[::2], losses[1::2], strict=True)
        return {name: half * (text + image) for name, (text, image) in zip(names, both, strict=True)}

    def _entailment_terms(self, local: Points, counts: list[int]) -> dict[str, Tensor]:
        names = [f"entailment_{apex}_{point}_loss" for apex, point in ENTAILMENT_CONES]
        if not counts[self.rank]:
            return dict.fromkeys(names, local.safe_text.sum())
        losses = hk.entailment_losses(
            local,
            [(_place(apex), _place(point)) for apex, point in ENTAILMENT_CONES],
            aperture_scale=self.aperture_scale,
            min_radius=self.min_radius,
        )
        weight = self.entail_weight * self._share(counts)
        return {name: weight * loss for name, loss in zip(names, losses, strict=True)}

    def _share(self, counts: list[int]) -> float:
        """What makes the mean over processes of means over their rows the mean over all rows."""
        if self.world_size == 1:
            return 1.0
        return counts[self.rank] * self.world_size / sum(counts)

    def _count(self, local: Points) -> list[int]:
        """The number of quadruplets of every process."""
        if self.world_size == 1:
            counts = [local.safe_text.shape[0]]  # len() would fix it in an exported program
        else:
            self._check_processes()
            counts = count_rows(local.safe_text)
        if not sum(counts):
            raise ValueError("image_features and text_features hold no quadruplets on any process")
        return counts

    def _check_processes(self) -> None:
        if not dist.is_initialized():
            raise RuntimeError(
                f"world_size={self.world_size} needs torch.distributed.init_process_group() before the loss"
            )
        if (self.rank, self.world_size) != (dist.get_rank(), dist.get_world_size()):
            raise RuntimeError(
                f"the loss was built for rank {self.rank} of {self.world_size}, "
                f"this process is rank {dist.get_rank()} of {dist.get_world_size()}"
            )

    def _gather(self, local: Points, counts: list[int]) -> Points:
        if self.world_size == 1:
            return local
        of_all = gather_rows(torch.stack(local, dim=1), exchange=self.gather_with_grad, counts=counts)
        return Points(*of_all.unbind(1))


def _place(name: str) -> int:
    return Points._fields.index(name)


def _contrastive_key(text: str, image: str) -> str:
    return f"contrastive_{text}_{image}_loss"


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _check_features(name: str, features: object) -> None:
    if features is None:
        raise ValueError(f"{name} is None: all seven terms relate texts to images, so both are needed")
    if not isinstance(features, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(features).__name__}")
    _check_floating(name, features)
    if features.dim() != 3 or features.shape[1] != 2 or not features.shape[2]:
        raise ValueError(
            f"{name} must have shape (B, 2, D), safe then unsafe, with D >= 1; got {tuple(features.shape)}"
        )


def _check_floating(name: str, tensor: Tensor) -> None:
    check_dense(name, tensor)
    if tensor.dtype not in SUPPORTED_DTYPES:
        raise TypeError(
            f"{name} must be a floating tensor, float64, float32, bfloat16 or float16, got {tensor.dtype}"
        )
