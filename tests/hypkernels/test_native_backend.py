"""The compiled lane by its name: every public function through it, under the transforms too."""

import pytest
import torch
from test_transforms import assert_close, gradients, in_several, weighted
from transforms import SUBJECTS

import hypkernels as hk
from hypkernels import backend
from hypkernels.cpu import library

WITHOUT = {"pairwise_oxy_angle"}
NATIVE = [name for name in SUBJECTS if name not in WITHOUT]

pytestmark = pytest.mark.skipif(bool(library.why_not()), reason=str(library.why_not()))


@pytest.mark.parametrize("name", NATIVE)
def test_gradients_are_those_of_pytorch(name):
    subject = SUBJECTS[name]
    function, arguments = weighted(subject), subject.arguments()
    expected = gradients(function, arguments)
    with hk.use_backend("native"):
        value, actual = function(*arguments), gradients(function, arguments)
    assert_close([value, *actual], [function(*arguments), *expected], 1e-11)


@pytest.mark.parametrize("name", NATIVE)
def test_transforms(name):
    subject = SUBJECTS[name]
    function, arguments = weighted(subject), subject.arguments()
    everything = tuple(range(len(arguments)))
    with hk.use_backend("native"):
        assert_close(
            torch.func.grad(function, argnums=everything)(*arguments), gradients(function, arguments)
        )
        for index in everything:
            stacked, samples = in_several(arguments, index)
            in_dims = tuple(0 if i == index else None for i in everything)
            values = torch.func.vmap(subject.function, in_dims=in_dims)(*stacked)
            assert_close([values], [torch.stack([subject.function(*one) for one in samples])], 1e-11)


@pytest.mark.parametrize("name", NATIVE)
def test_compile(name):
    subject = SUBJECTS[name]
    function, arguments = weighted(subject), subject.arguments()
    torch._dynamo.reset()
    with hk.use_backend("native"):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert_close(gradients(compiled, arguments), gradients(function, arguments))


@pytest.mark.parametrize("similarity", ["dist", "sqdist", "inner", "angle"])
def test_a_loss_beyond_its_range_is_pytorchs(similarity):
    x, y = 1e25 * torch.randn(5, 4), torch.randn(5, 4)

    def loss(x, y):
        return hk.contrastive_loss(x, y, similarity=similarity)

    expected = gradients(loss, [x, y])
    with hk.use_backend("native"):
        assert_close(gradients(loss, [x, y]), expected, 0)


def test_what_it_has_not_is_refused_by_name():
    x = torch.randn(3, 4)
    with hk.use_backend("native"):
        with pytest.raises(RuntimeError, match=r"hypkernels.pairwise_oxy_angle cannot run with .*'native'"):
            hk.pairwise_oxy_angle(x, x)
        with pytest.raises(
            RuntimeError, match=r"hypkernels.dist0 .*'native': meta tensors; it computes on CPUs"
        ):
            backend.choose("dist0", x.to("meta"))
