"""open_clip's zero-shot classifier by distance: a class is a point, and keeps its radius."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import hypkernels as hk
from hysac.evaluation.zero_shot import class_prototypes, prompts_of
from hysac.models.model import HySAC


@dataclass(frozen=True)
class ZeroShotClassifier:
    """Classes as points; call it with images to get logits.

    Attributes:
        points: space components ``(C, D)``, one a class.
        curv: positive ``c`` of the hyperboloid.
        scale: positive factor of the distances.

    Raises:
        ValueError: ``points`` of another shape, or all of norm 1: such vectors are not points of a
            hyperboloid but results of ``open_clip.build_zero_shot_classifier``.
    """

    points: Tensor
    curv: float
    scale: float = 1.0

    def __post_init__(self) -> None:
        shape = tuple(self.points.shape)
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"points must have shape (C, D) with C, D >= 1, got {shape}")
        for dim in (0, 1):
            norms = self.points.norm(dim=dim)
            if len(norms) > 1 and bool((norms - 1).abs().max() < 1e-4):
                raise ValueError(
                    f"points {shape} are unit vectors, as of open_clip.build_zero_shot_classifier: their "
                    "radius is lost; hysac.build_zero_shot_classifier keeps it"
                )

    def __call__(self, images: Tensor) -> Tensor:
        """Logits ``(B, C)``: ``-scale`` times the distance.

        Args:
            images: space components ``(B, D)``, of ``model.encode_image(images, normalize=True)``.
        """
        with torch.autocast(images.device.type, enabled=False):
            return -self.scale * hk.pairwise_dist(images, self.points, self.curv)


@torch.no_grad()
def build_zero_shot_classifier(
    model: HySAC,
    tokenizer: Any,
    classnames: Sequence[str],
    templates: Sequence[Callable[[str], str] | str],
    num_classes_per_batch: int | None = 10,
    device: str | torch.device = "cpu",
    use_tqdm: bool = False,
) -> ZeroShotClassifier:
    """``open_clip.build_zero_shot_classifier`` by distance, with its arguments.

    A class is the mean of its prompts in the tangent space at the origin, as
    :func:`hysac.evaluation.zero_shot.tangent_mean` has it. open_clip's function divides each mean by its
    norm, and with that drops the distance to the origin.

    Args:
        model: a HySAC model; its training mode decides about dropout, as in open_clip.
        tokenizer: of the model, ``tokenizer(texts) -> (len(texts), L)``.
        classnames: at least one name.
        templates: at least one prompt: a function of a name, or text with a place for it, ``"a {}."``.
        num_classes_per_batch: how many classes are encoded at a time; None takes all at once.
        device: where the model is.
        use_tqdm: whether to show a progress bar.

    Returns:
        A :class:`ZeroShotClassifier`, which gives logits of images: it is no matrix to multiply with.

    Raises:
        TypeError: ``model`` is no HySAC model.
        ValueError: no names or templates, or ``num_classes_per_batch`` below 1.
    """
    if not isinstance(model, HySAC):
        raise TypeError(f"model must be a HySAC model, got {type(model).__name__}")
    for name, given in (("classnames", classnames), ("templates", templates)):
        if isinstance(given, str) or not isinstance(given, Sequence) or not given:
            raise ValueError(f"{name} must be a sequence with at least one entry, got {given!r}")
    if num_classes_per_batch is not None and num_classes_per_batch < 1:
        raise ValueError(f"num_classes_per_batch must be at least 1 or None, got {num_classes_per_batch}")
    size = num_classes_per_batch or len(classnames)
    points, curv = [], model.curvature.item()
    for start in tqdm(range(0, len(classnames), size), disable=not use_tqdm):
        names = classnames[start : start + size]
        prompts = model.encode_text(tokenizer(prompts_of(names, templates)).to(device), normalize=True)
        points.append(class_prototypes(prompts, [len(templates)] * len(names), curv))
    return ZeroShotClassifier(torch.cat(points), curv, model.scale.item())
