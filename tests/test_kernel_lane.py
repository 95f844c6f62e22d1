"""The kernels' tests in Triton's interpreter: a process of its own, since Triton decides at import."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytestmark = pytest.mark.slow

# One case in so many: ``TRITON_INTERPRET=1 pytest tests/kernels``, or a GPU, runs all.
SHARE = os.environ.get("HYPKERNELS_INTERPRETER_SHARE", "40")
KERNEL_TESTS = Path(__file__).parent / "kernels"


def run_in_interpreter(tests, report, *options, share="1"):
    """The suite of a directory or file with ``TRITON_INTERPRET=1``: exit status and output."""
    command = [sys.executable, "-m", "pytest", str(tests), "-q", "--tb=short", f"--junitxml={report}"]
    command += ["--share", share, "-p", "no:randomly"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment |= {"TRITON_INTERPRET": "1", "HYPKERNELS_BACKEND": "auto"}
    return subprocess.run(
        [*command, *options], env=environment, capture_output=True, text=True, check=False, timeout=900
    )


def counts(report):
    (suite,) = ElementTree.parse(report).iter("testsuite")
    return {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}


def test_kernels_in_the_interpreter(tmp_path):
    """Some cases of each test, on two cores."""
    files = sorted(KERNEL_TESTS.glob("test_*_kernel.py"))
    done = run_in_interpreter(KERNEL_TESTS, tmp_path / "report.xml", "-n", "2", share=SHARE)
    if done.returncode:
        told = done.stdout + done.stderr
        pytest.fail(f"the kernels' tests failed in Triton's interpreter\n{told}", pytrace=False)
    found = counts(tmp_path / "report.xml")
    assert found["tests"] - found["skipped"] > 10 * len(files) > 0


def test_a_failing_kernel_test_is_seen(tmp_path):
    """A kernel that writes the wrong value fails the run, with the test's name and the numbers."""
    (tmp_path / "conftest.py").write_text((KERNEL_TESTS.parent / "conftest.py").read_text())
    kernels = tmp_path / "kernels"
    kernels.mkdir()
    for name in ("conftest.py", "kernel_lane.py"):
        (kernels / name).write_text((KERNEL_TESTS / name).read_text())
    (kernels / "test_wrong_kernel.py").write_text(
        """
import torch, triton
import triton.language as tl

@triton.jit
def twice(X, OUT):
    tl.store(OUT, 3 * tl.load(X))

def test_twice():
    out = torch.zeros(1)
    twice[(1,)](torch.ones(1), out)
    assert out.item() == 2
"""
    )
    report = tmp_path / "report.xml"
    done = run_in_interpreter(tmp_path, report, "--rootdir", str(tmp_path), "-p", "no:cacheprovider")
    assert done.returncode == 1
    assert "test_twice" in done.stdout
    assert "assert 3.0 == 2" in done.stdout
    assert counts(report) == {"tests": 1, "failures": 1, "errors": 0, "skipped": 0}
