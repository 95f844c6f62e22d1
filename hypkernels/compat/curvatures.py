"""Curvatures in the shapes of the MERU family, reshaped to broadcast against points and numbers per
point.

A model has one curvature, or one for each of ``N`` factors whose points are ``(B, N, D)``: then as
``(N,)``, or with a last dimension of 1 in place of ``D``, as ``(N, 1)`` or ``(1, N, 1)``. A tensor of
one element is one curvature, whatever its shape.
"""

from __future__ import annotations

from torch import Tensor


def beside_numbers(curv: float | Tensor) -> float | Tensor:
    """The curvature in a shape that broadcasts against one number for each point, ``(..., N)``."""
    if not isinstance(curv, Tensor):
        return curv
    if curv.numel() == 1:
        return curv.reshape(())
    return curv.squeeze(-1) if curv.dim() > 1 and curv.shape[-1] == 1 else curv


def beside_vectors(curv: float | Tensor) -> float | Tensor:
    """The curvature in a shape that broadcasts against points, ``(..., N, D)``."""
    return _with_dimensions(beside_numbers(curv), 1)


def of_factors(curv: float | Tensor, dimensions: int) -> float | Tensor:
    """The curvature in a shape that broadcasts against ``N`` and ``dimensions`` more dimensions."""
    numbers = beside_numbers(curv)
    if isinstance(numbers, Tensor) and numbers.dim() > 1:
        numbers = numbers.reshape(numbers.shape[-1])
    return _with_dimensions(numbers, dimensions)


def _with_dimensions(numbers: float | Tensor, dimensions: int) -> float | Tensor:
    if isinstance(numbers, Tensor) and numbers.dim():
        return numbers[(..., *[None] * dimensions)]
    return numbers
