"""The report of an evaluation, as data and as monospaced tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

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
        made_with: by what model, data and settings; empty where it was not told.
    """

    quadruplets: int
    curv: float
    retrieval: dict[str, dict[str, float]]
    tag_sizes: dict[str, int]
    per_tag: dict[str, dict[str, dict[str, float]]]
    safety: dict[str, Any]
    made_with: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, strings and numbers, ready for JSON."""
        return asdict(self)

    def format_tables(self, style: str = "text") -> str:
        """The report as tables; recalls and rates in percent.

        Args:
            style: ``"text"`` for monospaced columns, ``"markdown"`` or ``"latex"``.
        """
        if style not in STYLES:
            raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}")
        told = f"{self.quadruplets} quadruplets, curvature {self.curv:.4g}"
        tables = [*_retrieval_tables(self), *_safety_tables(self.safety)]
        return "\n\n".join([told, *(STYLES[style](table) for table in tables)])


class Table(NamedTuple):
    """A title, the names of the columns, empty where they have none, and the rows."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def _retrieval_tables(report: EvaluationReport) -> Iterator[Table]:
    if not report.retrieval:
        yield Table("Retrieval is not defined without both texts and images.", [], [])
        return
    cut_offs = list(next(iter(report.retrieval.values())))
    rows = [
        [name, *(_percent(recalls[cut_off]) for cut_off in cut_offs)]
        for name, recalls in report.retrieval.items()
    ]
    yield Table("Retrieval, %", ["", *cut_offs], rows)
    if report.per_tag:
        first_tag = next(iter(report.per_tag.values()))
        tasks = [name for name in first_tag if name.startswith(("T*->I u I*", "I*->T u T*"))]
        first = cut_offs[0]
        rows = [
            [tag, str(report.tag_sizes[tag]), *(_percent(table[task][first]) for task in tasks)]
            for tag, table in report.per_tag.items()
        ]
        yield Table(f"{first} per tag, %", ["", "quadruplets", *tasks], rows)


def _safety_tables(safety: Mapping[str, Any]) -> Iterator[Table]:
    if safety["classification"]:
        rows = [
            [
                modality,
                *(_percent(rates[name]) for name in ("auc", "accuracy", "fpr", "fnr")),
                *map(_percent, rates["fnr_at_fpr"].values()),
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
    rows = [[what, name, _percent(share)] for what, group in shares.items() for name, share in group.items()]
    if rows:
        yield Table("Shares, %", ["", "", ""], rows)
    if safety.get("hierarchy"):
        rows = [
            [pair, *(_percent(row[name]) for name in ("auc", "ap"))]
            for pair, row in safety["hierarchy"].items()
        ]
        yield Table("Own point of a cone among others', %", ["", "AUC", "AP"], rows)
    if safety.get("cones"):
        by_scale = safety["cones_by_scale"]
        rows = [[pair, *(_percent(shares[pair]) for shares in by_scale.values())] for pair in safety["cones"]]
        yield Table("Inside the cone, by aperture scale, %", ["", *by_scale], rows)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _as_text(table: Table) -> str:
    """First column left-aligned, the others right-aligned; a header without names is not printed."""
    if not table.rows:
        return table.title
    cells = [table.header, *table.rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(table.header))]

    def line(row: Sequence[str]) -> str:
        others = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        return "  ".join([row[0].ljust(widths[0]), *others]).rstrip()

    header = [line(table.header)] if any(table.header) else []
    return "\n".join([table.title, *header, *map(line, table.rows)])


def _as_markdown(table: Table) -> str:
    title = f"**{table.title}**"
    if not table.rows:
        return title

    def line(row: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('*', chr(92) + '*') for cell in row)} |"

    rule = f"|---|{'---:|' * (len(table.header) - 1)}"
    return "\n".join([title, "", line(table.header), rule, *map(line, table.rows)])


def _as_latex(table: Table) -> str:
    if not table.rows:
        return f"% {table.title}"

    def line(row: Sequence[str]) -> str:
        return " & ".join(map(_latex, row)) + r" \\"

    header = [line(table.header), r"\midrule"] if any(table.header) else []
    return "\n".join(
        [
            f"% {table.title}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            r"\toprule",
            *header,
            *map(line, table.rows),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


_OF_LATEX = {"%": r"\%", "_": r"\_", "->": r"$\to$", " u ": r" $\cup$ ", "<": "$<$", ">": "$>$"}


_OF_LATEX = {"%": r"\%", "_": r"\_", "->": r"$\to$", " u ": r" $\cup$ ", "<": "$<$", ">": "$>$"}


def _latex(cell: str) -> str:
    for plain, escaped in _OF_LATEX.items():
        cell = cell.replace(plain, escaped)
    return cell


STYLES: dict[str, Callable[[Table], str]] = {"text": _as_text, "markdown": _as_markdown, "latex": _as_latex}
