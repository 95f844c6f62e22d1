"""What objectives share: their result, and the cross entropies of images, texts and their boxes."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from hypkernels.checks import check_matrices
from hypkernels.losses import contrastive_losses


class Objective(NamedTuple):
    """``loss = contrastive + entail_weight * entailment``, and the two terms, to be logged; scalars."""

    loss: Tensor
    contrastive: Tensor
    entailment: Tensor


class FixedOptions(nn.Module):
    """An objective as a module, with its options fixed: the attributes that ``OPTIONS`` names."""

    OPTIONS: ClassVar[tuple[str, ...]]

    def options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.OPTIONS}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options().items())


def both_directions(
    points: list[Tensor],
    all_image: Tensor | None,
    all_text: Tensor | None,
    offset: int,
    curv: float | Tensor,
    logit_scale: float | Tensor,
    *,
    prefix: str = "",
) -> Tensor:
    """The mean of the cross entropies of images and texts, and of their boxes if there are any.

    ``prefix`` is what the arguments' names begin with, in errors.
    """
    image, text, *boxes = points
    if all_image is None and all_text is None and offset == 0:
        pairings, symmetric = [(0, 1)], [True]
        if boxes:
            pairings, symmetric = [(0, 1), (2, 1), (3, 0)], [True, False, False]
        whole, *of_boxes = contrastive_losses(points, pairings, curv, logit_scale, symmetric=symmetric)
        return (2 * whole + sum(of_boxes)) / (2 + len(of_boxes))
    images = image if all_image is None else all_image
    texts = text if all_text is None else all_text
    check_matrices(f"{prefix}image", image, f"all_{prefix}image", images)
    check_matrices(f"{prefix}image", image, f"all_{prefix}text", texts)
    targets = targets_from(offset, image, images, texts, prefix=prefix)
    first = len(points)
    pairings = [(index, first + 1 - index % 2) for index in range(first)]
    terms = contrastive_losses(
        [*points, images, texts], pairings, curv, logit_scale, targets=targets, symmetric=False
    )
    return torch.stack(terms).mean()


def targets_from(offset: int, rows: Tensor, *gathered: Tensor, prefix: str = "") -> Tensor:
    if isinstance(offset, bool) or not isinstance(offset, int):
        raise TypeError(f"{prefix}offset must be an int, got {type(offset).__name__}")
    least = min(len(one) for one in gathered)
    if offset < 0 or offset + len(rows) > least:
        raise ValueError(
            f"{prefix}offset must leave {len(rows)} rows of all_{prefix}image and all_{prefix}text, of which "
            f"there are {least}, got {offset}"
        )
    return torch.arange(offset, offset + len(rows), device=rows.device)


def weighted(contrastive: Tensor, entailment: Tensor, weight: float) -> Objective:
    return Objective(contrastive + weight * entailment, contrastive, entailment)


def check_as_many(x_name: str, x: Tensor, y_name: str, y: Tensor) -> None:
    if len(x) != len(y):
        raise ValueError(f"{x_name} and {y_name} must have as many rows, got {len(x)} and {len(y)}")
