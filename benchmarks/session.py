"""A run of the benchmarks: which groups there are, what has been measured, where it is written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.case import Case, Shape
from benchmarks.cases import CASES
from benchmarks.measure import Measurement, measure
from benchmarks.memory import Child
from benchmarks.providers import PROVIDERS, Provider
from benchmarks.results import FOLDER, Results, open_run
from benchmarks.roofline import ceilings
from benchmarks.sampling import Plan

PLANS = {
    "small": Plan(most=50, seconds=0.5, slowest=4.0),
    "medium": Plan(most=100, seconds=3.0, slowest=20.0),
    "large": Plan(most=100, seconds=1.0, slowest=0.6),
}
# Seconds after which no group is begun: small runs are to be over in five minutes, and the last one is long.
TIME_LIMITS = {"small": 250.0}

# What decides on kernels and tiles, before the time is up. The others follow in the registry's order.
FIRST = {"large": ("contrastive_dist", "hysac_block")}


def obstacles(device: torch.device) -> dict[str, str]:
    """The providers and cases that cannot run on ``device``, and why."""
    found = {provider.name: provider.obstacle(device) for provider in PROVIDERS.values()}
    found |= {case.name: case.obstacle() for case in CASES.values()}
    return {name: reason for name, reason in found.items() if reason is not None}


def groups(size: str, device: torch.device) -> Iterator[tuple[Case, Shape, list[Provider]]]:
    """Every case that can run here, at every shape of ``size``, and who can compute it; headlines last."""
    missing = obstacles(device)
    present = [provider for provider in PROVIDERS.values() if provider.name not in missing]
    headline = [provider for provider in present if provider.headline]
    cases = [case for case in CASES.values() if case.name not in missing]
    cases.sort(key=lambda case: case.name not in FIRST.get(size, ()))
    shapes = [(case, shape, present) for case in cases for shape in case.shapes[size]]
    shapes += [(case, shape, headline) for case in cases for shape in case.headline.get(size, ())]
    for case, shape, providers in shapes:
        yield case, shape, [provider for provider in providers if provider.supports(case.name, shape)]


class Session:
    """Measures each group once, at its first use, and writes it down.

    Args:
        size: a key of :data:`PLANS`.
        device: where to run.
        folder: for the results.
        time_limit: seconds after which no group is begun; by default that of the size in :data:`TIME_LIMITS`.
        memory: whether to take the peak memory on a CPU, which runs everything again in a child process.
        commit: what to record where there is no git repository.
    """

    def __init__(
        self,
        size: str,
        device: torch.device,
        folder: Path = FOLDER,
        time_limit: float | None = None,
        memory: bool = True,
        commit: str | None = None,
    ) -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self._began = time.monotonic()
        self._device = device
        self._plan = PLANS[size]
        self._time_limit = TIME_LIMITS.get(size, float("inf")) if time_limit is None else time_limit
        self._child = Child() if memory and device.type == "cpu" else None
        self._measured: dict[tuple[object, ...], Measurement] = {}
        self._broken: dict[tuple[object, ...], Exception] = {}
        self.cut_short = False
        self.results = self._open(size, folder, commit)

    def measurement(self, case: Case, shape: Shape, providers: list[Provider]) -> Measurement | None:
        """Of a group; None when the time is up.

        Providers that an interrupted run has measured come without their samples. An error that ends a
        group's measurement is raised for each of its tests, and the measurement is not repeated.
        """
        key = case.name, *shape.items()
        if key in self._broken:
            raise self._broken[key]
        if key not in self._measured:
            found = self._earlier(case, shape, providers)
            if found is None:
                if time.monotonic() - self._began > self._time_limit:
                    self.cut_short = True
                    return None
                try:
                    found = self._measure(case, shape, providers)
                except Exception as error:
                    self._broken[key] = error
                    raise
            self._measured[key] = found
        return self._measured[key]

    def close(self, complete: bool) -> None:
        if self._child is not None:
            self._child.close()
        if complete and not self.cut_short:
            self.results.finish(whole=self._has_every_record())

    def _has_every_record(self) -> bool:
        return all(
            self.results.find(case.name, shape, provider.name) is not None
            for case, shape, providers in groups(self.results.header["size"], self._device)
            for provider in providers
        )

    def _open(self, size: str, folder: Path, commit: str | None) -> Results:
        header: dict[str, Any] = {
            "size": size,
            "device": machine.describe_device(self._device),
            "software": machine.describe_software(),
            "commit": machine.commit() or commit,
            "source": machine.source_digest(),
            "providers": {
                provider.name: {"label": provider.label, "note": provider.note, "ours": provider.ours}
                for provider in PROVIDERS.values()
            },
            "unavailable": obstacles(self._device),
            "ceilings": {},
        }
        return open_run(header, folder)

    def _earlier(self, case: Case, shape: Shape, providers: list[Provider]) -> Measurement | None:
        records = {
            provider.name: self.results.find(case.name, shape, provider.name) for provider in providers
        }
        if any(record is None for record in records.values()):
            return None
        return Measurement({name: record for name, record in records.items() if record is not None})

    def _measure(self, case: Case, shape: Shape, providers: list[Provider]) -> Measurement:
        if not self.results.header["ceilings"]:
            self.results.header["ceilings"] = ceilings(self._device)
        found = measure(
            case,
            shape,
            providers,
            self._device,
            self.results.header["ceilings"],
            self._plan,
            self._child,
        )
        self.results.add(list(found.records.values()))
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return found
