"""Entailment in cones that open away from a given point instead of the origin."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hypkernels.checks import broadcast_pair
from hypkernels.losses import entailment_loss
from hypkernels.rowwise import result_dtype
from hypkernels.translation import to_origin


def rooted_entailment_loss(
    apex: Tensor,
    point: Tensor,
    root: Tensor,
    curv: float | Tensor = 1.0,
    *,
    aperture_scale: float = 1.0,
    min_radius: float = 0.1,
    margin: float = 0.0,
    leak: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """:func:`hypkernels.entailment_loss` of cones that open away from ``root`` instead of the origin.

        max(0, angle - aperture_scale * aperture + margin) + leak * angle

    ``angle`` is the exterior angle at the apex of the triangle of root, apex and point. ``aperture`` is
    ``asin(2 min_radius / sinh(sqrt(c) d(root, apex)))``. The loss is that of the points after the
    isometry :func:`hypkernels.translation.to_origin`, which moves the root to the origin.

    Args:
        apex: the general items, ``(..., D)`` space components, float64, float32, bfloat16 or float16.
        point: the specific items, same dtype, device and width; leading dimensions broadcast.
        root: ``(D,)``, or a shape that broadcasts against ``apex`` and ``point``. It gets a gradient.
        curv, aperture_scale, min_radius, margin, leak, reduction: of :func:`hypkernels.entailment_loss`.

    Returns:
        A scalar, or the broadcast shape ``(...)``; float64 for float64 points, else float32. An apex at
        the root entails everything.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range, by name.
    """
    apex, point = broadcast_pair("apex", apex, "point", point)
    options: dict[str, Any] = {"aperture_scale": aperture_scale, "min_radius": min_radius, "margin": margin}
    apexes, points = (to_origin(one, root, curv) for one in (apex, point))
    losses = entailment_loss(apexes, points, curv, leak=leak, reduction=reduction, **options)
    return losses.to(result_dtype(apex.dtype))
