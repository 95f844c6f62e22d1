"""Kernel variants recorded from launches: a launcher is called, and no kernel runs.

So the kernels that are compiled ahead of time are those that are launched: arguments are specialised as
Triton specialises them at a launch, and the launcher chooses the tile and its warps.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from hypkernels.tritonlib.manifest import TARGETS, Variant

DTYPE_NAMES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.bool: "i1",
}
_ALIGNMENT = 16
_ROWS = 1 << 16


class Launch(NamedTuple):
    """One kernel launch, as Triton's compiler needs it: see the manifest's ``Variant``."""

    kernel: Any
    signature: Mapping[str, Any]
    constexprs: Mapping[str, Any]
    aligned: tuple[str, ...]
    options: Mapping[str, Any]

    def variant(self, name: str, **properties: Any) -> Variant:
        """With ``properties`` of :class:`~hypkernels.tritonlib.manifest.Variant`."""
        options = dict(self.options)
        warps, stages = options.pop("num_warps", 4), options.pop("num_stages", 3)  # Triton's defaults
        return Variant(
            name,
            self.kernel,
            self.signature,
            self.constexprs,
            self.aligned,
            num_warps=warps,
            num_stages=stages,
            options=options,
            **properties,
        )


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """List the kernels that are launched within, and run none. Give launchers ``"meta"`` tensors."""
    launches: list[Launch] = []

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append(_launch(kernel, args, kwargs))

    run = JITFunction.run
    JITFunction.run = record
    try:
        yield launches
    finally:
        JITFunction.run = run


def _launch(kernel: Any, args: Iterable[Any], kwargs: Mapping[str, Any]) -> Launch:
    names = {param.name for param in kernel.params}
    bound = kernel.signature.bind(*args, **{k: v for k, v in kwargs.items() if k in names})
    bound.apply_defaults()
    signature: dict[str, Any] = {}
    constexprs, aligned = {}, []
    for param in kernel.params:
        value = bound.arguments[param.name]
        signature[param.name] = kinds = _type(param, value)
        for name, kind, part in _parts(param.name, kinds, value):
            if kind == "constexpr":
                constexprs[name] = part
            elif _is_aligned(param, part, within=isinstance(value, tuple)):
                aligned.append(name)
    options = {k: v for k, v in kwargs.items() if k not in names}
    return Launch(kernel, signature, constexprs, tuple(aligned), options)


def _parts(name: str, kind: Any, value: Any) -> Iterator[tuple[str, str, Any]]:
    """The argument, or the fields of a named tuple that is one: ``operands.X``."""
    if isinstance(kind, str):
        yield name, kind, value
    else:
        for field, kind_of_field, part in zip(kind._fields, kind, value, strict=True):
            yield f"{name}.{field}", kind_of_field, part


def _type(param: Any, value: Any, *, within: bool = False) -> Any:
    """The type of an argument, or of a part ``within`` one, which Triton always specialises."""
    if param.is_constexpr or value is None:
        return "constexpr"
    if isinstance(value, Tensor):
        return f"*{DTYPE_NAMES[value.dtype]}"
    if isinstance(value, tuple):
        return type(value)(*(_type(param, part, within=True) for part in value))
    if param.annotation_type:
        return param.annotation_type
    if isinstance(value, bool):
        return "u1"
    if isinstance(value, int):
        if value == 1 and (within or not param.do_not_specialize):
            return "constexpr"
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    if isinstance(value, float):
        return "fp32"
    raise TypeError(f"{param.name} is a {type(value).__name__}, which is no kernel argument")


def _is_aligned(param: Any, value: Any, *, within: bool) -> bool:
    if not within and (param.do_not_specialize or param.do_not_specialize_on_alignment):
        return False
    if isinstance(value, Tensor):
        return int(value.storage_offset()) * value.element_size() % _ALIGNMENT == 0
    return isinstance(value, int) and value % _ALIGNMENT == 0


def row_variants(
    kernels: str,
    name: str,
    *,
    points: int,
    scalars: int = 1,
    options: Iterable[float] = (),
    dtype: torch.dtype = torch.float32,
    width: int = 512,
    targets: tuple[str, ...] = TARGETS,
) -> Iterator[Variant]:
    """The kernels of a row-wise op, forward and backward, for contiguous points of a dtype and width.

    Args:
        kernels: name of the module with the launchers ``name`` and ``name_backward``, which take ``points``
            tensors ``(rows, width)``, ``scalars`` 0-d tensors and the float ``options``.
    """
    module, family = sys.modules[kernels], kernels.split(".")[-2]
    vectors = [torch.empty((_ROWS, width), dtype=dtype, device="meta") for _ in range(points)]
    numbers = [torch.empty((), dtype=torch.float32, device="meta") for _ in range(scalars)]

    wide = width % _ALIGNMENT == 0  # Triton specialises no smaller divisor of row strides

    def recorded(direction: str, launcher: Callable[..., Any], *grads: Tensor) -> tuple[Variant, Any]:
        with recorded_launches() as launches:
            result = launcher(*grads, *vectors, *numbers, *options)
        (launched,) = launches
        elements = launched.constexprs["ROWS"] * min(width, launched.constexprs["BLOCK_D"])
        inputs = [tensor for tensor in (*grads, *vectors) if tensor.dim() == 2]
        variant = launched.variant(
            f"{family}.{name}_{direction}[{DTYPE_NAMES[dtype]},D={width}]",
            targets=targets,
            units=elements,
            input_tiles=(elements * dtype.itemsize,) * len(inputs) if wide else (),
        )
        return variant, result

    forward, out = recorded("forward", getattr(module, name))
    backward, _ = recorded("backward", getattr(module, f"{name}_backward"), out)
    yield forward
    yield backward
