"""Evaluation: retrieval, separation of safe from unsafe, what is kept of the starting CLIP; reports."""

from hysac.embeddings import Embeddings, encode_dataset
from hysac.evaluation.everything import evaluate, evaluate_embeddings
from hysac.evaluation.report import EvaluationReport
from hysac.evaluation.retention import compared, retrieval_retention
from hysac.evaluation.retrieval import (
    COLUMNS,
    Column,
    expected_recall,
    per_tag,
    rank_counts,
    retrieval_table,
)
from hysac.evaluation.separation import safety_metrics
from hysac.evaluation.unsafe_queries import PointSet, unsafe_query_report
from hysac.evaluation.zero_shot import class_prototypes, hits, zero_shot_report

__all__ = [
    "COLUMNS",
    "Column",
    "Embeddings",
    "EvaluationReport",
    "PointSet",
    "class_prototypes",
    "compared",
    "encode_dataset",
    "evaluate",
    "evaluate_embeddings",
    "expected_recall",
    "hits",
    "per_tag",
    "rank_counts",
    "retrieval_retention",
    "retrieval_table",
    "safety_metrics",
    "unsafe_query_report",
    "zero_shot_report",
]
