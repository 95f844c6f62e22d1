"""The report of an evaluation, as data and as monospaced tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

SYMBOLS = {"S": "T", "V": "I", "U": "T*", "G": "I*"}
"""The classes as the paper's tables print them."""


@dataclass(frozen=True)
class EvaluationReport:
    """All numbers of one evaluation; fractions are in [0, 1], distances geodesic lengths.

    Attributes:
        quadruplets: how many were evaluated.
        curv: positive ``c`` of the model.
        retrieval: :func:`hysac.evaluation.retrieval_table`; empty for text-only data.
        tag_sizes: quadruplets per tag.
        per_tag: :func:`hysac.evaluation.per_tag`.
        safety: :func:`hysac.evaluation.safety_metrics`.
    """

    quadruplets: int
    curv: float
    retrieval: dict[str, dict[str, float]]
    tag_sizes: dict[str, int]
    per_tag: dict[str, dict[str, dict[str, float]]]
    safety: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, strings and numbers, ready for JSON."""
        return asdict(self)

    def format_tables(self) -> str:
        """The report as monospaced tables; recalls and rates in percent."""
        header = f"{self.quadruplets} quadruplets, curvature {self.curv:.4g}"
        return "\n\n".join([header, *_retrieval_tables(self), *_safety_tables(self.safety)])


def _retrieval_tables(report: EvaluationReport) -> Iterator[str]:
    if not report.retrieval:
        yield "Retrieval is not defined without both texts and images."
        return
    cut_offs = list(next(iter(report.retrieval.values())))
    rows = [
        [name, *(_percent(recalls[cut_off]) for cut_off in cut_offs)]
        for name, recalls in report.retrieval.items()
    ]
    yield _table("Retrieval, %", ["", *cut_offs], rows)
    if report.per_tag:
        tasks = [name for name in report.retrieval if name.startswith(("T*->I u I*", "I*->T u T*"))]
        first = cut_offs[0]
        rows = [
            [tag, str(report.tag_sizes[tag]), *(_percent(table[task][first]) for task in tasks)]
            for tag, table in report.per_tag.items()
        ]
        yield _table(f"{first} per tag, %", ["", "quadruplets", *tasks], rows)


def _safety_tables(safety: Mapping[str, Any]) -> Iterator[str]:
    if safety["classification"]:
        rows = [
            [
                modality,
                *(_percent(rates[name]) for name in ("auc", "accuracy", "fpr", "fnr")),
                f"{rates['threshold']:.4f}" + (" (calibrated here)" if rates["calibrated_here"] else ""),
            ]
            for modality, rates in safety["classification"].items()
        ]
        yield _table(
            "Unsafe by distance to the origin, %", ["", "AUC", "accuracy", "FPR", "FNR", "threshold"], rows
        )
    statistics = ["mean", "p05", "p50", "p95"]
    rows = [
        [SYMBOLS[letter], *(f"{summary[name]:.4f}" for name in statistics)]
        for letter, summary in safety["distance"].items()
    ]
    yield _table("Distance to the origin", ["", *statistics], rows)
    shares = {
        "order": safety["order"],
        "inside the cone": safety["cones"],
        "cone is a half-space": safety["aperture_saturation"],
        "unsafe query, nearest is safe": safety["safe_top1"],
        "the same, traversed": safety.get("safe_top1_traversed", {}),
    }
    rows = [[what, name, _percent(share)] for what, group in shares.items() for name, share in group.items()]
    if rows:
        yield _table("Shares, %", ["", "", ""], rows)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """First column left-aligned, the others right-aligned; a header without names is not printed."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cells[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)),
        ]
        return "  ".join(aligned).rstrip()

    return "\n".join([title, *([line(header)] if any(header) else []), *(line(row) for row in rows)])
