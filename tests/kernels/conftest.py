"""Tests of kernels, ``*_kernel.py``, need a process that runs kernels; the others one that compiles them.

``--share 3`` takes a third of the cases of each test: the interpreter is slow.
"""

from itertools import groupby
from zlib import crc32

import pytest
from kernel_lane import INTERPRETED, RUNNABLE

# The interpreter computes both branches of every ``tl.where``: what it warns of there is not used.
_UNUSED_BRANCH = "(invalid value|divide by zero|overflow) encountered"


class _KernelModule(pytest.Module):
    """Skipped as a whole where kernels do not run, or what its tests compare with is not installed."""

    def collect(self):
        if not RUNNABLE:
            pytest.skip("kernels need a GPU or TRITON_INTERPRET=1: tests/test_kernel_lane.py runs these")
        try:
            return super().collect()
        except self.CollectError as error:
            if "No module named 'mpmath'" not in str(error):
                raise
        pytest.skip("mpmath is not installed")


class _CompilingModule(pytest.Module):
    def collect(self):
        if INTERPRETED:
            pytest.skip("the interpreter compiles nothing")
        return super().collect()


def pytest_addoption(parser):
    parser.addoption("--share", type=int, default=1, help="of kernels' tests, run one case in so many")


def pytest_collection_modifyitems(config, items):
    """The first case of each test, and of the others those whose names say so: no pattern of parameters."""
    share, chosen = config.getoption("--share", 1), []  # there is none where pytest starts above this folder
    if share == 1:
        return
    for _, cases in groupby(items, lambda item: item.nodeid.partition("[")[0]):
        first, *others = cases
        chosen += [first, *(one for one in others if crc32(one.name.encode()) % share == 0)]
    config.hook.pytest_deselected(items=[one for one in items if one not in chosen])
    items[:] = chosen


def pytest_configure(config):
    config.addinivalue_line(
        "filterwarnings", rf"ignore:{_UNUSED_BRANCH}:RuntimeWarning:triton\.runtime\.interpreter"
    )


def pytest_pycollect_makemodule(module_path, parent):
    kind = _KernelModule if module_path.stem.endswith("_kernel") else _CompilingModule
    return kind.from_parent(parent, path=module_path)
