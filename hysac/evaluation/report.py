"""The report of an evaluation, as data and as monospaced tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hysac.evaluation.tables import Table, format_tables, percent, retention_table

SYMBOLS = {"S": "T", "V": "I", "U": "T*", "G": "I*"}
"""The classes as the paper's tables print them."""


@dataclass(frozen=True)
class EvaluationReport:
    """All numbers of one evaluation: shares in [0, 1], distances as geodesic lengths.

    Attributes:
        quadruplets: how many were evaluated.
        curv: positive ``c`` of the model.
        retrieval: :func:`hysac.evaluation.retrieval_table`; empty for text-only data.
        tag_sizes: quadruplets per tag.
        per_tag: :func:`hysac.evaluation.per_tag`.
        safety: :func:`hysac.evaluation.safety_metrics`.
        made_with: the model, data and settings of the evaluation; empty where the caller gave none.
        retention: ``start``, the CLIP that the model was trained from, and ``recalls``, the share of its
            recalls that the model keeps, see :func:`hysac.evaluation.retention.retrieval_retention`;
            empty where none was compared.
    """

    quadruplets: int
    curv: float
    retrieval: dict[str, dict[str, float]]
    tag_sizes: dict[str, int]
    per_tag: dict[str, dict[str, dict[str, float]]]
    safety: dict[str, Any]
    made_with: dict[str, Any] = field(default_factory=dict)
    retention: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, strings and numbers, ready for JSON."""
        return asdict(self)

    def format_tables(self, style: str = "text") -> str:
        """The report as tables; recalls and rates in percent.

        Args:
            style: ``"text"`` for monospaced columns, ``"markdown"`` or ``"latex"``.
        """
        told = f"{self.quadruplets} quadruplets, curvature {self.curv:.4g}"
        tables = [*_retrieval_tables(self), *_safety_tables(self.safety)]
        if self.retention:
            tables.append(retention_table(self.retention["recalls"]))
        return f"{told}\n\n{format_tables(tables, style)}"


def _retrieval_tables(report: EvaluationReport) -> Iterator[Table]:
    if not report.retrieval:
        yield Table("Retrieval is not defined without both texts and images.", [], [])
        return
    cut_offs = list(next(iter(report.retrieval.values())))
    rows = [
        [name, *(percent(recalls[cut_off]) for cut_off in cut_offs)]
        for name, recalls in report.retrieval.items()
    ]
    yield Table("Retrieval, %", ["", *cut_offs], rows)
    if report.per_tag:
        first_tag = next(iter(report.per_tag.values()))
        tasks = [name for name in first_tag if name.startswith(("T*->I u I*", "I*->T u T*"))]
        first = cut_offs[0]
        rows = [
            [tag, str(report.tag_sizes[tag]), *(percent(table[task][first]) for task in tasks)]
            for tag, table in report.per_tag.items()
        ]
        yield Table(f"{first} per tag, %", ["", "quadruplets", *tasks], rows)


def _safety_tables(safety: Mapping[str, Any]) -> Iterator[Table]:
    if safety["classification"]:
        rows = [
            [
                modality,
                *(percent(rates[name]) for name in ("auc", "accuracy", "fpr", "fnr")),
                *map(percent, rates["fnr_at_fpr"].values()),
                f"{rates['threshold']:.4f}" + (" (calibrated here)" if rates["calibrated_here"] else ""),
            ]
            for modality, rates in safety["classification"].items()
        ]
        header = ["", "AUC", "accuracy", "FPR", "FNR", "FNR at 1 % FPR", "at 0.1 %", "threshold"]
        yield Table("Unsafe by distance to the origin, %", header, rows)
    statistics = ["mean", "p05", "p50", "p95"]
    rows = [
        [SYMBOLS[letter], *(f"{summary[name]:.4f}" for name in statistics)]
        for letter, summary in safety["distance"].items()
    ]
    yield Table("Distance to the origin", ["", *statistics], rows)
    shares = {
        "order": safety["order"],
        "inside the cone": safety["cones"],
        "cone is a half-space": safety["aperture_saturation"],
        "unsafe query, nearest is safe": safety["safe_top1"],
        "the same, traversed": safety.get("safe_top1_traversed", {}),
        **{f"the same, {name}": shares for name, shares in safety.get("safe_top1_redirected", {}).items()},
    }
    rows = [[what, name, percent(share)] for what, group in shares.items() for name, share in group.items()]
    if rows:
        yield Table("Shares, %", ["", "", ""], rows)
    if safety.get("hierarchy"):
        rows = [
            [pair, *(percent(row[name]) for name in ("auc", "ap"))]
            for pair, row in safety["hierarchy"].items()
        ]
        yield Table("Own point of a cone among others', %", ["", "AUC", "AP"], rows)
    if safety.get("cones"):
        by_scale = safety["cones_by_scale"]
        rows = [[pair, *(percent(shares[pair]) for shares in by_scale.values())] for pair in safety["cones"]]
        yield Table("Inside the cone, by aperture scale, %", ["", *by_scale], rows)
