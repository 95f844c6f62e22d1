"""Calls that go past PyTorch's dispatcher: those who look for operators see them all the same."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode
from transforms import SUBJECTS

from hypkernels import operators


@pytest.fixture(params=SUBJECTS.values(), ids=SUBJECTS)
def subject(request):
    return request.param


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operators = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "hypkernels":
            self.operators.add(func._schema.name)
        return func(*args, **(kwargs or {}))


def leaves(subject):
    return [one.requires_grad_() for one in subject.arguments()]


def value_and_gradients(subject, arguments):
    out = subject.function(*arguments)
    return out.detach(), *torch.autograd.grad(out.sum(), arguments)


def assert_same(found, expected, subject):
    """To the bit; where one call adds the gradients of several pairings, to the rounding of their sum."""
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        if subject.public == "entailment_losses":
            torch.testing.assert_close(one, other, rtol=4e-16, atol=4e-16 * other.abs().max().item())
        else:
            assert torch.equal(one, other)


@pytest.fixture
def names(subject):
    """The operators of the function and of its gradient."""
    with Seen() as seen:
        value_and_gradients(subject, leaves(subject))
    return seen.operators


def test_a_mode_sees_the_operators(names):
    assert any("_backward" in name for name in names)
    assert any("_backward" not in name for name in names)


def test_plain_tensors_go_past_the_dispatcher():
    def refuse(*arguments):
        raise AssertionError(arguments)

    call = operators.dispatched(refuse, lambda *arguments: len(arguments))
    assert call(torch.ones(2), [torch.nn.Parameter(torch.ones(2))], "torch", 1) == 4


def test_a_mode_changes_no_bit(subject):
    plain = value_and_gradients(subject, leaves(subject))
    with Seen():
        dispatched = value_and_gradients(subject, leaves(subject))
    assert_same(dispatched, plain, subject)


def test_a_profiler_sees_the_operators(subject, names):
    with profile() as profiler:
        value_and_gradients(subject, leaves(subject))
    assert names <= {event.name for event in profiler.events()}


def test_fake_tensors(subject):
    expected = value_and_gradients(subject, leaves(subject))
    with FakeTensorMode() as mode:
        faked = [mode.from_tensor(one) for one in leaves(subject)]
        for one, other in zip(value_and_gradients(subject, faked), expected, strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)


def negated(tensor: Tensor) -> Tensor:
    """The same numbers, whose memory holds their opposites and a mark."""
    lazy = torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
    assert lazy.is_neg()
    return lazy


def test_numbers_that_are_negated_by_a_mark(subject):
    expected = value_and_gradients(subject, leaves(subject))
    marked = [negated(one.detach()).requires_grad_() for one in leaves(subject)]
    assert_same(value_and_gradients(subject, marked), expected, subject)


def test_an_upstream_gradient_that_is_negated_by_a_mark(subject):
    arguments = leaves(subject)
    out = subject.function(*arguments)
    upstream = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)
    expected = torch.autograd.grad(out, arguments, upstream, retain_graph=True)
    assert_same(torch.autograd.grad(out, arguments, negated(upstream)), expected, subject)


def test_a_subclass_comes_back(subject):
    class Marked(Tensor):
        pass

    with torch.no_grad():
        marked = [one.as_subclass(Marked) for one in subject.arguments()]
        out = subject.function(*marked)
    assert torch.equal(out.as_subclass(Tensor), subject.function(*subject.arguments()))
