"""The columns in which public sets of safe and unsafe prompts are published, and what they hold."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hysac.data.formats import Row


@dataclass(frozen=True)
class Layout:
    """The columns of one set, or of several that share them.

    Attributes:
        name: of the set.
        unsafe, safe: the columns with unsafe and with safe prompts; the first of ``unsafe`` must be there.
        category: the column that says what is unsafe; the column's own name is the category where there is
            none and the set has several columns of unsafe prompts.
        marks: further columns that tell this layout from others.
        values: by column what its cells may be, where the columns' names alone say too little.
        is_paired: whether the safe and the unsafe prompt of a row are counterparts.
    """

    name: str
    unsafe: tuple[str, ...]
    safe: tuple[str, ...] = ()
    category: str | None = None
    marks: tuple[str, ...] = ()
    values: Mapping[str, frozenset[str]] = field(default_factory=dict)
    is_paired: bool = False

    @property
    def required(self) -> tuple[str, ...]:
        """The columns that a file of this layout has."""
        return (self.unsafe[0], *(self.safe if self.is_paired else ()), *self.marks, *self.values)

    def fits(self, rows: Sequence[Row], columns: Collection[str]) -> bool:
        """Whether rows with these columns are of this layout."""
        return set(self.required) <= set(columns) and all(
            row.fault is not None or str(row.fields.get(column)) in allowed
            for column, allowed in self.values.items()
            for row in rows
        )

    def prompts(self, row: Row) -> Iterator[Prompt]:
        """The prompts of a row; cells that are empty or absent hold none.

        Raises:
            ValueError: a cell that is no text, or a row without any prompt.
        """
        found = False
        for is_unsafe, columns in ((True, self.unsafe), (False, self.safe)):
            for column in columns:
                text = _text(row, column)
                if text.strip():
                    found = True
                    yield Prompt(column, text, is_unsafe, self._category(row, column) if is_unsafe else "")
        if not found:
            raise ValueError(f"has no prompt in {', '.join((*self.unsafe, *self.safe))}")

    def _category(self, row: Row, column: str) -> str:
        if self.category is not None:
            return _text(row, self.category)
        return column if len(self.unsafe) > 1 else ""


@dataclass(frozen=True)
class Prompt:
    """A prompt, the column it is from, its label, and the category of what is unsafe, or ""."""

    column: str
    text: str
    is_unsafe: bool
    category: str


_COPRO_V2 = frozenset(
    {"Hate", "sexual", "Violence", "Shocking", "Illegal Activity", "Harrasment", "self-harm"}
)

LAYOUTS = (
    Layout("I2P", ("prompt",), category="categories", marks=("categories", "inappropriate_percentage")),
    Layout("CoPro", ("unsafe_prompt",), ("safe_prompt",), category="concept", is_paired=True),
    Layout("CoProV2", ("prompt",), category="category", values={"category": _COPRO_V2}, marks=("image",)),
    Layout(
        "MMA-Diffusion",
        ("target_prompt", "adv_prompt", "sanitized_adv_prompt"),
        ("clean_prompt",),
        marks=("adv_prompt",),
    ),
    Layout("HyPE, pairs", ("NSFW prompts",), ("SFW prompts",), is_paired=True),
    Layout("HyPE, ViSU translated", ("NSFW",), ("SFW",), is_paired=True),
    Layout(
        "HarmBench",
        ("Behavior",),
        category="SemanticCategory",
        marks=("FunctionalCategory", "SemanticCategory"),
    ),
)
"""Every layout that is recognised, in the order in which they are tried.

The columns were read off the published files, or off their authors' own loaders. ViSU's are those of
:func:`hysac.data.load_manifest`. Of HarmBench the behaviours are read without their contexts.
"""


def layout_of(rows: Sequence[Row]) -> Layout | None:
    """The layout of a file's rows, or None for a file of no known set."""
    columns = next((row.fields.keys() for row in rows if row.fault is None), {}.keys())
    return next((layout for layout in LAYOUTS if layout.fits(rows, columns)), None)


def known_layouts() -> str:
    """The names of all layouts with the columns they are recognised by."""
    return "; ".join(f"{layout.name} ({', '.join(dict.fromkeys(layout.required))})" for layout in LAYOUTS)


def _text(row: Row, column: str) -> str:
    value: Any = row.fields.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"column {column!r} must be text, got {type(value).__name__} {value!r}"[:200])
    return value
