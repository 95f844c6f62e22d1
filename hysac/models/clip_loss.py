"""Base of losses with open_clip's interface: options, accumulation, and any number of processes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

import hypkernels as hk
from hypkernels.checks import SUPPORTED_DTYPES, check_bool, check_dense, check_number, check_positive
from hysac.models.distributed import count_rows, gather_rows


class ClipLikeLoss(nn.Module):
    """A loss of sets of points ``(B, D)`` on the unit hyperboloid, with ``open_clip.ClipLoss``'s arguments.

    Row ``i`` of every set belongs together. See :class:`hysac.HySACLoss` for the arguments, and for what
    holds with several processes and under gradient accumulation.
    """

    items = "items"
    """What a row is called in messages."""

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

    def _scale(self, logit_scale: float | Tensor) -> float | Tensor:
        if not isinstance(logit_scale, Tensor):
            return logit_scale
        check_floating("logit_scale", logit_scale)
        if logit_scale.numel() != 1:
            raise ValueError(f"logit_scale must have one element, got shape {tuple(logit_scale.shape)}")
        scale = _at_least_float32(logit_scale).reshape(())
        if self.accum_freq == 1:
            return scale
        return scale.detach() + (scale - scale.detach()) / self.accum_freq

    def _check_passes(self, unit_hyperboloid: Tensor | None) -> None:
        """Refuse features of another number of forward passes than ``accum_freq``, where that is known."""
        if unit_hyperboloid is None or not torch.is_grad_enabled():
            return
        passes = len(unit_hyperboloid)
        if passes != self.accum_freq:
            raise ValueError(
                f"accum_freq must be {passes}, the number of forward passes these features come from, got "
                f"{self.accum_freq}: a step would count the gradient of the scale, and with it a part of the "
                f"curvature's, {passes / self.accum_freq:g} times"
            )

    def _contrastive(
        self,
        local: Sequence[Tensor],
        pairings: Sequence[tuple[int, int]],
        counts: list[int],
        scale: float | Tensor,
    ) -> list[Tensor]:
        """The contrastive loss in both directions of each pairing of two sets."""
        if self.ring and self.world_size > 1:
            of_rows = hk.ring_contrastive_losses(local, pairings, 1.0, scale, counts=counts)
            return [self.world_size / sum(counts) * losses.sum() for losses in of_rows]
        columns = self._gather(local, counts)
        if not (self.local_loss and self.world_size > 1):
            return hk.contrastive_losses(columns, pairings, 1.0, scale)
        if not counts[self.rank]:  # still part of the graph: gradients of the others' rows pass here
            return [columns[0][:0].sum() + 0.0 * scale] * len(pairings)
        targets = torch.arange(len(local[0]), device=local[0].device) + sum(counts[: self.rank])
        ways = [(query, len(local) + key) for pairing in pairings for query, key in (pairing, pairing[::-1])]
        losses = hk.contrastive_losses([*local, *columns], ways, 1.0, scale, targets=targets, symmetric=False)
        half = 0.5 * self._share(counts)
        return [half * (one + other) for one, other in zip(losses[::2], losses[1::2], strict=True)]

    def _entailment(
        self, local: Sequence[Tensor], cones: Sequence[tuple[int, int]], counts: list[int]
    ) -> list[Tensor]:
        """The weighted hinge of each cone, an apex and a point by their sets."""
        if not counts[self.rank]:
            return [local[0].sum()] * len(cones)
        losses = hk.entailment_losses(
            local, cones, aperture_scale=self.aperture_scale, min_radius=self.min_radius
        )
        weight = self.entail_weight * self._share(counts)
        return [weight * loss for loss in losses]

    def _share(self, counts: list[int]) -> float:
        """This process's factor, with which the mean over processes of their means is that over all rows."""
        if self.world_size == 1:
            return 1.0
        return counts[self.rank] * self.world_size / sum(counts)

    def _count(self, rows: Tensor) -> list[int]:
        """The number of rows of every process."""
        if self.world_size == 1:
            counts = [rows.shape[0]]  # len() would fix it in an exported program
        else:
            self._check_processes()
            counts = count_rows(rows)
        if not sum(counts):
            raise ValueError(f"image_features and text_features hold no {self.items} on any process")
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

    def _gather(self, local: Sequence[Tensor], counts: list[int]) -> Sequence[Tensor]:
        if self.world_size == 1:
            return local
        together = torch.stack(tuple(local), dim=1)
        return gather_rows(together, exchange=self.gather_with_grad, counts=counts).unbind(1)


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def check_features(name: str, features: object) -> Tensor:
    """A floating tensor, or an error that names the argument."""
    if features is None:
        raise ValueError(f"{name} is None: every term relates texts to images, so both are needed")
    if not isinstance(features, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(features).__name__}")
    check_floating(name, features)
    return features


def check_same(image_features: Tensor, text_features: Tensor) -> None:
    """Refuse features of different shapes or devices."""
    if image_features.shape != text_features.shape or image_features.device != text_features.device:
        raise ValueError(
            "image_features and text_features must have the same shape and device, got "
            f"{tuple(image_features.shape)} on {image_features.device} and "
            f"{tuple(text_features.shape)} on {text_features.device}"
        )


def common_dtype(image_features: Tensor, text_features: Tensor) -> torch.dtype:
    """The wider one of two kinds of features, at least float32."""
    widest = torch.promote_types(image_features.dtype, text_features.dtype)
    return torch.promote_types(widest, torch.float32)


def check_floating(name: str, tensor: Tensor) -> None:
    check_dense(name, tensor)
    if tensor.dtype not in SUPPORTED_DTYPES:
        raise TypeError(
            f"{name} must be a floating tensor, float64, float32, bfloat16 or float16, got {tensor.dtype}"
        )
