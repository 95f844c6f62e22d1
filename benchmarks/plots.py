"""Results as pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.case import shape_name
from benchmarks.cases import CASES
from benchmarks.providers import BASELINE
from benchmarks.results import Record, Results
from benchmarks.style import digits, line_styles
from benchmarks.tables import by_case, label, largest, memory_of, ours_and_baseline, time_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.0  # inches; shown at 900 pixels
OURS_COLOUR, BASELINE_COLOUR = "#0072B2", "#000000"
MEBIBYTE = 2**20


@contextmanager
def _figure(path: Path, height: float, columns: int = 1) -> Iterator[tuple[Figure, Any]]:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("the plots need matplotlib: pip install hysac[bench]") from error
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#DDDDDD",
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.6,
        "lines.markersize": 5,
        "legend.frameon": False,
        "svg.hashsalt": "benchmarks",
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(1, columns)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, metadata={"Software": None})


def growth(results: Results, case: str, path: Path) -> None:
    """Time and memory of a case against the batch."""
    records = by_case(results)[case]
    with _figure(path, 4.6, columns=2) as (figure, (left, right)):
        _lines(left, results, records, lambda record: 1e3 * time_of(record))
        left.set_ylabel("time, forward and backward, ms")
        _lines(right, results, records, _memory_mebibytes)
        right.set_ylabel("peak memory beyond inputs and gradients, MiB")
        handles, names = left.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=9)
        figure.suptitle(
            f"{CASES[case].title}, D = {records[0]['shape']['D']}, {results.header['device']['name']}"
        )


def _memory_mebibytes(record: Record) -> float | None:
    peak = memory_of(record)
    return peak / MEBIBYTE if peak else None


def _lines(
    axes: Axes, results: Results, records: list[Record], quantity: Callable[[Record], float | None]
) -> None:
    styles = line_styles(results.header["providers"])
    for provider in dict.fromkeys(record["provider"] for record in records):
        done = [r for r in records if r["provider"] == provider and r["status"] == "ok"]
        points = sorted((r["shape"]["B"], quantity(r)) for r in done if quantity(r) is not None)
        if points:
            axes.plot(*zip(*points, strict=True), label=label(results, done[0]), **styles[provider])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    sizes = sorted({record["shape"]["B"] for record in records})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("batch B, pairs")


def speed_ups(results: Results, path: Path) -> None:
    """hypkernels over eager PyTorch for every case, both in float32."""
    pairs = [ours_and_baseline(largest(records)) for records in by_case(results).values()]
    found = [pair for pair in pairs if pair is not None]
    names = [f"{CASES[ours['case']].title}\n{shape_name(ours['shape'])}" for ours, _ in found]
    factors = [time_of(baseline) / time_of(ours) for ours, baseline in found]
    with _figure(path, 1.2 + 0.45 * len(found)) as (figure, axes):
        bars = axes.barh(names, factors, color=OURS_COLOUR, height=0.6)
        axes.bar_label(bars, [f" {digits(factor)} x" for factor in factors])
        axes.axvline(1, color="black", linewidth=1)
        axes.invert_yaxis()
        axes.set_xscale("log")
        low, high = min([*factors, 0.5]), max([*factors, 2])
        axes.set_xlim(low / 1.3, high * 1.5)
        ticks = [
            tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low / 1.3 <= tick <= high * 1.5
        ]
        axes.set_xticks(ticks, [f"{tick:g} x" for tick in ticks])
        axes.minorticks_off()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("time of eager PyTorch / time of hypkernels, forward and backward, fp32")
        figure.suptitle(f"Speed-up over eager PyTorch, {results.header['device']['name']}")


def roofline(results: Results, path: Path) -> None:
    """Operations per second against operations per byte, below the measured ceilings."""
    measured = results.header["ceilings"]
    pairs = [ours_and_baseline(largest(records)) for records in by_case(results).values()]
    found = [pair for pair in pairs if pair is not None]
    with _figure(path, 5.4) as (figure, axes):
        intensities = [_intensity(ours) for ours, _ in found] or [1.0]
        reach = (min([*intensities, 0.3]) / 2, max([*intensities, 100]) * 3)
        for (name, rate), style in zip(measured["flop_per_s"].items(), ("-", "--", ":"), strict=False):
            ridge = rate / measured["bytes_per_s"]
            xs = [reach[0], ridge, max(reach[1], ridge)]
            axes.plot(
                xs, [min(rate, x * measured["bytes_per_s"]) / 1e9 for x in xs], "#7F7F7F", linestyle=style
            )
            axes.annotate(f"{name} products", (xs[-1], rate / 1e9), ha="right", va="bottom", fontsize=9)
        for index, (ours, baseline) in enumerate(found, start=1):
            for record, colour, marker in ((ours, OURS_COLOUR, "o"), (baseline, BASELINE_COLOUR, "X")):
                axes.plot(_intensity(record), _rate(record), marker, color=colour, markersize=7)
            axes.annotate(
                str(index), (_intensity(ours), _rate(ours)), (6, 4), textcoords="offset points", fontsize=9
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("operations per compulsory byte, FLOP/B")
        axes.set_ylabel("operations per second, GFLOP/s")
        axes.plot([], [], "o", color=OURS_COLOUR, label="hypkernels, fp32")
        axes.plot([], [], "X", color=BASELINE_COLOUR, label=BASELINE.label)
        for index, (ours, _) in enumerate(found, start=1):
            axes.plot([], [], " ", label=f"{index}  {CASES[ours['case']].title}")
        figure.legend(loc="outside right upper", fontsize=9)
        figure.suptitle(f"Roofline, forward and backward, {results.header['device']['name']}")


def _intensity(record: Record) -> float:
    return float(record["operations"]["both"] / record["bytes"]["both"])


def _rate(record: Record) -> float:
    return float(record["operations"]["both"] / time_of(record) / 1e9)
