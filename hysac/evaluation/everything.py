"""All evaluations of this package for one set of quadruplets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from hysac.embeddings import Embeddings, encode_dataset
from hysac.evaluation.report import EvaluationReport
from hysac.evaluation.retrieval import COLUMNS, Queries, Rule, per_tag, recalls, tag_rows
from hysac.evaluation.separation import metrics_of
from hysac.safety import (
    Bounds,
    Traversal,
)

if TYPE_CHECKING:
    from hysac.models.model import HySAC


def evaluate_embeddings(
    embeddings: Embeddings,
    *,
    ks: Sequence[int] = (1, 10, 20),
    traversal: Bounds | Traversal | None = None,
    redirections: Mapping[str, Rule] | None = None,
    thresholds: Mapping[str, float] | None = None,
    aperture_scale: float = 1.0,
    min_radius: float = 0.1,
) -> EvaluationReport:
    """The report of one set of embeddings: all numbers of :class:`EvaluationReport`."""
    has_retrieval = any(embeddings.has(column.classes) for column in COLUMNS)
    queries = Queries(embeddings, traversal, redirections)
    return EvaluationReport(
        quadruplets=len(embeddings),
        curv=embeddings.curv,
        retrieval=recalls(queries, ks) if has_retrieval else {},
        tag_sizes={tag: len(rows) for tag, rows in tag_rows(embeddings).items()},
        per_tag=per_tag(embeddings, ks, traversal) if has_retrieval else {},
        safety=metrics_of(
            queries, thresholds=thresholds, aperture_scale=aperture_scale, min_radius=min_radius
        ),
    )


def evaluate(
    model: HySAC,
    loader: Iterable[dict[str, Any]],
    *,
    device: str | torch.device | None = None,
    progress: bool = True,
    **options: Any,
) -> EvaluationReport:
    """Encode ``loader`` with :func:`encode_dataset` and pass ``options`` to :func:`evaluate_embeddings`."""
    return evaluate_embeddings(encode_dataset(model, loader, device, progress), **options)
