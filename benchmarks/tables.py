"""Results as Markdown tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.case import shape_name
from benchmarks.cases import CASES
from benchmarks.growth import fit
from benchmarks.providers import BASELINE, COMPILED
from benchmarks.results import Record, Results
from benchmarks.style import digits, mebibytes, milliseconds, percent

TEXT = ("provider", "forward and backward", "size", "ceiling", "what", "verdict", "what it computes")
BEST_OURS = ("hypkernels-triton-fp32", "hypkernels-native-fp32", "hypkernels-torch-fp32")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; columns of numbers are aligned to the right."""
    rules = ["---" if name in TEXT else "---:" for name in head]
    lines = [head, rules, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def by_case(results: Results) -> dict[str, list[Record]]:
    """The records of each case, in the registry's order."""
    found: dict[str, list[Record]] = {}
    for name in CASES:
        records = [record for record in results.records if record["case"] == name]
        if records:
            found[name] = records
    return found


def largest(records: Sequence[Record]) -> list[Record]:
    """Those of the largest batch that the baseline, if it is there at all, could do."""
    done = [record for record in records if record["status"] == "ok"]
    of_baseline = [record for record in done if record["provider"] == BASELINE.name]
    rows = max((record["shape"]["B"] for record in of_baseline or done or records), default=0)
    return [record for record in records if record["shape"]["B"] == rows]


def fullest(results: Results, records: Sequence[Record]) -> list[Record]:
    """Those of the batch that most of the others' providers could do; of equals, the largest."""
    others = {name for name, provider in results.header["providers"].items() if not provider["ours"]}
    done = [record for record in records if record["status"] == "ok" and record["provider"] in others]
    counts = Counter(record["shape"]["B"] for record in done or records)
    rows = max(counts, key=lambda size: (counts[size], size))
    return [record for record in records if record["shape"]["B"] == rows]


def ours_and_baseline(records: Sequence[Record]) -> tuple[Record, Record] | None:
    """hypkernels, with kernels if they ran, and eager PyTorch, both in float32; None if one is missing."""
    done = _by_provider(records)
    ours = next((done[name] for name in BEST_OURS if name in done), None)
    baseline = done.get(BASELINE.name)
    return None if ours is None or baseline is None else (ours, baseline)


def _by_provider(records: Sequence[Record]) -> dict[str, Record]:
    return {record["provider"]: record for record in records if record["status"] == "ok"}


def comparisons(results: Results) -> list[tuple[Record, Record]]:
    """hypkernels and eager PyTorch for each case that has both, at its largest common size."""
    pairs = [ours_and_baseline(largest(records)) for records in by_case(results).values()]
    return [pair for pair in pairs if pair is not None]


def label(results: Results, record: Record) -> str:
    return str(results.header["providers"][record["provider"]]["label"])


def detail_table(results: Results, records: Sequence[Record]) -> str:
    """All providers of one case at one shape."""
    baseline = _by_provider(records).get(BASELINE.name)
    head = (
        "provider",
        "forward, ms",
        "backward, ms",
        "both, ms",
        "quartiles, ms",
        "speed-up",
        "peak, MiB",
        "roofline, %",
        "error",
        "what it computes",
    )
    return markdown(head, [_detail_row(results, record, baseline) for record in records])


def _detail_row(results: Results, record: Record, baseline: Record | None) -> list[str]:
    note = results.header["providers"][record["provider"]]["note"]
    if record["status"] != "ok":
        detail = record.get("detail", "")
        said = f"**{record['status']}**" + (f": {detail}" if detail else "")
        return [label(results, record), said, *[""] * 7, note]
    both = record["seconds"]["both"]
    speed_up = "" if baseline is None else digits(baseline["seconds"]["both"]["median"] / both["median"])
    return [
        label(results, record),
        *(milliseconds(record["seconds"][phase]["median"]) for phase in ("forward", "backward", "both")),
        f"{milliseconds(both['q1'])} to {milliseconds(both['q3'])}",
        speed_up,
        mebibytes(record["peak_bytes"]),
        percent(record["roofline"]["both"]),
        f"{record['error']:.1g}",
        note,
    ]


def growth_table(
    results: Results,
    records: Sequence[Record],
    quantity: Callable[[Record], float | None],
    show: Callable[[float], str],
) -> str | None:
    """A quantity by batch, with the exponent of its growth; None for a case of a single size.

    Args:
        results: the run.
        records: of one case.
        quantity: of a record that is ``ok``.
        show: formats it.
    """
    sizes = sorted({record["shape"]["B"] for record in records})
    if len(sizes) < 2:
        return None
    rows = []
    for provider in dict.fromkeys(record["provider"] for record in records):
        own = {record["shape"]["B"]: record for record in records if record["provider"] == provider}
        values = {size: quantity(record) for size, record in own.items() if record["status"] == "ok"}
        known = {size: value for size, value in values.items() if value is not None}
        growth = fit(known)
        rows.append(
            [
                label(results, next(iter(own.values()))),
                *(_growth_cell(own.get(size), known.get(size), show) for size in sizes),
                "" if growth is None else f"{growth.exponent:.2f} ± {growth.error:.2f}",
            ]
        )
    return markdown(["provider", *(f"B = {size:,}" for size in sizes), "exponent"], rows)


def _growth_cell(record: Record | None, value: float | None, show: Callable[[float], str]) -> str:
    if record is not None and record["status"] != "ok":
        return str(record["status"])
    return "" if value is None else show(value)


def time_of(record: Record) -> float:
    return float(record["seconds"]["both"]["median"])


def memory_of(record: Record) -> float | None:
    peak: int | None = record["peak_bytes"]
    return peak


def summary_table(results: Results) -> str:
    """hypkernels beside eager and compiled PyTorch, in float32, at each case's largest common size."""
    rows = []
    for ours, baseline in comparisons(results):
        compiled = results.find(ours["case"], ours["shape"], COMPILED.name)
        rows.append(
            [
                CASES[ours["case"]].title,
                shape_name(ours["shape"]),
                milliseconds(time_of(baseline)),
                milliseconds(time_of(compiled)) if compiled and compiled["status"] == "ok" else "",
                milliseconds(time_of(ours)),
                digits(time_of(baseline) / time_of(ours)),
                mebibytes(memory_of(baseline)),
                mebibytes(memory_of(ours)),
                f"{baseline['error']:.0e}",
                f"{ours['error']:.0e}",
            ]
        )
    head = (
        "forward and backward",
        "size",
        "eager, ms",
        "torch.compile, ms",
        "hypkernels, ms",
        "speed-up over eager",
        "eager, MiB",
        "hypkernels, MiB",
        "eager, error",
        "hypkernels, error",
    )
    return markdown(head, rows)


def ceilings_table(results: Results) -> str:
    measured: dict[str, Any] = results.header["ceilings"]
    rows = [["copy, read and written", f"{measured['bytes_per_s'] / 1e9:,.0f} GB/s"]]
    rows += [
        [f"matrix product, {name}", f"{rate / 1e12:,.2f} TFLOP/s"]
        for name, rate in measured["flop_per_s"].items()
    ]
    return markdown(("ceiling", "measured"), rows)
