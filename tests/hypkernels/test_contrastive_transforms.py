"""The contrastive loss under PyTorch's transforms: what is right, and what is refused by name."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import hypkernels as hk

ALL = (0, 1, 2, 3)


def arguments(*batch: int, dtype=torch.float32) -> tuple[Tensor, ...]:
    """Points ``(4, 3)`` and ``(5, 3)``, a curvature and a scale."""
    generator = torch.Generator().manual_seed(0)
    x, y, c, s = (torch.randn((*batch, *shape), generator=generator) for shape in ((4, 3), (5, 3), (), ()))
    return x.to(dtype), y.to(dtype), 0.5 + c.abs(), 3 + s.abs()


def learning(tensors) -> tuple[Tensor, ...]:
    return tuple(tensor.clone().requires_grad_() for tensor in tensors)


def loss(x, y, c, s, **options):
    return hk.contrastive_loss(x, y, c, s, **options)


def gradients(function, inputs):
    return torch.autograd.grad(function(*inputs), inputs)


def equal(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# ---------------------------------------------------------------- what is saved for the backward pass


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_bit(reentrant):
    expected = gradients(loss, learning(arguments()))
    inputs = learning(arguments())
    checkpoint(loss, *inputs, use_reentrant=reentrant).backward()
    assert equal([one.grad for one in inputs], expected)


def test_what_is_saved_may_lie_elsewhere():
    inputs = learning(arguments())
    with torch.autograd.graph.save_on_cpu():
        value = loss(*inputs)
    assert equal(torch.autograd.grad(value, inputs), gradients(loss, inputs))


def test_every_saved_tensor_is_unpacked_once():
    packed, unpacked = [], []

    def pack(tensor):
        packed.append(tensor)
        return len(packed) - 1, tensor

    def unpack(numbered):
        unpacked.append(numbered[0])
        return numbered[1]

    inputs = learning(arguments())
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        value = loss(*inputs, reduction="none")
    torch.autograd.grad(value, inputs, torch.ones(4))
    assert sorted(unpacked) == list(range(len(packed)))


# ---------------------------------------------------------------- torch.func


@pytest.mark.parametrize("similarity", ["dist", "sqdist", "inner", "angle"])
def test_reverse_mode(similarity):
    function, inputs = partial(loss, similarity=similarity), arguments()
    expected = gradients(function, learning(inputs))
    assert equal(torch.func.grad(function, ALL)(*inputs), expected)
    value, pull = torch.func.vjp(function, *inputs)
    assert equal(pull(torch.ones(())), expected)
    assert torch.equal(value, function(*inputs))


def test_jacobian():
    function, inputs = partial(loss, reduction="none"), arguments()
    expected = torch.autograd.functional.jacobian(function, inputs)
    for one, other in zip(torch.func.jacrev(function, ALL)(*inputs), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batched", [ALL, (0,), (1,), (2,), (3,), (0, 1)])
def test_ensembles(batched):
    """Of values and gradients, in either order, an element is the same as alone."""
    inputs = [one if i in batched else one[0] for i, one in enumerate(arguments(3))]
    dims = tuple(0 if i in batched else None for i in ALL)
    members = [[one[m] if i in batched else one for i, one in enumerate(inputs)] for m in range(3)]
    assert torch.equal(torch.vmap(loss, dims)(*inputs), torch.stack([loss(*member) for member in members]))

    grad = torch.func.grad(loss, ALL)
    alone = [grad(*member) for member in members]
    for together, each in zip(torch.vmap(grad, dims)(*inputs), zip(*alone, strict=True), strict=True):
        assert torch.equal(together, torch.stack(each))

    inputs = learning(inputs)
    of_sum = gradients(lambda *args: torch.vmap(loss, dims)(*args).sum(), inputs)
    for i, (together, each) in enumerate(zip(of_sum, zip(*alone, strict=True), strict=True)):
        expected = torch.stack(each) if i in batched else sum(each)
        torch.testing.assert_close(together, expected, rtol=1e-6, atol=1e-6)


def test_ensembles_of_any_form():
    """Along another dimension, of ensembles, of no member."""
    x, y, c, s = arguments(3)
    expected = torch.vmap(loss, (0, None, None, None))(x, y[0], c[0], s[0])
    assert torch.equal(torch.vmap(loss, (1, None, None, None))(x.movedim(0, 1), y[0], c[0], s[0]), expected)
    pairs = torch.vmap(torch.vmap(loss, (None, 0, None, None)), (0, None, None, None))(x, y, c[0], s[0])
    assert torch.equal(pairs[:, 0], expected)
    for function in (loss, torch.func.grad(loss)):
        none = torch.vmap(function)(*arguments(0))
        assert none.shape == (0, *function(*(one[0] for one in (x, y, c, s))).shape)


def test_targets_and_scales_of_an_ensemble():
    x, y, c, _ = arguments(3)
    targets = torch.tensor([[0, 1, 2, 3], [4, 4, 0, 1], [1, 0, 3, 2]])
    scales = torch.linspace(1, 5, 12).view(3, 4)

    def function(x, y, c, s, t):
        return hk.contrastive_losses([x, y], [(0, 1), (0, 0)], c, s, targets=t.clamp(max=3))[0]

    expected = [function(*member) for member in zip(x, y, c, scales, targets, strict=True)]
    assert torch.equal(torch.vmap(function)(x, y, c, scales, targets), torch.stack(expected))


def test_only_some_pairings_are_used():
    x, y, c, s = arguments()

    def one_of_two(x):
        return hk.contrastive_losses([x, y], [(0, 1), (0, 0)], c, s)[0]

    assert torch.equal(torch.func.grad(one_of_two)(x), torch.func.grad(lambda x: loss(x, y, c, s))(x))


# ---------------------------------------------------------------- what there is not


def with_tangent(function, x):
    with forward_ad.dual_level():
        return function(forward_ad.make_dual(x, torch.ones_like(x)))


FORWARD = {
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "linearize": lambda f, x: torch.func.linearize(f, x),
    "dual numbers": with_tangent,
    "dual numbers without gradients": torch.no_grad()(with_tangent),
    "hessian": lambda f, x: torch.func.hessian(f)(x),
    "tangents of gradients": lambda f, x: torch.func.jvp(torch.func.grad(f), (x,), (x,)),
}


@pytest.mark.parametrize("argument", ALL)
@pytest.mark.parametrize("mode", FORWARD)
def test_no_forward_mode(mode, argument):
    inputs = arguments()

    def function(one):
        return loss(*inputs[:argument], one, *inputs[argument + 1 :])

    with pytest.raises(NotImplementedError, match=r"hypkernels\.contrastive_loss has no forward-mode"):
        FORWARD[mode](function, inputs[argument])


def test_forward_mode_of_what_does_not_depend_on_the_loss():
    inputs, one = arguments(), torch.ones(())
    value, tangent = torch.func.jvp(lambda z: z * loss(*inputs), (one,), (one,))
    assert torch.equal(value, loss(*inputs))
    assert torch.equal(tangent, loss(*inputs))


SECOND = {
    "double backward": lambda f, x: torch.autograd.grad(
        gradients_with_graph(f, x).sum(), x, materialize_grads=True
    ),
    "grad of grad": lambda f, x: torch.func.grad(lambda x: torch.func.grad(f)(x).sum())(x),
    "jacrev of jacrev": lambda f, x: torch.func.jacrev(torch.func.jacrev(f))(x),
    "functional.hessian": lambda f, x: torch.autograd.functional.hessian(f, x),
}


def gradients_with_graph(function, x):
    return torch.autograd.grad(function(x), x, create_graph=True)[0]


@pytest.mark.parametrize("way", SECOND)
def test_no_second_derivative(way):
    x, *others = arguments()
    with pytest.raises(NotImplementedError, match=r"hypkernels\.contrastive_loss has no second derivative"):
        SECOND[way](lambda x: loss(x, *others), x.requires_grad_())


def test_no_batched_gradients_of_the_old_kind():
    x, *others = arguments()
    with pytest.raises(NotImplementedError, match=r"hypkernels\.contrastive_loss .* torch\.func\.vmap"):
        torch.autograd.functional.jacobian(lambda x: loss(x, *others, reduction="none"), x, vectorize=True)


# ---------------------------------------------------------------- in compiled graphs


def compiled(function, **options):
    torch._dynamo.reset()
    return torch.compile(function, backend="aot_eager", **options)


def test_checkpointing_in_a_graph():
    inputs = learning(arguments())
    function = compiled(lambda *args: checkpoint(loss, *args, use_reentrant=False), fullgraph=True)
    assert equal(gradients(function, inputs), gradients(loss, inputs))


def test_ensembles_in_a_graph():
    inputs = learning(arguments(3))
    function = torch.vmap(loss)
    in_graph = compiled(function, fullgraph=True)
    torch.testing.assert_close(in_graph(*inputs), function(*inputs))
    for one, other in zip(
        *(gradients(lambda *args, f=f: f(*args).sum(), inputs) for f in (in_graph, function)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


IN_GRAPHS = {
    "grad": lambda x, *args: torch.func.grad(loss)(x, *args),
    "grads of an ensemble": lambda x, *args: torch.vmap(torch.func.grad(loss), (0, None, None, None))(
        torch.stack([x, x]), *args
    ),
    "jvp": lambda x, *args: torch.func.jvp(lambda x: loss(x, *args), (x,), (x,)),
}


@pytest.mark.parametrize("transform", IN_GRAPHS)
def test_no_derivative_is_silently_zero_in_a_graph(transform):
    refusal = r"hypkernels\.contrastive_loss has no derivative by torch\.func"
    with pytest.raises(torch._dynamo.exc.Unsupported, match=refusal):
        compiled(IN_GRAPHS[transform], fullgraph=True)(*arguments())


@pytest.mark.slow
def test_a_derivative_breaks_the_graph_and_is_right():
    inputs, grad = arguments(), torch.func.grad(loss, ALL)
    assert equal(compiled(grad)(*inputs), grad(*inputs))


class Loss(torch.nn.Module):
    def forward(self, x, y):
        return hk.contrastive_loss(x, y, 0.7, 3.0)


# Of small batches the compiled lane keeps what it does not keep of large ones.
BATCHES = (2, 7, 1500)


@pytest.mark.parametrize("strict", [False, True])
def test_export_for_a_batch_of_any_size(strict):
    rows = torch.export.Dim("rows")
    x, y = torch.randn(5, 4), torch.randn(5, 4)
    program = torch.export.export(Loss(), (x, y), dynamic_shapes=({0: rows}, {0: rows}), strict=strict)
    for count in BATCHES:
        x, y = torch.randn(count, 4), torch.randn(count, 4)
        assert torch.equal(program.module()(x, y), Loss()(x, y))


def test_a_graph_for_batches_of_any_size():
    torch._dynamo.reset()
    loss = torch.compile(Loss(), fullgraph=True, dynamic=True, backend="aot_eager")
    for count in BATCHES:
        x, y = torch.randn(count, 4, requires_grad=True), torch.randn(count, 4)
        (gradient,) = torch.autograd.grad(loss(x, y), x)
        assert torch.equal(gradient, torch.autograd.grad(Loss()(x, y), x)[0])
