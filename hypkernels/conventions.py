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

from hypkernels.checks import broadcast_pair, check_points, check_positive, check_values, scalar_tensor


def curv_to_k(curv: float | Tensor) -> float | Tensor:
    """The squared radius ``k = 1 / curv``, which parametrises geoopt's ``Lorentz``.

    Args:
        curv: positive, a float or a tensor of any shape.

    Raises:
        TypeError, ValueError: a Python number that is not positive and finite.
    """
    return 1 / (curv if isinstance(curv, Tensor) else check_positive("curv", curv))


def k_to_curv(k: float | Tensor) -> float | Tensor:
    """The curvature parameter ``curv = 1 / k`` of a hyperboloid of squared radius ``k``, as geoopt has it.

    Args:
        k: positive, a float or a tensor of any shape.

    Raises:
        TypeError, ValueError: a Python number that is not positive and finite.
    """
    return 1 / (k if isinstance(k, Tensor) else check_positive("k", k))


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
    return _with_time(_time(x.double(), _curvature(curv, x)), x)


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
        time, x = points[..., 0].double(), points[..., 1:].double()
        error = ((time * time - (x * x).sum(-1) - 1 / c) / (time * time)).abs().where(time > 0, torch.inf)
        _require_small(error, points.dtype, f"points are not on the hyperboloid of curvature {-c.item()}")
    return points[..., 1:]


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
        excess = vectors[..., 0].double() - _tangent_time(x.double(), v.double(), c)
        length = torch.linalg.vector_norm(v.double(), dim=-1)
        error = (excess.abs() / length).where(excess != 0, 0.0)
        _require_small(error, vectors.dtype, f"vectors are not tangent at x for curvature {-c.item()}")
    return v


def lorentz_to_ball(x: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """Stereographic projection to the Poincaré ball of the same curvature, ``x / (1 + sqrt(c) x_time)``.

    Args:
        x: space components ``(..., D)``, float64, float32, bfloat16 or float16.
        curv: positive ``c`` (sectional curvature ``-c``), a float or a tensor of one element.

    Returns:
        Points ``(..., D)`` of the ball of radius ``1/sqrt(c)``, in the dtype of ``x``. Far from the origin
        they round onto its boundary: from ``sqrt(c)|x|`` of about ``1 / eps`` on, ``eps`` being the dtype's.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or sign, by name.
    """
    check_points("x", x)
    c, rows = _curvature(curv, x), x.double()
    return (rows / (1 + torch.sqrt(c) * _time(rows, c)).unsqueeze(-1)).to(x.dtype)


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
    inside = 1 - c * (rows * rows).sum(-1, keepdim=True)
    if _should_check(check, points) and not (inside > 0).all():
        raise ValueError(f"points must lie in the open ball of radius 1/sqrt(curv), curv = {c.item()}")
    return (2 * rows / inside).to(points.dtype)


def _curvature(curv: float | Tensor, points: Tensor) -> Tensor:
    c = scalar_tensor("curv", curv, points)
    if not torch.compiler.is_compiling():
        check_values("curv", c)
    return c.double()


def _time(x: Tensor, c: Tensor) -> Tensor:
    return torch.sqrt(1 / c + (x * x).sum(-1))


def _tangent_time(x: Tensor, v: Tensor, c: Tensor) -> Tensor:
    return (x * v).sum(-1) / _time(x, c)


def _with_time(time: Tensor, space: Tensor) -> Tensor:
    return torch.cat([time.unsqueeze(-1).to(space.dtype), space], dim=-1)


def _check_full(name: str, vectors: Tensor) -> None:
    check_points(name, vectors)
    if vectors.shape[-1] < 2:
        raise ValueError(f"{name} must have shape (..., D + 1), time first, got {tuple(vectors.shape)}")


def _should_check(check: bool | None, points: Tensor) -> bool:
    if check is None:
        return points.device.type == "cpu" and not torch.compiler.is_compiling()
    return check


def _require_small(error: Tensor, dtype: torch.dtype, complaint: str) -> None:
    tolerance = torch.finfo(dtype).eps ** 0.5
    if not (error <= tolerance).all():
        raise ValueError(
            f"{complaint}: relative error up to {error.max().item():.3g}, at most {tolerance:.3g}"
        )
