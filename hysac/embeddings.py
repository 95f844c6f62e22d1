"""The embeddings of a quadruplet set, and how a model produces them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import hypkernels as hk

if TYPE_CHECKING:
    from hysac.models.cosine import EvaluatedModel

logger = logging.getLogger(__name__)

CLASSES = {"S": "safe_text", "V": "safe_image", "U": "unsafe_text", "G": "unsafe_image"}
"""The paper's letters and what they stand for."""

MODALITIES = {"text": ("S", "U"), "image": ("V", "G")}
"""The safe and the unsafe class of each modality."""


@dataclass(frozen=True)
class Embeddings:
    """``N`` quadruplets as points of one hyperboloid; row ``k`` of every class belongs to quadruplet ``k``.

    Attributes:
        safe_image, unsafe_image, safe_text, unsafe_text: space components ``(N, D)``, or None where the set
            has no such class (a text-only set has no images).
        curv: the positive ``c`` of the hyperboloid (sectional curvature ``-c``).
        tags: one category per quadruplet, "" for none; empty when the set is untagged.
        ids: one identifier per quadruplet; may be empty.
        text_scores: the distances to the origin that the texts are scored by, ``(N, 2)``, safe and unsafe;
            None where they are those of the points. Of a caption that was encoded in windows it is the
            greatest, while its point, which retrieval goes by, is that of the first window.

    ``embeddings["V"]`` gives a class by the paper's letter (S safe text, V safe image, U unsafe text, G
    unsafe image) and raises where it is missing.

    Raises:
        TypeError, ValueError: no class at all, shapes, dtypes or devices that differ, coordinates that are
            not finite (they would outrank every other point), or tags and ids that do not match the rows.
    """

    safe_image: Tensor | None
    unsafe_image: Tensor | None
    safe_text: Tensor | None
    unsafe_text: Tensor | None
    curv: float
    tags: Sequence[str] = ()
    ids: Sequence[str] = ()
    text_scores: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.present:
            raise ValueError("Embeddings needs at least one class; all four are None")
        first_letter = self.present[0]
        first = self[first_letter]
        for letter in self.present:
            _check_class(CLASSES[letter], self[letter], CLASSES[first_letter], first)
        if not 0 < self.curv < math.inf:
            raise ValueError(f"curv must be positive and finite, got {self.curv}")
        scores = self.text_scores
        if scores is not None and (scores.shape != (len(first), 2) or not bool(torch.isfinite(scores).all())):
            raise ValueError(
                f"text_scores must be finite, of shape ({len(first)}, 2), got {tuple(scores.shape)}"
            )
        for name, values in (("tags", self.tags), ("ids", self.ids)):
            if len(values) not in (0, len(first)):
                raise ValueError(
                    f"{name} must have one entry per quadruplet ({len(first)}), got {len(values)}"
                )

    @property
    def present(self) -> str:
        """The letters of the classes this set has, in the order S, V, U, G."""
        return "".join(letter for letter, name in CLASSES.items() if getattr(self, name) is not None)

    def __len__(self) -> int:
        return len(self[self.present[0]])

    def __getitem__(self, letter: str) -> Tensor:
        if letter not in CLASSES:
            raise ValueError(f"a class is one of {', '.join(CLASSES)}, got {letter!r}")
        points = getattr(self, CLASSES[letter])
        if points is None:
            raise ValueError(
                f"these embeddings have no {CLASSES[letter]} ({letter}); they have {self.present}"
            )
        return points

    def scores(self, letter: str) -> Tensor:
        """The scores of a class's items, ``(N,)``: see ``text_scores``."""
        if self.text_scores is not None and letter in "SU":
            return self.text_scores[:, "SU".index(letter)]
        return hk.dist0(self[letter], self.curv)

    def has(self, letters: str) -> bool:
        """Whether every one of the classes ``letters`` is there."""
        return set(letters) <= set(self.present)

    def subset(self, rows: Sequence[int]) -> Embeddings:
        """The quadruplets at ``rows``, in that order."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        return Embeddings(
            **{
                name: self[letter][index.to(self[letter].device)] if self.has(letter) else None
                for letter, name in CLASSES.items()
            },
            curv=self.curv,
            tags=[self.tags[row] for row in rows] if self.tags else (),
            ids=[self.ids[row] for row in rows] if self.ids else (),
            text_scores=None
            if self.text_scores is None
            else self.text_scores[index.to(self.text_scores.device)],
        )

    def to(self, *args: Any, **kwargs: Any) -> Embeddings:
        """A copy whose tensors went through :meth:`torch.Tensor.to` with these arguments."""
        return Embeddings(
            **{
                name: self[letter].to(*args, **kwargs) if self.has(letter) else None
                for letter, name in CLASSES.items()
            },
            curv=self.curv,
            tags=self.tags,
            ids=self.ids,
            text_scores=None if self.text_scores is None else self.text_scores.to(*args, **kwargs),
        )


def encode_dataset(
    model: EvaluatedModel,
    loader: Iterable[dict[str, Any]],
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Embeddings:
    """Encode every quadruplet of ``loader`` once, in its order.

    The model runs in evaluation mode without recording gradients, and gets its training mode back afterwards.

    Args:
        model: a HySAC model: ``encode_image`` and ``encode_text`` with ``normalize=True`` return lifted
            points, ``curvature`` the positive ``c``.
        loader: batches of :func:`hysac.data.collate`: ``"image"`` ``(B, 2, 3, H, W)`` (absent for text-only
            data), ``"text"`` ``(B, 2, L)``, and optionally ``"tag"`` and ``"id"``, lists of ``B`` strings,
            and windows of captions beyond the context, which ``text_scores`` are then made from. How many
            captions are beyond it is logged.
        device: where to encode; the model's own device by default. The model is not moved.
        progress: show a progress bar.

    Returns:
        The embeddings, on ``device``. The images are None for text-only data.

    Raises:
        ValueError: the loader is empty, or only some of its batches have images.
    """
    device = device or next(model.parameters()).device
    texts, images, scores, tags, ids = [], [], [], [], []
    long = 0
    with evaluation_mode(model):
        curv = float(model.curvature)
        for batch in tqdm(loader, desc="encode", unit="batch", disable=not progress):
            text = model.encode_text(batch["text"].to(device), normalize=True)
            texts.append(text)
            if "long" in batch:
                scores.append(_scores_of_texts(model, text, batch, curv))
                long += int(batch["long"].sum())
            if "image" in batch:
                images.append(model.encode_image(batch["image"].to(device), normalize=True))
            tags.extend(batch.get("tag", ()))
            ids.extend(batch.get("id", ()))
    if not texts:
        raise ValueError("the loader is empty: there is nothing to encode")
    if images and len(images) != len(texts):
        raise ValueError(f"only {len(images)} of {len(texts)} batches have images; give all of them or none")
    if long:
        logger.info(
            "%d of %d captions are beyond the context: scored in windows", long, 2 * sum(map(len, texts))
        )
    # Concatenated outside of inference mode, so that autograd accepts the results.
    text, image = torch.cat(texts), torch.cat(images) if images else None
    return Embeddings(
        safe_image=None if image is None else image[:, 0],
        unsafe_image=None if image is None else image[:, 1],
        safe_text=text[:, 0],
        unsafe_text=text[:, 1],
        curv=curv,
        tags=tags,
        ids=ids,
        text_scores=torch.cat(scores) if long else None,
    )


def _scores_of_texts(model: EvaluatedModel, text: Tensor, batch: dict[str, Any], curv: float) -> Tensor:
    """Distances to the origin ``(B, 2)``: of the points ``text``, or of a caption's farthest window."""
    scores = hk.dist0(text, curv)
    if "windows" not in batch:
        return scores
    parts = batch["windows"].to(text.device).split(scores.numel())  # as many at a time as captions
    of_windows = torch.cat([hk.dist0(model.encode_text(part, normalize=True), curv) for part in parts])
    places = batch["window_of"].to(text.device)
    return scores.flatten().scatter_reduce(0, places, of_windows, "amax").view_as(scores)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """:func:`evaluating` under ``torch.inference_mode``."""
    with evaluating(model), torch.inference_mode():
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each module has its training flag back."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in training.items():
            module.training = flag


def _check_class(name: str, points: Tensor, first_name: str, first: Tensor) -> None:
    if not isinstance(points, Tensor) or not points.is_floating_point():
        got = points.dtype if isinstance(points, Tensor) else type(points).__name__
        raise TypeError(f"{name} must be a floating tensor (N, D), got {got}")
    if points.dim() != 2 or 0 in points.shape:
        raise ValueError(f"{name} must have shape (N, D) with N, D >= 1, got {tuple(points.shape)}")
    for what in ("shape", "dtype", "device"):
        if getattr(points, what) != getattr(first, what):
            raise ValueError(
                f"{first_name} and {name} must have the same {what}, "
                f"got {getattr(first, what)} and {getattr(points, what)}"
            )
    if not bool(torch.isfinite(points).all()):
        raise ValueError(f"{name} has coordinates that are not finite")
