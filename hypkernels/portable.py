"""The lift of a model's features in plain PyTorch, for graphs that leave PyTorch.

The functions of :mod:`hypkernels.lorentz` are custom operators, which exporters cannot translate, and
compute in float64, where onnxruntime has no ``Sinh``. The lift here consists of products, a norm,
``sinh`` and a quotient, all float32, which runtimes compute to a few units in the last place. It has no
``expm1``, ``log1p`` or ``atanh``: exporters and compilers write these by ``exp`` and ``log``, which
cancel near zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

# A number that equals its hyperbolic sine in float32, and is a normal number there.
_TINY = 1e-30


def lift(features: Tensor, scale: Tensor, curv: Tensor) -> tuple[Tensor, Tensor]:
    """``exp_0(scale * features)`` on the hyperboloid of curvature ``-curv``, and its distance to the origin.

    The point is ``sinh(t) / t * v`` with ``v = scale * features`` and ``t = sqrt(curv) |v|``. Its distance is
    ``|v|``: the exponential map keeps lengths along rays.

    Args:
        features: ``(..., D)``, float32 or float64, computed in their dtype. Norms times ``scale`` are 0, or
            above 1e-15 and so that ``t < 88`` in float32; beyond that points are infinite.
        scale: 0-d tensor.
        curv: 0-d tensor, positive.

    Returns:
        Space components ``(..., D)`` and distances ``(...)``, of the features' dtype.

    Raises:
        TypeError, ValueError: features of another dtype, or a scale or curvature that is no 0-d tensor.
    """
    if features.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"features must be float32 or float64, got {features.dtype}")
    for name, value in (("scale", scale), ("curv", curv)):
        if not isinstance(value, Tensor) or value.dim():
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name} must be a 0-d tensor, got {got}")
    v = scale.to(features.dtype) * features
    distance = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    t = (curv.to(features.dtype).sqrt() * distance).clamp(min=_TINY)
    return torch.sinh(t) / t * v, distance.squeeze(-1)
