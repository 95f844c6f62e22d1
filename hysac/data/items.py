"""What every quadruplet data set yields, and how items become a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from hysac.data.manifest import Quadruplet

Preprocess = Callable[[Image.Image], Tensor]
Tokenizer = Callable[[list[str]], Tensor]


class Quadruplets(Dataset[dict[str, Any]], ABC):
    """A data set of quadruplets; dimension 0 of an item's tensors is (safe, unsafe).

    An item is ``{"image": (2, 3, H, W) float, "text": (2, L) int64, "tag": str, "id": str}``; text-only data
    has no ``"image"``, an untagged quadruplet has the tag "". ``preprocess`` is applied to each image by
    itself: a random transform treats the safe and the unsafe image independently, since real pairs are
    different pictures with no common geometry to keep.

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
    ) -> None:
        if not callable(tokenizer):
            raise TypeError(
                f"tokenizer must be callable on a list of captions, got {type(tokenizer).__name__}"
            )
        if has_images and not callable(preprocess):
            raise TypeError(f"preprocess must be callable on a PIL image, got {type(preprocess).__name__}")
        self.records = records
        self.has_images = has_images
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
        item = {"text": self.tokens(index), "tag": record.tag or "", "id": record.id}
        if self.preprocess is not None and self.has_images:
            item["image"] = torch.stack([self.preprocess(image) for image in self.images(index)])
        return item


def collate(batch: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of ``B`` items of :class:`Quadruplets`, for ``DataLoader(collate_fn=collate)``.

    Returns:
        ``{"image": (B, 2, 3, H, W), "text": (B, 2, L), "tag": list[str], "id": list[str]}``, without
        ``"image"`` for text-only data.

    Raises:
        ValueError: no items, or items with images among text-only ones.
    """
    if not batch:
        raise ValueError("a batch needs at least one item")
    if len({"image" in item for item in batch}) > 1:
        raise ValueError("a batch cannot mix items with images and text-only items")
    return default_collate(list(batch))
