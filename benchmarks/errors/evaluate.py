"""Functions of other frameworks as one kind: numbers in, values and gradients out, as float64 tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Evaluated(NamedTuple):
    """What a function gave; ``gradients``, one for each set of points, are None where it has none."""

    value: Tensor
    gradients: list[Tensor] | None


Evaluator = Callable[[Sequence[Tensor], float, Tensor | None], Evaluated]
"""Of points in the dtype to compute in, the curvature, and what the gradient is that of: the sum of the value
times this, or of the value for None."""


def by_torch(function: Callable[..., Tensor]) -> Evaluator:
    """Of ``function(*points, c)``, ``c`` a 0-d tensor of their dtype."""

    def evaluate(points: Sequence[Tensor], curv: float, upstream: Tensor | None) -> Evaluated:
        leaves = [one.clone().requires_grad_() for one in points]
        value = function(*leaves, torch.tensor(curv, dtype=points[0].dtype))
        total = value.sum() if upstream is None else (value * upstream.to(value.dtype)).sum()
        gradients = torch.autograd.grad(total, leaves)
        return Evaluated(value.detach().double(), [one.double() for one in gradients])

    return evaluate


def by_jax(function: Callable[..., Any]) -> Evaluator:
    """Of ``function(*rows, c)`` of single points; compiled."""
    import jax

    @jax.jit
    def with_gradients(points: Sequence[Any], c: Any, weights: Any) -> Any:
        def total(*points: Any) -> Any:
            value = jax.vmap(lambda *rows: function(*rows, c))(*points)
            return (value if weights is None else value * weights).sum(), value

        return jax.grad(total, tuple(range(len(points))), has_aux=True)(*points)

    def evaluate(points: Sequence[Tensor], curv: float, upstream: Tensor | None) -> Evaluated:
        arrays = [jax.numpy.asarray(one.numpy()) for one in points]
        c = jax.numpy.asarray(curv, arrays[0].dtype)
        weights = None if upstream is None else jax.numpy.asarray(upstream.numpy())
        gradients, value = with_gradients(arrays, c, weights)
        return Evaluated(_tensor(value), [_tensor(one) for one in gradients])

    return evaluate


def by_numpy(function: Callable[..., Any]) -> Evaluator:
    """Of ``function(*points, c)``, without gradients."""

    def evaluate(points: Sequence[Tensor], curv: float, upstream: Tensor | None) -> Evaluated:
        return Evaluated(_tensor(function(*(one.numpy() for one in points), curv)), None)

    return evaluate


def _tensor(array: Any) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.array(array, dtype=np.float64))
