"""Operators under every PyTorch transform: one function out of an operator and a differentiable formula.

PyTorch differentiates a custom operator only by the formulas it is given. Here each operator has a
closed-form gradient, which is an operator itself. Everything else (forward mode, second and higher
derivatives, function transforms in a compiled graph) differentiates a smooth formula in plain PyTorch
and float64, which is slower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.autograd import forward_ad

# A part of every operator's name, and so of the keys of compiled graphs' caches. Raise it whenever an
# operator's arguments change, or the number, shapes or dtypes of its results: otherwise a cached graph
# would call the new operator as if it were the old one.
VERSION = "v7"

_JVP = torch._C._functorch.TransformType.Jvp


def forward_mode() -> bool:
    """Whether ``torch.func.jvp`` or a dual level is at work, so that tensors may have tangents."""
    if forward_ad._current_level >= 0:
        return True
    stack = torch._C._functorch.get_interpreter_stack()
    return stack is not None and any(level.key() == _JVP for level in stack)


def carry_tangents(arguments: Sequence[Any]) -> bool:
    """Whether any of these has a tangent, in forward mode. If none has, nothing is differentiated."""
    return any(isinstance(one, Tensor) and _carries_tangent(one) for one in arguments)


def _carries_tangent(tensor: Tensor) -> bool:
    """At a dual level or at any level of ``torch.func``. PyTorch answers for the innermost level only,
    so each level is asked from within the one outside it."""
    functorch = torch._C._functorch
    innermost = functorch.peek_interpreter_stack()
    if innermost is None:
        return forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None
    if functorch.maybe_get_level(tensor) == innermost.level():
        if innermost.key() == _JVP and forward_ad.unpack_dual(tensor, level=0).tangent is not None:
            return True
        tensor = functorch.get_unwrapped(tensor)
    with temporarily_pop_interpreter_stack():
        return _carries_tangent(tensor)


def transformed() -> bool:
    """Whether a transform of ``torch.func`` is at work. A graph is compiled with the answer."""
    return torch._C._are_functorch_transforms_active()


class Operator(NamedTuple):
    """A schema without a name, implementations for real and for fake tensors, and the ``vmap`` rule."""

    schema: str
    run: Callable[..., Any]
    fake: Callable[..., Any]
    vmap: Callable[..., Any]


class Keeping(NamedTuple):
    """An implementation whose backward pass can use a tensor that its forward pass kept.

    ``value(*arguments)`` returns the value and the kept tensor, or ``None`` for it; ``gradient`` takes
    the kept tensor after the upstream gradient. They are called only for first derivatives in reverse
    mode.
    """

    value: Callable[..., tuple[Tensor, Tensor | None]]
    gradient: Callable[..., Sequence[Tensor]]


def register(
    name: str, value: Operator, backward: Operator, tensors: int
) -> tuple[Callable[..., Tensor], Callable[..., Sequence[Tensor]]]:
    """Register ``hypkernels::name`` and ``hypkernels::name_backward``, and return what calls them.

    The first ``tensors`` arguments are differentiable. Compiled graphs call the operators with this
    registration; elsewhere :func:`differentiable` calls them.
    """
    value_operator, backward_operator = (
        _defined(full_name, one) for full_name, one in ((name, value), (f"{name}_backward", backward))
    )

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:tensors])
        ctx.settings = inputs[tensors:]

    def pull(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        return learning(backward_operator(grad, *saved, *ctx.settings), saved, ctx)

    value_operator.register_autograd(pull, setup_context=setup_context)
    backward_operator.register_autograd(partial(_refuse_second_derivative, name))
    return value_operator, backward_operator


def _defined(name: str, operator: Operator) -> Any:
    defined = torch.library.custom_op(qualified(name), operator.run, mutates_args=(), schema=operator.schema)
    defined.register_fake(operator.fake)
    defined.register_vmap(operator.vmap)
    return defined


def dispatched(operator: Callable[..., Any], run: Callable[..., Any]) -> Callable[..., Any]:
    """``operator(*arguments)`` without autograd: ``run`` itself, unless something watches operators.

    PyTorch's dispatcher takes as long as the computation of a small batch.
    """

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling() or seen_by_others(arguments):
            return operator(*arguments)
        return run(*arguments)

    return call


def seen_by_others(arguments: Sequence[Any]) -> bool:
    """Whether a mode, a profiler, a tracer, a transform or a tensor subclass has to see the call of
    the operator."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._autograd._profiler_enabled()
        or torch._C._get_tracing_state() is not None
        or not _all_plain(arguments)
    )


def _all_plain(arguments: Sequence[Any]) -> bool:
    """Whether each tensor's values are those in its memory, and nothing intercepts calls with it.

    Others are of a subclass, in a transform, or negated, conjugated or zero by a flag alone.
    """
    for one in arguments:
        kind = type(one)
        if kind is Tensor or kind is torch.nn.Parameter:
            if torch._C._dispatch_keys(one).raw_repr() not in _PLAIN_KEYS and not _has_plain_keys(one):
                return False
        elif kind is list or kind is tuple:
            if not _all_plain(one):
                return False
        elif isinstance(one, Tensor):
            return False
    return True


# Dispatch keys of plain tensors, of each device that has occurred.
_PLAIN_KEYS: set[int] = set()


def _has_plain_keys(tensor: Tensor) -> bool:
    if tensor.device.type not in ("cpu", "cuda"):
        return False
    _PLAIN_KEYS.add(torch._C._dispatch_keys(torch.empty(0, device=tensor.device)).raw_repr())
    return torch._C._dispatch_keys(tensor).raw_repr() in _PLAIN_KEYS


def learning(grads: Sequence[Tensor], saved: Sequence[Tensor], ctx: Any) -> tuple[Tensor | None, ...]:
    """What a backward pass returns, with ``None`` for all that needs no gradient.

    The other gradients get the dtype and the device of their tensor, which may be another one.
    """
    wanted = ctx.needs_input_grad
    return (
        *(
            grad.to(one.device, one.dtype) if wants else None
            for grad, one, wants in zip(grads, saved, wanted, strict=False)
        ),
        *(None for _ in wanted[len(saved) :]),
    )


def _refuse_second_derivative(name: str, ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError(
        f"the operator of hypkernels.{name} has no second derivative in a compiled graph; call "
        f"hypkernels.{name} outside it"
    )


def qualified(name: str) -> str:
    """The name by which an operator is registered."""
    return f"hypkernels::{name}.{VERSION}"


def registered(name: str) -> Any:
    """The operator ``hypkernels::name`` of this version, as ``torch.ops`` has it."""
    return getattr(getattr(torch.ops.hypkernels, name), VERSION)


def batched(one: Tensor, dim: int | None, size: int) -> Tensor:
    """An argument of a rule of ``vmap``, with the samples' dimension first."""
    return one.unsqueeze(0).expand(size, *one.shape) if dim is None else one.movedim(dim, 0)


def differentiable(
    operator: Callable[..., Tensor],
    value: Callable[..., Tensor],
    gradient: Callable[..., Sequence[Tensor]],
    smooth: Callable[..., Tensor],
    tensors: int,
    keeping: Keeping | None = None,
) -> Callable[..., Tensor]:
    """``operator(*arguments)``, of which the first ``tensors`` arguments may need gradients.

    Args:
        operator: the registered operator.
        value: the same for arguments that need no gradient, see :func:`dispatched`.
        gradient: its backward operator, of the upstream gradient and the same arguments, called likewise.
        smooth: the same function of the same arguments in plain PyTorch, differentiable any number of times.
        tensors: how many of the first arguments are differentiable.
        keeping: a faster way through both passes, if there is one.
    """

    class Gradient(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
            return tuple(gradient(grad, *arguments))

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.save_for_backward(*inputs[: 1 + tensors])
            ctx.settings = inputs[1 + tensors :]

        @staticmethod
        def backward(ctx: Any, *directions: Tensor) -> tuple[Any, ...]:
            operands = ctx.saved_tensors

            def slope(grad: Tensor, *operands: Tensor) -> Tensor:
                by_operands = smooth_gradient(grad, *operands, *ctx.settings)
                pairs = zip(by_operands, directions, strict=True)
                return torch.stack([(by.double() * along.double()).sum() for by, along in pairs]).sum()

            total, pull = torch.func.vjp(slope, *operands)[:2]
            return (*pull(torch.ones_like(total)), *(None for _ in ctx.settings))

    class Value(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*arguments: Any) -> Tensor:
            return value(*arguments)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.save_for_backward(*inputs[:tensors])
            ctx.settings = inputs[tensors:]

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
            return pulled(ctx, grad, ctx.saved_tensors)

    class Untransformed(torch.autograd.Function):
        """The same without ``setup_context``: with it PyTorch binds a signature at each call, which
        takes time."""

        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Tensor:
            out, kept = value_and_kept(*arguments)
            ctx.save_for_backward(*arguments[:tensors], kept)
            ctx.settings = arguments[tensors:]
            return out

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
            *saved, kept = ctx.saved_tensors
            arguments = (grad, kept, *saved, *ctx.settings)
            if keeping is None or kept is None or torch.is_grad_enabled() or seen_by_others(arguments):
                return pulled(ctx, grad, saved)
            return learning(keeping.gradient(*arguments), saved, ctx)

    def value_and_kept(*arguments: Any) -> tuple[Tensor, Tensor | None]:
        if keeping is None or seen_by_others(arguments):
            return value(*arguments), None
        return keeping.value(*arguments)

    def pulled(ctx: Any, grad: Tensor, saved: Sequence[Tensor]) -> tuple[Any, ...]:
        differentiable_again = torch.is_grad_enabled() or transformed()
        once = Gradient.apply if differentiable_again else gradient
        pull = smooth_gradient if forward_mode() and carry_tangents((grad, *saved)) else once
        return learning(pull(grad, *saved, *ctx.settings), saved, ctx)

    def smooth_gradient(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        settings = arguments[tensors:]
        pull = torch.func.vjp(lambda *operands: smooth(*operands, *settings), *arguments[:tensors])[1]
        return pull(grad)

    def call(*arguments: Any) -> Tensor:
        if torch.compiler.is_compiling():
            beyond = transformed() or forward_ad._current_level >= 0
            return smooth(*arguments) if beyond else operator(*arguments)
        if forward_mode() and carry_tangents(arguments):
            return smooth(*arguments)
        if transformed():
            return Value.apply(*arguments)
        recorded = torch.is_grad_enabled() and any(one.requires_grad for one in arguments[:tensors])
        return Untransformed.apply(*arguments) if recorded else value(*arguments)

    return call
