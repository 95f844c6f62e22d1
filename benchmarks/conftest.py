"""Options of ``pytest benchmarks/``, and the session that its tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.case import SIZES
from benchmarks.results import FOLDER
from benchmarks.session import TIME_LIMITS, Session, obstacles
from benchmarks.style import by_reason

_SESSION = pytest.StashKey[Session]()
_ALL_TESTS_RAN = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
_COLUMNS = ["median", "iqr", "min", "max", "rounds"]  # what fits a terminal


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hypkernels benchmarks")
    group.addoption("--size", choices=SIZES, default="small", help="size of the cases (default: small)")
    group.addoption("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    group.addoption("--results", type=Path, default=FOLDER, help="folder for the results")
    group.addoption(
        "--time-limit",
        type=float,
        metavar="SECONDS",
        help="begin no measurement after that; the next run goes on from there "
        f"(default: {TIME_LIMITS['small']:.0f} for size small, none for the others)",
    )
    group.addoption("--commit", help="what to record as the commit where there is no git repository")
    group.addoption("--no-memory", action="store_true", help="on a CPU, leave out the peak memory")


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("the benchmarks need pytest-benchmark: pip install hysac[bench]")
    config.option.benchmark_columns = config.option.benchmark_columns or _COLUMNS
    try:
        torch.empty(1, device=config.getoption("--device"))
    except (RuntimeError, AssertionError) as error:
        raise pytest.UsageError(f"--device {config.getoption('--device')}: {error}") from error


def pytest_report_header(config: pytest.Config) -> list[str]:
    missing = obstacles(torch.device(config.getoption("--device")))
    return [f"left out, {reason}: {', '.join(names)}" for reason, names in by_reason(missing).items()]


@pytest.fixture(scope="session")
def session(pytestconfig: pytest.Config) -> Session:
    """Closed, with the run's outcome, by :func:`pytest_sessionfinish`."""
    pytestconfig.stash[_SESSION] = Session(
        pytestconfig.getoption("--size"),
        torch.device(pytestconfig.getoption("--device")),
        pytestconfig.getoption("--results"),
        pytestconfig.getoption("--time-limit"),
        not pytestconfig.getoption("--no-memory"),
        pytestconfig.getoption("--commit"),
    )
    return pytestconfig.stash[_SESSION]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if _SESSION in session.config.stash:
        cut_short = session.shouldstop or session.shouldfail or exitstatus not in _ALL_TESTS_RAN
        session.config.stash[_SESSION].close(complete=not cut_short)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if _SESSION in config.stash:
        results = config.stash[_SESSION].results
        state = "complete" if results.header["complete"] else "cut short, run again to go on"
        terminalreporter.write_line(f"results, {state}: {results.path}")
