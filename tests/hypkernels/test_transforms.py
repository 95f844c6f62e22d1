"""Every public function under every PyTorch transform: right, or refused by name; never a silent zero."""

import inspect
import math

import pytest
import torch
import transforms
from torch.autograd import forward_ad
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transforms import REFUSED, SUBJECTS, TRANSFORMS

import hypkernels as hk
import hysac

every_subject = pytest.mark.parametrize("name", SUBJECTS)


def supported(transform):
    """Those subjects that work under ``transform``, and those that refuse it."""
    return [
        [
            name
            for name, subject in SUBJECTS.items()
            if (TRANSFORMS[transform].support[subject.kind] == REFUSED) == no
        ]
        for no in (False, True)
    ]


def weighted(subject):
    """A scalar function: no two elements of the value count the same."""

    def scalar(*arguments):
        out = subject.function(*arguments)
        return (out * torch.cos(torch.arange(out.numel(), dtype=out.dtype)).view(out.shape)).sum()

    return scalar


def gradients(function, arguments):
    """By every argument, plainly."""
    arguments = [one.detach().clone().requires_grad_() for one in arguments]
    return torch.autograd.grad(function(*arguments), arguments)


def assert_close(actual, expected, tolerance=1e-12):
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(1.0, b.abs().max().item()))


def refused_by_name(subject):
    return pytest.raises(NotImplementedError, match=r"hypkernels\.\w+")


def test_no_public_function_is_missing():
    tested = {subject.public for subject in SUBJECTS.values()}
    # The ring needs several processes, and refuses transforms by name: tests/hypkernels/test_ring.py.
    functions = {name for name in hk.__all__ if name not in ("use_backend", "ring_contrastive_losses")}
    assert tested == functions | {"HySACLoss"}
    assert all(
        inspect.isfunction(getattr(hk, name)) or inspect.isclass(getattr(hk, name)) for name in functions
    )
    assert hysac.HySACLoss


@every_subject
def test_gradients_are_those_of_the_definition(name):
    """What the other tests compare with. They are compared with 240-digit arithmetic elsewhere."""
    subject = SUBJECTS[name]
    function, arguments = weighted(subject), subject.arguments()
    with hk.use_backend("reference"):
        expected = gradients(function, arguments)
    assert_close(gradients(function, arguments), expected, 1e-10)


@every_subject
def test_reverse(name):
    subject = SUBJECTS[name]
    function, arguments = weighted(subject), subject.arguments()
    expected = gradients(function, arguments)
    everything = tuple(range(len(arguments)))
    assert_close(torch.func.grad(function, argnums=everything)(*arguments), expected)
    value, pull = torch.func.vjp(function, *arguments)
    assert_close(pull(torch.ones_like(value)), expected)
    out = subject.function(*arguments)
    jacobians = torch.func.jacrev(subject.function, argnums=everything)(*arguments)
    weights = torch.cos(torch.arange(out.numel(), dtype=out.dtype))
    for jacobian, by in zip(jacobians, expected, strict=True):
        assert jacobian.shape == (*out.shape, *by.shape)
        assert_close([torch.tensordot(weights, jacobian.reshape(out.numel(), *by.shape), 1)], [by])


def in_several(arguments, index, count=3):
    """``arguments`` with different samples of one of them, stacked."""
    factors = torch.linspace(0.8, 1.3, count, dtype=torch.float64)
    stacked = torch.stack([arguments[index] * factor for factor in factors])
    return [*arguments[:index], stacked, *arguments[index + 1 :]], [
        [*arguments[:index], one, *arguments[index + 1 :]] for one in stacked
    ]


@every_subject
def test_vmap(name):
    """Over each argument by itself, over all at once and over another dimension than the first."""
    subject = SUBJECTS[name]
    function, arguments = weighted(subject), subject.arguments()
    everything = tuple(range(len(arguments)))
    for index in everything:
        stacked, samples = in_several(arguments, index)
        in_dims = tuple(0 if i == index else None for i in everything)
        values = torch.func.vmap(subject.function, in_dims=in_dims)(*stacked)
        assert_close([values], [torch.stack([subject.function(*one) for one in samples])])
        by_sample = torch.func.vmap(torch.func.grad(function, argnums=everything), in_dims=in_dims)(*stacked)
        expected = [
            torch.stack(parts) for parts in zip(*(gradients(function, s) for s in samples), strict=True)
        ]
        assert_close(by_sample, expected)
    stacked = [torch.stack([one, 1.2 * one], dim=one.dim()) for one in arguments]
    last = tuple(one.dim() for one in arguments)
    by_sample = torch.func.vmap(torch.func.grad(function, argnums=everything), in_dims=last)(*stacked)
    samples = [[one.select(dim, i) for one, dim in zip(stacked, last, strict=True)] for i in range(2)]
    expected = [torch.stack(parts) for parts in zip(*(gradients(function, s) for s in samples), strict=True)]
    assert_close(by_sample, expected)


@every_subject
def test_vmap_of_vmap(name):
    subject = SUBJECTS[name]
    arguments = subject.arguments()
    stacked = [
        torch.stack([torch.stack([one, 1.1 * one]), torch.stack([0.9 * one, 1.2 * one])]) for one in arguments
    ]
    values = torch.func.vmap(torch.func.vmap(subject.function))(*stacked)
    expected = torch.stack(
        [torch.stack([subject.function(*(one[i, j] for one in stacked)) for j in range(2)]) for i in range(2)]
    )
    assert_close([values], [expected])


def directions(arguments):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(one.shape, generator=generator, dtype=one.dtype) for one in arguments]


@pytest.mark.parametrize("name", supported("forward")[0])
def test_forward(name):
    subject = SUBJECTS[name]
    function, arguments = weighted(subject), subject.arguments()
    along, by = directions(arguments), gradients(function, arguments)
    expected = sum((a * b).sum() for a, b in zip(along, by, strict=True))
    value, tangent = torch.func.jvp(function, tuple(arguments), tuple(along))
    assert_close([value, tangent], [function(*arguments), expected])
    for index, (one, direction) in enumerate(zip(arguments, along, strict=True)):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(one, direction)
            out = forward_ad.unpack_dual(function(*arguments[:index], dual, *arguments[index + 1 :]))
        assert_close([out.tangent], [(by[index] * direction).sum()])
    everything = tuple(range(len(arguments)))
    jacobians = torch.func.jacfwd(subject.function, argnums=everything)(*arguments)
    assert_close(jacobians, torch.func.jacrev(subject.function, argnums=everything)(*arguments))


@pytest.mark.parametrize("bad", [-1.0, 0.0, math.inf, math.nan])
@pytest.mark.parametrize("name", supported("forward")[0])
def test_forward_refuses_what_is_no_curvature(name, bad):
    subject = SUBJECTS[name]
    x, *others = subject.arguments()
    curv = torch.tensor(bad, dtype=torch.float64)

    def function(x, curv=curv):
        return subject.function(x, *others[:-1], curv).sum()

    def refused():
        return pytest.raises(ValueError, match=rf"curv must be positive and finite, got {bad}")

    with refused():
        torch.func.jvp(function, (x,), (x,))
    with refused():
        torch.func.jvp(function, (x, curv), (x, torch.ones_like(curv)))
    with refused():
        torch.func.vmap(torch.func.jacfwd(function))(torch.stack([x, x]))
    with refused():
        torch.func.hessian(function)(x)
    with refused():
        torch.func.linearize(function, x)
    with refused(), forward_ad.dual_level():
        function(forward_ad.make_dual(x, x))


@pytest.mark.parametrize("name", supported("forward")[0])
def test_what_carries_no_tangent_is_called_plainly(name):
    """Points that forward mode refuses, within it: at an outer level, at an inner one, made inside."""
    subject = SUBJECTS[name]
    far, *others = subject.arguments()
    far = 1e200 * far
    expected = subject.function(far, *others)

    def beside(one):
        assert torch.equal(subject.function(1.0 * far, *others), expected)
        made = subject.function(torch.full_like(far, 1e200), *others)
        return (one * (subject.function(far, *others) + made).tanh().sum()).sum()

    one = torch.ones(2, dtype=torch.float64)
    for function in (beside, torch.func.grad(beside), torch.func.vmap(beside)):
        torch.func.jvp(function, (one,), (one,))
    torch.func.grad(lambda one: torch.func.jvp(beside, (one,), (one,))[0])(one)
    torch.func.vmap(lambda one: torch.func.jvp(beside, (one,), (one,))[0])(one)
    with forward_ad.dual_level():
        beside(forward_ad.make_dual(one, one))
        x, *rest = subject.arguments()
        learning = x.requires_grad_()
        out = subject.function(learning, *rest)
        assert torch.equal(
            torch.autograd.grad(out.sum(), learning)[0],
            gradients(lambda *a: subject.function(*a).sum(), [x, *rest])[0],
        )


def test_forward_checks_norms_of_samples_along_any_dimension():
    """Small components are in range beside others."""
    x = torch.tensor([[1.0, 2.0, 3.0], [1e-60, 1e-70, 0.0]], dtype=torch.float64)

    def tangent(x):
        return torch.func.jvp(hk.dist0, (x,), (x,))[1]

    assert_close([torch.func.vmap(tangent, in_dims=1)(x)], [tangent(x.mT)])
    with pytest.raises(ValueError, match="got 1e-60"):
        torch.func.vmap(tangent, in_dims=1)(x * torch.tensor([1e-60, 1.0, 1.0], dtype=torch.float64))


def assert_linearizes(function, points, tolerance):
    along = tuple(directions(points))
    value, line = torch.func.linearize(function, *points)
    assert_close([value, line(*along)], torch.func.jvp(function, points, along), tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", supported("forward")[0])
def test_linearize(name):
    subject = SUBJECTS[name]
    assert_linearizes(subject.function, tuple(subject.arguments()), 1e-12)


@pytest.mark.parametrize("name", ["exp_map0", "elementwise_dist", "pairwise_inner"])
def test_linearize_in_float32_with_a_curvature_that_is_a_number(name):
    subject = SUBJECTS[name]
    x, *others = (one.float() for one in subject.arguments()[:-1])
    assert_linearizes(lambda x: subject.function(x, *others, 0.7), (x,), 1e-6)


@pytest.mark.parametrize("name", supported("forward")[1])
def test_forward_is_refused(name):
    subject = SUBJECTS[name]
    arguments = subject.arguments()
    for index, one in enumerate(arguments):

        def of_one(moved, index=index):
            return subject.function(*arguments[:index], moved, *arguments[index + 1 :])

        with refused_by_name(subject):
            torch.func.jvp(of_one, (one,), (torch.ones_like(one),))
        with refused_by_name(subject):
            torch.func.jacfwd(of_one)(one)
        with refused_by_name(subject), forward_ad.dual_level():
            of_one(forward_ad.make_dual(one, torch.ones_like(one)))


@pytest.mark.parametrize("name", supported("second")[0])
def test_second(name):
    subject = SUBJECTS[name]
    arguments = [one.requires_grad_() for one in subject.arguments()]
    assert torch.autograd.gradcheck(
        subject.function, arguments, check_forward_ad=True, check_batched_grad=True
    )
    assert torch.autograd.gradgradcheck(subject.function, arguments, check_fwd_over_rev=True)
    plain = [one.detach() for one in arguments]
    everything = tuple(range(len(plain)))
    function = weighted(subject)
    nested = [
        outer(inner(function, argnums=everything), argnums=everything)(*plain)
        for outer, inner in (
            (torch.func.jacrev, torch.func.jacrev),
            (torch.func.jacfwd, torch.func.jacrev),
            (torch.func.jacrev, torch.func.jacfwd),
            (torch.func.jacfwd, torch.func.jacfwd),
        )
    ]
    for row in everything:
        for ways in zip(*(hessian[row] for hessian in nested), strict=True):
            for other in ways[1:]:
                assert_close([other], [ways[0]], 1e-10)


@pytest.mark.parametrize("name", supported("second")[1])
def test_second_is_refused(name):
    subject = SUBJECTS[name]
    function, plain = weighted(subject), subject.arguments()
    arguments = [one.clone().requires_grad_() for one in plain]
    first = torch.autograd.grad(function(*arguments), arguments, create_graph=True)
    for by in first:
        with refused_by_name(subject):
            torch.autograd.grad(by.sum(), arguments, retain_graph=True, allow_unused=True)
    with refused_by_name(subject):
        torch.func.hessian(function)(*plain)
    with refused_by_name(subject):
        torch.func.jacrev(torch.func.jacrev(function))(*plain)


@pytest.mark.parametrize("reentrant", [False, True])
@every_subject
def test_checkpoint(name, reentrant):
    """Bit for bit."""
    subject = SUBJECTS[name]
    function, arguments = weighted(subject), subject.arguments()
    learning = [one.clone().requires_grad_() for one in arguments]
    checkpoint(function, *learning, use_reentrant=reentrant).backward()
    assert all(torch.equal(a.grad, b) for a, b in zip(learning, gradients(function, arguments), strict=True))


def test_checkpoint_of_two_points():
    x, y = torch.randn(2, 2), torch.randn(2, 2)
    expected = gradients(lambda a: hk.contrastive_loss(a, y), [x])
    again = gradients(lambda a: checkpoint(lambda b: hk.contrastive_loss(b, y), a, use_reentrant=False), [x])
    assert torch.equal(again[0], expected[0])


@every_subject
def test_saved_tensors_are_unpacked_once(name):
    subject = SUBJECTS[name]
    arguments = subject.arguments()
    expected = gradients(subject.function if name == "HySACLoss" else weighted(subject), arguments)
    packed, unpacked = [], []

    def pack(tensor):
        packed.append(len(packed))
        return packed[-1], tensor

    def unpack(pair):
        unpacked.append(pair[0])
        return pair[1]

    learning = [one.requires_grad_() for one in arguments]
    with saved_tensors_hooks(pack, unpack):
        out = subject.function(*learning)
    assert packed
    scalar = out.sum() if name == "HySACLoss" else weighted_sum(out)
    torch.autograd.grad(scalar, learning)
    assert sorted(unpacked) == packed
    with save_on_cpu():
        scalar = weighted(subject)(*learning)
    if name != "HySACLoss":
        assert_close(torch.autograd.grad(scalar, learning), expected, 0)


def weighted_sum(out):
    return (out * torch.cos(torch.arange(out.numel(), dtype=out.dtype)).view(out.shape)).sum()


@pytest.fixture
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@every_subject
def test_compile(name):
    subject = SUBJECTS[name]
    function, arguments = weighted(subject), subject.arguments()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_close(gradients(compiled, arguments), gradients(function, arguments))


def with_numbers(subject, numbers):
    """The function of its sets, with its scalars and options as Python numbers."""
    count = len(subject.shapes)
    sets = subject.arguments()[:count]
    function = subject.function

    def call(factor):
        keywords = {name: value * factor for name, value in numbers.items()}
        return 0.2 * factor * function(*sets, **keywords).sum()

    return call


def compare_changing_numbers(name, compiler):
    """One graph serves them all. An old value would be used in silence, a new graph for each soon refused."""
    subject = SUBJECTS[name]
    call = with_numbers(subject, subject.numbers)
    compiled = torch.compile(call, fullgraph=True, backend=compiler)
    for i in range(20):
        factor = 0.5 + 0.05 * i
        assert math.isclose(compiled(factor), call(factor), rel_tol=1e-12)


@pytest.mark.usefixtures("_fresh_compiler")
@every_subject
def test_compile_with_changing_numbers(name):
    compare_changing_numbers(name, "aot_eager")


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(
    "name", ["scaled_exp_map0", "half_aperture", "pairwise_dist", "entailment_loss", "contrastive_loss"]
)
def test_inductor_with_changing_numbers(name):
    """It has kept old values: see ``checks.constant``. One function for each way in which they come."""
    compare_changing_numbers(name, "inductor")


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("name", supported("compiled transform")[0])
def test_transforms_in_a_compiled_function(name):
    subject = SUBJECTS[name]
    function, arguments = weighted(subject), subject.arguments()
    everything, along = tuple(range(len(arguments))), tuple(directions(arguments))

    def together(*arguments):
        by = torch.func.grad(function, argnums=everything)(*arguments)
        _, tangent = torch.func.jvp(function, arguments, along)
        return *by, tangent

    # Of a graph within a graph AOTAutograd takes four times as long as Dynamo: one of each kind.
    whole = name in ("exp_map0", "dist0", "pairwise_inner")
    compiled = torch.compile(together, fullgraph=True, backend="aot_eager" if whole else "eager")
    assert_close(compiled(*arguments), together(*arguments))


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("name", supported("compiled transform")[0])
def test_transforms_in_a_compiled_function_leave_nan_what_is_refused_outside(name):
    """A graph cannot refuse values. The rows beside it stay what they are."""
    subject = SUBJECTS[name]
    arguments = subject.arguments()

    def both(*arguments):
        value, pull = torch.func.vjp(subject.function, *arguments)
        return value, *pull(torch.ones_like(value))

    compiled = torch.compile(both, fullgraph=True, backend="eager")
    near = both(*arguments)
    far = [one.clone() for one in arguments]
    far[0][0] *= 1e200
    value, by_x, *_ = compiled(*far)
    for actual, expected in ((value, near[0]), (by_x, near[1])):
        refused, *others = torch.atleast_1d(actual)
        assert refused.isnan().all()
        assert_close(others, torch.atleast_1d(expected)[1:])
    for index in range(len(subject.shapes), len(arguments)):
        for bad in (1e200, -1e200 if index + 1 < len(arguments) else -1.0):
            wrong = [torch.full_like(one, bad) if i == index else one for i, one in enumerate(arguments)]
            assert all(result.isnan().all() for result in compiled(*wrong))


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("name", supported("compiled transform")[1])
def test_transforms_in_a_compiled_function_are_refused(name):
    """In one graph; where the compiler may leave the graph, they are those outside of it."""
    subject = SUBJECTS[name]
    function, arguments = weighted(subject), subject.arguments()

    def tangent(*arguments):
        first, *others = arguments
        return torch.func.jvp(lambda x: function(x, *others), (first,), (torch.ones_like(first),))

    for transformed in (torch.func.grad(function), tangent):
        compiled = torch.compile(transformed, fullgraph=True, backend="aot_eager")
        with pytest.raises(torch._dynamo.exc.Unsupported, match=r"NotImplementedError.*hypkernels\.\w+"):
            compiled(*arguments)
    loose = torch.compile(torch.func.grad(function), backend="aot_eager")
    assert_close([loose(*arguments)], [torch.func.grad(function)(*arguments)])
    with refused_by_name(subject):
        torch.compile(tangent, backend="aot_eager")(*arguments)


def test_the_table_of_the_documentation(request):
    readme = (request.config.rootpath / "README.md").read_text()
    for text in (readme, hk.__doc__):
        assert transforms.table() in text, "print it: python tests/hypkernels/transforms.py"
