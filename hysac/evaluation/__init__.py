"""Retrieval and safety of a model on quadruplets, and the report of both."""

from hysac.embeddings import Embeddings, encode_dataset
from hysac.evaluation.everything import evaluate, evaluate_embeddings
from hysac.evaluation.report import EvaluationReport
from hysac.evaluation.retrieval import (
    COLUMNS,
    Column,
    expected_recall,
    per_tag,
    rank_counts,
    retrieval_table,
)
from hysac.evaluation.separation import safety_metrics

__all__ = [
    "COLUMNS",
    "Column",
    "Embeddings",
    "EvaluationReport",
    "encode_dataset",
    "evaluate",
    "evaluate_embeddings",
    "expected_recall",
    "per_tag",
    "rank_counts",
    "retrieval_table",
    "safety_metrics",
]
