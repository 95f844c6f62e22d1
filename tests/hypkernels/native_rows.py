"""The compiled row-wise ops as differentiable functions, and what the tests of them share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import rowwise_ops
import torch
from rowwise_ops import options_of, scalars_of
from torch import Tensor

from hypkernels.cpu import library
from hypkernels.cpu import rows as native
from hypkernels.rowwise import result_dtype

needs_library = pytest.mark.skipif(library.why_not() is not None, reason=library.why_not() or "")
ISAS = () if library.why_not() else library.available_isas()

# name: points, scalars, options, whether it returns points
OPS = {
    name: (one.points, len(scalars_of(name)), options_of(name), one.returns_points)
    for name, one in rowwise_ops.OPS.items()
}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def op(name: str) -> Callable[..., Tensor]:
    """``op(*points, *scalars, *options)`` by the library, differentiable as the operators are."""
    points, scalars, _, _ = OPS[name]

    def split(args):
        return args[:points], args[points : points + scalars], args[points + scalars :]

    class Op(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            ctx.save_for_backward(*args[: points + scalars])
            ctx.options = args[points + scalars :]
            return native.forward(name, *split(args))

        @staticmethod
        def backward(ctx, grad):
            grads = native.backward(name, grad, *split((*ctx.saved_tensors, *ctx.options)))
            typed = (g.to(t.dtype) for g, t in zip(grads, ctx.saved_tensors, strict=True))
            return (*typed, *(None for _ in ctx.options))

    return Op.apply


def arguments(name, shape, dtype, generator, curv=0.7):
    """Points and scalars of one call."""
    points, scalars, _, _ = OPS[name]
    vectors = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(points)]
    numbers = [torch.tensor(value, dtype=torch.float64) for value in ((curv,), (0.6, curv))[scalars - 1]]
    return vectors, numbers


def by_closed_form(name, grad, vectors, scalars):
    """Value and gradients of rows ``(n, D)`` in float64, the scalars' for each row."""
    points, _, options, is_map = OPS[name]
    wide = [v.double() for v in vectors]
    numbers = [s.double().unsqueeze(-1) if s.dim() else s.double() for s in scalars]
    value = rowwise_ops.OPS[name].formula(*wide, *numbers, *options)
    upstream = grad.double() if is_map else grad.double().unsqueeze(-1)
    grads = rowwise_ops.OPS[name].gradient(upstream, *wide, *numbers, *options)
    if not is_map:
        value = value.squeeze(-1)
    return value, grads[:points], [g.squeeze(-1) for g in grads[points:]]


def upstream_of(name, vectors, generator):
    x = vectors[0]
    shape, dtype = (x.shape, x.dtype) if OPS[name][-1] else (x.shape[:-1], result_dtype(x.dtype))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
