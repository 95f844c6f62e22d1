"""Scores of images and captions by a model."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import hypkernels as hk
from hysac.data.images import MAX_PIXELS, ShardMember, load_image
from hysac.data.manifest import check_caption, check_text
from hysac.data.text import text_windows
from hysac.embeddings import evaluation_mode
from hysac.models.cosine import EvaluatedModel
from hysac.models.factory import from_pretrained, get_tokenizer, transforms
from hysac.models.hub import PREFIX, fetch
from hysac.models.pretrained import BOUNDS_FILE, SAFETY_FILE, SETTINGS_FILE, model_directory
from hysac.safety import MODALITIES, Bounds
from hysac.scoring.identity import weights_digest
from hysac.scoring.operating_points import OperatingPoints

Picture = str | Path | ShardMember | Image.Image | np.ndarray
"""A path, a member of a shard, a PIL image, or 8-bit pixels ``(H, W)``, ``(H, W, 3)`` or ``(H, W, 4)``."""


@dataclass(frozen=True)
class Score:
    """How unsafe one item is.

    Attributes:
        modality: ``"text"`` or ``"image"``.
        distance: geodesic, to the origin; finite.
        probability: that the item is unsafe, in [0, 1]; None for a model that was not calibrated.
        decision: ``"unsafe"`` beyond the threshold, else ``"safe"``; None without a threshold.
        nearest_class: the class of this modality whose mean distance to the origin is closer to
            ``distance``; None for a model without bounds.
    """

    modality: str
    distance: float
    probability: float | None
    decision: str | None
    nearest_class: str | None


class SafetyScorer:
    """Scores images and captions: ``scorer(images=["a.jpg"])``, ``scorer(texts=["a dog"])``.

    A score that is not finite is an error, never "safe".

    Args:
        model: a HySAC model. A :class:`hysac.models.cosine.CosineModel` can only encode: its distances to
            the origin mean nothing.
        preprocess: from a PIL image to ``(3, H, W)``, as :func:`hysac.transforms` makes it.
        tokenizer: as :func:`hysac.get_tokenizer` makes it.
        points: the model's operating points (named thresholds), which ``hysac calibrate`` fits. None for
            a model that was not calibrated: probability and decision are then None.
        bounds: the model's bounds, for ``nearest_class``.
        threshold: the name of the operating point that decides; by default that of ``points``.
        batch_size: items encoded at a time.
        max_pixels, background: see :func:`hysac.data.load_image`.

    Attributes:
        weights: the digest of the weights that :meth:`from_pretrained` loaded, which an index compares with
            its own; None for a model that came otherwise.

    Raises:
        ValueError: a threshold that the operating points do not have.
    """

    def __init__(
        self,
        model: EvaluatedModel,
        preprocess: Any,
        tokenizer: Any,
        *,
        points: OperatingPoints | None = None,
        bounds: Bounds | None = None,
        threshold: str | None = None,
        batch_size: int = 64,
        max_pixels: int | None = MAX_PIXELS,
        background: str = "none",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if threshold is not None:
            if points is None:
                raise ValueError(f"there is no threshold {threshold!r}: the model was not calibrated")
            for modality in points.modalities:
                points.point(modality, threshold)
        self.model, self.preprocess, self.tokenizer = model, preprocess, tokenizer
        self.points, self.bounds, self.threshold = points, bounds, threshold
        self.batch_size, self.max_pixels, self.background = batch_size, max_pixels, background
        self.weights: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        threshold: str | None = None,
        device: torch.device | str = "cpu",
        verify: bool = True,
        calibrated: bool = True,
        **options: Any,
    ) -> SafetyScorer:
        """The scorer of a model directory, a run, or ``hf-hub:NAME``.

        Args:
            model: with ``safety.json`` of ``hysac calibrate`` and ``bounds.json`` where they are there.
            threshold: the name of an operating point.
            device: where the model lives.
            verify: compare the files with their checksums.
            calibrated: False leaves ``safety.json`` aside.
            options: of :class:`SafetyScorer`.

        Raises:
            FileNotFoundError, ValueError: what :func:`hysac.from_pretrained` raises, or operating points of
                other weights.
        """
        directory = _directory(model)
        loaded, weights = from_pretrained(directory, device=device, verify=verify), weights_digest(directory)
        points = bounds = None
        if calibrated and (directory / SAFETY_FILE).is_file():
            points = OperatingPoints.load(directory / SAFETY_FILE)
            if points.model != weights:
                raise ValueError(
                    f"{directory / SAFETY_FILE} was made for other weights: run `hysac calibrate` again"
                )
        if (directory / BOUNDS_FILE).is_file():
            bounds = Bounds.load(directory / BOUNDS_FILE)
        tokenizer = get_tokenizer(f"local-dir:{directory}")
        preprocess = transforms(loaded)[1]
        scorer = cls(
            loaded, preprocess, tokenizer, points=points, bounds=bounds, threshold=threshold, **options
        )
        scorer.weights = weights
        return scorer

    def __call__(
        self, *, images: Sequence[Picture] | None = None, texts: Sequence[str] | None = None
    ) -> list[Score]:
        """The scores of images, then of texts, in their order.

        Raises:
            TypeError: a single item in place of a sequence, or an item of a wrong type.
            ValueError: an image that cannot be read, a text that cannot be encoded; names the item.
            FloatingPointError: a distance that is not finite.
        """
        if images is None and texts is None:
            raise ValueError("give images, texts or both")
        for name, items in (("images", images), ("texts", texts)):
            if isinstance(items, str | Path | Image.Image | np.ndarray):
                raise TypeError(f"{name} must be a sequence of items, got one {type(items).__name__}")
        scores = []
        for modality, items in (("image", images or []), ("text", texts or [])):
            distances = self.distances(modality, items)
            scores += [self.judge(modality, distance) for distance in distances]
        return scores

    def distances(self, modality: str, items: Sequence[Any]) -> list[float]:
        """The distances to the origin of images or texts; of a long text that of its farthest window.

        Raises: as calling the scorer.
        """
        prepare = self.pixels if modality == "image" else self.tokens
        found: list[float] = []
        for start in range(0, len(items), self.batch_size):
            part = items[start : start + self.batch_size]
            prepared = [prepare(item) for item in part]
            found += self.distances_of_prepared(modality, prepared)
            for place, distance in enumerate(found[start:], start):
                check_finite(f"{modality} {place}", distance)
        return found

    def pixels(self, image: Picture) -> Tensor:
        """``(3, H, W)`` of an image.

        Raises:
            TypeError, ValueError: what cannot be read, by name.
        """
        if isinstance(image, str | Path | ShardMember):
            image = load_image(image, max_pixels=self.max_pixels, background=self.background)
        elif isinstance(image, np.ndarray):
            is_shape = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))
            if image.dtype != np.uint8 or not is_shape:
                raise TypeError(
                    f"an array must be 8-bit pixels (H, W), (H, W, 3) or (H, W, 4), got {image.dtype} "
                    f"{image.shape}"
                )
            image = Image.fromarray(image)
        elif not isinstance(image, Image.Image):
            raise TypeError(
                f"an image must be a path, a PIL image or an array of pixels, got {type(image).__name__}"
            )
        return self.preprocess(image)

    def tokens(self, text: str) -> Tensor:
        """The windows ``(W, L)`` of a text.

        Raises:
            TypeError, ValueError: no text, a blank one, or one that is too long or cannot be encoded.
        """
        if not isinstance(text, str):
            raise TypeError(f"a text must be a string, got {type(text).__name__}")
        check_text("text", text)
        check_caption("a text", text)
        return text_windows(self.tokenizer, text)

    def distances_of_prepared(self, modality: str, prepared: Sequence[Tensor]) -> list[float]:
        """The distances of what :meth:`pixels` or :meth:`tokens` made, in their order; not checked."""
        return self.encode_prepared(modality, prepared)[1]

    def encode_prepared(self, modality: str, prepared: Sequence[Tensor]) -> tuple[Tensor, list[float]]:
        """The points ``(N, D)`` of what was prepared, float32 on the CPU, and the distances; not checked.

        A text in windows has the point of its first one, and the distance of the farthest.
        """
        if not prepared:
            return torch.empty(0, self.model.embed_dim), []
        if modality == "image":
            points, distances = self.encode_rows("image", torch.stack(list(prepared)))
            return points, distances.tolist()
        rows = torch.cat(list(prepared)).split(self.batch_size)
        parts = [self.encode_rows("text", part) for part in rows]
        sizes = [len(windows) for windows in prepared]
        of_texts = torch.cat([points for points, _ in parts]).split(sizes)
        distances_of_texts = torch.cat([distances for _, distances in parts]).split(sizes)
        return (
            torch.stack([windows[0] for windows in of_texts]),
            [float(windows.max()) for windows in distances_of_texts],
        )

    def encode_rows(self, modality: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The points ``(N, D)`` of images or windows of texts, and their distances ``(N,)``; not checked.

        Both are float32, on the CPU.
        """
        encode = self.model.encode_image if modality == "image" else self.model.encode_text
        with evaluation_mode(self.model):
            points = encode(rows.to(next(self.model.parameters()).device), normalize=True)
            distances = hk.dist0(points, float(self.model.curvature))
            return points.float().cpu(), distances.float().cpu()

    def judge(self, modality: str, distance: float) -> Score:
        """The score of an item at this distance.

        Raises:
            FloatingPointError: it is not finite.
        """
        check_finite(modality, distance)
        probability = decision = nearest = None
        if self.points is not None and modality in self.points.modalities:
            curve = self.points.modalities[modality].probability
            probability = None if curve is None else curve(distance)
            point = self.points.point(modality, self.threshold)
            decision = "safe" if distance <= point.threshold else "unsafe"
        if self.bounds is not None and set(MODALITIES[modality]) <= set(self.bounds.classes):
            safe, unsafe = (abs(distance - self.bounds[letter].avg) for letter in MODALITIES[modality])
            nearest = f"safe {modality}" if safe <= unsafe else f"unsafe {modality}"
        return Score(modality, distance, probability, decision, nearest)


def _directory(model: str | Path) -> Path:
    name = os.fspath(model)
    if not name.startswith(PREFIX):
        return model_directory(Path(name))
    directory = fetch(name)
    if directory is None:
        raise FileNotFoundError(f"{name} is not a HySAC model: it has no {SETTINGS_FILE}")
    return directory


def check_finite(name: str, distance: float) -> None:
    """Refuse a distance that is not finite.

    Raises:
        FloatingPointError: it is not finite; names the item.
    """
    if not math.isfinite(distance):
        raise FloatingPointError(f"the distance of {name} is {distance}, which tells nothing")
