"""Argument checks shared by the public functions: they name the argument, what came and what was expected."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.utils._python_dispatch import _disable_current_modes

# The range of norms and curvatures whose products stay within float64.
_SMALLEST, _LARGEST = 2.0**-160, 2.0**160
SUPPORTED_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Precisions of the products of float32 points on a GPU.
PRECISIONS = (None, "ieee", "tf32", "tf32x3")

# A check of a number, given its name; returns the number as a float.
Check = Callable[[str, float], float]


def check_points(name: str, points: Tensor) -> Tensor:
    """``points`` must be a dense floating tensor ``(..., D)`` with ``D >= 1``."""
    if not isinstance(points, Tensor):
        raise TypeError(f"{name} must be a tensor of space components (..., D), got {type(points).__name__}")
    check_dense(name, points)
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
    if x.shape == y.shape:
        return x, y
    try:
        shape = torch.broadcast_shapes(x.shape, y.shape)
    except RuntimeError:
        raise ValueError(
            f"{x_name} and {y_name} must have broadcastable leading dimensions, "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        ) from None
    return x.expand(shape), y.expand(shape)


def check_matrices(x_name: str, x: Tensor, y_name: str, y: Tensor) -> None:
    """Two point sets of which all pairs are computed: ``(M, D)`` and ``(N, D)``."""
    check_pair(x_name, x, y_name, y)
    if x.dim() != 2 or y.dim() != 2:
        raise ValueError(
            f"{x_name} and {y_name} must have shapes (M, D) and (N, D), "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )


def broadcast_sets(x: Tensor, y: Tensor, curv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two checked point sets, ``(..., M, D)`` and ``(..., N, D)``, and a curvature, their leading dimensions
    broadcast without a copy.

    ``curv`` is 0-d and is returned so, or it broadcasts against ``(..., M)``, with 1 in place of ``M``,
    since all pairs of a matrix have the same curvature. Then it is returned as ``(...)``.
    """
    if curv.dim() and curv.shape[-1] != 1:
        raise ValueError(
            "curv must have one element for each matrix of pairs, a shape (..., 1) that broadcasts against "
            f"the leading dimensions of x, {tuple(x.shape[:-1])}; got {tuple(curv.shape)}"
        )
    of_sets = curv.squeeze(-1) if curv.dim() else curv
    batch = _broadcast_shapes(x=x.shape[:-2], y=y.shape[:-2], curv=of_sets.shape)
    expanded = of_sets.expand(batch) if curv.dim() else curv
    return x.expand(*batch, *x.shape[-2:]), y.expand(*batch, *y.shape[-2:]), expanded


def broadcast_rows(*operands: Tensor, **scalars: Tensor) -> tuple[Tensor, ...]:
    """Checked points of one shape ``(..., D)`` and scalars, leading dimensions broadcast without a copy.

    A 0-d scalar stays 0-d.
    """
    points = operands[0]
    shapes = {name: one.shape for name, one in scalars.items() if one.dim()}
    if not shapes:
        return (*operands, *scalars.values())
    batch = _broadcast_shapes(points=points.shape[:-1], **shapes)
    return (
        *(one.expand(*batch, one.shape[-1]) for one in operands),
        *(one.expand(batch) if one.dim() else one for one in scalars.values()),
    )


def _broadcast_shapes(**shapes: Sequence[int]) -> torch.Size:
    try:
        return torch.broadcast_shapes(*shapes.values())
    except RuntimeError:
        listed = ", ".join(f"{tuple(shape)} of {name}" for name, shape in shapes.items())
        raise ValueError(
            f"{' and '.join(shapes)} must have broadcastable leading dimensions, got {listed}"
        ) from None


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {type(value).__name__}")


def check_number(name: str, value: Any, expected: str) -> float:
    """A Python number as a float; infinite if it is larger than any float."""
    if type(value) is float:  # nearly always; asking for a ``Real`` takes longer
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]


def check_positive(name: str, value: float, expected: str = "a float or a one-element tensor") -> float:
    """A positive and finite Python number, as a float."""
    number = check_number(name, value, expected)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {number}")
    return number


def check_finite(name: str, value: float) -> float:
    """A finite Python number, as a float."""
    number = check_number(name, value, "a number")
    if not -math.inf < number < math.inf:
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def check_not_negative(name: str, value: float) -> float:
    """A finite Python number of at least 0, as a float."""
    number = check_finite(name, value)
    if number < 0:
        raise ValueError(f"{name} must not be negative, got {number}")
    return number


def constant(number: float) -> Tensor:
    """A Python number as a 0-d float64 tensor, as operators take it.

    It is made by arithmetic, for numbers that change from call to call of a compiled graph: there
    ``torch.full`` would keep its first value, and ``torch.tensor`` would compile again for each value.
    """
    if torch.compiler.is_compiling():
        return torch.ones((), dtype=torch.float64) * number
    return torch.tensor(number, dtype=torch.float64)


def scalar_tensor(
    name: str,
    value: float | Tensor,
    points: Tensor,
    check: Check = check_positive,
) -> Tensor:
    """A scalar argument of a function of ``points`` as a 0-d tensor; by default positive, as curvatures
    are.

    Gradients flow through it. It may stay on the CPU while the points are on a GPU, not the reverse.
    """
    scalar = scalar_or_rows(name, value, points, check)
    if scalar.dim():
        raise ValueError(f"{name} must be a float or a one-element tensor, got shape {tuple(scalar.shape)}")
    return scalar


def scalar_or_rows(
    name: str,
    value: float | Tensor,
    points: Tensor,
    check: Check = check_positive,
) -> Tensor:
    """The same, except that a tensor of several elements, one for each factor, is returned as it is."""
    if not isinstance(value, Tensor):
        return constant(check(name, value))
    _check_beside(name, value, points)
    if value.numel() == 1:
        return value.reshape(())
    if value.device != points.device:
        raise ValueError(
            f"{name} of shape {tuple(value.shape)} must be on the points' {points.device}, got {value.device}"
        )
    return value


def scale_tensor(name: str, value: float | Tensor, points: Tensor) -> Tensor:
    """A scale of at least 0: one for all ``points``, as a 0-d tensor, or one for each, ``(M,)``."""
    if not isinstance(value, Tensor):
        return constant(check_not_negative(name, value))
    _check_beside(name, value, points)
    if value.numel() != 1 and value.shape != points.shape[:1]:
        raise ValueError(
            f"{name} must be a float, a one-element tensor or one of shape ({points.shape[0]},), "
            f"got shape {tuple(value.shape)}"
        )
    return value.reshape(()) if value.numel() == 1 else value


def check_dense(name: str, tensor: Tensor) -> None:
    if tensor.is_nested or tensor.layout != torch.strided:
        kind = "a nested tensor" if tensor.is_nested else f"one of layout {tensor.layout}"
        raise TypeError(f"{name} must be a dense tensor, got {kind}")


def check_scalars(name: str, value: Tensor) -> None:
    """A dense floating tensor of any shape."""
    check_dense(name, value)
    if value.dtype not in SUPPORTED_DTYPES:
        raise TypeError(f"{name} must be a floating tensor, got {value.dtype}")


def _check_beside(name: str, value: Tensor, points: Tensor) -> Tensor:
    check_scalars(name, value)
    if value.device.type != "cpu" and value.device != points.device:
        raise ValueError(f"{name} must be on the CPU or on the points' {points.device}, got {value.device}")
    return value


def target_tensor(name: str, targets: Tensor, points: Tensor) -> Tensor:
    """One index for each of ``points``, as int64."""
    if not isinstance(targets, Tensor):
        raise TypeError(f"{name} must be a tensor of one index for each row, got {type(targets).__name__}")
    check_dense(name, targets)
    if targets.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must be int64 or int32, got {targets.dtype}")
    if targets.shape != points.shape[:1]:
        raise ValueError(
            f"{name} must have shape ({points.shape[0]},), one index for each row, got {tuple(targets.shape)}"
        )
    if targets.device != points.device:
        raise ValueError(f"{name} must be on {points.device} as the points are, got {targets.device}")
    return targets.long()


def check_values(name: str, scalar: Tensor, check: Check = check_positive) -> None:
    """``check`` the values of a scalar, also within transforms of ``torch.func``.

    One on a GPU is not read back: it would stall the stream.
    """
    scalar = unwrapped(scalar)
    if scalar.device.type != "cpu" or not scalar.numel():
        return
    if scalar.dim() == 0:
        check(name, scalar.item())
        return
    try:
        for bound in scalar.aminmax():  # both are NaN if any value is NaN
            check(name, bound.item())
    except ValueError as error:
        raise ValueError(f"{error} in a tensor of {tuple(scalar.shape)}") from None


def check_target_values(targets: Tensor, columns: int) -> None:
    """Refuse indices out of range. On a GPU they are not read back: there indexing fails later."""
    targets = unwrapped(targets)
    if targets.device.type == "cpu" and targets.numel():
        low, high = (bound.item() for bound in targets.aminmax())
        if low < 0 or high >= columns:
            raise ValueError(
                f"targets must be in [0, {columns}), indices of y, got values in [{low}, {high}]"
            )


def check_differentiable_range(
    name: str, points: Sequence[Tensor], scalars: Sequence[Tensor], checks: Mapping[str, Check]
) -> tuple[Tensor, ...]:
    """Refuse arguments beyond the range of the formulas of higher derivatives, which multiply four
    norms.

    Points narrower than float64 are always in range. The last of the scalars is the curvature. In a
    graph that is being compiled values are unknown. There this returns a factor for each argument,
    ``(..., 1)`` for points: NaN where the argument would be refused and 1 elsewhere, so that derivatives
    are NaN, too.
    """
    if torch.compiler.is_compiling() or any(is_fake(unwrapped(one)) for one in (*points, *scalars)):
        refused = [_beyond_range(size) for size in (*map(_size, points), *scalars)]
        refused[-1] = refused[-1] | ~_is_curvature(scalars[-1])
        return tuple(torch.where(one, math.nan, 1.0).double() for one in refused)
    with _disable_current_modes():  # a tracer raises an error when values are read
        scalars = [unwrapped(one) for one in scalars]
        for (scalar_name, check), one in zip(checks.items(), scalars, strict=False):
            check_values(scalar_name, one, check)
        sizes = [_size(unwrapped(one)) for one in points if one.dtype == torch.float64]
        for size in (*sizes, *(one for one in scalars if sizes or one.device.type == "cpu")):
            beyond = _beyond_range(size)
            if beyond.any():
                raise ValueError(
                    f"hypkernels.{name} has forward mode and second derivatives for points, scales and "
                    "curvatures that are 0 or from 2**-160 to 2**160, got "
                    f"{size[beyond].flatten()[0].item():.3g}"
                )
    return ()


def _size(points: Tensor) -> Tensor:
    return points.abs().amax(-1, keepdim=True)


def _beyond_range(number: Tensor) -> Tensor:
    size = number.abs()
    return ((size > 0) & (size < _SMALLEST)) | ((size > _LARGEST) & size.isfinite())


def _is_curvature(number: Tensor) -> Tensor:
    return (number > 0) & (number < math.inf)


def unwrapped(tensor: Tensor) -> Tensor:
    """The values of a tensor within transforms of ``torch.func``; the samples of ``vmap`` come first."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        samples = functorch.maybe_get_bdim(tensor)
        tensor = functorch.get_unwrapped(tensor)
        tensor = tensor if samples < 0 else tensor.movedim(samples, 0)
    return tensor.detach()
