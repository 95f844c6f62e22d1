"""``--gpu-record FILE``: what ran on which GPU, small enough to keep beside the code."""

import json
import os
import platform
import time
from collections import Counter
from pathlib import Path

import pytest
import torch


class _Skipped(pytest.Module):
    """A module that is not even imported."""

    def collect(self):
        pytest.skip("needs a CUDA device")


def pytest_pycollect_makemodule(module_path, parent):
    return None if torch.cuda.is_available() else _Skipped.from_parent(parent, path=module_path)


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels that run."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    kind = InterpretedFunction if os.environ.get("TRITON_INTERPRET") == "1" else JITFunction
    names = []
    run = kind.run

    def recorded(kernel, *args, **kwargs):
        names.append(kernel.__name__)
        return run(kernel, *args, **kwargs)

    monkeypatch.setattr(kind, "run", recorded)
    return names


def pytest_addoption(parser):
    parser.addoption("--gpu-record", metavar="FILE", type=Path, help="write a JSON record of the run to FILE")


def pytest_configure(config):
    path = config.getoption("--gpu-record")
    if path and not hasattr(config, "workerinput"):  # of several processes, the one that hears of all tests
        config.pluginmanager.register(_Record(path))


class _Record:
    def __init__(self, path):
        self.path = path
        self.start = time.time()
        self.outcomes = {}
        self.failures = {}
        self.skips = Counter()

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or not report.passed:
            self._count(report)

    def pytest_collectreport(self, report):
        if not report.passed:
            self._count(report)

    def _count(self, report):
        of_file = self.outcomes.setdefault(report.nodeid.partition("::")[0], Counter())
        of_file[report.outcome] += 1
        if report.failed:
            self.failures[report.nodeid] = report.longreprtext.strip().splitlines()[-1][:200]
        elif report.skipped:
            self.skips[
                str(report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr)
            ] += 1

    def pytest_sessionfinish(self):
        record = {
            "environment": environment(),
            "date": time.strftime("%Y-%m-%d", time.gmtime(self.start)),
            "seconds": round(time.time() - self.start),
            "total": sum(self.outcomes.values(), Counter()),
            "files": self.outcomes,
            "failures": self.failures,
            "skips": self.skips,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(record, indent=1) + "\n")


def environment():
    import triton

    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "gpu": gpu and gpu.name,
        "capability": gpu and f"{gpu.major}.{gpu.minor}",
        "memory_gib": gpu and round(gpu.total_memory / 2**30, 1),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "python": platform.python_version(),
    }
