"""Which implementation runs an op: one decision, from the tensors and the setting in force.

- ``"triton"``: fused kernels, on a GPU. Pairwise functions and contrastive losses have none for float64
  points.
- ``"native"``: compiled C++, :mod:`hypkernels.cpu`, on a CPU.
- ``"torch"``: closed forms in PyTorch, on any device.
- ``"reference"``: the definitions, in float64, differentiated by autograd. They are slow and not stable
  at degenerate points, but contain no derivation that could be wrong: to compare with, not to train
  with.
- ``"auto"``: Triton for points on a GPU, the compiled C++ for those on a CPU. PyTorch takes their place
  where they are missing or lack the function.

The environment variable ``HYPKERNELS_BACKEND`` sets the default, :func:`use_backend` overrides it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from hypkernels.checks import check_choice

SETTINGS = ("auto", "triton", "native", "torch", "reference")
_VARIABLE = "HYPKERNELS_BACKEND"
_OLDEST_CAPABILITY = (8, 0)

_logger = logging.getLogger("hypkernels")
_default = os.environ.get(_VARIABLE, "auto")
check_choice(_VARIABLE, _default, SETTINGS)

# A plain thread-local, because torch.compile guards on one: a graph compiled under one setting is not run
# under another. Context variables are not traceable in every supported PyTorch.
_in_force = threading.local()


class Choice(NamedTuple):
    implementation: str
    reason: str


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the ops called within, and their backward passes even later, with one implementation.

    Args:
        name: ``"auto"``, ``"triton"``, ``"native"``, ``"torch"`` or ``"reference"``, see
            :mod:`hypkernels.backend`.
            It holds in the current thread.

    Raises:
        ValueError: an unknown name.
        RuntimeError: by an op called within that cannot run with this implementation, with the reason.

    Example:
        >>> with hypkernels.use_backend("reference"):
        ...     expected = hypkernels.exp_map0(x)
    """
    check_choice("name", name, SETTINGS)
    before = getattr(_in_force, "name", None)
    _in_force.name = name
    try:
        yield
    finally:
        if before is None:  # as it was: a guard also sees whether the attribute is there
            del _in_force.name
        else:
            _in_force.name = before


def setting() -> str:
    """The setting in force in this thread."""
    return getattr(_in_force, "name", _default)


def choose(op: str, *tensors: Tensor, requested: str | None = None, refusal: str | None = None) -> Choice:
    """The implementation for one call of ``op`` on ``tensors``; the first one's device decides.

    Args:
        op: name of the op, for messages.
        tensors: its tensor arguments, points first.
        requested: the setting; default the one in force. An op saves the setting of its forward pass for its
            backward pass, which runs in another thread.
        refusal: why the op's kernels cannot take these arguments, if they cannot.

    Raises:
        RuntimeError: ``"triton"`` or ``"native"`` was asked for and cannot run.
    """
    requested = setting() if requested is None else requested
    if requested in ("torch", "reference"):
        return Choice(requested, "as requested")
    device = tensors[0].device
    if requested == "auto" and device.type not in _COMPILED:
        return Choice("torch", f"{device.type} tensors")
    compiled = _COMPILED[device.type] if requested == "auto" else requested
    missing = _MISSING[compiled](device)
    if missing is None and refusal is None:
        return Choice(compiled, "as requested" if requested == compiled else f"{device.type} tensors")
    if requested == compiled:
        raise RuntimeError(f"hypkernels.{op} cannot run with backend {compiled!r}: {missing or refusal}")
    _log_once(
        f"hypkernels{'' if missing else '.' + op} runs with backend 'torch' and not {compiled!r} for points "
        f"on {device.type}: {missing or refusal}"
    )
    return Choice("torch", missing or str(refusal))


@cache
def _triton_missing(device: torch.device) -> str | None:
    """Why no kernel can run on ``device``, or None."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < _OLDEST_CAPABILITY:
            return (
                f"the GPU's compute capability is {'.'.join(map(str, capability))}, "
                f"and kernels need {'.'.join(map(str, _OLDEST_CAPABILITY))}"
            )
    elif os.environ.get("TRITON_INTERPRET") != "1":
        return f"{device.type} tensors; Triton needs a GPU (or its interpreter, TRITON_INTERPRET=1)"
    return None


def _native_missing(device: torch.device) -> str | None:
    """Why the compiled library cannot run on ``device``, or None."""
    if device.type != "cpu":
        return f"{device.type} tensors; it computes on CPUs"
    from hypkernels.cpu import library  # when first asked for: importing hypkernels looks for no library

    return library.why_not()


# What "auto" means, and why it may not be here.
_COMPILED = {"cuda": "triton", "cpu": "native"}
_MISSING: dict[str, Callable[[torch.device], str | None]] = {
    "triton": _triton_missing,
    "native": _native_missing,
}


@cache
def _log_once(message: str) -> None:
    _logger.warning(message)
