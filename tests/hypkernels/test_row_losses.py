"""Losses in strips against their dense definitions in float64: values, every gradient, memory, errors."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from objective_cases import Largest, assert_as_defined, points, with_gradients, with_one_gradient_scaled

import hypkernels as hk
from hypkernels import row_strips
from hypkernels.contrastive.reference import GAPS
from hypkernels.contrastive.reference import contrastive_loss as definition_of_contrastive
from hypkernels.pairwise import reference as pairwise
from hypkernels.row_losses import (
    NORMS,
    SIMILARITIES,
    product_contrastive_loss,
    row_contrastive_loss,
    sigmoid_loss,
)

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SEVERAL = torch.tensor([[0, 4], [1, 2], [2, 0], [8, 1], [3, 7], [5, 6], [6, 8]])


@pytest.fixture(params=["one strip", "several strips"], autouse=True)
def _strips(request, monkeypatch):
    if request.param == "several strips":  # two rows each
        monkeypatch.setattr(row_strips, "CPU_BYTES", 8 * 6 * 9 * 2)


def of(value, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype)


def sets(rows=7, columns=9, dtype=torch.float64):
    return [points(n, 6, seed=seed, dtype=dtype, size=0.6) for seed, n in enumerate((rows, columns))]


# ---------------------------------------------------------------- any targets, weights and signs


def soft_cross_entropy(x, y, curv, scale, q, w, *, similarity="dist"):
    scale = scale.expand(len(x)).unsqueeze(1)
    logits = -scale * GAPS[similarity](x, y, curv)
    return -(w * (q * logits.log_softmax(1)).sum(1)).sum() / len(x)


def spread(indices, weights, columns):
    return torch.zeros(len(indices), columns, dtype=torch.float64).scatter(1, indices, weights)


@pytest.mark.parametrize("scale", [5.0, -5.0])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_several_targets_of_either_sign(similarity, scale):
    x, y = sets()
    q, w = points(7, 2, seed=3).abs(), points(7, seed=4).abs()

    def found(x, y, c, s, q, w):
        options = {"targets": SEVERAL, "target_weights": q, "row_weights": w, "similarity": similarity}
        return row_contrastive_loss(x, y, c, s, **options)

    def expected(x, y, c, s, q, w):
        return soft_cross_entropy(x, y, c, s, spread(SEVERAL, q, 9), w, similarity=similarity)

    tensors = [x, y, of(0.7), of(scale), q, w]
    assert_as_defined(found, expected, tensors, tolerance=1e-9)
    for index in range(len(tensors)):
        scaled = with_one_gradient_scaled(found, index)
        with pytest.raises(AssertionError, match=f"result {index + 1}"):
            assert_as_defined(scaled, expected, tensors, tolerance=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_matrix_of_target_weights(dtype):
    x, y = sets(dtype=dtype)
    q = points(7, 9, seed=3).softmax(1)
    assert_as_defined(
        lambda x, y, c, s, q: row_contrastive_loss(x, y, c, s, target_weights=q),
        lambda x, y, c, s, q: soft_cross_entropy(x, y, c, s, q, torch.ones(7)),
        [x, y, of(0.7), points(7, seed=5).abs(), q],
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_target_is_the_contrastive_loss(dtype):
    x, y = sets(dtype=dtype)
    targets = torch.tensor([0, 0, 3, 8, 1, 2, 2], dtype=torch.int32)
    for options in ({"targets": targets}, {}, {"targets": targets, "target_weights": torch.ones(7)}):
        assert_as_defined(
            lambda x, y, c, s, options=options: row_contrastive_loss(x, y, c, s, **options, reduction="none"),
            lambda x, y, c, s, options=options: definition_of_contrastive(
                x, y, c, s, options["targets"].long() if options else None, symmetric=False
            ),
            [x, y, of(0.7), of(5.0)],
        )


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32])
def test_counts_are_repetitions(dtype):
    x, y = sets(columns=4)
    counts = torch.tensor([3, 0, 1, 2], dtype=dtype)
    repeated = torch.tensor([0, 0, 0, 2, 3, 3])
    targets, again = torch.tensor([0, 2, 3, 0, 2, 3, 3]), torch.tensor([0, 3, 4, 1, 3, 5, 4])
    assert_as_defined(
        lambda x, y, c, s: row_contrastive_loss(x, y, c, s, targets=targets, counts=counts),
        lambda x, y, c, s: F.cross_entropy(-s * pairwise.pairwise_dist(x, y[repeated], c), again),
        [x, y, of(0.7), of(5.0)],
    )


def test_near_targets_keep_their_distance():
    """1e-9 apart: below what a product of matrices resolves."""
    x = points(7, 6)
    y = x + 1e-9 * points(7, 6, seed=1)
    found = with_gradients(lambda x, y: row_contrastive_loss(x, y, 1.0, 1e9), [x, y])
    exact = hk.elementwise_dist(x, y)
    assert torch.allclose(found[0], torch.zeros(1).double())  # all others are far
    found = with_gradients(lambda x, y: sigmoid_loss(x, y, 1.0, 1e9, reduction="none"), [x, y])
    assert torch.allclose(found[0], F.softplus(1e9 * exact), rtol=1e-7)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("function", [row_contrastive_loss, sigmoid_loss])
def test_reductions(function, reduction):
    rows = function(*sets(), 0.7, 5.0, reduction="none")
    assert rows.shape == (7,)
    expected = {"mean": rows.mean(), "sum": rows.sum(), "none": rows}[reduction]
    assert torch.allclose(function(*sets(), 0.7, 5.0, reduction=reduction), expected)


# ---------------------------------------------------------------- sigmoid


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_sigmoid(similarity, dtype):
    x, y = sets(dtype=dtype)
    targets = torch.tensor([0, 0, 3, 8, 1, 2, 2])

    def expected(x, y, c, s, b):
        signs = 2.0 * F.one_hot(targets, 9) - 1
        return -F.logsigmoid(signs * (b - s * GAPS[similarity](x, y, c))).sum() / 7

    def found(x, y, c, s, b):
        return sigmoid_loss(x, y, c, s, b, similarity=similarity, targets=targets)

    tensors = [x, y, of(0.7), of(3.0), of(2.0)]
    assert_as_defined(found, expected, tensors)
    for index in range(len(tensors)):
        with pytest.raises(AssertionError):
            assert_as_defined(with_one_gradient_scaled(found, index), expected, tensors, tolerance=2e-2)


# ---------------------------------------------------------------- products


def product_distance(x, y, c, norm, averaged):
    distances = torch.stack(
        [pairwise.pairwise_dist(x[:, n], y[:, n], c.expand(x.shape[1])[n]) for n in range(x.shape[1])]
    )
    if norm == "l1":
        return distances.mean(0) if averaged else distances.sum(0)
    return (distances.square().mean(0) if averaged else distances.square().sum(0)).sqrt()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("averaged", [True, False])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targets", [None, torch.tensor([0, 0, 3, 8, 1, 2, 2])])
def test_products(norm, averaged, symmetric, targets):
    x, y = (points(n, 3, 4, seed=seed, size=0.6) for seed, n in enumerate((7, 9)))
    places = torch.arange(7) if targets is None else targets
    options = {"norm": norm, "averaged": averaged, "symmetric": symmetric, "targets": targets}

    def expected(x, y, c, s):
        logits = -s * product_distance(x, y, c, norm, averaged)
        rows = F.cross_entropy(logits, places)
        return (rows + F.cross_entropy(logits.T[places], torch.arange(7))) / 2 if symmetric else rows

    found = partial(product_contrastive_loss, **options)
    tensors = [x, y, of([0.3, 1.0, 4.0]), of(5.0)]
    assert_as_defined(found, expected, tensors)
    for index in range(len(tensors)):
        with pytest.raises(AssertionError, match=f"result {index + 1}"):
            assert_as_defined(with_one_gradient_scaled(found, index), expected, tensors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_every_dtype(dtype):
    x, y = (points(7, 3, 4, seed=seed, size=0.6, dtype=dtype) for seed in range(2))

    def expected(x, y, c, s):
        logits, rows = -s * product_distance(x, y, c, "l1", False), torch.arange(7)
        return (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2

    assert_as_defined(product_contrastive_loss, expected, [x, y, of(0.7), of(2.0)])


def test_one_factor_is_the_contrastive_loss():
    x, y = sets()
    for norm in NORMS:
        found = product_contrastive_loss(x.unsqueeze(1), y.unsqueeze(1), 0.7, 5.0, norm=norm)
        assert torch.allclose(found, hk.contrastive_loss(x, y, 0.7, 5.0), rtol=1e-10)


def test_gradients_of_large_half_precision_points():
    """Norms near what float16 holds, whose squares it does not, and a scale with which gradients do not
    vanish there."""
    x, y = ((4e4 * F.normalize(points(6, 8, seed=seed), dim=1)).half() for seed in range(2))
    rows = torch.arange(6)

    def dense(x, y, c, s):
        return F.cross_entropy(-s * pairwise.pairwise_dist(x, y, c), rows)

    def dense_sigmoid(x, y, c, s):
        signs = 2 * torch.eye(6) - 1
        return -F.logsigmoid(-signs * s * pairwise.pairwise_dist(x, y, c)).sum() / 6

    def dense_product(x, y, c, s):
        factors = [one.unflatten(1, (2, 4)) for one in (x, y)]
        return F.cross_entropy(-s * product_distance(*factors, c, "l1", False), rows)

    def product(x, y, c, s):
        factors = [one.unflatten(1, (2, 4)) for one in (x, y)]
        return product_contrastive_loss(*factors, c, s, symmetric=False)

    for found, expected in (
        (row_contrastive_loss, dense),
        (sigmoid_loss, dense_sigmoid),
        (product, dense_product),
    ):
        assert_as_defined(found, expected, [x, y, of(0.7), of(1e4)])


def test_coincident_points_of_products():
    x = points(7, 3, 4, dtype=torch.float32)
    for norm in NORMS:
        values = with_gradients(lambda x, y, norm=norm: product_contrastive_loss(x, y, norm=norm), [x, x])
        assert all(one.isfinite().all() for one in values)


# ---------------------------------------------------------------- strips


LOSSES = {
    "rows": lambda x, y: row_contrastive_loss(x, y, 0.7, -3.0, similarity="angle"),
    "sigmoid": lambda x, y: sigmoid_loss(x, y, 0.7, 3.0, 1.0),
    "product": lambda x, y: product_contrastive_loss(x.unflatten(1, (2, 4)), y.unflatten(1, (2, 4))),
}


@pytest.mark.parametrize("name", LOSSES)
def test_no_matrix_of_all_pairs(name, monkeypatch):
    monkeypatch.setattr(row_strips, "CPU_BYTES", 1 << 17)
    x, y = (points(600, 8, seed=seed).requires_grad_() for seed in range(2))
    with Largest() as seen:
        LOSSES[name](x, y).backward()
    assert seen.elements < 600 * 600 / 20


@pytest.mark.parametrize("name", LOSSES)
def test_no_rows(name):
    x = torch.zeros(0, 8, requires_grad=True)
    y = points(5, 8, dtype=torch.float32).requires_grad_()
    loss = LOSSES[name](x, y)
    assert loss == 0
    loss.backward()
    assert torch.equal(y.grad, torch.zeros_like(y))


@pytest.mark.parametrize("name", LOSSES)
def test_without_gradients(name):
    x, y = points(7, 8), points(7, 8, seed=1)
    expected = LOSSES[name](x, y)
    with torch.no_grad():
        assert torch.equal(LOSSES[name](x, y), expected)
    with torch.inference_mode():
        assert torch.equal(LOSSES[name](x, y), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_the_backward_pass_keeps_the_backend(name, monkeypatch):
    """Strips are computed again outside of the ``with`` block."""
    x, y = points(7, 8).requires_grad_(), points(7, 8, seed=1)
    settings = []
    recorded = row_strips.backend.use_backend

    def use_backend(setting):
        settings.append(setting)
        return recorded(setting)

    monkeypatch.setattr(row_strips.backend, "use_backend", use_backend)
    with recorded("reference"):
        loss = LOSSES[name](x, y)
    loss.backward()
    assert set(settings) == {"reference"}


@pytest.mark.parametrize("name", LOSSES)
def test_same_bits_twice(name):
    x, y = points(7, 8, dtype=torch.float32), points(7, 8, seed=1, dtype=torch.float32)
    once, twice = (with_gradients(LOSSES[name], [x, y]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


@pytest.mark.parametrize("name", LOSSES)
def test_transforms(name):
    x, y, dx = points(7, 8), points(7, 8, seed=1), points(7, 8, seed=2)
    learning = [x.clone().requires_grad_(), y.clone().requires_grad_()]
    value = LOSSES[name](*learning)
    by_x, by_y = torch.autograd.grad(value, learning)
    found = torch.func.grad(LOSSES[name], argnums=(0, 1))(x, y)
    assert all(torch.allclose(a, b) for a, b in zip(found, (by_x, by_y), strict=True))
    both = torch.stack([x, dx]), torch.stack([y, y])
    assert torch.allclose(torch.vmap(LOSSES[name])(*both), torch.stack([value, LOSSES[name](dx, y)]))
    by_both = torch.vmap(torch.func.grad(LOSSES[name]))(*both)
    assert torch.allclose(by_both[0], by_x)
    _, tangent = torch.func.jvp(lambda x: LOSSES[name](x, y), (x,), (dx,))
    assert torch.allclose(tangent, (by_x * dx).sum())
    again = points(7, 8).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: LOSSES[name](x, y), again, fast_mode=True)


def test_compiled_functions_leave_it_to_eager_pytorch():
    name, x, y = "sigmoid", points(7, 8), points(7, 8, seed=1)
    expected = with_gradients(LOSSES[name], [x, y])
    torch.compiler.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"(?s)losses in strips"):
        torch.compile(LOSSES[name], backend="eager", fullgraph=True)(x, y)
    torch.compiler.reset()
    found = with_gradients(torch.compile(LOSSES[name], backend="eager"), [x, y])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: row_contrastive_loss(x, x[:3]), ValueError, "targets must be given"),
        (lambda x: row_contrastive_loss(x, x, similarity="cosine"), ValueError, "similarity must be one of"),
        (lambda x: row_contrastive_loss(x, x, reduction="max"), ValueError, "reduction must be one of"),
        (lambda x: row_contrastive_loss(x, x, 0.0), ValueError, "curv must be positive"),
        (lambda x: row_contrastive_loss(x, x, 1.0, float("nan")), ValueError, "logit_scale must be finite"),
        (lambda x: row_contrastive_loss(x, x, 1.0, torch.ones(3)), ValueError, "logit_scale must be"),
        (lambda x: row_contrastive_loss(x, x, targets=torch.full((5,), 5)), ValueError, "targets must be in"),
        (lambda x: row_contrastive_loss(x, x, targets=torch.ones(5)), TypeError, "targets must be int64"),
        (lambda x: row_contrastive_loss(x, x, targets=torch.ones(5, 2).long()), ValueError, "must differ"),
        (
            lambda x: row_contrastive_loss(x, x, row_weights=torch.ones(4)),
            ValueError,
            "row_weights must",
        ),
        (lambda x: row_contrastive_loss(x, x, row_weights=[1.0] * 5), TypeError, "row_weights must be a"),
        (lambda x: row_contrastive_loss(x, x, counts=[1] * 5), TypeError, "counts must be a tensor"),
        (
            lambda x: row_contrastive_loss(x, x, counts=torch.ones(4)),
            ValueError,
            r"counts must have shape \(5,",
        ),
        (
            lambda x: row_contrastive_loss(x, x, counts=-torch.ones(5)),
            ValueError,
            "counts must not be negative",
        ),
        (
            lambda x: row_contrastive_loss(x, x, target_weights=x[:, :2]),
            ValueError,
            "target_weights must",
        ),
        (lambda x: sigmoid_loss(x, x, logit_bias=float("inf")), ValueError, "logit_bias must be finite"),
        (lambda x: sigmoid_loss(x, x.double()), TypeError, "same dtype"),
        (
            lambda x: sigmoid_loss(x, x, targets=torch.ones(5, 2).long()),
            ValueError,
            "targets must have",
        ),
        (lambda x: product_contrastive_loss(x, x), ValueError, r"shapes \(M, N, D\)"),
        (lambda x: product_contrastive_loss(x[None], x[None], norm="l3"), ValueError, "norm must be one of"),
        (lambda x: product_contrastive_loss(x[None], x[None], averaged=1), TypeError, "averaged must be"),
        (lambda x: product_contrastive_loss(x[None], x[None], torch.ones(2)), ValueError, "curv must be"),
        (lambda x: product_contrastive_loss(x[None], x[None], 1.0, -1.0), ValueError, "logit_scale must not"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(points(5, 6, dtype=torch.float32))
