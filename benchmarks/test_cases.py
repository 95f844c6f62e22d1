"""Every case, shape and provider as a test of pytest-benchmark.

The samples of a group's providers are taken in turns, before the first of its tests; each test then reports
those of its provider through a clock that replays them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.case import Case, Shape, shape_name
from benchmarks.providers import Provider
from benchmarks.sampling import PHASES
from benchmarks.session import Session, groups


class ReplayClock:
    """A clock that an action of recorded length moves on by that length."""

    def __init__(self) -> None:
        self._now = 0.0
        self._pending: list[float] = []

    def load(self, seconds: list[float]) -> None:
        self._pending = list(reversed(seconds))

    def __call__(self) -> float:
        return self._now

    def act(self) -> None:
        self._now += self._pending.pop()


_CLOCK = ReplayClock()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    size = metafunc.config.getoption("--size")
    device = torch.device(metafunc.config.getoption("--device"))
    parameters = [
        pytest.param(
            case,
            shape,
            provider,
            phase,
            id="-".join(
                (case.name, *(f"{name}{size}" for name, size in shape.items()), provider.name, phase)
            ),
        )
        for case, shape, providers in groups(size, device)
        for provider in providers
        for phase in PHASES
    ]
    metafunc.parametrize(("case", "shape", "provider", "phase"), parameters)


def _selected(request: pytest.FixtureRequest, case: Case, shape: Shape) -> list[Provider]:
    """The providers whose tests of this group run, in the tables' order."""
    chosen: dict[str, Provider] = {}
    for item in request.session.items:
        parameters: dict[str, Any] = item.callspec.params if isinstance(item, pytest.Function) else {}
        if parameters.get("case") is case and parameters.get("shape") is shape:
            provider = parameters["provider"]
            chosen[provider.name] = provider
    return list(chosen.values())


@pytest.mark.benchmark(timer=_CLOCK)
def test_case(
    benchmark: BenchmarkFixture,
    request: pytest.FixtureRequest,
    session: Session,
    case: Case,
    shape: Shape,
    provider: Provider,
    phase: str,
) -> None:
    measurement = session.measurement(case, shape, _selected(request, case, shape))
    if measurement is None:
        pytest.skip("the time is up: run again to go on")
    record = measurement.records[provider.name]
    if record["status"] in ("wrong", "failed"):
        report = pytest.fail if provider.ours else pytest.xfail
        report(f"{record['status']}: {record['detail']}")
    if record["status"] != "ok":
        pytest.skip(f"{record['status']} {record.get('detail', '')}")
    if provider.name not in measurement.samples:
        pytest.skip("measured by the run that this one continues")
    seconds = measurement.samples[provider.name].seconds[phase]
    benchmark.group, benchmark.name = f"{case.name} {shape_name(shape)}, {phase}", provider.label
    benchmark.extra_info = {name: record[name] for name in ("error", "peak_bytes")}
    benchmark.extra_info["share of the roofline"] = record["roofline"][phase]
    _CLOCK.load(seconds)
    benchmark.pedantic(_CLOCK.act, rounds=len(seconds))
