"""What the machine could do at best: its copy bandwidth and matrix rates, measured in the same run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from benchmarks.sampling import Stopwatch

COPY_BYTES = {"cpu": 2**27, "cuda": 2**31}
MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}
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
    size = MATRIX_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    with _float32_products("high" if tf32 else "highest"):
        return 2.0 * size**3 / _best(lambda: torch.mm(a, b, out=out), device)


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
