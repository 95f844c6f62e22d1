"""Row-wise ops: one formula and its gradient become one registered PyTorch operator.

A formula sees float64 rows, whatever the caller's dtype: float64 scalars are what keeps near-coincident and
collinear points exact, and on a CPU cache-sized chunks make it as fast as a float32 expression that streams
whole tensors through memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from hypkernels.checks import check_curv_value

Formula = Callable[..., Tensor]
Gradient = Callable[..., tuple[Tensor, ...]]

# 64 Ki float64 values are 512 KiB: the handful of temporaries of one formula stay within a core's caches.
CHUNK_ELEMENTS = 1 << 16


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """Distances, angles and losses: float64 for float64 points, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def map_rows(
    formula: Callable[..., tuple[Tensor, ...]], operands: Sequence[Tensor], dtypes: Sequence[torch.dtype]
) -> tuple[Tensor, ...]:
    """Apply ``formula`` to float64 chunks of rows of ``operands``, each ``(*batch, columns)``.

    Every tensor that ``formula`` returns has the chunk's rows in front and one column dimension behind; it
    is rounded once, to its entry of ``dtypes``.
    """
    batch = operands[0].shape[:-1]
    rows = _flatten(operands)
    leading = rows[0].shape[:-1]
    per_index = max(1, rows[0][:1].numel()) if leading[0] else 1
    step = max(1, CHUNK_ELEMENTS // per_index)
    outputs: list[Tensor] = []
    for start in range(0, max(leading[0], 1), step):
        stop = start + step
        results = formula(*(rows_[start:stop].double() for rows_ in rows))
        if not outputs:
            outputs = [
                r.new_empty(*leading, r.shape[-1], dtype=d) for r, d in zip(results, dtypes, strict=True)
            ]
        for output, result in zip(outputs, results, strict=True):
            output[start:stop] = result
    return tuple(output.view(*batch, output.shape[-1]) for output in outputs)


def _flatten(operands: Sequence[Tensor]) -> list[Tensor]:
    """All operands as ``(rows, columns)`` views; broadcast ones keep their leading dimensions, uncopied."""
    try:
        return [operand.view(-1, operand.shape[-1]) for operand in operands]
    except RuntimeError:  # an expanded or permuted operand has no flat view
        return list(operands)


def register_rowwise(
    name: str,
    formula: Formula,
    gradient: Gradient,
    *,
    points: Literal[1, 2],
    returns: Literal["point", "scalar"],
    options: Sequence[str] = (),
) -> Callable[..., Tensor]:
    """Register ``hypkernels::name`` and its backward, and return the callable operator.

    The operator's arguments are ``points`` tensors of equal shape ``(*batch, D)``, the 0-d tensor ``curv``
    and the float ``options``. ``formula(*points, curv, *options)`` returns ``(rows, D)`` or, for a scalar,
    ``(rows, 1)``. ``gradient(grad, *points, curv, *options)`` returns a gradient for each point and the
    rows' contributions ``(rows, 1)`` to the gradient of ``curv``.
    """
    names = ("x", "y")[:points]
    tensors = ", ".join(f"Tensor {n}" for n in (*names, "curv"))
    arguments = ", ".join([tensors, *(f"float {option}" for option in options)])
    op_name = f"hypkernels::{name}"

    def unpack(args: tuple[Any, ...]) -> tuple[tuple[Tensor, ...], Tensor, tuple[float, ...]]:
        return args[:points], args[points], args[points + 1 :]

    def output_dtype(dtype: torch.dtype) -> torch.dtype:
        return dtype if returns == "point" else result_dtype(dtype)

    def run_forward(*args: Any) -> Tensor:
        vectors, curv, opts = unpack(args)
        check_curv_value(curv)
        c = curv.to(vectors[0].device, torch.float64)
        dtype = output_dtype(vectors[0].dtype)
        (out,) = map_rows(lambda *rows: (formula(*rows, c, *opts),), vectors, [dtype])
        return out if returns == "point" else out.squeeze(-1)

    def fake_forward(*args: Any) -> Tensor:
        x = args[0]
        shape = x.shape if returns == "point" else x.shape[:-1]
        return x.new_empty(shape, dtype=output_dtype(x.dtype))

    def run_backward(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
        vectors, curv, opts = unpack(args)
        c = curv.to(vectors[0].device, torch.float64)
        upstream = grad if returns == "point" else grad.unsqueeze(-1)
        *grads, curv_rows = map_rows(
            lambda g, *rows: gradient(g, *rows, c, *opts),
            (upstream, *vectors),
            [*(v.dtype for v in vectors), torch.float64],
        )
        return (*grads, curv_rows.sum().to(curv.device, curv.dtype))

    def fake_backward(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
        vectors, curv, _ = unpack(args)
        return (*(v.new_empty(v.shape) for v in vectors), torch.empty_like(curv))

    forward_op = torch.library.custom_op(
        op_name, run_forward, mutates_args=(), schema=f"({arguments}) -> Tensor"
    )
    backward_op = torch.library.custom_op(
        f"{op_name}_backward",
        run_backward,
        mutates_args=(),
        schema=f"(Tensor grad, {arguments}) -> ({', '.join(['Tensor'] * (points + 1))})",
    )
    forward_op.register_fake(fake_forward)
    backward_op.register_fake(fake_backward)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        vectors, curv, opts = unpack(inputs)
        ctx.save_for_backward(*vectors, curv)
        ctx.options = opts

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        grads = backward_op(grad, *ctx.saved_tensors, *ctx.options)
        return (*grads, *(None for _ in ctx.options))

    forward_op.register_autograd(backward, setup_context=setup_context)
    backward_op.register_autograd(partial(refuse_double_backward, name))
    return forward_op


def refuse_double_backward(name: str, ctx: Any, *grads: Tensor) -> None:
    """The autograd formula of every backward operator: closed-form gradients are first order only."""
    raise NotImplementedError(
        f"hypkernels.{name} has no second derivative: its gradient is a closed form that autograd cannot "
        "differentiate again; use the functions of hypkernels' reference modules for double backward"
    )
