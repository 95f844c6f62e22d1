"""Argument checks shared by the public functions: they name the argument, what came and what was expected."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

SUPPORTED_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_points(name: str, points: Tensor) -> Tensor:
    """``points`` must be a floating tensor ``(..., D)`` with ``D >= 1``."""
    if not isinstance(points, Tensor):
        raise TypeError(f"{name} must be a tensor of space components (..., D), got {type(points).__name__}")
    if points.dtype not in SUPPORTED_DTYPES:
        raise TypeError(f"{name} must be float64, float32, bfloat16 or float16, got {points.dtype}")
    if points.dim() == 0 or points.shape[-1] == 0:
        raise ValueError(f"{name} must have shape (..., D) with D >= 1, got {tuple(points.shape)}")
    return points


def check_pair(x_name: str, x: Tensor, y_name: str, y: Tensor) -> None:
    """Two point sets must share dtype, device and width."""
    check_points(x_name, x)
    check_points(y_name, y)
    if x.dtype != y.dtype:
        raise TypeError(f"{x_name} and {y_name} must have the same dtype, got {x.dtype} and {y.dtype}")
    if x.device != y.device:
        raise ValueError(f"{x_name} and {y_name} must be on the same device, got {x.device} and {y.device}")
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"{x_name} and {y_name} must have the same width (last dimension), "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )


def broadcast_pair(x_name: str, x: Tensor, y_name: str, y: Tensor) -> tuple[Tensor, Tensor]:
    """Check two point sets and broadcast their leading dimensions against each other, without a copy."""
    check_pair(x_name, x, y_name, y)
    try:
        shape = torch.broadcast_shapes(x.shape, y.shape)
    except RuntimeError:
        raise ValueError(
            f"{x_name} and {y_name} must have broadcastable leading dimensions, "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        ) from None
    return x.expand(shape), y.expand(shape)


def scalar_tensor(name: str, value: float | Tensor) -> Tensor:
    """A positive scalar argument (curvature, scale) as a 0-d tensor; gradients flow through it."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"{name} must be a float or a one-element tensor, got shape {tuple(value.shape)}"
            )
        if value.dtype not in SUPPORTED_DTYPES:
            raise TypeError(f"{name} must be a floating tensor, got {value.dtype}")
        return value.reshape(())
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a float or a one-element tensor, got {type(value).__name__}")
    check_positive(name, float(value))
    return torch.tensor(float(value), dtype=torch.float64)


def check_positive(name: str, value: float) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return value


def check_curv_value(curv: Tensor) -> None:
    """Refuse a non-positive curvature. One on a GPU is not read back: it would stall the stream."""
    if curv.device.type == "cpu":
        check_positive("curv", curv.item())
