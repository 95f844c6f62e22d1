"""Tables of numbers: as monospaced text, Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Table(NamedTuple):
    """A title, the names of the columns, empty where they have none, and the rows."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def percent(fraction: float) -> str:
    """A fraction in percent, with one decimal."""
    return f"{100 * fraction:.1f}"


def format_tables(tables: Sequence[Table], style: str = "text") -> str:
    """The tables one after another.

    Args:
        tables: any number.
        style: ``"text"`` for monospaced columns, ``"markdown"`` or ``"latex"``.

    Raises:
        ValueError: an unknown style.
    """
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}")
    return "\n\n".join(map(STYLES[style], tables))


def retention_table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """Results of :func:`hysac.evaluation.retention.compared`, one a row, in percent."""
    cells = [
        [
            name,
            percent(row["before"]),
            percent(row["after"]),
            f"{100 * row['difference']:+.1f}",
            f"{100 * row['difference_95'][0]:+.1f} to {100 * row['difference_95'][1]:+.1f}",
            "" if row["ratio"] is None else percent(row["ratio"]),
            "" if row["ratio_95"] is None else " to ".join(map(percent, row["ratio_95"])),
        ]
        for name, row in rows.items()
    ]
    header = ["", "start", "now", "difference", "95 % interval", "kept", "95 % interval"]
    return Table("Kept of the starting model, %", header, cells)


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
        return f"| {' | '.join(map(_markdown, row))} |"

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


def _markdown(cell: str) -> str:
    return re.sub(r"[*|]", r"\\\g<0>", cell)


_OF_LATEX = {
    **{"->": r"$\to$", " u ": r" $\cup$ ", "<": "$<$", ">": "$>$"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{sign: f"\\{sign}" for sign in "%_&#${}"},
}
_LATEX_SIGNS = re.compile("|".join(map(re.escape, sorted(_OF_LATEX, key=len, reverse=True))))


def _latex(cell: str) -> str:
    return _LATEX_SIGNS.sub(lambda found: _OF_LATEX[found.group()], cell)


STYLES: dict[str, Callable[[Table], str]] = {"text": _as_text, "markdown": _as_markdown, "latex": _as_latex}
"""The ways to write a table."""
