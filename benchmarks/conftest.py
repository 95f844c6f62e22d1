"""Options of ``pytest benchmarks/``, and the session that its tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.case import SIZES
from benchmarks.results import FOLDER
from benchmarks.session import Session, obstacles

_FAILED_TESTS_ONLY = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hypkernels benchmarks")
    group.addoption("--size", choices=SIZES, default="small", help="size of the cases (default: small)")
    group.addoption("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    group.addoption("--results", type=Path, default=FOLDER, help="folder for the results")
    group.addoption(
        "--time-limit",
        type=float,
        default=float("inf"),
        metavar="SECONDS",
        help="begin no measurement after that; the next run goes on from there",
    )
    group.addoption("--no-memory", action="store_true", help="on a CPU, leave out the peak memory")


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("the benchmarks need pytest-benchmark: pip install hysac[bench]")
    try:
        torch.empty(1, device=config.getoption("--device"))
    except (RuntimeError, AssertionError) as error:
        raise pytest.UsageError(f"--device {config.getoption('--device')}: {error}") from error


def pytest_report_header(config: pytest.Config) -> list[str]:
    missing = obstacles(torch.device(config.getoption("--device")))
    return [f"left out: {name}: {reason}" for name, reason in missing.items()]


@pytest.fixture(scope="session")
def session(pytestconfig: pytest.Config, request: pytest.FixtureRequest) -> Iterator[Session]:
    session = Session(
        pytestconfig.getoption("--size"),
        torch.device(pytestconfig.getoption("--device")),
        pytestconfig.getoption("--results"),
        pytestconfig.getoption("--time-limit"),
        not pytestconfig.getoption("--no-memory"),
    )
    complete = False
    try:
        yield session
        complete = True
    finally:
        session.close(complete and not request.session.shouldstop)
        print(f"\nresults: {session.results.path}")
