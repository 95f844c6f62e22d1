"""``python -m benchmarks.compare A B``: what became slower, larger or wrong from one run to the next."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.case import shape_name
from benchmarks.results import Record, Results
from benchmarks.style import mebibytes, milliseconds
from benchmarks.tables import markdown

THRESHOLD = 0.05
LEAST_BYTES = 2**20


class Change(NamedTuple):
    """``verdict`` is ``slower``, ``faster``, ``larger``, ``smaller``, ``broken``, ``mended`` or empty."""

    what: str
    before: str
    after: str
    ratio: float | None
    verdict: str


def changes(before: Results, after: Results, threshold: float = THRESHOLD) -> Iterator[Change]:
    """Of every case, shape and provider in both runs.

    A time has changed if the medians differ by more than ``threshold`` and the quartiles do not overlap, a
    peak of memory if it differs by more than ``threshold`` and by a mebibyte.
    """
    for old in before.records:
        new = after.find(old["case"], old["shape"], old["provider"])
        if new is None:
            continue
        name = f"{old['case']} {shape_name(old['shape'])}, {old['provider']}"
        if "ok" not in (old["status"], new["status"]):
            continue
        if old["status"] != new["status"]:
            verdict = "mended" if new["status"] == "ok" else "broken"
            yield Change(name, old["status"], new["status"], None, verdict)
            continue
        yield from _times(name, old, new, threshold)
        yield from _memory(name, old, new, threshold)


def _times(name: str, old: Record, new: Record, threshold: float) -> Iterator[Change]:
    for phase, was in old["seconds"].items():
        now = new["seconds"][phase]
        ratio = now["median"] / was["median"]
        verdict = ""
        if ratio > 1 + threshold and now["q1"] > was["q3"]:
            verdict = "slower"
        elif ratio < 1 - threshold and now["q3"] < was["q1"]:
            verdict = "faster"
        yield Change(
            f"{name}, {phase}, ms",
            milliseconds(was["median"]),
            milliseconds(now["median"]),
            ratio,
            verdict,
        )


def _memory(name: str, old: Record, new: Record, threshold: float) -> Iterator[Change]:
    was, now = old["peak_bytes"], new["peak_bytes"]
    if was is None or now is None:
        return
    verdict = ""
    if abs(now - was) > LEAST_BYTES:
        verdict = (
            "larger" if now > was * (1 + threshold) else "smaller" if now < was * (1 - threshold) else ""
        )
    yield Change(f"{name}, peak, MiB", mebibytes(was), mebibytes(now), now / was if was else None, verdict)


REGRESSIONS = ("slower", "larger", "broken")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the changes; the exit status is 1 if there is a regression."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="relative change that counts")
    parser.add_argument("--all", action="store_true", help="show what has not changed, too")
    options = parser.parse_args(arguments)
    try:
        before, after = Results.load(options.before), Results.load(options.after)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if before.header["device"]["slug"] != after.header["device"]["slug"]:
        print(f"note: {before.header['device']['name']} against {after.header['device']['name']}")
    found = list(changes(before, after, options.threshold))
    shown = [change for change in found if change.verdict or options.all]
    if shown:
        rows = [[c.what, c.before, c.after, f"{c.ratio:.2f}" if c.ratio else "", c.verdict] for c in shown]
        print(markdown(("what", "before", "after", "ratio", "verdict"), rows))
    regressions = sum(change.verdict in REGRESSIONS for change in found)
    print(f"{len(found)} compared, {len([c for c in found if c.verdict])} changed, {regressions} regressions")
    return 1 if regressions else 0


if __name__ == "__main__":
    raise SystemExit(main())
