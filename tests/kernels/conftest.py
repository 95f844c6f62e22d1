"""Tests of kernels, ``*_kernel.py``, need a process that runs kernels; the others one that compiles them."""

import pytest
from kernel_lane import INTERPRETED, RUNNABLE

# The interpreter computes both branches of every ``tl.where``: what it warns of there is not used.
_UNUSED_BRANCH = "(invalid value|divide by zero|overflow) encountered"


class _Skipped(pytest.Module):
    """A module that is not even imported."""

    def collect(self):
        if self.path.stem.endswith("_kernel"):
            pytest.skip(
                "kernels need a GPU or TRITON_INTERPRET=1: tests/test_kernel_lane.py runs these"
            )
        pytest.skip("the interpreter compiles nothing")


def pytest_configure(config):
    config.addinivalue_line(
        "filterwarnings", rf"ignore:{_UNUSED_BRANCH}:RuntimeWarning:triton\.runtime\.interpreter"
    )


def pytest_pycollect_makemodule(module_path, parent):
    runs = RUNNABLE if module_path.stem.endswith("_kernel") else not INTERPRETED
    return None if runs else _Skipped.from_parent(parent, path=module_path)
