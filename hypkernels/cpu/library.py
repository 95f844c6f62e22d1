"""The compiled library: where it is, which instruction set it runs, and the parts of PyTorch that it uses.

The library has a plain C interface and is not linked with PyTorch. It uses two parts of PyTorch, the
OpenMP runtime and the product of matrices. Their addresses are looked up here, among the functions that
PyTorch's libraries export or link. Without the first it runs on one thread; without the second it
multiplies by itself.

``HYPKERNELS_CPU_ISA`` forces an instruction set: ``avx512``, ``avx2`` or ``baseline``.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import CDLL, POINTER, Structure, c_char_p, c_int, c_void_p
from functools import cache
from pathlib import Path

import torch

from hypkernels.checks import check_choice

ISA_VARIABLE = "HYPKERNELS_CPU_ISA"
ISAS = ("avx512", "avx2", "baseline")
_ABI = 4
_PATH = Path(__file__).with_name("libhypkernels.so.1")


class _Runtime(Structure):
    _fields_ = [
        ("parallel", c_void_p),
        ("thread_number", c_void_p),
        ("team_size", c_void_p),
        ("sgemm", c_void_p),
        ("dgemm", c_void_p),
        ("product_threads", c_void_p),
    ]


class UnavailableError(RuntimeError):
    """There is no compiled library here; the message says why."""


@cache
def load() -> CDLL:
    """The library, ready to use.

    Raises:
        UnavailableError: it was not built, or this process cannot load it.
        ValueError: ``HYPKERNELS_CPU_ISA`` names no instruction set, or none that this machine has.
    """
    if not _PATH.exists():
        raise UnavailableError(
            f"{_PATH} does not exist: installed where there was no C++ compiler, or from the wheel without it"
        )
    try:
        library = CDLL(str(_PATH))
    except OSError as error:
        raise UnavailableError(f"{_PATH} cannot be loaded: {error}") from error
    library.hk_abi.restype = c_int
    if library.hk_abi() != _ABI:
        raise UnavailableError(f"{_PATH} is of another version of hypkernels: install it again")
    library.hk_available.restype = library.hk_choose.restype = c_char_p
    library.hk_choose.argtypes = [c_char_p]
    library.hk_set_runtime.argtypes = [POINTER(_Runtime)]
    library.hk_set_runtime(_torch_runtime())
    _choose(library, os.environ.get(ISA_VARIABLE))
    return library


def why_not() -> str | None:
    """Why the library cannot be used here, or ``None`` if it can."""
    try:
        load()
    except UnavailableError as error:
        return str(error)
    return None


def available_isas() -> tuple[str, ...]:
    """The instruction sets of this machine for which the library was built, the best first."""
    return tuple(load().hk_available().decode().split())


def use_isa(name: str | None) -> str:
    """Run the kernels of one instruction set from now on, by default the best; returns its name."""
    return _choose(load(), name)


def isa() -> str:
    """The instruction set in use."""
    load()
    return _chosen["isa"]


_chosen: dict[str, str] = {}


def _choose(library: CDLL, name: str | None) -> str:
    available = tuple(library.hk_available().decode().split())
    if name is not None:
        check_choice(ISA_VARIABLE, name, ISAS)
        if name not in available:
            raise ValueError(f"{ISA_VARIABLE} is {name!r}, and this machine runs {', '.join(available)}")
    _chosen["isa"] = library.hk_choose(None if name is None else name.encode()).decode()
    return _chosen["isa"]


def _torch_runtime() -> _Runtime:
    """The functions of PyTorch's library and of those that it was linked with."""
    torch_cpu = _torch_library()

    def address(symbol: str) -> int | None:
        try:
            return ctypes.cast(getattr(torch_cpu, symbol), c_void_p).value
        except AttributeError:
            return None

    openmp = [address("GOMP_parallel"), address("omp_get_thread_num"), address("omp_get_num_threads")]
    if None in openmp or "ATen parallel backend: OpenMP" not in torch.__config__.parallel_info():
        openmp = [None, None, None]
    products = [address("sgemm_"), address("dgemm_"), address("MKL_Set_Num_Threads_Local")]
    return _Runtime(*openmp, *products)


def _torch_library() -> CDLL:
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        if (folder / name).exists():
            return CDLL(str(folder / name))
    return CDLL(None)  # PyTorch is linked otherwise: take the functions that the process has


def describe() -> list[str]:
    """Lines for a bug report."""
    reason = why_not()
    if reason is not None:
        return [f"native: no, {reason}"]
    runtime = _torch_runtime()
    products = "PyTorch's BLAS" if runtime.sgemm and runtime.dgemm else "its own (PyTorch exports none)"
    threads = f"{torch.get_num_threads()} of PyTorch's" if runtime.parallel else "1 (PyTorch has no OpenMP)"
    return [
        f"native: {isa()} (this machine runs {', '.join(available_isas())})",
        f"  threads: {threads}",
        f"  products of matrices: {products}",
    ]
