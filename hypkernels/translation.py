"""The isometry that moves a given point to the origin: what is defined there is then defined anywhere."""

from __future__ import annotations

import torch
from torch import Tensor

from hypkernels.checks import broadcast_pair, broadcast_rows, check_values, scalar_or_rows
from hypkernels.pair_geometry import dot


def to_origin(points: Tensor, root: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """Move ``points`` by the isometry, without rotation, that moves ``root`` to the origin.

    With ``d = x - r`` and ``A(x) = sqrt(1 + c|x|^2)``

        d + c (r.d / (1 + A(r)) - d.(x + r) / (A(x) + A(r))) r

    so that ``dist0(to_origin(x, r)) == elementwise_dist(x, r)``. Every term is as small as ``d``.

    Args:
        points: space components ``(..., D)``, float64, float32, bfloat16 or float16.
        root: space components of the same dtype and width; leading dimensions broadcast.
        curv: positive ``c`` (sectional curvature ``-c``), a float, a tensor of one element, or one for each
            of several factors: a tensor that broadcasts against the leading dimensions.

    Returns:
        Space components of the broadcast shape ``(..., D)``, float64 whatever the points are, with a relative
        error of about ``1e-16 A(r)^2``. Zero for ``x = r``, and the points themselves for a root of 0.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or sign, by name.
    """
    points, root = broadcast_pair("points", points, "root", root)
    x, r, curv = broadcast_rows(points, root, curv=scalar_or_rows("curv", curv, points))
    if not torch.compiler.is_compiling():
        check_values("curv", curv)
    x, r, c = x.double(), r.double(), curv.double().unsqueeze(-1)
    apart = x - r
    x_time, root_time = (torch.sqrt(1 + c * dot(one, one)) for one in (x, r))
    along = dot(r, apart) / (1 + root_time) - dot(apart, x + r) / (x_time + root_time)
    return apart + c * along * r
