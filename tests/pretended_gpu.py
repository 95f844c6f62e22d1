"""A CPU that passes for a GPU, to run code for GPUs through its whole control flow before there is one.

    TRITON_INTERPRET=1 PYTHONPATH=.:tests python -m pytest -p pretended_gpu tests/gpu

Tensors that are made on or moved to ``cuda`` lie in the CPU's memory, and are marked. What a GPU refuses is
refused: an operation or a kernel on tensors of both places, NumPy's view of a GPU's memory, and in the sync
debug mode or while a graph is captured whatever waits for the device. Kernels run in Triton's interpreter.
A graph's replay does again what was captured. No time and no number of bytes means anything.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from types import SimpleNamespace

import torch
import triton
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import InterpretedFunction

NAME = "pretended"
HERE, CPU = torch.device("cuda", 0), torch.device("cpu")
MEMORY_BYTES = 1 << 40

aten = torch.ops.aten
# Those may take tensors of both places.
_MOVE = {aten.copy_.default, aten._to_copy.default}
_INDEX = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
# The size of the result, or a number on the host, is in the tensors.
_WAIT = {aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select, aten.is_nonzero}
_UNKNOWN_SIZE = (torch.bool, torch.uint8)

_length_of_stack = torch._C._len_torch_dispatch_stack
_true_device = torch._C.TensorBase.__dict__["device"].__get__


def is_there(tensor: torch.Tensor) -> bool:
    """Whether a tensor is on the pretended GPU: its memory is marked, so that views and saved tensors are."""
    try:
        return getattr(tensor.untyped_storage(), "pretended", False)
    except (NotImplementedError, RuntimeError):  # a transform's or a fake tensor, without memory
        return False


def _mark(tensor: torch.Tensor) -> torch.Tensor:
    tensor.untyped_storage().pretended = True
    return tensor


def _is_gpu(device: object) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _definition(function):
    """The Python function of a registered operator, of others than PyTorch's C++."""
    found = OPDEFS.get(f"{function.namespace}::{function.__name__.removesuffix('.default')}")
    return None if found is None else found._init_fn


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


class PretendedGPU(TorchDispatchMode):
    """Sees each operation of PyTorch's, and follows which tensors are on the GPU."""

    waiting_is_an_error = False
    capturing: list | None = None
    latest = False

    @classmethod
    def _should_skip_dynamo(cls):
        return False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        self.latest = place = self._place(function, given, kwargs)
        if _is_gpu(kwargs.get("device")):
            kwargs["device"] = CPU
        self._waits(function, given, place)
        if (defined := _definition(function)) is not None:
            with self:  # its own operations are to be seen, too
                out = defined(*args, **kwargs)
        else:
            out = _OF_GPUS.get(function, function)(*args, **kwargs)
        results = [one for one in tree_leaves(out) if isinstance(one, torch.Tensor)]
        if place and function not in _MOVE | {aten.set_.source_Storage}:
            for one in results:
                _mark(one)
        elif function is aten._to_copy.default and place:
            _mark(out)
        self.record(lambda: function(*args, **kwargs), results)
        return out

    def record(self, call, results=()):
        """For the graph that is captured, if one is."""
        if self.capturing is not None:
            self.capturing.append((call, results))

    def wait(self, what: str) -> None:
        if self.waiting_is_an_error or self.capturing is not None:
            raise RuntimeError(f"{what} waits for the GPU")

    def _place(self, function, given, kwargs) -> bool:
        """Where the results are; refuses operands of both places."""
        there = [is_there(one) for one in given]
        if kwargs.get("device") is not None:
            # C++ knows no mark: it names the CPU for operands of both places, and for the zeros of a
            # gradient's formula, which has no operands.
            return _is_gpu(kwargs["device"]) or any(there) or (not given and _in_backward() and self.latest)
        if function in _MOVE:
            return there[0]
        heeded = given[:1] if function in _INDEX else given
        apart = [one for one in heeded if one.dim() and not is_there(one)]
        if any(there) and apart:
            raise RuntimeError(
                f"{function}: expected all tensors on one device, found some on {HERE}, "
                f"and on the CPU {[tuple(one.shape) for one in apart]}"
            )
        return any(there)

    def _waits(self, function, given, place) -> None:
        there = [is_there(one) for one in given]
        if function in _MOVE:
            source, target = there[-1], place
            if source != target:
                self.wait(f"a copy between devices of {tuple(given[-1].shape)}")
        elif any(there):
            mask = function in _INDEX and any(one.dtype in _UNKNOWN_SIZE for one in given[1:])
            if mask or getattr(function, "overloadpacket", None) in _WAIT:
                self.wait(str(function))


def _wide_product(a, b, out_dtype):
    return a.to(out_dtype) @ b.to(out_dtype)


def _wide_product_into(a, b, out_dtype, *, out):
    return out.copy_(_wide_product(a, b, out_dtype))


def _wide_product_added(terms, a, b, out_dtype, *, beta=1, alpha=1, out):
    return out.copy_(beta * terms + alpha * _wide_product(a, b, out_dtype))


# What PyTorch has for GPUs only.
_OF_GPUS = {
    aten.mm.dtype: _wide_product,
    aten.mm.dtype_out: _wide_product_into,
    aten.addmm.dtype_out: _wide_product_added,
}


MODE = PretendedGPU()


class Event:
    def __init__(self, *args, **kwargs):
        self.at = 0.0

    def record(self, stream=None):
        self.at = time.perf_counter()

    def elapsed_time(self, later):
        return 1e3 * (later.at - self.at)

    def wait(self, stream=None):
        """Nothing is under way."""

    synchronize = wait


class Stream:
    """Of which there is one."""

    device, cuda_stream = HERE, 0

    def __init__(self, *args, **kwargs):
        pass

    def wait_stream(self, other):
        pass

    def synchronize(self):
        MODE.wait("Stream.synchronize")

    def is_capturing(self):
        return MODE.capturing is not None

    wait_event = wait_stream


class Generator(torch._C.Generator):
    """A CPU's that says that it is a GPU's if it was asked to be."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls, "cpu")
        made.place = HERE if _is_gpu(device) else CPU
        return made

    def __init__(self, device="cpu"):
        pass

    @property
    def device(self):
        return self.place

    def manual_seed(self, seed):
        super().manual_seed(seed)
        return self


class Graph:
    def __init__(self):
        self.calls = []

    def replay(self):
        for call, results in self.calls:
            with torch.no_grad(), _disable_current_modes():
                again = [one for one in tree_leaves(call()) if isinstance(one, torch.Tensor)]
                for old, new in zip(results, again, strict=True):
                    if old.untyped_storage()._cdata != new.untyped_storage()._cdata:
                        old.copy_(new)


@contextmanager
def capture(graph, *args, **kwargs):
    MODE.capturing = graph.calls
    try:
        yield
    finally:
        MODE.capturing = None


@contextmanager
def _in_context(*args, **kwargs):
    yield


def _set_sync_debug_mode(mode):
    MODE.waiting_is_an_error = mode in (2, "error")


def _synchronize(device=None):
    MODE.wait("torch.cuda.synchronize")


PROPERTIES = SimpleNamespace(
    name=NAME,
    major=9,
    minor=0,
    total_memory=MEMORY_BYTES,
    multi_processor_count=132,
    L2_cache_size=50 << 20,
    shared_memory_per_block_optin=227 << 10,
)
CUDA = {
    "_lazy_init": lambda: None,
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": lambda device: None,
    "_exchange_device": lambda index: 0,
    "_maybe_exchange_device": lambda index: 0,
    "get_device_name": lambda device=None: NAME,
    "get_device_properties": lambda device=None: PROPERTIES,
    "get_device_capability": lambda device=None: (PROPERTIES.major, PROPERTIES.minor),
    "synchronize": _synchronize,
    "set_sync_debug_mode": _set_sync_debug_mode,
    "Event": Event,
    "Stream": Stream,
    "current_stream": lambda device=None: Stream(),
    "default_stream": lambda device=None: Stream(),
    "stream": _in_context,
    "CUDAGraph": Graph,
    "graph": capture,
    "is_current_stream_capturing": lambda: MODE.capturing is not None,
    "mem_get_info": lambda device=None: (MEMORY_BYTES, MEMORY_BYTES),
    "memory_allocated": lambda device=None: 0,
    "max_memory_allocated": lambda device=None: 0,
    "reset_peak_memory_stats": lambda device=None: None,
    "empty_cache": lambda: None,
    "get_rng_state": lambda device=None: torch.get_rng_state(),
    "set_rng_state": lambda state, device=None: None,
    "manual_seed": lambda seed: None,
    "manual_seed_all": lambda seed: None,
}


class Driver:
    """What Triton's ``do_bench`` asks of its driver."""

    def get_device_interface(self):
        return torch.cuda

    def get_empty_cache_for_benchmark(self):
        return torch.empty(1024, device=HERE)

    def clear_cache(self, cache):
        cache.zero_()

    def get_current_device(self):
        return 0

    def get_current_target(self):
        return triton.backends.compiler.GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self):
        return HERE


def _moved(tensor, device, dtype=None, non_blocking=False, copy=False):
    """``Tensor.to``, which in C++ sees two places as one."""
    if _is_gpu(device) == is_there(tensor):
        return _to(tensor, dtype=dtype, copy=copy)
    if not non_blocking:
        MODE.wait(f"a copy between devices of {tuple(tensor.shape)}")
    was = MODE.waiting_is_an_error
    MODE.waiting_is_an_error = False
    try:
        out = _to(tensor, dtype=dtype, copy=True)
    finally:
        MODE.waiting_is_an_error = was
    out.untyped_storage().pretended = _is_gpu(device)
    return out


def _parsed(tensor, args, kwargs):
    """Device and dtype of the arguments of ``Tensor.to``."""
    if args and isinstance(args[0], torch.Tensor):
        return args[0].device, args[0].dtype
    device, dtype, *_ = torch._C._nn._parse_to(
        *args, **{name: one for name, one in kwargs.items() if name != "copy"}
    )
    return tensor.device if device is None else device, dtype


_to = torch.Tensor.to
_numpy, _deepcopy = torch.Tensor.numpy, torch.Tensor.__deepcopy__
_tensor, _as_tensor = torch.tensor, torch.as_tensor
_run = InterpretedFunction.run


def to(self, *args, **kwargs):
    if type(self) not in (torch.Tensor, torch.nn.Parameter):
        return _to(self, *args, **kwargs)
    device, dtype = _parsed(self, args, kwargs)
    return _moved(self, device, dtype, kwargs.get("non_blocking", False), kwargs.get("copy", False))


def numpy(self, **kwargs):
    if is_there(self):
        raise TypeError(f"can't convert {HERE} device type tensor to numpy: use Tensor.cpu() first")
    return _numpy(self, **kwargs)


def deepcopied(self, memo):
    out = _deepcopy(self, memo)
    return _mark(out) if is_there(self) else out


def _made_here(make):
    def made(data, *, device=None, **kwargs):
        out = make(data, **kwargs)
        return out if device is None else out.to(device)

    return made


def _drawn_here(draw):
    def drawn(*size, generator=None, device=None, **kwargs):
        if generator is not None and _is_gpu(device) != _is_gpu(generator.device):
            raise RuntimeError(f"a generator on {generator.device} draws no tensors on {device or CPU}")
        return draw(*size, generator=generator, device=device, **kwargs)

    return drawn


def run(self, *args, grid, warmup, **kwargs):
    """A kernel, which a CPU's memory is no place for."""
    for index, one in enumerate(args):
        if isinstance(one, torch.Tensor) and not is_there(one):
            raise ValueError(f"pointer argument {index} of {self.__name__} is on the CPU")

    def launch():
        with _disable_current_modes():
            _run(self, *args, grid=grid, warmup=warmup, **kwargs)

    launch()
    MODE.record(launch)


def _depth():
    """Of the modes but this, which is no part of what is run."""
    return max(_length_of_stack() - 1, 0)


def _compile(function=None, **options):
    """Nothing is compiled: Inductor would do it for a GPU."""
    return function if function is not None else lambda function: function


def pretend() -> None:
    """From here on, in this process."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("a pretended GPU needs TRITON_INTERPRET=1 from the start of the process")
    for name, fake in CUDA.items():
        setattr(torch.cuda, name, fake)
    torch.accelerator.current_stream = CUDA["current_stream"]
    torch.Generator = Generator
    torch.Tensor.device = property(lambda self: HERE if is_there(self) else _true_device(self))
    torch.Tensor.is_cuda = property(lambda self: self.device.type == "cuda")
    torch.Tensor.is_cpu = property(lambda self: self.device.type == "cpu")
    torch.Tensor.get_device = lambda self: self.device.index if self.is_cuda else -1
    torch.Tensor.to, torch.Tensor.numpy, torch.Tensor.__deepcopy__ = to, numpy, deepcopied
    torch.Tensor.cpu = lambda self: to(self, CPU)
    torch.Tensor.cuda = lambda self, device=HERE: to(self, device)
    torch.tensor, torch.as_tensor = _made_here(_tensor), _made_here(_as_tensor)
    for name in ("rand", "randn", "randint", "randperm"):
        setattr(torch, name, _drawn_here(getattr(torch, name)))
    torch._C._len_torch_dispatch_stack = _depth
    torch.compile = _compile
    torch.jit._state.disable()  # a script knows PyTorch's own functions alone
    InterpretedFunction.run = run
    triton.runtime.driver.set_active(Driver())
    MODE.__enter__()


def _small_tiles() -> None:
    """The interpreter's, which takes its time for each program and for what is computed in vain."""
    from hypkernels.tritonlib import launch, tile_plan

    for target, plans in tile_plan._TABLES.items():
        tile_plan._TABLES[target] = plans._make([tile_plan._INTERPRETER] * len(plans))
    launch.NARROW_TILE = 2048


pretend()
_small_tiles()
