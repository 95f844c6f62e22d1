"""The scorer as the batch function of an engine: Ray Data, Hugging Face datasets and the like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hysac.scoring.scorer import SafetyScorer


class BatchScorer:
    """Adds the scores of a column to batches, which are mappings of columns.

    The model is loaded with the first batch, so that each worker process loads its own::

        ray_dataset.map_batches(BatchScorer, fn_constructor_args=[DIR, "text"], ...)
        hf_dataset.map(BatchScorer(DIR, "text"), batched=True)

    Args:
        model: see :meth:`SafetyScorer.from_pretrained`.
        column: the column to score: captions, or paths, PIL images or pixels.
        modality: ``"text"`` or ``"image"``.
        prefix: of the new columns ``distance``, ``probability``, ``decision`` and ``nearest_class``; columns
            that the model has no answers for are left out.
        options: of :meth:`SafetyScorer.from_pretrained`.

    Raises:
        ValueError: ``modality`` is unknown; and with a batch, a column that is missing or already there.
    """

    def __init__(
        self, model: str, column: str, modality: str = "text", *, prefix: str = "safety_", **options: Any
    ) -> None:
        if modality not in ("text", "image"):
            raise ValueError(f"modality must be 'text' or 'image', got {modality!r}")
        self.model, self.column, self.modality = model, column, modality
        self.prefix, self.options = prefix, options
        self._scorer: SafetyScorer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_scorer": None}

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with the new columns, numpy arrays of its length."""
        if self.column not in batch:
            raise ValueError(f"there is no column {self.column!r}; there are {', '.join(batch)}")
        if self._scorer is None:
            self._scorer = SafetyScorer.from_pretrained(self.model, **self.options)
        items = list(batch[self.column])
        if self.modality == "text":
            items = [str(item) if isinstance(item, np.str_) else item for item in items]
            scores = self._scorer(texts=items)
        else:
            scores = self._scorer(images=items)
        return {**batch, **self._columns([vars(score) for score in scores])}

    def _columns(self, scores: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        columns = {}
        for name in ("distance", "probability", "decision", "nearest_class"):
            values = [score[name] for score in scores]
            if any(value is not None for value in values) or name == "distance":
                columns[self.prefix + name] = np.asarray(values)
        return columns
