"""Results as pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.case import shape_name
from benchmarks.cases import CASES
from benchmarks.providers import BASELINE
from benchmarks.results import Record, Results
from benchmarks.style import digits, line_styles
from benchmarks.tables import by_case, comparisons, label, memory_of, time_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.0  # inches; shown at 900 pixels
OURS_COLOUR, BASELINE_COLOUR, SLOWER_COLOUR = "#0072B2", "#000000", "#D55E00"
MEBIBYTE = 2**20
# In the roofline: the size of a marker, and where its number may stand, the best place first. In typographic
# points.
MARKER = 7.0
PLACES = [
    distance * np.array(direction)
    for distance in (10.0, 18.0)
    for direction in ((1, 0), (-1, 0), (0, 1), (0, -1), (0.9, 0.9), (-0.9, -0.9), (0.9, -0.9), (-0.9, 0.9))
]


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
    with _figure(path, 5.6, columns=2) as (figure, (left, right)):
        _lines(left, results, records, lambda record: 1e3 * time_of(record))
        left.set_ylabel("time, forward and backward, ms")
        _lines(right, results, records, _memory_mebibytes)
        right.set_ylabel("peak memory, MiB")
        handles, names = left.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=9, handlelength=4)
        width = records[0]["shape"]["D"]
        figure.suptitle(f"{CASES[case].title}, D = {width}, {results.header['device']['name']}")


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
    _plain_ticks(axes)
    sizes = sorted({record["shape"]["B"] for record in records})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.minorticks_off()
    axes.set_xlabel("batch B, pairs")


def _plain_ticks(axes: Axes) -> None:
    """Numbers instead of powers of ten along y, more than one a decade where there is room."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 500 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.yaxis.minorticks_off()


def speed_ups(results: Results, path: Path) -> None:
    """hypkernels over eager PyTorch for every case, both in float32."""
    found = comparisons(results)
    names = [f"{CASES[ours['case']].title}\n{shape_name(ours['shape'])}" for ours, _ in found]
    factors = [time_of(baseline) / time_of(ours) for ours, baseline in found]
    low, high = min([*factors, 0.5]) / 2, max([*factors, 2]) * 2
    with _figure(path, 1.2 + 0.45 * len(found)) as (_, axes):
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        colours = [OURS_COLOUR if factor >= 1 else SLOWER_COLOUR for factor in factors]
        bars = axes.barh(names, [factor - 1 for factor in factors], left=1, color=colours, height=0.6)
        for bar, factor in zip(bars, factors, strict=True):
            axes.annotate(
                f"{digits(factor)} x",
                (factor, bar.get_y() + bar.get_height() / 2),
                (4 if factor >= 1 else -4, 0),
                textcoords="offset points",
                ha="left" if factor >= 1 else "right",
                va="center",
            )
        axes.axvline(1, color="black", linewidth=1)
        axes.invert_yaxis()
        ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= tick <= high]
        axes.set_xticks(ticks, [f"{tick:g} x" for tick in ticks])
        axes.minorticks_off()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("time of eager PyTorch / time of hypkernels, forward and backward, fp32")
        axes.set_title(f"Speed-up over eager PyTorch, {results.header['device']['name']}")


def roofline(results: Results, path: Path) -> None:
    """Operations per second against operations per byte, below the measured ceilings."""
    found = comparisons(results)
    with _figure(path, 5.0) as (figure, axes):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("operations per compulsory byte, FLOP/B")
        axes.set_ylabel("operations per second, GFLOP/s")
        axes.set_title(f"Roofline, forward and backward, {results.header['device']['name']}")
        _ceilings(axes, results.header["ceilings"], [_intensity(ours) for ours, _ in found])
        axes.plot([], [], "o", color=OURS_COLOUR, label="hypkernels, fp32")
        axes.plot([], [], "X", color=BASELINE_COLOUR, label=BASELINE.label)
        for index, (ours, _) in enumerate(found, start=1):
            axes.plot([], [], " ", label=f"{index}  {CASES[ours['case']].title}")
        figure.legend(loc="outside right center", fontsize=9)
        series = (
            ([baseline for _, baseline in found], BASELINE_COLOUR, "X"),
            ([ours for ours, _ in found], OURS_COLOUR, "o"),
        )
        for records, colour, marker in series:
            where = [*map(_intensity, records)], [*map(_rate, records)]
            axes.plot(*where, marker, color=colour, markersize=MARKER)
        figure.canvas.draw()  # from here on it is known where on the page a point is
        _name_the_slope(axes, results.header["ceilings"])
        _number(axes, series)


def _ceilings(axes: Axes, measured: Mapping[str, Any], intensities: Sequence[float]) -> None:
    bandwidth = measured["bytes_per_s"]
    start, end = min([*intensities, 0.3]) / 2, max([*intensities, 100]) * 3
    for (name, rate), style in zip(measured["flop_per_s"].items(), ("-", "--", ":"), strict=False):
        xs = [start, rate / bandwidth, max(end, rate / bandwidth)]
        ys = [min(rate, x * bandwidth) / 1e9 for x in xs]
        axes.plot(xs, ys, color="#7F7F7F", linestyle=style)
        axes.annotate(f"{name} products", (xs[-1], ys[-1]), ha="right", va="bottom", fontsize=9)


def _name_the_slope(axes: Axes, measured: Mapping[str, Any]) -> None:
    """Along the part of the roof that the bandwidth sets, halfway up."""
    bandwidth = measured["bytes_per_s"]
    ends = np.array([axes.get_xlim()[0], min(measured["flop_per_s"].values()) / bandwidth])
    middle = np.sqrt(ends.prod())
    run, rise = np.diff(axes.transData.transform(np.column_stack([ends, ends * bandwidth / 1e9])), axis=0)[0]
    axes.annotate(
        "copy bandwidth",
        (middle, middle * bandwidth / 1e9),
        (-5, 5),
        textcoords="offset points",
        rotation=np.degrees(np.arctan2(rise, run)),
        rotation_mode="anchor",
        ha="center",
        fontsize=9,
    )


def _number(axes: Axes, series: Sequence[tuple[list[Record], str, str]]) -> None:
    """The records' numbers beside their points, each at the first place that is free."""
    points = [(_intensity(record), _rate(record)) for records, *_ in series for record in records]
    positions = axes.transData.transform(points) * 72 / axes.figure.dpi  # in typographic points
    colours = [colour for records, colour, _ in series for _ in records]
    numbers = [str(index + 1) for records, *_ in series for index in range(len(records))]
    taken = [(position, np.full(2, MARKER)) for position in positions]
    for point, position, colour, number in zip(points, positions, colours, numbers, strict=True):
        size = np.array([6.0 * len(number), 9.0])
        free = (place for place in PLACES if not _covers(position + place, size, taken))
        place = next(free, PLACES[0])
        taken.append((position + place, size))
        axes.annotate(
            number,
            point,
            (float(place[0]), float(place[1])),
            textcoords="offset points",
            ha="center",
            va="center",
            color=colour,
            fontsize=9,
        )


def _covers(centre: np.ndarray, size: np.ndarray, taken: Sequence[tuple[np.ndarray, np.ndarray]]) -> bool:
    return any((abs(centre - other) < (size + other_size) / 2).all() for other, other_size in taken)


def _intensity(record: Record) -> float:
    return float(record["operations"]["both"] / record["bytes"]["both"])


def _rate(record: Record) -> float:
    return float(record["operations"]["both"] / time_of(record) / 1e9)
