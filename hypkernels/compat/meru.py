"""The ``lorentz.py`` of MERU, HyCoCLIP, HySAC, ATMG, UNCHA, PHyCLIP and HAC, with this library's formulas.

A model changes one line, ``from meru import lorentz as L``, to ``from hypkernels.compat import meru as L``.
Names, order of arguments, defaults and shapes are those of the packages. Points are space components, the
curvature is ``-curv``. A model of ``N`` factors with their own curvatures has points ``(B, N, D)`` and
curvatures ``(N,)``, ``(N, 1)`` or ``(1, N, 1)``.

``mode="stable"``, the default, computes as :mod:`hypkernels.lorentz` does and takes ``eps`` without using
it: nothing is clamped. ``mode="reference"`` computes the published formulas with their clamps, see
:mod:`hypkernels.compat.meru_reference`, a module of the same names for whole models.

Results have the shapes of the published ones. Their dtype differs in one case: distances, angles and inner
products of bfloat16 and float16 points are float32. Points of two dtypes are promoted to the wider one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hypkernels import lorentz
from hypkernels.checks import check_choice, check_not_negative, check_points
from hypkernels.compat import meru_reference as reference
from hypkernels.compat.curvatures import beside_numbers, of_factors
from hypkernels.rowwise import result_dtype
from hypkernels.translation import to_origin

MODES = ("stable", "reference")

__all__ = [
    "elementwise_dist",
    "elementwise_inner",
    "exp_map0",
    "exp_map0_batch",
    "get_distance_from_origin",
    "get_space_norm",
    "half_aperture",
    "half_aperture_batch",
    "half_aperture_withroot",
    "log_map0",
    "log_map0_batch",
    "oxy_angle",
    "oxy_angle_batch",
    "oxy_angle_eval",
    "oxy_angle_withroot",
    "pairwise_dist",
    "pairwise_dist_batch",
    "pairwise_inner",
    "pairwise_inner_batch",
    "pairwise_oxy_angle",
]


def pairwise_inner(
    x: Tensor, y: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8, *, mode: str = "stable"
) -> Tensor:
    """Lorentz inner product of every pair: :func:`hypkernels.pairwise_inner`.

    Args:
        x: space components ``(B1, D)``, or one point ``(D,)``, whose dimension the result lacks.
        y: space components ``(B2, D)`` or ``(D,)``.
        curv: positive, a float or a tensor of one element.
        eps: accepted for compatibility; only ``mode="reference"`` uses it.
        mode: ``"stable"`` or ``"reference"``.

    Returns:
        ``(B1, B2)``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, sign or range, by name.
    """
    if _is_reference(mode, eps):
        return reference.pairwise_inner(x, y, curv, eps)
    return lorentz.pairwise_inner(*_of_one_dtype(x, y), beside_numbers(curv))


def pairwise_dist(
    x: Tensor, y: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8, *, mode: str = "stable"
) -> Tensor:
    """Geodesic distance of every pair, ``(B1, B2)``: :func:`hypkernels.pairwise_dist`.

    Arguments and errors are those of :func:`pairwise_inner`.
    """
    if _is_reference(mode, eps):
        return reference.pairwise_dist(x, y, curv, eps)
    return lorentz.pairwise_dist(*_of_one_dtype(x, y), beside_numbers(curv))


def elementwise_inner(
    x: Tensor, y: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8, *, mode: str = "stable"
) -> Tensor:
    """Lorentz inner product of corresponding points, ``(...)``: :func:`hypkernels.elementwise_inner`.

    ``x`` and ``y`` are ``(..., D)`` with leading dimensions that broadcast; ``curv``, ``eps``, ``mode`` and
    errors are those of :func:`half_aperture`.
    """
    if _is_reference(mode, eps):
        return reference.elementwise_inner(x, y, curv, eps)
    return lorentz.elementwise_inner(*_of_one_dtype(x, y), beside_numbers(curv))


def elementwise_dist(
    x: Tensor, y: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8, *, mode: str = "stable"
) -> Tensor:
    """Geodesic distance of corresponding points, ``(...)``: :func:`hypkernels.elementwise_dist`.

    ``x`` and ``y`` are ``(..., D)`` with leading dimensions that broadcast; ``curv``, ``eps``, ``mode`` and
    errors are those of :func:`half_aperture`.
    """
    if _is_reference(mode, eps):
        return reference.elementwise_dist(x, y, curv, eps)
    return lorentz.elementwise_dist(*_of_one_dtype(x, y), beside_numbers(curv))


def exp_map0(x: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8, *, mode: str = "stable") -> Tensor:
    """Exponential map at the origin: :func:`hypkernels.exp_map0`.

    Published code stops growing at ``sqrt(c)|x| = asinh(2^15)``, about 11.1, and so does
    ``mode="reference"``; this does not.

    Args:
        x: tangent vectors ``(..., D)``.
        curv: positive, a float, a tensor of one element, or one for each factor of points ``(B, N, D)``:
            ``(N,)``, ``(N, 1)`` or ``(1, N, 1)``.
        eps: only ``mode="reference"`` uses it.
        mode: ``"stable"`` or ``"reference"``.

    Returns:
        Space components ``(..., D)`` in the dtype of ``x``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, sign or range, by name.
    """
    if _is_reference(mode, eps):
        return reference.exp_map0(x, curv, eps)
    return lorentz.exp_map0(x, beside_numbers(curv))


def log_map0(x: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8, *, mode: str = "stable") -> Tensor:
    """Logarithmic map at the origin, the inverse of :func:`exp_map0`: :func:`hypkernels.log_map0`.

    Arguments, result and errors are those of :func:`exp_map0`. HySAC's own default of ``eps`` is 1e-5.
    """
    if _is_reference(mode, eps):
        return reference.log_map0(x, curv, eps)
    return lorentz.log_map0(x, beside_numbers(curv))


def half_aperture(
    x: Tensor,
    curv: float | Tensor = 1.0,
    min_radius: float = 0.1,
    eps: float = 1e-8,
    *,
    mode: str = "stable",
) -> Tensor:
    """Half-aperture of the entailment cone of ``x``: :func:`hypkernels.half_aperture`.

    Args:
        x: space components of the apexes, ``(..., D)``.
        curv: positive, a float, a tensor of one element, or one for each factor of points ``(B, N, D)``:
            ``(N,)``, ``(N, 1)`` or ``(1, N, 1)``.
        min_radius: positive.
        eps: only ``mode="reference"`` uses it. HySAC's own default is 1e-5.
        mode: ``"stable"`` or ``"reference"``.

    Returns:
        Radians ``(...)``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, sign or range, by name.
    """
    if _is_reference(mode, eps):
        return reference.half_aperture(x, curv, min_radius, eps)
    return lorentz.half_aperture(x, beside_numbers(curv), min_radius)


def oxy_angle(
    x: Tensor, y: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8, *, mode: str = "stable"
) -> Tensor:
    """Exterior angle at ``x`` in the triangle origin, ``x``, ``y``, ``(...)``: :func:`hypkernels.oxy_angle`.

    For ``y = x`` it is 0; published code gives ``pi/2`` or a rounding error. ``x`` and ``y``
    are ``(..., D)`` with leading dimensions that broadcast; other arguments and errors are those of
    :func:`half_aperture`. HySAC's own default of ``eps`` is 1e-5.
    """
    if _is_reference(mode, eps):
        return reference.oxy_angle(x, y, curv, eps)
    return lorentz.oxy_angle(*_of_one_dtype(x, y), beside_numbers(curv))


def pairwise_oxy_angle(
    x: Tensor, y: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8, *, mode: str = "stable"
) -> Tensor:
    """ATMG's exterior angle at ``x_i`` to ``y_j``, ``(Bx, By)``: :func:`hypkernels.pairwise_oxy_angle`.

    ``x`` and ``y`` are ``(Bx, D)`` and ``(By, D)``; other arguments and errors are those of
    :func:`pairwise_inner`.
    """
    if _is_reference(mode, eps):
        return reference.pairwise_oxy_angle(x, y, curv, eps)
    x, y = map(torch.atleast_2d, _of_one_dtype(x, y))
    return lorentz.pairwise_oxy_angle(x, y, beside_numbers(curv))


def oxy_angle_eval(
    x: Tensor, y: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8, *, mode: str = "stable"
) -> Tensor:
    """HyCoCLIP's score of every pair: *minus* the exterior angle at ``x_i`` to ``y_j``, *transposed*.

    Arguments and errors are those of :func:`pairwise_oxy_angle`; a single point is a set of one.

    Returns:
        ``(By, Bx)``, the element ``[j, i]`` being ``-oxy_angle(x_i, y_j)``.
    """
    if _is_reference(mode, eps):
        return reference.oxy_angle_eval(x, y, curv, eps)
    return -pairwise_oxy_angle(x, y, curv).mT


def get_space_norm(x: Tensor) -> Tensor:
    """PHyCLIP's norm of the space components, ``(..., 1)`` in the dtype of ``x``, with gradient 0 at zero.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype or shape, by name.
    """
    check_points("x", x)
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64).to(x.dtype)


def get_distance_from_origin(
    x: Tensor, curv: float | Tensor = 1.0, eps: float = 0.0, *, mode: str = "stable"
) -> Tensor:
    """PHyCLIP's distance to the origin, ``(..., 1)``: :func:`hypkernels.dist0`.

    Arguments and errors are those of :func:`half_aperture`. The published function takes no float ``curv``.
    """
    if _is_reference(mode, eps):
        return reference.get_distance_from_origin(x, curv, eps)
    return lorentz.dist0(x, beside_numbers(curv)).unsqueeze(-1)


def exp_map0_batch(x: Tensor, curv: float | Tensor, eps: float = 1e-8, *, mode: str = "stable") -> Tensor:
    """PHyCLIP's :func:`exp_map0` of points ``(B, N, D)`` with one curvature for each of ``N`` factors."""
    return exp_map0(x, curv, eps, mode=mode)


def log_map0_batch(x: Tensor, curv: float | Tensor, eps: float = 1e-8, *, mode: str = "stable") -> Tensor:
    """PHyCLIP's :func:`log_map0` of points ``(B, N, D)`` with one curvature for each of ``N`` factors."""
    return log_map0(x, curv, eps, mode=mode)


def pairwise_inner_batch(
    x: Tensor, y: Tensor, curv: float | Tensor, eps: float = 1e-8, *, mode: str = "stable"
) -> Tensor:
    """PHyCLIP's :func:`pairwise_inner` within each of ``N`` factors.

    Args:
        x: space components ``(B1, N, D)``.
        y: space components ``(B2, N, D)``.
        curv: positive, one for each factor, ``(N,)``, ``(N, 1)`` or ``(1, N, 1)``, or one for all.
        eps: only ``mode="reference"`` uses it.
        mode: ``"stable"`` or ``"reference"``.

    Returns:
        ``(N, B1, B2)``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, sign or range, by name.
    """
    if _is_reference(mode, eps):
        return reference.pairwise_inner_batch(x, y, curv, eps)
    return lorentz.pairwise_inner(*_factors_first(x, y), of_factors(curv, 1))


def pairwise_dist_batch(
    x: Tensor, y: Tensor, curv: float | Tensor, eps: float = 1e-8, *, mode: str = "stable"
) -> Tensor:
    """PHyCLIP's :func:`pairwise_dist` within each of ``N`` factors, ``(N, B1, B2)``.

    Arguments and errors are those of :func:`pairwise_inner_batch`.
    """
    if _is_reference(mode, eps):
        return reference.pairwise_dist_batch(x, y, curv, eps)
    return lorentz.pairwise_dist(*_factors_first(x, y), of_factors(curv, 1))


def half_aperture_batch(
    x: Tensor, curv: float | Tensor, min_radius: float = 0.1, eps: float = 1e-8, *, mode: str = "stable"
) -> Tensor:
    """PHyCLIP's :func:`half_aperture` of ``(B, N, D)``, transposed: ``(N, B)``."""
    _check_factors("x", x)
    return half_aperture(x, of_factors(curv, 0), min_radius, eps, mode=mode).mT


def oxy_angle_batch(
    x: Tensor, y: Tensor, curv: float | Tensor, eps: float = 1e-8, *, mode: str = "stable"
) -> Tensor:
    """PHyCLIP's :func:`oxy_angle` of corresponding ``(B, N, D)``, transposed: ``(N, B)``."""
    _check_factors("x", x)
    return oxy_angle(x, y, of_factors(curv, 0), eps, mode=mode).mT


def half_aperture_withroot(
    x: Tensor,
    root: Tensor,
    curv: float | Tensor = 1.0,
    min_radius: float = 0.1,
    eps: float = 1e-5,
    *,
    mode: str = "stable",
) -> Tensor:
    """Half-aperture at ``x`` of cones that open away from ``root`` instead of the origin.

    HySAC's code calls this function and does not define it. Here it is
    ``asin(2 K / sinh(sqrt(c) d(root, x)))``, the half-aperture after the isometry
    :func:`hypkernels.translation.to_origin`; with a root of 0 it is :func:`half_aperture`.

    Args:
        x: space components of the apexes, ``(..., D)``.
        root: space components, ``(D,)`` or what broadcasts against ``x``.
        curv, min_radius, eps, mode: of :func:`half_aperture`.

    Returns:
        Radians ``(...)``, ``pi/2`` for ``x = root``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, sign or range, by name.
    """
    if _is_reference(mode, eps):
        return reference.half_aperture_withroot(x, root, curv, min_radius, eps)
    numbers = beside_numbers(curv)
    moved = to_origin(*_of_one_dtype(x, root), numbers)
    return lorentz.half_aperture(moved, numbers, min_radius).to(result_dtype(x.dtype))


def oxy_angle_withroot(
    x: Tensor,
    y: Tensor,
    root: Tensor,
    curv: float | Tensor = 1.0,
    eps: float = 1e-5,
    *,
    mode: str = "stable",
) -> Tensor:
    """Exterior angle at ``x`` in the triangle ``root`` - ``x`` - ``y``.

    HySAC calls it and defines it nowhere: :func:`oxy_angle` after the isometry
    :func:`hypkernels.translation.to_origin`, and itself for a root of 0.

    Args:
        x: space components of the apexes, ``(..., D)``.
        y: space components; leading dimensions broadcast.
        root: space components, ``(D,)`` or what broadcasts against both.
        curv, eps, mode: of :func:`oxy_angle`.

    Returns:
        Radians ``(...)``, ``pi/2`` for ``x = root``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, sign or range, by name.
    """
    if _is_reference(mode, eps):
        return reference.oxy_angle_withroot(x, y, root, curv, eps)
    numbers = beside_numbers(curv)
    apexes, points = (to_origin(*_of_one_dtype(one, root), numbers) for one in (x, y))
    return lorentz.oxy_angle(apexes, points, numbers).to(result_dtype(x.dtype))


def _is_reference(mode: str, eps: float) -> bool:
    check_choice("mode", mode, MODES)
    check_not_negative("eps", eps)
    return mode == "reference"


def _of_one_dtype(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the dtype to which PyTorch's arithmetic promotes them; other types are refused later."""
    if isinstance(x, Tensor) and isinstance(y, Tensor) and x.dtype != y.dtype:
        dtype = torch.promote_types(x.dtype, y.dtype)
        return x.to(dtype), y.to(dtype)
    return x, y


def _factors_first(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    _check_factors("x", x)
    _check_factors("y", y)
    x, y = _of_one_dtype(x, y)
    return x.transpose(0, 1), y.transpose(0, 1)


def _check_factors(name: str, points: Tensor) -> None:
    check_points(name, points)
    if points.dim() != 3:
        raise ValueError(f"{name} must have shape (B, N, D), N factors of width D, got {tuple(points.shape)}")
