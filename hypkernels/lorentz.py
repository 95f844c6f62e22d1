"""The geometry of the Lorentz model, on points given by their space components ``x``, ``(..., D)``.

The hyperboloid of sectional curvature ``-c`` is ``x_time^2 = 1/c + |x|^2``: the time component follows
from the space components and is never passed. The Lorentz inner product is
``<x, y>_L = x.y - x_time y_time``. A tangent vector is its space components, too: its time component is
``v_time = x.v / x_time``, 0 at the origin.

- Derivatives: results are differentiable in the points and in ``curv``, any number of times and under
  every transform of ``torch.func``. More than one reverse pass, and forward mode, take a slower formula:
  see :mod:`hypkernels.operators`.
- Precision: the row-wise functions compute in float64 from the exact values of their arguments and round
  once. Float64 points have no wider type: where the directions of two points agree to the last digits,
  about 1e-16 of a direction is lost, which shows beyond ``sqrt(c)|x|`` of 1e8.
- Broadcasting: leading dimensions of two arguments broadcast, as in ``oxy_angle(x[:, None], y[None])``.
  The pairwise functions take one point ``(D,)`` for a set, as ``torch.matmul`` takes a vector: the
  result then lacks the dimension of that set.
- Range: no result of finite arguments is NaN. A result that its dtype cannot hold is infinite with the
  right sign. A gradient by a point may leave the dtype's range: that of an angle grows as ``1/|x|``
  towards the origin. Such a gradient is scaled to the largest one in range, in its direction.
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
from hypkernels.horosphere import op as horosphere
from hypkernels.maps import op as maps
from hypkernels.pairwise import op as pairwise


def exp_map0(x: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """Exponential map at the origin: the end of the geodesic that starts with velocity ``x``.

        exp_0(x) = sinh(sqrt(c)|x|) / (sqrt(c)|x|) * x

    The distance of the result to the origin is ``|x|``.

    Args:
        x: tangent vectors at the origin, ``(..., D)``, float64, float32, bfloat16 or float16.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or a tensor
            with one curvature for each factor, which broadcasts against the leading dimensions.

    Returns:
        Space components ``(..., D)`` in the dtype of ``x``. At ``x = 0`` the map is the identity to
        first order. The components grow as ``exp(sqrt(c)|x|)`` and leave the range of float32 near
        ``sqrt(c)|x| = 89``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or sign, by name.
    """
    check_points("x", x)
    return maps.exp_map0(*broadcast_rows(x, curv=scalar_or_rows("curv", curv, x)))


def scaled_exp_map0(x: Tensor, scale: float | Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """Lift of Euclidean features to the hyperboloid: :func:`exp_map0` of ``scale * x``, in one pass.

    The product ``scale * x`` is neither rounded nor stored. MERU, HyCoCLIP and HySAC learn the scale.

    Args:
        x: features ``(..., D)``, float64, float32, bfloat16 or float16.
        scale: any finite number: a float, a tensor of one element, or one for each of several factors,
            as ``curv``. A tensor gets a gradient.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or a tensor
            with one curvature for each factor, which broadcasts against the leading dimensions.

    Returns:
        Space components ``(..., D)`` in the dtype of ``x``, at the distance ``|scale| |x|`` from the
        origin.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, sign or range, by name.
            Values on a GPU are not read back.
    """
    check_points("x", x)
    factor = scalar_or_rows("scale", scale, x, check_finite)
    return maps.scaled_exp_map0(*broadcast_rows(x, scale=factor, curv=scalar_or_rows("curv", curv, x)))


def log_map0(x: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """Logarithmic map at the origin, the inverse of :func:`exp_map0`.

        log_0(x) = asinh(sqrt(c)|x|) / (sqrt(c)|x|) * x

    The norm of the result is the distance of ``x`` to the origin.

    Args:
        x: space components ``(..., D)``, float64, float32, bfloat16 or float16.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or a tensor
            with one curvature for each factor, which broadcasts against the leading dimensions.

    Returns:
        Tangent vectors ``(..., D)`` in the dtype of ``x``. At ``x = 0`` the map is the identity to first
        order.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or sign, by name.
    """
    check_points("x", x)
    return maps.log_map0(*broadcast_rows(x, curv=scalar_or_rows("curv", curv, x)))


def exp_map(x: Tensor, v: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """Exponential map at ``x``: where the geodesic that starts with velocity ``v`` is after unit time.

        exp_x(v) = cosh(tau) x + sinh(tau) / tau * v    with tau = sqrt(c) |v|_L

    ``|v|_L^2 = |v|^2 - (x.v / x_time)^2`` is the squared Lorentz norm. The distance of the result to
    ``x`` is ``|v|_L``.

    Args:
        x: space components of the base points, ``(..., D)``, float64, float32, bfloat16 or float16.
        v: space components of the tangent vectors at ``x``, of the same dtype and width; leading
            dimensions broadcast. Any vector is the space part of one tangent vector.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or a tensor
            with one curvature for each factor, which broadcasts against the leading dimensions.

    Returns:
        Space components, of the broadcast shape ``(..., D)`` and the dtype of ``x``. The result is ``x``
        for ``v = 0``, and :func:`exp_map0` of ``v`` for ``x = 0``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or sign, by name.
    """
    x, v = broadcast_pair("x", x, "v", v)
    return maps.exp_map(*broadcast_rows(x, v, curv=scalar_or_rows("curv", curv, x)))


def log_map(x: Tensor, y: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """Logarithmic map at ``x``: the velocity that leads from ``x`` to ``y`` in unit time.

        log_x(y) = tau / sinh(tau) * (y - cosh(tau) x)    with tau = sqrt(c) d(x, y)

    It is the inverse of :func:`exp_map`.

    Args:
        x: space components of the base points, ``(..., D)``, float64, float32, bfloat16 or float16.
        y: space components of the targets, of the same dtype and width; leading dimensions broadcast.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or a tensor
            with one curvature for each factor, which broadcasts against the leading dimensions.

    Returns:
        Space components of the tangent vectors at ``x``, of the broadcast shape ``(..., D)`` and the
        dtype of ``x``. The result is 0 for ``y = x``, and :func:`log_map0` of ``y`` for ``x = 0``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or sign, by name.
    """
    x, y = broadcast_pair("x", x, "y", y)
    return maps.log_map(*broadcast_rows(x, y, curv=scalar_or_rows("curv", curv, x)))


def elementwise_inner(x: Tensor, y: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """Lorentz inner product of corresponding points, ``<x, y>_L = x.y - x_time y_time``.

    Args:
        x: space components ``(..., D)``, float64, float32, bfloat16 or float16.
        y: space components of the same dtype and width; leading dimensions broadcast.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or a tensor
            with one curvature for each factor, which broadcasts against the leading dimensions.

    Returns:
        Numbers of the broadcast shape ``(...)``, at most ``-1/c``, which ``x = y`` has; float64 for
        float64 points, float32 otherwise.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or sign, by name.
    """
    x, y = broadcast_pair("x", x, "y", y)
    return distance.elementwise_inner(*broadcast_rows(x, y, curv=scalar_or_rows("curv", curv, x)))


def elementwise_dist(x: Tensor, y: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """Geodesic distance of corresponding points, ``d(x, y) = acosh(-c <x, y>_L) / sqrt(c)``.

    ``elementwise_dist(x, y, 0.7)`` of ``(B, D)`` and ``(B, D)`` is ``(B,)``; :func:`pairwise_dist` has
    all pairs.

    Args:
        x: space components ``(..., D)``, float64, float32, bfloat16 or float16.
        y: space components of the same dtype and width; leading dimensions broadcast.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or a tensor
            with one curvature for each factor, which broadcasts against the leading dimensions.

    Returns:
        Lengths of the broadcast shape ``(...)``; float64 for float64 points, float32 otherwise. For
        ``x = y`` the distance and its gradients are exactly 0. Elsewhere the gradients by ``x`` and
        ``y`` have norm at most 1. The distance has no second derivative at ``x = y``: there autograd
        returns 0. It also returns 0 for the second derivative of the square there, which is wrong:
        differentiate ``|v|_L^2`` of ``v = log_map(x, y)`` instead, see :func:`exp_map`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or sign, by name.
    """
    x, y = broadcast_pair("x", x, "y", y)
    return distance.elementwise_dist(*broadcast_rows(x, y, curv=scalar_or_rows("curv", curv, x)))


def dist0(x: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """Geodesic distance to the origin, ``d(0, x) = asinh(sqrt(c)|x|) / sqrt(c)``.

    Args:
        x: space components ``(..., D)``, float64, float32, bfloat16 or float16.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or a tensor
            with one curvature for each factor, which broadcasts against the leading dimensions.

    Returns:
        Lengths ``(...)``; float64 for float64 points, float32 otherwise. At the origin the distance and
        its gradient are 0. The distance has no second derivative there: autograd returns 0. It also
        returns 0 for the second derivative of the square, which is wrong: differentiate
        ``|log_map0(x)|^2`` instead.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or sign, by name.
    """
    check_points("x", x)
    return distance.dist0(*broadcast_rows(x, curv=scalar_or_rows("curv", curv, x)))


def busemann(x: Tensor, direction: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """Busemann function of an ideal point: how far ``x`` is from it, less how far the origin is.

        B(x) = log(sqrt(1 + c|x|^2) - sqrt(c) x.w) / sqrt(c)    with w = direction / |direction|

    It is the limit of ``d(x, y) - d(0, y)`` as ``y`` goes out along ``w``. Its level sets are the horospheres
    of the ideal point. The formula is that of Ghadimi Atigh et al. (NeurIPS 2021), whose prototypes are ideal
    points, and of Chami et al. (HoroPCA, ICML 2021), taken from the ball to the hyperboloid.

    Args:
        x: space components ``(..., D)``, float64, float32, bfloat16 or float16.
        direction: where the ideal points are, seen from the origin: vectors of any length, of the same
            dtype and width; leading dimensions broadcast. They are normalised in float64: a unit vector
            that is rounded to its dtype is none, and far points would have no logarithm.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or a tensor
            with one curvature for each factor, which broadcasts against the leading dimensions.

    Returns:
        Lengths with a sign, of the broadcast shape ``(...)``, in ``[-d, d]`` for the distance ``d`` of ``x``
        to the origin; float64 for float64 points, float32 otherwise. On the ray towards the ideal point it
        is ``-d``, on the opposite one ``d``, at the origin 0. There the gradient by ``x`` is ``-w``. The
        gradient by ``direction`` is across it, grows as ``1/|direction|`` and is 0 on both rays. A direction
        of 0 has no ideal point: by convention it counts as one across ``x``,
        ``log(1 + c|x|^2) / (2 sqrt(c))``, and its gradient is 0.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or sign, by name.
    """
    x, direction = broadcast_pair("x", x, "direction", direction)
    return horosphere.busemann(*broadcast_rows(x, direction, curv=scalar_or_rows("curv", curv, x)))


def half_aperture(x: Tensor, curv: float | Tensor = 1.0, min_radius: float = 0.1) -> Tensor:
    """Half-aperture of the entailment cone of ``x``: ``asin(2K / (sqrt(c)|x|))``, ``K = min_radius``.

    The cone opens away from the origin. It holds the points ``y`` with
    ``oxy_angle(x, y) <= half_aperture(x)``. The formula is that of Le et al. (ACL 2019), as in MERU.

    Args:
        x: space components of the apexes, ``(..., D)``, float64, float32, bfloat16 or float16.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or a tensor
            with one curvature for each factor, which broadcasts against the leading dimensions.
        min_radius: ``K > 0``. Where ``sqrt(c)|x| <= 2K`` the cone is a half-space.

    Returns:
        Radians ``(...)`` in ``(0, pi/2]``; float64 for float64 points, float32 otherwise. Where
        ``sqrt(c)|x| <= 2K`` the half-aperture is ``pi/2`` and its gradient 0.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or sign, by name.
    """
    check_points("x", x)
    radius = constant(check_positive("min_radius", min_radius, "a float"))
    return cone.half_aperture(*broadcast_rows(x, curv=scalar_or_rows("curv", curv, x)), radius)


def oxy_angle(x: Tensor, y: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """Exterior angle at ``x`` of the hyperbolic triangle of the origin, ``x`` and ``y``.

        acos((y_time + c x_time <x, y>_L) / (|x| sqrt((c <x, y>_L)^2 - 1)))

    The angle is that from the ray which leaves the origin through ``x`` to the geodesic from ``x`` to
    ``y``. ``y`` lies in the entailment cone of ``x`` where the angle is at most ``half_aperture(x)``.
    The formula is MERU's (Desai et al., ICML 2023).

    Args:
        x: space components of the apexes, ``(..., D)``, float64, float32, bfloat16 or float16.
        y: space components of the points, of the same dtype and width; leading dimensions broadcast.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or a tensor
            with one curvature for each factor, which broadcasts against the leading dimensions.

    Returns:
        Radians of the broadcast shape ``(...)`` in ``[0, pi]``; float64 for float64 points, float32
        otherwise. Two cases without an angle have values by convention: 0 for ``y = x`` (a point lies in
        its own cone), ``pi/2`` for ``x = 0`` (everything lies in the cone of the origin). The gradients
        are 0 in both. They are also 0 where the angle is 0 or ``pi``, since it has a kink there.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or sign, by name.
    """
    x, y = broadcast_pair("x", x, "y", y)
    return cone.oxy_angle(*broadcast_rows(x, y, curv=scalar_or_rows("curv", curv, x)))


def pairwise_inner(
    x: Tensor, y: Tensor, curv: float | Tensor = 1.0, *, precision: str | None = None
) -> Tensor:
    """Lorentz inner product of every pair, ``<x_i, y_j>_L = x_i.y_j - x_time_i y_time_j``.

    :func:`pairwise_dist` states the error that a matrix product leaves.

    Args:
        x: space components ``(..., M, D)``, float64, float32, bfloat16 or float16.
        y: space components ``(..., N, D)`` of the same dtype and width; leading dimensions broadcast.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or a tensor
            ``(..., 1)`` with one curvature for each factor, which broadcasts against ``(..., M)``.
        precision: the coarsest product of matrices allowed on a GPU, ``"ieee"``, ``"tf32x3"`` or
            ``"tf32"``; ``None`` leaves it to ``torch.set_float32_matmul_precision``. On a CPU, and for
            points that are not float32, it makes no difference.

    Returns:
        Numbers ``(..., M, N)``, at most ``-1/c``; float64 for float64 points, float32 otherwise. No
        temporary has that size, except up to 8 MiB of a small matrix and, in the backward pass on a GPU,
        256 MiB.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or sign, by name.
    """
    return _of_all_pairs(pairwise.pairwise_inner, x, y, curv, precision)


def pairwise_dist(
    x: Tensor, y: Tensor, curv: float | Tensor = 1.0, *, precision: str | None = None
) -> Tensor:
    """Geodesic distance of every pair, ``d(x_i, y_j) = acosh(-c <x_i, y_j>_L) / sqrt(c)``.

    ``pairwise_dist(x, y, 0.7)`` of ``(M, D)`` and ``(N, D)`` is ``(M, N)``.

    Error: with ``k = sqrt(c)``, the error of ``k d`` is at most ``4e-15 k^2 |x||y| / sinh(k d)`` before
    the last rounding. Pairs closer than about ``1e-7 |x|``, a point and itself included, are not
    resolved: their distance comes out anywhere from 0 to that. Their gradients are bounded.
    :func:`elementwise_dist` resolves any two points, and states the second derivatives where the
    distance is 0. On a CPU, distances of points narrower than float64 have a relative error of up to
    5e-7 besides.

    On a GPU, points narrower than float64 are multiplied in float32. The bound then has ``2e-6`` in
    place of ``4e-15`` (``5e-4`` with ``precision="tf32"``). It does not apply to near pairs, those where
    ``cosh(k d) - 1`` is less than ``k^2 |x||y| / 64``: they are computed once more, from differences of
    directions. Their distances and gradients are right to float32, but for 4e-15 of a direction. Near
    pairs take longer. So do all pairs of a matrix whose largest norms are below ``1e-6/k`` or have
    products beyond ``1e30``.

    Args:
        x: space components ``(..., M, D)``, float64, float32, bfloat16 or float16.
        y: space components ``(..., N, D)`` of the same dtype and width; leading dimensions broadcast.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or a tensor
            ``(..., 1)`` with one curvature for each factor, which broadcasts against ``(..., M)``.
        precision: the coarsest product of matrices allowed on a GPU, ``"ieee"``, ``"tf32x3"`` or
            ``"tf32"``; ``None`` leaves it to ``torch.set_float32_matmul_precision``. On a CPU, and for
            points that are not float32, it makes no difference.

    Returns:
        Lengths ``(..., M, N)``; float64 for float64 points, float32 otherwise. No temporary has that
        size, except up to 8 MiB of a small matrix and, in the backward pass on a GPU, 256 MiB.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or sign, by name.
    """
    return _of_all_pairs(pairwise.pairwise_dist, x, y, curv, precision)


def pairwise_oxy_angle(
    x: Tensor, y: Tensor, curv: float | Tensor = 1.0, *, precision: str | None = None
) -> Tensor:
    """Exterior angle at ``x_i`` of the triangle of the origin, ``x_i`` and ``y_j``, for every pair.

    The formula and the values at degenerate points are those of :func:`oxy_angle`, which resolves any
    two points. Here a matrix product cannot tell pairs apart that are closer than about ``1e-7 |x|``:
    their angle is 0, as of coincident points. With ``k = sqrt(c)``, angles closer to 0 or ``pi`` than
    about ``1e-7 k|y| / sinh(k d)`` are not resolved. On a GPU, pairs of points narrower than float64 are
    resolved as by :func:`oxy_angle`: those whose directions from the origin are within 0.17 of each
    other, or of opposite ones, count as near and are computed once more, see :func:`pairwise_dist`.

    Args:
        x: the apexes, space components ``(..., M, D)``, float64, float32, bfloat16 or float16.
        y: space components ``(..., N, D)`` of the same dtype and width; leading dimensions broadcast.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or a tensor
            ``(..., 1)`` with one curvature for each factor, which broadcasts against ``(..., M)``.
        precision: the coarsest product of matrices allowed on a GPU, ``"ieee"``, ``"tf32x3"`` or
            ``"tf32"``; ``None`` leaves it to ``torch.set_float32_matmul_precision``. On a CPU, and for
            points that are not float32, it makes no difference.

    Returns:
        Radians ``(..., M, N)`` in ``[0, pi]``; float64 for float64 points, float32 otherwise. No
        temporary has that size, except up to 256 MiB in the backward pass on a GPU.

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
