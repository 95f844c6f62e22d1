"""What a case is: inputs, the float64 answer, sizes and the work that no algorithm avoids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

SIZES = ("small", "medium", "large")

Inputs = dict[str, Any]
Outputs = tuple[Tensor, ...]
Shape = Mapping[str, int]
Program = Callable[[Inputs], Outputs]


# The arguments of the functions, in the order of their formulas.
UNARY = ("x", "curv")
BINARY = ("x", "y", "curv")
CONTRASTIVE = ("x", "y", "curv", "logit_scale")
HYSAC = ("image", "text", "logit_scale")
HYCOCLIP = ("image", "text", "box_image", "box_text", "curv", "logit_scale")


def values(inputs: Inputs, names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(inputs[name] for name in names)


def program(function: Callable[..., Any], names: tuple[str, ...]) -> Program:
    """Of a function that takes the named inputs and returns a tensor or a tuple of them."""

    def run(inputs: Inputs) -> Outputs:
        result = function(*values(inputs, names))
        return result if isinstance(result, tuple) else (result,)

    return run


def shape_name(shape: Shape) -> str:
    return " ".join(f"{name}={size}" for name, size in shape.items())


@dataclass(frozen=True)
class Case:
    """One operation on one kind of data.

    ``draw`` makes the float32 inputs; those named in ``points`` take each provider's dtype and, like those in
    ``scalars``, a gradient. ``references`` maps what a provider computes to the float64 answer. ``products``
    counts the floating-point operations of forward and backward that any algorithm needs. ``headline``
    are further shapes, which take long: only those providers run there that the summary shows.
    """

    name: str
    title: str
    shapes: Mapping[str, tuple[Shape, ...]]
    draw: Callable[[Shape, torch.Generator], Inputs]
    points: tuple[str, ...]
    references: Mapping[str, Program]
    products: Callable[[Shape], tuple[float, float]]
    scalars: tuple[str, ...] = ("curv",)
    headline: Mapping[str, tuple[Shape, ...]] = field(default_factory=dict)

    def obstacle(self) -> str | None:
        """Why this case cannot run here, or None."""
        return None

    def prepare(self, drawn: Inputs, dtype: torch.dtype) -> Inputs:
        """The inputs of one run: new leaves, the points rounded to ``dtype``."""
        scalar_dtype = torch.promote_types(dtype, torch.float32)
        inputs = dict(drawn)
        for name in self.points:
            inputs[name] = drawn[name].detach().to(dtype, copy=True).requires_grad_()
        for name in self.scalars:
            inputs[name] = drawn[name].detach().to(scalar_dtype, copy=True).requires_grad_()
        return inputs

    def leaves(self, inputs: Inputs) -> dict[str, Tensor]:
        """The tensors whose gradients the correctness gate compares."""
        return {name: inputs[name] for name in (*self.points, *self.scalars)}

    def gradient_bytes(self, inputs: Inputs) -> int:
        return sum(tensor.nbytes for tensor in self.leaves(inputs).values())

    def compulsory_bytes(self, inputs: Inputs, outputs: Outputs) -> dict[str, int]:
        """What each phase must read and write once: inputs, outputs, gradients from above, gradients."""
        into = sum(value.nbytes for value in inputs.values() if isinstance(value, Tensor))
        out = sum(tensor.nbytes for tensor in outputs)
        gradients = self.gradient_bytes(inputs)
        return {
            "forward": into + out,
            "backward": into + out + gradients,
            "both": into + 2 * out + gradients,
        }

    def operations(self, shape: Shape, inputs: Inputs) -> dict[str, float]:
        forward, backward = self.products(shape)
        return {"forward": forward, "backward": backward, "both": forward + backward}

    def finish(self, inputs: Inputs) -> None:
        """What belongs to the measured work after the backward pass."""
