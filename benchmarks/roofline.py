"""What the machine could do at best: its copy bandwidth and matrix rates, measured in the same run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch

from benchmarks.sampling import Stopwatch

COPY_BYTES = {"cpu": 2**27, "cuda": 2**31}
SMALLEST_MATRIX, MATRIX_SIZE = 512, {"cpu": 2048, "cuda": 8192}
PRODUCT_SECONDS = 0.5
SAMPLES = 5


def ceilings(device: torch.device) -> dict[str, object]:
    """Copied bytes per second, read and written, and operations per second of a square product by dtype."""
    return {"bytes_per_s": copy_bandwidth(device), "flop_per_s": matrix_rates(device)}


def copy_bandwidth(device: torch.device) -> float:
    source = torch.ones(COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device)


def matrix_rates(device: torch.device) -> dict[str, float]:
    rates = {
        "float32": _matrix_rate(torch.float32, device, tf32=False),
        "bfloat16": _matrix_rate(torch.bfloat16, device, tf32=False),
    }
    if device.type == "cuda":
        rates["tf32"] = _matrix_rate(torch.float32, device, tf32=True)
    return rates


def limit_seconds(operations: float, moved: float, measured: Mapping[str, object], products: str) -> float:
    """The time below which no implementation can get: the longer of computing and moving."""
    rates = measured["flop_per_s"]
    assert isinstance(rates, dict)
    bandwidth = measured["bytes_per_s"]
    assert isinstance(bandwidth, float)
    return max(operations / rates[products], moved / bandwidth)


def _matrix_rate(dtype: torch.dtype, device: torch.device, *, tf32: bool) -> float:
    """Of the largest products that do not take long: a CPU without instructions for a type is very slow."""
    size, rate = SMALLEST_MATRIX, 0.0
    while True:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        with _float32_products("high" if tf32 else "highest"):
            rate = max(rate, 2.0 * size**3 / _best(partial(torch.mm, a, b, out=out), device))
        size *= 2
        if size > MATRIX_SIZE[device.type] or 2.0 * size**3 / rate > PRODUCT_SECONDS:
            return rate


@contextmanager
def _float32_products(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _best(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest run: a ceiling is what the machine can reach."""
    watch = Stopwatch(device)
    taken = []
    for _ in range(1 + SAMPLES):
        watch.start()
        run()
        watch.mark()
        taken += watch.seconds()
    return min(taken[1:])
