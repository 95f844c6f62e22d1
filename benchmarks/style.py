"""How numbers and providers look in tables and plots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The palette of Okabe and Ito, which colour-blind readers can tell apart, without its yellow: too pale for
# a line on white. Ours are solid, the others dashed or dotted, and each has its own marker.
_OURS = ("#0072B2", "#56B4E9", "#CC79A7", "#009E73", "#E69F00", "#D55E00", "#7F7F7F")
_OTHERS = ("#000000", "#D55E00", "#009E73", "#E69F00", "#7F7F7F", "#56B4E9", "#CC79A7", "#0072B2")
_MARKERS = "osD^vP*"
_OTHER_MARKERS = "Xhdp*<>8"
_OTHER_DASHES = ("--", ":")


def line_styles(providers: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Colour, marker and dash of each provider, the same in every plot."""
    styles = {}
    for ours, colours, markers, dashes in (
        (True, _OURS, _MARKERS, ("-",)),
        (False, _OTHERS, _OTHER_MARKERS, _OTHER_DASHES),
    ):
        names = [name for name, provider in providers.items() if provider["ours"] == ours]
        for index, name in enumerate(names):
            turn = index // len(colours)
            styles[name] = {
                "color": colours[index % len(colours)],
                "marker": markers[(index + 3 * turn) % len(markers)],
                "linestyle": dashes[turn % len(dashes)],
            }
    return styles


def by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """The names that share a reason."""
    return {
        reason: [name for name, own in reasons.items() if own == reason]
        for reason in dict.fromkeys(reasons.values())
    }


def digits(value: float) -> str:
    """Three significant digits without an exponent."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def milliseconds(seconds: float) -> str:
    return digits(seconds * 1e3)


def mebibytes(count: float | None) -> str:
    return "" if count is None else "< 0.1" if count < 0.1 * 2**20 else digits(count / 2**20)


def percent(share: float) -> str:
    return f"{100 * share:.0f}" if share >= 0.1 else f"{100 * share:#.2g}".rstrip(".")
