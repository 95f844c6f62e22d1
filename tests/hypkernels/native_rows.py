"""The compiled row-wise ops as differentiable functions, and what the tests of them share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hypkernels.cone import closed_form as cone
from hypkernels.cpu import library
from hypkernels.cpu import rows as native
from hypkernels.distance import closed_form as distance
from hypkernels.entailment import closed_form as entailment
from hypkernels.horosphere import closed_form as horosphere
from hypkernels.maps import closed_form as maps
from hypkernels.rowwise import result_dtype

needs_library = pytest.mark.skipif(library.why_not() is not None, reason=library.why_not() or "")
ISAS = () if library.why_not() else library.available_isas()

# name: module of the closed form, points, scalars, options, whether it returns points
OPS = {
    "exp_map0": (maps, 1, 1, (), True),
    "scaled_exp_map0": (maps, 1, 2, (), True),
    "log_map0": (maps, 1, 1, (), True),
    "exp_map": (maps, 2, 1, (), True),
    "log_map": (maps, 2, 1, (), True),
    "elementwise_inner": (distance, 2, 1, (), False),
    "elementwise_dist": (distance, 2, 1, (), False),
    "dist0": (distance, 1, 1, (), False),
    "busemann": (horosphere, 2, 1, (), False),
    "half_aperture": (cone, 1, 1, (0.1,), False),
    "oxy_angle": (cone, 2, 1, (), False),
    "entailment_loss": (entailment, 2, 1, (0.8, 0.1, 0.2, 0.15), False),
}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def op(name: str) -> Callable[..., Tensor]:
    """``op(*points, *scalars, *options)`` by the library, differentiable as the operators are."""
    forward, backward = getattr(native, name), getattr(native, f"{name}_backward")
    _, points, scalars, _, _ = OPS[name]

    class Op(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            ctx.save_for_backward(*args[: points + scalars])
            ctx.options = args[points + scalars :]
            return forward(*args)

        @staticmethod
        def backward(ctx, grad):
            grads = backward(grad, *ctx.saved_tensors, *ctx.options)
            typed = (g.to(t.dtype) for g, t in zip(grads, ctx.saved_tensors, strict=True))
            return (*typed, *(None for _ in ctx.options))

    return Op.apply


def arguments(name, shape, dtype, generator, curv=0.7):
    """Points and scalars of one call."""
    _, points, scalars, _, _ = OPS[name]
    vectors = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(points)]
    numbers = [torch.tensor(value, dtype=torch.float64) for value in ((curv,), (0.6, curv))[scalars - 1]]
    return vectors, numbers


def by_closed_form(name, grad, vectors, scalars):
    """Value and gradients of rows ``(n, D)`` in float64, the scalars' for each row."""
    module, points, _, options, is_map = OPS[name]
    wide = [v.double() for v in vectors]
    numbers = [s.double().unsqueeze(-1) if s.dim() else s.double() for s in scalars]
    if name == "entailment_loss":
        pair, _ = entailment.pair_geometry(*wide, *numbers)
        value = entailment.pair_entailment_loss(pair, *options)
    elif points == 1 and not is_map:
        by_norm = {"dist0": distance.dist0_by_norm, "half_aperture": cone.half_aperture_by_norm}[name]
        value = by_norm(wide[0].norm(dim=-1, keepdim=True), *numbers, *options)
    else:
        value = getattr(module, name)(*wide, *numbers, *options)
    upstream = grad.double() if is_map else grad.double().unsqueeze(-1)
    grads = getattr(module, f"{name}_gradient")(upstream, *wide, *numbers, *options)
    if not is_map:
        value = value.squeeze(-1)
    return value, grads[:points], [g.squeeze(-1) for g in grads[points:]]


def upstream_of(name, vectors, generator):
    x = vectors[0]
    shape, dtype = (x.shape, x.dtype) if OPS[name][4] else (x.shape[:-1], result_dtype(x.dtype))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
