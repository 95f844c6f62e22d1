"""The compiled lane by its name, beside PyTorch. The transforms' tests take it where it is."""

import pytest
import torch
from test_transforms import assert_close, gradients, weighted
from transforms import SUBJECTS

import hypkernels as hk
from hypkernels import backend
from hypkernels.cpu import library

pytestmark = pytest.mark.skipif(bool(library.why_not()), reason=str(library.why_not()))


@pytest.mark.parametrize("name", SUBJECTS)
def test_results_are_those_of_pytorch(name):
    subject = SUBJECTS[name]
    function, arguments = weighted(subject), subject.arguments()
    with hk.use_backend("torch"):
        expected = [function(*arguments), *gradients(function, arguments)]
    with hk.use_backend("native"):
        assert_close([function(*arguments), *gradients(function, arguments)], expected, 1e-11)


@pytest.mark.parametrize("similarity", ["dist", "sqdist", "inner", "angle"])
def test_a_loss_beyond_its_range_is_pytorchs(similarity):
    x, y = 1e25 * torch.randn(5, 4), torch.randn(5, 4)

    def loss(x, y):
        return hk.contrastive_loss(x, y, similarity=similarity)

    with hk.use_backend("torch"):
        expected = gradients(loss, [x, y])
    with hk.use_backend("native"):
        assert_close(gradients(loss, [x, y]), expected, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_set_that_does_not_learn(dtype):
    x, y = (torch.randn(5, 4).to(dtype) for _ in range(2))
    found = {}
    for name in ("torch", "native"):
        leaf = x.clone().requires_grad_()
        with hk.use_backend(name):
            (found[name],) = torch.autograd.grad(hk.contrastive_loss(leaf, y), leaf)
    torch.testing.assert_close(found["native"], found["torch"])


def test_other_devices_are_refused_by_name():
    with pytest.raises(RuntimeError, match=r"hypkernels.dist0 .*'native': meta tensors; it computes on CPUs"):
        backend.choose("dist0", torch.empty(3, 4, device="meta"), requested="native")
