"""Values and all gradients of losses against dense definitions in float64."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TOLERANCES = {torch.float64: 1e-10, torch.float32: 3e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
LEARNING = 1e-6  # of the scalars, which are float64 always


def points(*shape, seed=0, dtype=torch.float64, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (size * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def with_gradients(function, tensors):
    """``[value, *gradients]`` of the sum of ``function(*tensors)``, weighted if it is not a scalar."""
    leaves = [one.detach().clone().requires_grad_(one.is_floating_point()) for one in tensors]
    value = function(*leaves)
    upstream = points(*value.shape, seed=99).to(value.dtype)
    learning = [one for one in leaves if one.requires_grad]
    return [value.detach(), *torch.autograd.grad(value, learning, upstream)]


def assert_as_defined(function, definition, tensors, *, tolerance=None):
    """``definition`` sees the same tensors in float64. Gradients are compared in the norm of each."""
    found = with_gradients(function, tensors)
    wide = [one.double() if one.is_floating_point() else one for one in tensors]
    expected = with_gradients(definition, wide)
    narrow = min((one.dtype for one in tensors if one.is_floating_point()), key=lambda t: -torch.finfo(t).eps)
    tolerance = tolerance or TOLERANCES[narrow]
    for index, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert b.norm() > 0, f"nothing to compare in result {index}"
        error = ((a.double() - b).norm() / b.norm()).item()
        allowed = max(TOLERANCES[torch.float32], tolerance) if a.dtype == torch.float32 else tolerance
        assert error <= allowed, f"result {index}: {error:.2e}"


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        return tensor.clone()

    @staticmethod
    def backward(ctx, grad):
        return 0.9 * grad


def with_one_gradient_scaled(function, index):
    """``function`` with 0.9 of the gradient by one argument."""

    def scaled(*tensors):
        return function(*(_Scaled.apply(one) if i == index else one for i, one in enumerate(tensors)))

    return scaled


class Largest(TorchDispatchMode):
    """The largest tensor, in elements, that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        sizes = (one.numel() for one in tree_leaves(out) if isinstance(one, torch.Tensor))
        self.elements = max(self.elements, *sizes, 0)
        return out
