"""Peak memory of one forward and backward pass, beyond its inputs and gradients; outputs count.

On a GPU the allocator keeps count. On a CPU a child process runs the pass while it samples its own resident
set; it lives on for the next measurement, and is started again should the system end it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.case import Case, Shape
from benchmarks.gate import upstream
from benchmarks.providers.provider import Provider
from benchmarks.sampling import LONG, Stopwatch, run_once

PERIOD = 5e-4
REPEATS = 3
CHILD_COMMAND = [sys.executable, "-m", "benchmarks.memory"]
# Blocks above this many bytes go back to the system when they are freed, so that runs do not hide in the
# memory that an earlier one has left behind.
CHILD_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "8192", "MALLOC_TRIM_THRESHOLD_": "8192"}


def peak_beyond_inputs(case: Case, shape: Shape, provider: Provider, device: torch.device) -> int:
    """Bytes, in this process."""
    peak = _peak_of_gpu if device.type == "cuda" else peak_of_resident_set
    generator = torch.Generator(device).manual_seed(0)
    watch = Stopwatch(device)
    above = upstream(provider.programs[case.name](case.prepare(case.draw(shape, generator), provider.dtype)))

    def used() -> int:
        inputs = case.prepare(case.draw(shape, generator), provider.dtype)
        return peak(partial(run_once, case, provider, inputs, above, watch)) - case.gradient_bytes(inputs)

    used()  # compiles and fills caches
    gc.collect()
    began = time.perf_counter()
    most = max(0, used())
    if device.type == "cuda" or time.perf_counter() - began > LONG:
        return most
    return max(most, *(used() for _ in range(REPEATS - 1)))


def _peak_of_gpu(run: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_of_resident_set(run: Callable[[], object]) -> int:
    done = threading.Event()
    before = peak = _resident_bytes()

    def sample() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, _resident_bytes())
            time.sleep(PERIOD)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        run()
    finally:
        done.set()
        sampler.join()
    return peak - before


class Child:
    """A process that measures one request after the other."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def peak(self, case: str, shape: Shape, provider: str) -> int | None:
        """Bytes, or None if the child failed or was ended."""
        if self._process is None:
            self._process = subprocess.Popen(
                CHILD_COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | CHILD_ENVIRONMENT,
                cwd=Path(__file__).parents[1],
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps([case, dict(shape), provider]) + "\n")
            self._process.stdin.flush()
            reply = self._process.stdout.readline()
        except BrokenPipeError:
            reply = ""
        if not reply:
            self.close()
        return json.loads(reply) if reply else None

    def close(self) -> None:
        if self._process is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.communicate()
            self._process = None


def _serve() -> None:
    from benchmarks.cases import CASES
    from benchmarks.providers import PROVIDERS

    # Only answers may reach the pipe, whatever the measured code prints.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    gc.freeze()  # what the imports made is never garbage, and takes long to go through
    for line in sys.stdin:
        case, shape, provider = json.loads(line)
        peak = peak_beyond_inputs(CASES[case], shape, PROVIDERS[provider], torch.device("cpu"))
        answers.write(json.dumps(peak) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
