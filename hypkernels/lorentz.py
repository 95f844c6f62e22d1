"""The functional geometry of the Lorentz model; a point is its space components ``x``, shape ``(..., D)``."""

from __future__ import annotations

from torch import Tensor

from hypkernels.checks import check_points, scalar_tensor
from hypkernels.maps import op as maps


def exp_map0(x: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """Exponential map at the origin: a tangent vector to the point it leads to.

    ``sinh(sqrt(c)|x|) / (sqrt(c)|x|) * x``, so that ``dist0(exp_map0(x)) == |x|``.

    Args:
        x: tangent vectors at the origin, ``(..., D)``, float64, float32, bfloat16 or float16.
        curv: positive ``c`` (sectional curvature ``-c``), a float or a tensor of one element.

    Returns:
        Space components ``(..., D)`` in the dtype of ``x``; the identity to first order at zero.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or sign, by name.
    """
    return maps.exp_map0(check_points("x", x), scalar_tensor("curv", curv))


def log_map0(x: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """Logarithmic map at the origin, the inverse of :func:`exp_map0`.

    ``asinh(sqrt(c)|x|) / (sqrt(c)|x|) * x``, whose norm is ``dist0(x)``.

    Args:
        x: space components ``(..., D)``, float64, float32, bfloat16 or float16.
        curv: positive ``c`` (sectional curvature ``-c``), a float or a tensor of one element.

    Returns:
        Tangent vectors ``(..., D)`` in the dtype of ``x``; the identity to first order at zero.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or sign, by name.
    """
    return maps.log_map0(check_points("x", x), scalar_tensor("curv", curv))
