"""Scoring any number of items: read by workers, one batch of one modality at a time, faults kept apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hysac.scoring.items import Item, printable
from hysac.scoring.scorer import SafetyScorer, Score, check_finite


class Encoded(NamedTuple):
    """An item with its point ``(D,)`` and the distance it is scored by, or with what is wrong with it."""

    item: Item
    point: Tensor | None
    distance: float | None
    fault: str | None


Scored = tuple[Item, Score | None, str | None]
"""An item with its score, or with what is wrong with it."""


def score_items(scorer: SafetyScorer, items: Sequence[Item], *, workers: int = 0) -> Iterator[list[Scored]]:
    """The scores of ``items``; the arguments and errors are those of :func:`encode_items`."""
    for batch in encode_items(scorer, items, workers=workers):
        yield judged(scorer, batch)


def judged(scorer: SafetyScorer, batch: Sequence[Encoded]) -> list[Scored]:
    """The scores of encoded items, from their distances."""
    return [
        (
            one.item,
            None if one.distance is None else scorer.judge(one.item.modality, one.distance),
            one.fault,
        )
        for one in batch
    ]


def encode_items(scorer: SafetyScorer, items: Sequence[Item], *, workers: int = 0) -> Iterator[list[Encoded]]:
    """The points of ``items``, batch by batch; every item comes once, images before texts.

    Args:
        scorer: the model.
        items: what :func:`find_items` found.
        workers: processes that read and tokenize.

    Yields:
        The items of a batch. One that cannot be read has a fault in place of a point.

    Raises:
        FloatingPointError: a distance that is not finite; names the item.
    """
    for modality in ("image", "text"):
        of_modality = [item for item in items if item.modality == modality]
        loader = DataLoader(
            _Prepared(scorer, of_modality),
            batch_size=scorer.batch_size,
            num_workers=workers if len(of_modality) > scorer.batch_size else 0,
            collate_fn=_as_it_is,
            generator=torch.Generator(),
        )
        for batch in loader:
            yield _of_batch(scorer, modality, of_modality, batch)


class _Prepared(Dataset[Any]):
    """The tensors of items, or why there are none."""

    def __init__(self, scorer: SafetyScorer, items: Sequence[Item]) -> None:
        self.prepare: dict[str, Any] = {"image": scorer.pixels, "text": scorer.tokens}
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[int, Any, str | None]:
        item = self.items[index]
        if item.fault is not None or item.content is None:
            return index, None, item.fault
        try:
            return index, self.prepare[item.modality](item.content), None
        except ValueError as error:
            return index, None, printable(str(error))


def _as_it_is(batch: list[Any]) -> list[Any]:
    return batch


def _of_batch(
    scorer: SafetyScorer, modality: str, items: Sequence[Item], batch: list[tuple[int, Any, str | None]]
) -> list[Encoded]:
    good = [(index, prepared) for index, prepared, fault in batch if fault is None]
    points, distances = scorer.encode_prepared(modality, [prepared for _, prepared in good])
    found: dict[int, Encoded] = {}
    for (index, _), point, distance in zip(good, points, distances, strict=True):
        check_finite(items[index].name, distance)
        found[index] = Encoded(items[index], point, distance, None)
    return [found.get(index, Encoded(items[index], None, None, fault)) for index, _, fault in batch]
