"""The items of every quadruplet data set, and how they become a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from hysac.data.manifest import Quadruplet
from hysac.data.text import text_windows

Preprocess = Callable[[Image.Image], Tensor]
Tokenizer = Callable[[list[str]], Tensor]
LongTexts = Literal["cut", "windows", "one window"]
"""What is done with a caption beyond the tokenizer's context; see :class:`Quadruplets`."""


class Quadruplets(Dataset[dict[str, Any]], ABC):
    """A data set of quadruplets; dimension 0 of an item's tensors is (safe, unsafe).

    An item is ``{"image": (2, 3, H, W) float, "text": (2, L) int64, "tag": str, "id": str}``; text-only data
    has no ``"image"``, an untagged quadruplet has the tag "". ``preprocess`` is applied to each image by
    itself: a random transform treats the safe and the unsafe image independently, since real pairs are
    different pictures with no common geometry to keep.

    ``long_texts`` says what is done with captions beyond the tokenizer's context:

    * ``"cut"``: ``"text"`` has their beginning.
    * ``"one window"``, for training: they are read in windows (:func:`hysac.data.text.text_windows`),
      and ``"text"`` has one that PyTorch's generator draws.
    * ``"windows"``, for scoring: ``"text"`` has the first window. Items with such captions have all
      windows, ``"windows": (W, L)``, and ``"window_of": (W,)``, 0 for the safe and 1 for the unsafe
      caption.

    In the last two an item's ``"long"`` is the number of its captions that have several windows.

    Attributes:
        records: the quadruplets, in the order of the indices.
        has_images: False for text-only data.
    """

    def __init__(
        self,
        records: Sequence[Quadruplet],
        preprocess: Preprocess | None,
        tokenizer: Tokenizer,
        has_images: bool = True,
        long_texts: LongTexts = "cut",
    ) -> None:
        if long_texts not in get_args(LongTexts):
            raise ValueError(
                f"long_texts must be one of {', '.join(get_args(LongTexts))}, got {long_texts!r}"
            )
        if not callable(tokenizer):
            raise TypeError(
                f"tokenizer must be callable on a list of captions, got {type(tokenizer).__name__}"
            )
        if has_images and not callable(preprocess):
            raise TypeError(f"preprocess must be callable on a PIL image, got {type(preprocess).__name__}")
        self.records = records
        self.has_images = has_images
        self.long_texts = long_texts
        self.preprocess = preprocess
        self.tokenizer = tokenizer

    @abstractmethod
    def images(self, index: int) -> tuple[Image.Image, Image.Image]:
        """The safe and the unsafe image before preprocessing, RGB."""

    def tokens(self, index: int) -> Tensor:
        """The safe and the unsafe caption, tokenized: ``(2, L)``."""
        record = self.records[index]
        return self.tokenizer([record.safe_caption, record.unsafe_caption])

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        item: dict[str, Any] = {"tag": record.tag or "", "id": record.id}
        item |= {"text": self.tokens(index)} if self.long_texts == "cut" else self._windows(record)
        if self.preprocess is not None and self.has_images:
            item["image"] = torch.stack([self.preprocess(image) for image in self.images(index)])
        return item

    def _windows(self, record: Quadruplet) -> dict[str, Any]:
        of_sides = [
            text_windows(self.tokenizer, text) for text in (record.safe_caption, record.unsafe_caption)
        ]
        long = [(side, rows) for side, rows in enumerate(of_sides) if len(rows) > 1]
        if self.long_texts == "one window":
            return {"text": torch.stack([_drawn(rows) for rows in of_sides]), "long": len(long)}
        parts = {"text": torch.stack([rows[0] for rows in of_sides]), "long": len(long)}
        if long:
            parts["windows"] = torch.cat([rows for _, rows in long])
            parts["window_of"] = torch.cat([torch.full((len(rows),), side) for side, rows in long])
        return parts


def _drawn(rows: Tensor) -> Tensor:
    """One of the rows, drawn at random; a single row takes no random number."""
    return rows[int(torch.randint(len(rows), ())) if len(rows) > 1 else 0]


def collate(batch: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of ``B`` items of :class:`Quadruplets`, for ``DataLoader(collate_fn=collate)``.

    Returns:
        ``{"image": (B, 2, 3, H, W), "text": (B, 2, L), "tag": list[str], "id": list[str]}``, without
        ``"image"`` for text-only data, and ``"long": (B,)`` where items have it. Where items have windows,
        ``"windows": (W, L)`` of all, and ``"window_of": (W,)``, the place of each among the ``2 B`` captions.

    Raises:
        ValueError: no items, or items with images among text-only ones.
    """
    if not batch:
        raise ValueError("a batch needs at least one item")
    if len({"image" in item for item in batch}) > 1:
        raise ValueError("a batch cannot mix items with images and text-only items")
    windows = [
        (item["windows"], 2 * index + item["window_of"])
        for index, item in enumerate(batch)
        if "windows" in item
    ]
    names = [name for name in batch[0] if name not in ("windows", "window_of")]
    collated = default_collate([{name: item[name] for name in names} for item in batch])
    if windows:
        collated["windows"], collated["window_of"] = map(torch.cat, zip(*windows, strict=True))
    return collated
