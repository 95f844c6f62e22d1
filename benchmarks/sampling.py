"""Timing: every sample on fresh data, the providers of a case taking turns in one process."""

from __future__ import annotations

import gc
import random
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from benchmarks.case import Case, Inputs, Outputs, Shape
from benchmarks.gate import upstream
from benchmarks.providers.provider import Provider

PHASES = ("forward", "backward", "both")
LONG = 0.2  # seconds, of a forward and backward pass that need not be repeated to be warm or well sampled


@dataclass(frozen=True)
class Plan:
    """How long to sample.

    Args:
        least: samples of each provider.
        most: where ``seconds`` allow.
        seconds: for one case at one shape, all providers together; the least number of samples comes first.
        slowest: seconds of one forward and backward pass beyond which a provider is left out.
    """

    least: int = 20
    most: int = 100
    seconds: float = 2.0
    slowest: float = 2.0


@dataclass
class Samples:
    """Seconds of each sample by phase, or why there are none."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {phase: [] for phase in PHASES})
    left_out: tuple[str, str] | None = None  # a status of benchmarks.results, and its detail

    def summary(self) -> dict[str, dict[str, float]]:
        return {phase: quartiles(seconds) for phase, seconds in self.seconds.items()}


def quartiles(seconds: list[float]) -> dict[str, float]:
    low, median, high = np.percentile(seconds, [25, 50, 75])
    return {"median": float(median), "q1": float(low), "q3": float(high), "samples": len(seconds)}


class Stopwatch:
    """Marks in the stream of a GPU, or on the clock of a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[Any] = []

    def start(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()
        self._marks = []
        self.mark()

    def mark(self) -> None:
        if not self._cuda:
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def seconds(self) -> list[float]:
        """Between consecutive marks."""
        steps = list(zip(self._marks, self._marks[1:], strict=False))
        if not self._cuda:
            return [after - before for before, after in steps]
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in steps]


def run_once(
    case: Case, provider: Provider, inputs: Inputs, above: Outputs, watch: Stopwatch
) -> dict[str, float]:
    """Seconds of the phases of one forward and backward pass, with the gradients ``above`` flowing in."""
    program = provider.programs[case.name]
    watch.start()
    outputs = program(inputs)
    watch.mark()
    torch.autograd.backward(outputs, above)
    case.finish(inputs)
    watch.mark()
    forward, backward = watch.seconds()
    return {"forward": forward, "backward": backward, "both": forward + backward}


def interleave(
    case: Case, shape: Shape, providers: list[Provider], device: torch.device, plan: Plan, seed: int = 0
) -> dict[str, Samples]:
    """Samples of each provider: rounds of one sample each, in random order, on the round's own data."""
    generator = torch.Generator(device).manual_seed(seed)
    order = random.Random(seed)
    watch = Stopwatch(device)
    samples = {provider.name: Samples() for provider in providers}
    above: dict[str, Outputs] = {}
    running = []
    for provider in providers:
        try:
            above[provider.name], seconds = _warm_up(case, shape, provider, generator, watch)
        except torch.OutOfMemoryError:
            samples[provider.name].left_out = ("out of memory", "")
            continue
        if seconds > plan.slowest:
            samples[provider.name].left_out = ("too slow", f"{seconds:.2g} s a sample")
        else:
            running.append(provider)
    collecting = gc.isenabled()
    gc.disable()
    try:
        began = time.perf_counter()
        for count in range(plan.most if running else 0):
            if count >= plan.least and time.perf_counter() - began > plan.seconds:
                break
            drawn = case.draw(shape, generator)
            for provider in order.sample(running, len(running)):
                inputs = case.prepare(drawn, provider.dtype)
                took = run_once(case, provider, inputs, above[provider.name], watch)
                for phase, seconds in took.items():
                    samples[provider.name].seconds[phase].append(seconds)
    finally:
        if collecting:
            gc.enable()
    return samples


def _warm_up(
    case: Case, shape: Shape, provider: Provider, generator: torch.Generator, watch: Stopwatch
) -> tuple[Outputs, float]:
    """Gradients for the outputs, and the seconds of the fastest run; the first compiles and fills caches."""

    def fresh() -> Inputs:
        return case.prepare(case.draw(shape, generator), provider.dtype)

    above = upstream(provider.programs[case.name](fresh()))
    took: list[float] = []
    while len(took) < 2 or (len(took) < 3 and min(took) < LONG):
        took.append(run_once(case, provider, fresh(), above, watch)["both"])
    return above, min(took)
