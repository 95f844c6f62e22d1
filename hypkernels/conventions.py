"""Other libraries' conventions: full ``(D + 1)`` vectors, the parameter ``k``, and the Poincaré ball.

==================  =================================================  ==============================
convention          points                                             curvature parameter
==================  =================================================  ==============================
this library, MERU  space components, ``(..., D)``                     ``curv`` = c > 0, curvature -c
geoopt's Lorentz    full vectors, time first, ``(..., D + 1)``         ``k`` = 1/c, the squared radius
Poincaré ball       ``(..., D)``, within the radius ``1/sqrt(c)``      ``curv`` = c > 0, curvature -c
==================  =================================================  ==============================

The functions compute in float64 and return the input dtype; they are differentiable to any order, in the
points and in ``curv``. Conversions preserve distances: :func:`lorentz_to_ball` lands on the ball of the same
curvature ``-c`` for every ``c``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hypkernels.checks import (
    broadcast_pair,
    check_points,
    check_positive,
    check_scalars,
    check_values,
    scalar_tensor,
    unwrapped,
)


def curv_to_k(curv: float | Tensor) -> float | Tensor:
    """The squared radius ``k = 1 / curv``, which parametrises geoopt's ``Lorentz``.

    Args:
        curv: positive, a float or a floating tensor of any shape.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype or sign, by name. Values on a GPU are not
            read back.
    """
    return _squared_radius("curv", curv)


def k_to_curv(k: float | Tensor) -> float | Tensor:
    """The curvature parameter ``curv = 1 / k`` of a hyperboloid of squared radius ``k``, as geoopt has it.

    Args:
        k: positive, a float or a floating tensor of any shape.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype or sign, by name. Values on a GPU are not
            read back.
    """
    return _squared_radius("k", k)


def space_to_full(x: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """Prepend the time component ``sqrt(1/c + |x|^2)``.

    Args:
        x: space components ``(..., D)``, float64, float32, bfloat16 or float16.
        curv: positive ``c`` (sectional curvature ``-c``), a float or a tensor of one element.

    Returns:
        Full vectors ``(..., D + 1)``, time first, in the dtype of ``x``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or sign, by name.
    """
    check_points("x", x)
    c, rows = _curvature(curv, x), x.double()
    unit = _unit(rows, c)
    return _with_time(_time(rows, c, unit) / unit, x)


def full_to_space(points: Tensor, curv: float | Tensor = 1.0, *, check: bool | None = None) -> Tensor:
    """Drop the time component, after a check that the points are on the hyperboloid of this curvature.

    Args:
        points: full vectors ``(..., D + 1)``, time first, float64, float32, bfloat16 or float16.
        curv: positive ``c`` (sectional curvature ``-c``), a float or a tensor of one element.
        check: whether to require ``|time^2 - |x|^2 - 1/c| <= sqrt(eps) time^2`` and a positive time, ``eps``
            being that of the dtype. ``None`` checks tensors on a CPU only, since the answer would have to be
            read back from a GPU, and not under ``torch.compile``.

    Returns:
        Space components ``(..., D)`` in the dtype of ``points``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or sign, by name; points that are
            not on the hyperboloid.
    """
    _check_full("points", points)
    c = _curvature(curv, points)
    if _should_check(check, points):
        full = points.double()
        unit = _unit(full, c)
        time, x = unit * full[..., :1], unit * full[..., 1:]
        error = ((time * time - _square(x) - unit * unit / c) / (time * time)).abs()
        error = error.where(time > 0, torch.inf)
        _require_small(error, points.dtype, "points are not on the hyperboloid of curvature", c)
    return points[..., 1:]


def infer_curv(points: Tensor, *, tolerance: float = 0.01) -> float:
    """The ``curv`` of the hyperboloid on which full vectors lie, for points that came without it.

    It is a mean of ``1/c = time^2 - |x|^2`` over the points, with weights ``time^-4``: far from the
    origin the difference cancels.

    Args:
        points: full vectors ``(..., D + 1)``, at least one, time first, float64, float32, bfloat16 or
            float16. They are read back from a GPU.
        tolerance: the largest relative error that roundings to this dtype may cause, positive.

    Returns:
        ``c > 0`` (sectional curvature ``-c``).

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or sign, by name; points that are
            not on one hyperboloid, or too far from the origin for ``tolerance``.
    """
    _check_full("points", points)
    check_positive("tolerance", tolerance, "a float")
    full = unwrapped(points.detach()).double().reshape(-1, points.shape[-1])
    if not len(full):
        raise ValueError(f"points must not be empty, got shape {tuple(points.shape)}")
    time, norm = full[:, 0], torch.linalg.vector_norm(full[:, 1:], dim=-1)
    if not (torch.isfinite(time) & (time > 0)).all():
        raise ValueError("points must have finite, positive time components, first in each row")
    nearest = time.min()
    weight = (nearest / time) ** 4
    squared_radius = ((time - norm) * (time + norm) * weight).sum() / weight.sum()
    rounding = torch.finfo(points.dtype).eps * ((time**2 + norm**2) * weight).sum() / weight.sum()
    if not squared_radius > 0 or rounding > tolerance * squared_radius:
        raise ValueError(
            f"points must tell their curvature to {tolerance:g}, got time^2 - |x|^2 = {squared_radius:.3g} "
            f"with roundings of {points.dtype} up to {rounding:.3g}: the nearest to the origin has time "
            f"{nearest:.3g}"
        )
    curv = 1 / squared_radius.item()
    full_to_space(points, curv, check=True)
    return curv


def tangent_to_full(x: Tensor, v: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """Prepend the time component ``x.v / x_time`` of a tangent vector at ``x``.

    Args:
        x: space components of the base points, ``(..., D)``, float64, float32, bfloat16 or float16.
        v: space components of the tangent vectors, of the same dtype and width; leading dimensions broadcast.
        curv: positive ``c`` (sectional curvature ``-c``), a float or a tensor of one element.

    Returns:
        Full tangent vectors of the broadcast shape ``(..., D + 1)``, time first, in the dtype of ``v``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or sign, by name.
    """
    x, v = broadcast_pair("x", x, "v", v)
    return _with_time(_tangent_time(x.double(), v.double(), _curvature(curv, x)), v)


def tangent_to_space(
    x: Tensor, vectors: Tensor, curv: float | Tensor = 1.0, *, check: bool | None = None
) -> Tensor:
    """Drop the time component of tangent vectors at ``x``, after a check that they are tangent there.

    Args:
        x: space components of the base points, ``(..., D)``, float64, float32, bfloat16 or float16.
        vectors: full tangent vectors ``(..., D + 1)``, time first, of the same dtype; leading dimensions
            broadcast.
        curv: positive ``c`` (sectional curvature ``-c``), a float or a tensor of one element.
        check: whether to require ``|v_time - x.v / x_time| <= sqrt(eps) |v|``, ``eps`` being that of the
            dtype. ``None`` checks tensors on a CPU only, and not under ``torch.compile``.

    Returns:
        Space components of the broadcast shape ``(..., D)`` in the dtype of ``vectors``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or sign, by name; vectors
            that are not tangent at ``x``.
    """
    _check_full("vectors", vectors)
    x, v = broadcast_pair("x", x, "vectors[..., 1:]", vectors[..., 1:])
    c = _curvature(curv, x)
    if _should_check(check, vectors):
        rows = v.double()
        excess = vectors[..., :1].double() - _tangent_time(x.double(), rows, c)
        longest = rows.abs().amax(-1, keepdim=True)
        length = torch.linalg.vector_norm(rows / longest, dim=-1, keepdim=True)  # squares may leave float64
        error = (excess.abs() / longest / length).where(excess != 0, 0.0)
        _require_small(error, vectors.dtype, "vectors are not tangent at x for curvature", c)
    return v


def lorentz_to_ball(x: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """Stereographic projection to the Poincaré ball of the same curvature, ``x / (1 + sqrt(c) x_time)``.

    Args:
        x: space components ``(..., D)``, float64, float32, bfloat16 or float16.
        curv: positive ``c`` (sectional curvature ``-c``), a float or a tensor of one element.

    Returns:
        Points ``(..., D)`` of the ball of radius ``1/sqrt(c)``, in the dtype of ``x``. Far from the origin
        they round onto its boundary, if ``sqrt(c)|x|`` is more than about ``1 / eps`` of the dtype.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or sign, by name.
    """
    check_points("x", x)
    c, rows = _curvature(curv, x), x.double()
    unit = _unit(rows, c)
    return (unit * rows / (unit + torch.sqrt(c) * _time(rows, c, unit))).to(x.dtype)


def ball_to_lorentz(points: Tensor, curv: float | Tensor = 1.0, *, check: bool | None = None) -> Tensor:
    """Inverse of :func:`lorentz_to_ball`, ``2 p / (1 - c |p|^2)``.

    Args:
        points: points ``(..., D)`` of the Poincaré ball of radius ``1/sqrt(c)``, float64, float32, bfloat16
            or float16.
        curv: positive ``c`` (sectional curvature ``-c``), a float or a tensor of one element.
        check: whether to require ``sqrt(c)|p| < 1``. ``None`` checks tensors on a CPU only, and not under
            ``torch.compile``.

    Returns:
        Space components ``(..., D)`` in the dtype of ``points``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or sign, by name; points outside
            the open ball.
    """
    check_points("points", points)
    c, rows = _curvature(curv, points), points.double()
    unit = _unit(rows, c)
    inside = 1 - c / unit / unit * _square(unit * rows)
    if _should_check(check, points) and not (unwrapped(inside) > 0).all():
        raise ValueError(f"points must lie in the open ball of radius 1/sqrt(curv), curv = {_listed(c)}")
    return (2 * rows / inside).to(points.dtype)


def _curvature(curv: float | Tensor, points: Tensor) -> Tensor:
    c = scalar_tensor("curv", curv, points)
    if not torch.compiler.is_compiling():
        check_values("curv", c)
    return c.double()


def _squared_radius(name: str, value: float | Tensor) -> float | Tensor:
    """The reciprocal, which turns either parameter into the other."""
    if not isinstance(value, Tensor):
        return 1 / check_positive(name, value, "a float or a tensor")
    check_scalars(name, value)
    if not torch.compiler.is_compiling():
        check_values(name, value)
    return 1 / value


def _unit(rows: Tensor, c: Tensor) -> Tensor:
    """A power of two for each row, ``(..., 1)``, with which the squares of its numbers stay within float64.

    Nearly always 1, which changes no bit.
    """
    longest = rows.abs().amax(-1, keepdim=True)
    flat, far = (longest >= 0) & (c < 2.0**-1000), longest > 2.0**500  # c may be on another device
    return torch.ones_like(longest).masked_fill(flat, 2.0**-30).masked_fill(far, 2.0**-530)


def _square(rows: Tensor) -> Tensor:
    return (rows * rows).sum(-1, keepdim=True)


def _time(x: Tensor, c: Tensor, unit: Tensor) -> Tensor:
    """The time component ``(..., 1)``, in units of ``1 / unit``."""
    return torch.sqrt(unit * unit / c + _square(unit * x))


def _tangent_time(x: Tensor, v: Tensor, c: Tensor) -> Tensor:
    unit, unit_of_v = _unit(x, c), _unit(v, torch.ones_like(c))
    return (unit * x * (unit_of_v * v)).sum(-1, keepdim=True) / _time(x, c, unit) / unit_of_v


def _with_time(time: Tensor, space: Tensor) -> Tensor:
    return torch.cat([time.to(space.dtype), space], dim=-1)


def _check_full(name: str, vectors: Tensor) -> None:
    check_points(name, vectors)
    if vectors.shape[-1] < 2:
        raise ValueError(f"{name} must have shape (..., D + 1), time first, got {tuple(vectors.shape)}")


def _should_check(check: bool | None, points: Tensor) -> bool:
    if check is None:
        return points.device.type == "cpu" and not torch.compiler.is_compiling()
    return check


def _require_small(error: Tensor, dtype: torch.dtype, complaint: str, c: Tensor) -> None:
    tolerance = torch.finfo(dtype).eps ** 0.5
    error = unwrapped(error)
    if not (error <= tolerance).all():
        raise ValueError(
            f"{complaint} {_listed(-c)}: "
            f"relative error up to {error.max().item():.3g}, at most {tolerance:.3g}"
        )


def _listed(c: Tensor) -> float | list[float]:
    """One number, or those of all samples of ``vmap``."""
    return unwrapped(c).tolist()
