"""Batches of a data set, read in this process or by workers."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from hysac.data.items import collate


class Batches:
    """The batches of :func:`collate`, as ``DataLoader`` makes them, but well-behaved when something is wrong.

    A ``ValueError``, which is what data that cannot be used raises, arrives as it is: without the traceback
    of the worker that met it. The workers end with the iteration, also when it breaks off. Iterating draws
    nothing from the global random generator.

    Args:
        dataset: :class:`hysac.data.Quadruplets`, or a wrapper with the same items.
        options: of ``DataLoader``.
    """

    def __init__(self, dataset: Dataset[Any], **options: Any) -> None:
        self._loader = DataLoader(
            _FaultsAsItems(dataset), collate_fn=_collate_or_fault, generator=torch.Generator(), **options
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Generator[dict[str, Any], None, None]:
        batches = iter(self._loader)
        try:
            for batch in batches:
                if isinstance(batch, ValueError):
                    raise batch
                yield batch
        finally:
            # An exception keeps the iterator alive, and with it workers that Python waits for when it exits.
            if self._loader.num_workers:
                batches._shutdown_workers()  # type: ignore[attr-defined]


class _FaultsAsItems(Dataset[Any]):
    """Returns what ``dataset`` raises about an item instead of the item."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except ValueError as fault:
            return fault


def _collate_or_fault(items: list[Any]) -> Any:
    return next((item for item in items if isinstance(item, ValueError)), None) or collate(items)
