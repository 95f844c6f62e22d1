"""What tests on a GPU share: values with gradients, graphs, memory."""

from __future__ import annotations

import gc
import sys

import pytest
import torch

DEVICE = torch.device("cuda")
PRETENDED = "pretended_gpu" in sys.modules
MORE_THAN_32_BITS_COUNT = 2**16 if PRETENDED else 2**31


def size(number):
    """A number of points; on a pretended GPU, whose kernels are interpreted, a small one."""
    return number if not PRETENDED or number <= 32 else 24 + number % 16


def upstream_of(out):
    """Of one sign, so that nothing cancels in the sums over rows."""
    return (
        torch.linspace(0.5, 1.5, out.numel(), dtype=torch.float64, device=out.device).view(out.shape).to(out)
    )


def with_gradients(function, args, upstream=None):
    """``[value, gradient by each argument]``"""
    args = [a.detach().requires_grad_() for a in args]
    out = function(*args)
    return [out.detach(), *torch.autograd.grad(out, args, upstream_of(out) if upstream is None else upstream)]


def assert_equal(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert torch.equal(a, e)


def without_waiting(step):
    """The results of ``step``, which must not wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        return step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def captured(step, static):
    """A CUDA graph of ``step(*static)``, and the results that its replays fill."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(*static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(*static)
    return graph, results


def on_streams(step, inputs):
    """``step(*args)`` for each of ``inputs`` on a stream of its own, while the default stream is busy."""
    torch.cuda.synchronize()
    busy = torch.randn(size(4096), size(4096), device=DEVICE)
    results = []
    for _ in range(5):
        busy = busy @ busy / 64
    for args in inputs:
        with torch.cuda.stream(torch.cuda.Stream()):
            late = [a * 1.0 for a in args]  # made on this stream: the kernels have to follow it there
            results.append(step(*late))
    torch.cuda.synchronize()
    return results


def opcheck(operator, args):
    """PyTorch's; a pretended GPU has no fake tensors."""
    some = {"test_utils": ("test_schema", "test_autograd_registration")} if PRETENDED else {}
    torch.library.opcheck(operator, args, **some)


def free_memory():
    gc.collect()
    torch.cuda.empty_cache()


def enough_memory(needed):
    free_memory()
    free, _ = torch.cuda.mem_get_info()
    if free < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free GPU memory, there are {free / 2**30:.0f}")
