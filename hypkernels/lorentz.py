"""The functional geometry of the Lorentz model; a point is its space components ``x``, shape ``(..., D)``.

The hyperboloid of sectional curvature ``-c`` is ``x_time^2 = 1/c + |x|^2``, so the time component follows
from the space components and is never passed. Tangent vectors are given by their space components too: at the
origin those are all there is, elsewhere ``v_time = x.v / x_time``.

Results are differentiable in the points and in ``curv``, any number of times and under every transform of
``torch.func``. What goes beyond one reverse pass takes a slower formula: see :mod:`hypkernels.operators`.
The row-wise functions compute in float64 from the exact values of their arguments and round once. (Float64
points have no wider type: of two whose directions agree to the last digits, about 1e-16 of a direction is
lost, which shows beyond ``sqrt(c)|x|`` of 1e8.) Leading
dimensions of two arguments broadcast, as in ``oxy_angle(x[:, None], y[None])``. The pairwise functions take a
point ``(D,)`` for a set as ``torch.matmul`` takes a vector: its dimension is missing in the result.

No result of finite arguments is NaN. One that its dtype cannot hold is infinite with the right sign. A
gradient by a point that leaves the dtype's range (an angle turns by ``1/|x|`` at a point close to the origin)
is scaled to the largest one in range, in its direction.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hypkernels.checks import (
    PRECISIONS,
    broadcast_pair,
    broadcast_rows,
    broadcast_sets,
    check_choice,
    check_finite,
    check_pair,
    check_points,
    check_positive,
    constant,
    scalar_or_rows,
)
from hypkernels.cone import op as cone
from hypkernels.distance import op as distance
from hypkernels.maps import op as maps
from hypkernels.pairwise import op as pairwise


def exp_map0(x: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """Exponential map at the origin: a tangent vector to the point it leads to.

    ``sinh(sqrt(c)|x|) / (sqrt(c)|x|) * x``, so that ``dist0(exp_map0(x)) == |x|``.

    Args:
        x: tangent vectors at the origin, ``(..., D)``, float64, float32, bfloat16 or float16.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or one for each
            of several factors: a tensor that broadcasts against the leading dimensions.

    Returns:
        Space components ``(..., D)`` in the dtype of ``x``; the identity to first order at zero. They grow as
        ``exp(sqrt(c)|x|)`` and leave the range of float32 near ``sqrt(c)|x| = 89``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or sign, by name.
    """
    check_points("x", x)
    return maps.exp_map0(*broadcast_rows(x, curv=scalar_or_rows("curv", curv, x)))


def scaled_exp_map0(x: Tensor, scale: float | Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """Lift of Euclidean features: :func:`exp_map0` of ``scale * x``, the product never rounded or stored.

    Args:
        x: features ``(..., D)``, float64, float32, bfloat16 or float16.
        scale: any finite number: a float, a tensor of one element, which may learn, or one for each of
            several factors, as ``curv``.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or one for each
            of several factors: a tensor that broadcasts against the leading dimensions.

    Returns:
        Space components ``(..., D)`` in the dtype of ``x``; ``dist0`` of them is ``|scale| |x|``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, sign or range, by name. Values on
            a GPU are not read back.
    """
    check_points("x", x)
    factor = scalar_or_rows("scale", scale, x, check_finite)
    return maps.scaled_exp_map0(*broadcast_rows(x, scale=factor, curv=scalar_or_rows("curv", curv, x)))


def log_map0(x: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """Logarithmic map at the origin, the inverse of :func:`exp_map0`.

    ``asinh(sqrt(c)|x|) / (sqrt(c)|x|) * x``, whose norm is ``dist0(x)``.

    Args:
        x: space components ``(..., D)``, float64, float32, bfloat16 or float16.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or one for each
            of several factors: a tensor that broadcasts against the leading dimensions.

    Returns:
        Tangent vectors ``(..., D)`` in the dtype of ``x``; the identity to first order at zero.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or sign, by name.
    """
    check_points("x", x)
    return maps.log_map0(*broadcast_rows(x, curv=scalar_or_rows("curv", curv, x)))


def exp_map(x: Tensor, v: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """Exponential map at ``x``: where the geodesic that starts with velocity ``v`` is after unit time.

    ``cosh(tau) x + sinh(tau) / tau * v`` with ``tau = sqrt(c) |v|_L``, the Lorentz norm being
    ``|v|_L^2 = |v|^2 - (x.v / x_time)^2``, so that ``elementwise_dist(x, exp_map(x, v)) == |v|_L``.

    Args:
        x: space components of the base points, ``(..., D)``, float64, float32, bfloat16 or float16.
        v: space components of the tangent vectors at ``x``, of the same dtype and width; leading dimensions
            broadcast. Any vector is the space part of one tangent vector.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or one for each
            of several factors: a tensor that broadcasts against the leading dimensions.

    Returns:
        Space components, of the broadcast shape ``(..., D)`` and the dtype of ``x``: ``x`` itself for
        ``v = 0`` and :func:`exp_map0` of ``v`` for ``x = 0``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or sign, by name.
    """
    x, v = broadcast_pair("x", x, "v", v)
    return maps.exp_map(*broadcast_rows(x, v, curv=scalar_or_rows("curv", curv, x)))


def log_map(x: Tensor, y: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """Logarithmic map at ``x``: the velocity that leads from ``x`` to ``y`` in unit time.

    ``tau / sinh(tau) * (y - cosh(tau) x)`` with ``tau = sqrt(c) elementwise_dist(x, y)``: the inverse of
    :func:`exp_map`.

    Args:
        x: space components of the base points, ``(..., D)``, float64, float32, bfloat16 or float16.
        y: space components of the targets, of the same dtype and width; leading dimensions broadcast.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or one for each
            of several factors: a tensor that broadcasts against the leading dimensions.

    Returns:
        Space components of the tangent vectors at ``x``, of the broadcast shape ``(..., D)`` and the dtype of
        ``x``; zero for ``y = x`` and :func:`log_map0` of ``y`` for ``x = 0``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or sign, by name.
    """
    x, y = broadcast_pair("x", x, "y", y)
    return maps.log_map(*broadcast_rows(x, y, curv=scalar_or_rows("curv", curv, x)))


def elementwise_inner(x: Tensor, y: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """Lorentz inner product of corresponding points, ``x.y - x_time y_time``.

    Args:
        x: space components ``(..., D)``, float64, float32, bfloat16 or float16.
        y: space components of the same dtype and width; leading dimensions broadcast.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or one for each
            of several factors: a tensor that broadcasts against the leading dimensions.

    Returns:
        The broadcast shape ``(...)``, at most ``-1/c`` (reached for ``x = y``); float64 for float64 points,
        float32 otherwise.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or sign, by name.
    """
    x, y = broadcast_pair("x", x, "y", y)
    return distance.elementwise_inner(*broadcast_rows(x, y, curv=scalar_or_rows("curv", curv, x)))


def elementwise_dist(x: Tensor, y: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """Geodesic distance of corresponding points, ``acosh(-c <x, y>_L) / sqrt(c)``.

    Args:
        x: space components ``(..., D)``, float64, float32, bfloat16 or float16.
        y: space components of the same dtype and width; leading dimensions broadcast.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or one for each
            of several factors: a tensor that broadcasts against the leading dimensions.

    Returns:
        Lengths of the broadcast shape ``(...)``; float64 for float64 points, float32 otherwise. Exactly 0 for
        ``x = y``, where the gradients are 0 too; elsewhere those by ``x`` and ``y`` have norm at most 1.
        There is no second derivative at ``x = y``: autograd's are 0, and so are those of the square, wrongly.
        The square is smooth as the Lorentz norm ``|v|_L^2`` of ``v = log_map(x, y)``, see :func:`exp_map`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or sign, by name.
    """
    x, y = broadcast_pair("x", x, "y", y)
    return distance.elementwise_dist(*broadcast_rows(x, y, curv=scalar_or_rows("curv", curv, x)))


def dist0(x: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """Geodesic distance to the origin, ``asinh(sqrt(c)|x|) / sqrt(c)``.

    Args:
        x: space components ``(..., D)``, float64, float32, bfloat16 or float16.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or one for each
            of several factors: a tensor that broadcasts against the leading dimensions.

    Returns:
        Lengths ``(...)``; float64 for float64 points, float32 otherwise. At the origin 0, with gradient 0.
        There is no second derivative there: autograd's are 0, and so are those of the square, wrongly. The
        square is smooth as ``|log_map0(x)|^2``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or sign, by name.
    """
    check_points("x", x)
    return distance.dist0(*broadcast_rows(x, curv=scalar_or_rows("curv", curv, x)))


def half_aperture(x: Tensor, curv: float | Tensor = 1.0, min_radius: float = 0.1) -> Tensor:
    """Half-aperture of the entailment cone of ``x``, ``asin(2 K / (sqrt(c)|x|))`` with ``K = min_radius``.

    Args:
        x: space components of the apexes, ``(..., D)``, float64, float32, bfloat16 or float16.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or one for each
            of several factors: a tensor that broadcasts against the leading dimensions.
        min_radius: positive ``K``. Within ``sqrt(c)|x| <= 2K`` of the origin the cone is a half-space.

    Returns:
        Radians ``(...)`` in ``(0, pi/2]``; float64 for float64 points, float32 otherwise. Within the minimal
        radius ``pi/2``, with gradient 0.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or sign, by name.
    """
    check_points("x", x)
    radius = constant(check_positive("min_radius", min_radius, "a float"))
    return cone.half_aperture(*broadcast_rows(x, curv=scalar_or_rows("curv", curv, x)), radius)


def oxy_angle(x: Tensor, y: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """Exterior angle at ``x`` of the hyperbolic triangle origin, ``x``, ``y``.

    It is the angle from the ray that leaves the origin through ``x`` to the geodesic from ``x`` to ``y``, and
    ``y`` lies in the entailment cone of ``x`` where it does not exceed ``half_aperture(x)``:
    ``acos((y_time + c x_time <x, y>_L) / (|x| sqrt((c <x, y>_L)^2 - 1)))``.

    Args:
        x: space components of the apexes, ``(..., D)``, float64, float32, bfloat16 or float16.
        y: space components of the points, of the same dtype and width; leading dimensions broadcast.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or one for each
            of several factors: a tensor that broadcasts against the leading dimensions.

    Returns:
        Radians of the broadcast shape ``(...)`` in ``[0, pi]``; float64 for float64 points, float32
        otherwise. Where the angle is not defined it is 0 for ``y = x`` (a point lies in its own cone) and
        ``pi/2`` for ``x = 0`` (everything lies in the cone of the origin). The gradients are 0 there, and
        where the origin, ``x`` and ``y`` are collinear, since the angle has a kink at 0 and ``pi``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or sign, by name.
    """
    x, y = broadcast_pair("x", x, "y", y)
    return cone.oxy_angle(*broadcast_rows(x, y, curv=scalar_or_rows("curv", curv, x)))


def pairwise_inner(
    x: Tensor, y: Tensor, curv: float | Tensor = 1.0, *, precision: str | None = None
) -> Tensor:
    """Lorentz inner product of every pair, ``x_i.y_j - x_time_i y_time_j``.

    What a product of matrices leaves uncertain is as for :func:`pairwise_dist`.

    Args:
        x: space components ``(..., M, D)``, float64, float32, bfloat16 or float16.
        y: space components ``(..., N, D)`` of the same dtype and width; leading dimensions broadcast.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or one for each
            of several factors: a tensor ``(..., 1)`` that broadcasts against the leading dimensions
            ``(..., M)``.
        precision: the coarsest product of matrices allowed on a GPU, ``"ieee"``, ``"tf32x3"`` or ``"tf32"``;
            ``None`` leaves it to ``torch.set_float32_matmul_precision``. On a CPU, and for points that are
            not float32, all are the same.

    Returns:
        ``(..., M, N)``, at most ``-1/c``; float64 for float64 points, float32 otherwise. No temporary is of
        that size, but for up to 8 MiB of a small matrix and, in the backward pass on a GPU, 256 MiB.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or sign, by name.
    """
    return _of_all_pairs(pairwise.pairwise_inner, x, y, curv, precision)


def pairwise_dist(
    x: Tensor, y: Tensor, curv: float | Tensor = 1.0, *, precision: str | None = None
) -> Tensor:
    """Geodesic distance of every pair, ``acosh(-c <x_i, y_j>_L) / sqrt(c)``.

    With ``k = sqrt(c)``, the error of ``k d`` is at most ``4e-15 k^2 |x||y| / sinh(k d)`` before the last
    rounding. That is nothing for most pairs, but pairs closer than about ``1e-7 |x|`` are not resolved and
    come out anywhere below that, a point and itself included. Their gradients are bounded; second derivatives
    are 0 where the distance is, see :func:`elementwise_dist`, which resolves any two points. On a CPU
    distances of points narrower than float64 have a relative error of up to 5e-7 besides.

    On a GPU points narrower than float64 are multiplied in float32, with ``2e-6`` in place of ``4e-15``
    (``precision="tf32"``: ``5e-4``). Where ``cosh(k d) - 1`` is less than ``k^2 |x||y| / 64``, the pair is
    near and that does not apply: such distances and their gradients are right to float32, but for 4e-15 of a
    direction. They take longer, and so do all pairs of a matrix whose largest norms are below ``1e-6/k`` or
    have products beyond ``1e30``.

    Args:
        x: space components ``(..., M, D)``, float64, float32, bfloat16 or float16.
        y: space components ``(..., N, D)`` of the same dtype and width; leading dimensions broadcast.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or one for each
            of several factors: a tensor ``(..., 1)`` that broadcasts against the leading dimensions
            ``(..., M)``.
        precision: the coarsest product of matrices allowed on a GPU, ``"ieee"``, ``"tf32x3"`` or ``"tf32"``;
            ``None`` leaves it to ``torch.set_float32_matmul_precision``. On a CPU, and for points that are
            not float32, all are the same.

    Returns:
        Lengths ``(..., M, N)``; float64 for float64 points, float32 otherwise. No temporary is of that
        size, but for up to 8 MiB of a small matrix and, in the backward pass on a GPU, 256 MiB.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or sign, by name.
    """
    return _of_all_pairs(pairwise.pairwise_dist, x, y, curv, precision)


def pairwise_oxy_angle(
    x: Tensor, y: Tensor, curv: float | Tensor = 1.0, *, precision: str | None = None
) -> Tensor:
    """Exterior angle at ``x_i`` in the triangle origin - ``x_i`` - ``y_j`` of every pair.

    The conventions are those of :func:`oxy_angle`. Pairs closer than about ``1e-7 |x|`` cannot be told
    apart by a matrix product and count as coincident: 0. With ``k = sqrt(c)``, angles closer to 0 or pi
    than about ``1e-7 k|y| / sinh(k d)`` are not resolved. :func:`oxy_angle` resolves any two points. So does
    a GPU, for points narrower than float64: pairs whose directions from the origin are within 0.17 of each
    other or of opposite ones count as near, see :func:`pairwise_dist`.

    Args:
        x: the apexes, space components ``(..., M, D)``, float64, float32, bfloat16 or float16.
        y: space components ``(..., N, D)`` of the same dtype and width; leading dimensions broadcast.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or one for each
            of several factors: a tensor ``(..., 1)`` that broadcasts against the leading dimensions
            ``(..., M)``.
        precision: the coarsest product of matrices allowed on a GPU, ``"ieee"``, ``"tf32x3"`` or ``"tf32"``;
            ``None`` leaves it to ``torch.set_float32_matmul_precision``. On a CPU, and for points that are
            not float32, all are the same.

    Returns:
        Radians in [0, pi], ``(..., M, N)``; float64 for float64 points, float32 otherwise. No temporary is of
        that size, but for up to 256 MiB in the backward pass on a GPU.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or sign, by name.
    """
    return _of_all_pairs(pairwise.pairwise_oxy_angle, x, y, curv, precision)


def _of_all_pairs(
    function: Callable[..., Tensor], x: Tensor, y: Tensor, curv: float | Tensor, precision: str | None
) -> Tensor:
    """``function`` of two sets, of which one may be a point."""
    check_pair("x", x, "y", y)
    check_choice("precision", precision, PRECISIONS)
    x_set, y_set = (one.unsqueeze(0) if one.dim() == 1 else one for one in (x, y))
    out = function(*broadcast_sets(x_set, y_set, scalar_or_rows("curv", curv, x)), precision)
    out = out.squeeze(-1) if y.dim() == 1 else out
    return out.squeeze(-1 - (y.dim() > 1)) if x.dim() == 1 else out
