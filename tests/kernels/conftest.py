"""Tests of kernels, ``*_kernel.py``, need a process that runs kernels; the others one that compiles them."""

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


def pytest_configure(config):
    config.addinivalue_line(
        "filterwarnings", rf"ignore:{_UNUSED_BRANCH}:RuntimeWarning:triton\.runtime\.interpreter"
    )


def pytest_pycollect_makemodule(module_path, parent):
    kind = _KernelModule if module_path.stem.endswith("_kernel") else _CompilingModule
    return kind.from_parent(parent, path=module_path)
