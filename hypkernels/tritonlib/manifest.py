"""Every compiled form of every kernel, as each kernel module lists it in ``aot_variants()``.

:mod:`hypkernels.tritonlib.aot` compiles the list for all targets, on a machine without a GPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TARGETS = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")

KERNEL_MODULES = (
    "hypkernels.maps.kernel",
    "hypkernels.distance.kernel",
    "hypkernels.horosphere.kernel",
    "hypkernels.cone.kernel",
    "hypkernels.entailment.kernel",
    "hypkernels.pairwise.kernel",
    "hypkernels.contrastive.kernel",
    "hypkernels.retrieval.kernel",
)


@dataclass(frozen=True)
class Variant:
    """One kernel with one set of compile-time constants, argument types and launch options.

    Attributes:
        name: unique, of the form ``"maps.exp_map0_forward[fp32,D=512]"``.
        kernel: the ``@triton.jit`` function.
        signature: argument -> Triton type: ``"*fp32"``, ``"i64"``, ``"constexpr"``; or a named tuple of them.
            Elsewhere a field of such an argument is called ``"argument.field"``.
        constexprs: the value of each argument that is ``"constexpr"`` in ``signature``.
        aligned: arguments divisible by 16: pointers of contiguous inputs, row strides.
        targets: a part of :data:`TARGETS`.
        expect_mma: whether the code must hold the target's matrix instruction.
        units: elements (or logits) one program handles; instructions are also counted per unit.
        input_tiles: bytes of each contiguous, aligned tile that one program loads, and must load 128 bits at
            a time where a thread's part is that wide. None: at least one such load. Empty: none needed.
        options: launch options beyond the two above, such as ``maxnreg``.
    """

    name: str
    kernel: Any
    signature: Mapping[str, Any]
    constexprs: Mapping[str, Any]
    aligned: tuple[str, ...]
    num_warps: int
    num_stages: int = 1
    targets: tuple[str, ...] = TARGETS
    expect_mma: bool = False
    units: int = 1
    input_tiles: tuple[int, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def variants() -> dict[str, Variant]:
    """All variants by name. Imports every kernel module, and with them Triton."""
    found: dict[str, Variant] = {}
    for module in KERNEL_MODULES:
        for variant in importlib.import_module(module).aot_variants():
            if variant.name in found:
                raise ValueError(f"{module} lists a second variant called {variant.name!r}")
            found[variant.name] = variant
    return found
