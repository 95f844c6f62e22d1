"""The kernels' tests in Triton's interpreter: a process of its own, since Triton decides at import."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest

# One case in so many: ``TRITON_INTERPRET=1 pytest tests/kernels``, or a GPU, runs all.
SHARE = os.environ.get("HYPKERNELS_INTERPRETER_SHARE", "10")
KERNEL_TESTS = Path(__file__).parent / "kernels"


def run_in_interpreter(tests, report, *options, share="1"):
    """The suite of a directory or file with ``TRITON_INTERPRET=1``: exit status and output."""
    command = [sys.executable, "-m", "pytest", str(tests), "-q", "--tb=short", f"--junitxml={report}"]
    command += ["--share", share]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "HYPKERNELS_BACKEND": "auto"}
    return subprocess.run(
        [*command, *options], env=environment, capture_output=True, text=True, check=False, timeout=900
    )


def counts(report):
    (suite,) = ElementTree.parse(report).iter("testsuite")
    return {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}


def test_kernels_in_the_interpreter(tmp_path):
    """Some cases of each test; two files at a time, since the interpreter takes one core."""
    files = sorted(KERNEL_TESTS.glob("test_*_kernel.py"))
    reports = [tmp_path / f"{file.stem}.xml" for file in files]
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(partial(run_in_interpreter, share=SHARE), files, reports))
    failed = [done.stdout + done.stderr for done in runs if done.returncode]
    if failed:
        pytest.fail("\n".join(["the kernels' tests failed in Triton's interpreter", *failed]), pytrace=False)
    found = [counts(report) for report in reports]
    assert sum(one["tests"] - one["skipped"] for one in found) > 10 * len(files) > 0


def test_a_failing_kernel_test_is_seen(tmp_path):
    """A kernel that writes the wrong value fails the run, with the test's name and the numbers."""
    (tmp_path / "conftest.py").write_text((KERNEL_TESTS / "conftest.py").read_text())
    (tmp_path / "kernel_lane.py").write_text((KERNEL_TESTS / "kernel_lane.py").read_text())
    (tmp_path / "test_wrong_kernel.py").write_text(
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
