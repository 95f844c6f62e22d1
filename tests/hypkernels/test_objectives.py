"""Whole objectives against their dense definitions in float64: values, every gradient, options, errors."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from objective_cases import Largest, assert_as_defined, points, with_gradients, with_one_gradient_scaled

import hypkernels as hk
from hypkernels import row_strips
from hypkernels.compat import meru_reference
from hypkernels.cone import reference as cone
from hypkernels.objectives import (
    HyCoCLIPLoss,
    MERULoss,
    PHyCLIPLoss,
    UNCHALoss,
    atmg_loss,
    hycoclip_loss,
    meru_loss,
    part_whole_loss,
    phyclip_loss,
    rooted_entailment_loss,
    uncertainty,
    uncertainty_calibration,
    uncertainty_entropy,
    uncha_loss,
)
from hypkernels.pairwise import reference as pairwise
from hypkernels.translation import to_origin

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def scalars(curv=0.7, scale=5.0):
    return torch.tensor(curv, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64)


def cross_entropy(x, y, curv, scale, offset=0):
    return F.cross_entropy(-scale * pairwise.pairwise_dist(x, y, curv), offset + torch.arange(len(x)))


def hinge(apex, point, curv, aperture_scale, min_radius=0.1):
    angle, aperture = cone.oxy_angle(apex, point, curv), cone.half_aperture(apex, curv, min_radius)
    return (angle - aperture_scale * aperture).relu().mean()


def meru_definition(image, text, curv, scale, images=None, texts=None, offset=0, weight=0.2, radius=0.1):
    images, texts = image if images is None else images, text if texts is None else texts
    both = cross_entropy(image, texts, curv, scale, offset) + cross_entropy(text, images, curv, scale, offset)
    return both / 2 + weight * hinge(text, image, curv, 1.0, radius)


def hycoclip_definition(
    image, text, box_image, box_text, curv, scale, images=None, texts=None, offset=0, options=()
):
    weight, inter, intra, radius = options or (0.2, 0.7, 1.2, 0.1)
    images, texts = image if images is None else images, text if texts is None else texts
    contrastive = [
        cross_entropy(one, other, curv, scale, offset)
        for one, other in ((image, texts), (text, images), (box_image, texts), (box_text, images))
    ]
    cones = [
        hinge(text, image, curv, inter, radius),
        hinge(box_text, box_image, curv, inter, radius),
        hinge(box_image, image, curv, intra, radius),
        hinge(box_text, text, curv, intra, radius),
    ]
    return sum(contrastive) / 4 + weight / 2 * sum(cones)


def sets(count, rows=7, dtype=torch.float64, size=0.6):
    return [points(rows, 6, seed=seed, dtype=dtype, size=size) for seed in range(count)]


CASES = {
    "meru": (lambda *a: meru_loss(*a).loss, meru_definition, 2),
    "hycoclip": (lambda *a: hycoclip_loss(*a).loss, hycoclip_definition, 4),
    "atmg": (
        atmg_loss,
        lambda image, text, curv, scale: (
            (
                F.cross_entropy(
                    -scale * pairwise.pairwise_oxy_angle(text, image, curv), torch.arange(len(image))
                )
                + F.cross_entropy(
                    scale * pairwise.pairwise_oxy_angle(image, text, curv), torch.arange(len(image))
                )
            )
            / 2
        ),
        2,
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_as_defined(name, dtype):
    function, definition, count = CASES[name]
    assert_as_defined(function, definition, [*sets(count, dtype=dtype), *scalars()])


@pytest.mark.parametrize("name", CASES)
def test_a_scaled_gradient_is_noticed(name):
    function, definition, count = CASES[name]
    tensors = [*sets(count), *scalars()]
    for index in range(len(tensors)):
        with pytest.raises(AssertionError, match=f"result {index + 1}"):
            assert_as_defined(with_one_gradient_scaled(function, index), definition, tensors)


@pytest.mark.parametrize("offset", [0, 3])
def test_rows_of_one_process_among_all(offset):
    """What other processes hold are constants or tensors with gradients of their own."""
    local, (images, texts) = sets(4), [points(12, 6, seed=seed, size=0.6) for seed in (8, 9)]
    for count, function, definition in (
        (2, meru_loss, meru_definition),
        (4, hycoclip_loss, hycoclip_definition),
    ):

        def found(*tensors, function=function, count=count):
            *rows, images, texts, curv, scale = tensors
            return function(*rows, curv, scale, all_image=images, all_text=texts, offset=offset).loss

        def expected(*tensors, definition=definition):
            *rows, images, texts, curv, scale = tensors
            return definition(*rows, curv, scale, images, texts, offset)

        assert_as_defined(found, expected, [*local[:count], images, texts, *scalars()])
    assert_as_defined(
        lambda i, t, images, texts, c, s: atmg_loss(
            i, t, c, s, all_image=images, all_text=texts, offset=offset
        ),
        lambda i, t, images, texts, c, s: (
            (
                F.cross_entropy(-s * pairwise.pairwise_oxy_angle(t, images, c), offset + torch.arange(7))
                + F.cross_entropy(s * pairwise.pairwise_oxy_angle(i, texts, c), offset + torch.arange(7))
            )
            / 2
        ),
        [*local[:2], images, texts, *scalars()],
    )


def test_gathered_sets_that_are_the_local_ones_change_nothing():
    image, text = sets(2)
    whole = meru_loss(image, text, 0.7, 5.0)
    again = meru_loss(image, text, 0.7, 5.0, all_image=image, all_text=text)
    assert torch.allclose(torch.stack(whole), torch.stack(again), rtol=1e-12)


def test_options():
    image, text, box_image, box_text = sets(4)
    found = meru_loss(image, text, 0.7, 5.0, entail_weight=0.5, min_radius=0.3)
    assert torch.allclose(found.loss, meru_definition(image, text, 0.7, 5.0, weight=0.5, radius=0.3))
    assert torch.equal(found.loss, found.contrastive + 0.5 * found.entailment)
    options = dict(
        zip(
            ("entail_weight", "inter_aperture_scale", "intra_aperture_scale", "min_radius"),
            (0.5, 0.9, 1.4, 0.3),
            strict=True,
        )
    )
    points = (image, text, box_image, box_text)
    found = hycoclip_loss(*points, 0.7, 5.0, **options)
    expected = hycoclip_definition(*points, 0.7, 5.0, options=tuple(options.values()))
    assert torch.allclose(found.loss, expected, rtol=1e-12)


def test_modules_are_the_functions():
    points = sets(4)
    meru, hycoclip = MERULoss(entail_weight=0.4, min_radius=0.2), HyCoCLIPLoss(inter_aperture_scale=0.8)
    expected = meru_loss(*points[:2], 0.7, 5.0, entail_weight=0.4, min_radius=0.2)
    assert torch.equal(meru(*points[:2], 0.7, 5.0).loss, expected.loss)
    expected = hycoclip_loss(*points, 0.7, 5.0, inter_aperture_scale=0.8)
    assert torch.equal(hycoclip(*points, 0.7, 5.0).loss, expected.loss)
    gathered = {"all_image": points[0], "all_text": points[1]}
    assert torch.allclose(hycoclip(*points, 0.7, 5.0, **gathered).loss, expected.loss, rtol=1e-12)
    assert "entail_weight=0.4" in repr(meru)
    assert "inter_aperture_scale=0.8" in repr(hycoclip)


@pytest.mark.parametrize("function", [meru_loss, atmg_loss])
def test_degenerate_points_have_finite_gradients(function):
    image, text = sets(2, dtype=torch.float32)
    image[0], text[1], text[2] = text[0], 0, 2 * image[2]
    values = with_gradients(
        lambda *a: torch.stack([*function(*a)] if function is meru_loss else [function(*a)]),
        [image, text, *scalars()],
    )
    assert all(one.isfinite().all() for one in values)


@pytest.mark.parametrize("function", [meru_loss, atmg_loss])
def test_no_rows(function):
    empty = torch.zeros(0, 6, requires_grad=True)
    out = function(empty, empty)
    loss = out.loss if function is meru_loss else out
    assert loss == 0
    loss.backward()
    assert empty.grad.shape == (0, 6)


def test_a_loss_that_is_nearly_learnt():
    """In float32 a cross entropy of distances loses digits, of ours and of the published ones: the loss is
    what is left of logits of 20. The objective keeps them."""
    generator = torch.Generator().manual_seed(0)
    image, step = (F.normalize(torch.randn(256, 512, generator=generator), dim=1) for _ in range(2))
    text, rows = image + 0.1 * step, torch.arange(256)

    def by_distances(pairwise_dist, x, y):
        logits = -14 * pairwise_dist(x, y)
        return (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2

    def errors(function):
        found = with_gradients(function, [image, text])
        return [((a - b).norm() / b.norm()).item() for a, b in zip(found, truth, strict=True)]

    wide = [image.double(), text.double()]
    truth = with_gradients(lambda x, y: meru_definition(x, y, 1.0, 14.0, weight=0.0), wide)
    assert max(errors(lambda x, y: meru_loss(x, y, 1.0, 14.0, entail_weight=0.0).loss)) < 1e-6
    assert min(errors(partial(by_distances, meru_reference.pairwise_dist))) > 5e-3
    assert min(errors(partial(by_distances, hk.pairwise_dist))) > 5e-3


# ---------------------------------------------------------------- products of factors


def product_cross_entropy(x, y, curv, scale, norm, offset=0):
    distances = torch.stack(
        [pairwise.pairwise_dist(x[:, n], y[:, n], curv.expand(3)[n]) for n in range(x.shape[1])]
    )
    gaps = distances.mean(0) if norm == "l1" else distances.square().mean(0).sqrt()
    return F.cross_entropy(-scale * gaps, offset + torch.arange(len(x)))


def phyclip_definition(
    image, text, box_image, box_text, curv, scale, images=None, texts=None, offset=0, options=()
):
    norm, weight, inter, intra, radius = options or ("l1", 0.2, 0.7, 1.2, 0.1)
    images, texts = image if images is None else images, text if texts is None else texts
    contrastive = [
        product_cross_entropy(one, other, curv, scale, norm, offset)
        for one, other in ((image, texts), (text, images), (box_image, texts), (box_text, images))
    ]
    cones = [
        hinge(text, image, curv, inter, radius),
        hinge(box_text, box_image, curv, inter, radius),
        hinge(box_image, image, curv, intra, radius),
        hinge(box_text, text, curv, intra, radius),
    ]
    return sum(contrastive) / 4 + weight / 2 * sum(cones)


def factors(count, rows=5, dtype=torch.float64):
    return [points(rows, 3, 4, seed=seed, dtype=dtype, size=0.6) for seed in range(count)]


CURVATURES = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_phyclip(norm, dtype):
    def found(*tensors):
        return phyclip_loss(*tensors, norm=norm).loss

    def definition(*tensors):
        return phyclip_definition(*tensors, options=(norm, 0.2, 0.7, 1.2, 0.1))

    for curv in (CURVATURES, scalars()[0]):
        assert_as_defined(found, definition, [*factors(4, dtype=dtype), curv, scalars()[1]])


def test_a_scaled_gradient_of_phyclip_is_noticed():
    tensors = [*factors(4), CURVATURES, scalars()[1]]
    for index in range(len(tensors)):
        with pytest.raises(AssertionError, match=f"result {index + 1}"):
            assert_as_defined(
                with_one_gradient_scaled(lambda *a: phyclip_loss(*a).loss, index), phyclip_definition, tensors
            )


@pytest.mark.parametrize("offset", [0, 3])
def test_rows_of_phyclip_among_all(offset):
    gathered = [points(9, 3, 4, seed=seed, size=0.6) for seed in (8, 9)]

    def found(*tensors):
        *rows, images, texts, curv, scale = tensors
        return phyclip_loss(*rows, curv, scale, all_image=images, all_text=texts, offset=offset).loss

    def definition(*tensors):
        *rows, images, texts, curv, scale = tensors
        return phyclip_definition(*rows, curv, scale, images, texts, offset)

    assert_as_defined(found, definition, [*factors(4), *gathered, CURVATURES, scalars()[1]])


def test_phyclip_of_one_factor_is_hycoclip():
    tensors = sets(4)
    one_factor = [one.unsqueeze(1) for one in tensors]
    expected = hycoclip_loss(*tensors, 0.7, 5.0)
    for norm in ("l1", "l2"):
        found = phyclip_loss(*one_factor, 0.7, 5.0, norm=norm)
        assert torch.allclose(torch.stack(found), torch.stack(expected), rtol=1e-12)


def test_options_of_phyclip():
    tensors = factors(4)
    options = dict(
        zip(
            ("norm", "entail_weight", "inter_aperture_scale", "intra_aperture_scale", "min_radius"),
            ("l2", 0.5, 0.9, 1.4, 0.3),
            strict=True,
        )
    )
    found = phyclip_loss(*tensors, CURVATURES, 5.0, **options)
    expected = phyclip_definition(*tensors, CURVATURES, 5.0, options=tuple(options.values()))
    assert torch.allclose(found.loss, expected, rtol=1e-12)
    module = PHyCLIPLoss(**options)
    assert torch.equal(module(*tensors, CURVATURES, 5.0).loss, found.loss)
    assert "norm='l2', entail_weight=0.5" in repr(module)


# ---------------------------------------------------------------- roots


@pytest.mark.parametrize("dtype", DTYPES)
def test_rooted_entailment(dtype):
    apex, point, root = sets(3, dtype=dtype)
    options = {"aperture_scale": 0.7, "min_radius": 0.2, "margin": 0.1, "leak": 0.1}

    def definition(apex, point, root, curv):
        a, p = (to_origin(one, root, curv) for one in (apex, point))
        angle, aperture = cone.oxy_angle(a, p, curv), cone.half_aperture(a, curv, 0.2)
        return ((angle - 0.7 * aperture + 0.1).relu() + 0.1 * angle).mean()

    found = partial(rooted_entailment_loss, **options)
    assert_as_defined(found, definition, [apex, point, root, scalars()[0]])
    for index in range(4):
        scaled = with_one_gradient_scaled(found, index)
        with pytest.raises(AssertionError):
            assert_as_defined(scaled, definition, [apex, point, root, scalars()[0]], tolerance=1e-2)


def test_a_root_at_the_origin_and_an_apex_at_the_root():
    apex, point = sets(2)
    root = torch.zeros(6, dtype=torch.float64)
    assert torch.equal(rooted_entailment_loss(apex, point, root, 0.7), hk.entailment_loss(apex, point, 0.7))
    values = with_gradients(rooted_entailment_loss, [apex, point, apex[0], scalars()[0]])
    assert all(one.isfinite().all() for one in values)
    alone = rooted_entailment_loss(apex[:1], point[:1], apex[0], 0.7)
    assert alone == 0


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_parts(dtype):
    part, whole = points(9, 6, dtype=dtype, size=0.6), points(4, 6, seed=1, dtype=dtype, size=0.6)
    owner = torch.tensor([0, 0, 2, 2, 2, 1, 0, 2, 1])  # the last has none

    def definition(part, whole, curv, scale):
        u = F.softplus(-part.detach().norm(dim=1))
        rows = (scale * (-u / 2).exp().clamp(0.1, 10)).unsqueeze(1)
        return F.cross_entropy(-rows * pairwise.pairwise_dist(part, whole, curv), owner)

    found = lambda part, whole, curv, scale: part_whole_loss(part, whole, owner, curv, scale)  # noqa: E731
    assert_as_defined(found, definition, [part, whole, *scalars()])


def test_wholes_that_count_once_for_each_of_their_parts():
    """As if they stood there so many times; the last is not among them."""
    part, whole = points(9, 6, size=0.6), points(4, 6, seed=1, size=0.6)
    owner = torch.tensor([0, 0, 2, 2, 2, 1, 0, 2, 1])
    counts = torch.bincount(owner, minlength=4)
    for reduction in ("mean", "none"):
        found = part_whole_loss(part, whole, owner, 0.7, 5.0, counts=counts, reduction=reduction)
        again = part_whole_loss(part, whole[owner], torch.arange(9), 0.7, 5.0, reduction=reduction)
        assert torch.allclose(found, again, rtol=1e-12)


OWNER = torch.tensor([0, 0, 2, 2, 2, 1, 0, 2, 1])  # of four


def uncha_definition(
    image, text, part_image, part_text, curv, scale, scale_of_parts, scale_between, options=(), offset=0,
    images=None, texts=None, part_images=None, part_texts=None, owners=OWNER, part_offset=0,
):  # fmt: skip
    weight, calibration, inter, intra, leak, radius = options or (0.2, 10.0, 0.7, 1.2, 0.1, 0.1)
    images, texts = image if images is None else images, text if texts is None else texts
    part_images = part_image if part_images is None else part_images
    part_texts = part_text if part_texts is None else part_texts

    def leaky(apex, point, aperture_scale):
        angle, aperture = cone.oxy_angle(apex, point, curv), cone.half_aperture(apex, curv, radius)
        return (angle - aperture_scale * aperture).relu() + leak * angle

    def among_repeated(part, whole):
        rows = (scale_between * (-F.softplus(-part.detach().norm(dim=1)) / 2).exp().clamp(0.1, 10)).unsqueeze(
            1
        )
        logits = -rows * pairwise.pairwise_dist(part, whole[owners], curv)
        return F.cross_entropy(logits, part_offset + torch.arange(len(part)))

    def calibrated(part, residual):
        u = F.softplus(-part.norm(dim=1))
        share = u.softmax(0)
        return (residual.detach() / u.exp() / 2 + u / 2).mean() - (share * share.log()).sum()

    contrastive = (
        cross_entropy(image, texts, curv, scale, offset)
        + cross_entropy(text, images, curv, scale, offset)
        + cross_entropy(part_image, part_texts, curv, scale_of_parts, part_offset)
        + cross_entropy(part_text, part_images, curv, scale_of_parts, part_offset)
        + among_repeated(part_image, texts)
        + among_repeated(part_text, images)
    ) / 2
    of_images, of_texts = leaky(part_image, image[OWNER], intra), leaky(part_text, text[OWNER], intra)
    entailment = (
        (leaky(text, image, inter).mean() + leaky(part_text, part_image, inter).mean()) / 2
        + (of_images.mean() + of_texts.mean()) / 4
        + calibration * (calibrated(part_image, of_images) + calibrated(part_text, of_texts))
    )
    return contrastive + weight * entailment


def uncha_points(dtype=torch.float64):
    """Two sets of four and two of nine, and the curvature and three scales."""
    numbers = [torch.tensor(one, dtype=torch.float64) for one in (0.7, 5.0, 6.0, 4.0)]
    return [points(n, 6, seed=i, dtype=dtype, size=0.6) for i, n in enumerate((4, 4, 9, 9))] + numbers


def uncha(*tensors, **options):
    return uncha_loss(*tensors[:4], OWNER, *tensors[4:], **options).loss


@pytest.mark.parametrize("dtype", DTYPES)
def test_uncha(dtype):
    assert_as_defined(uncha, uncha_definition, uncha_points(dtype))


def test_a_scaled_gradient_of_uncha_is_noticed():
    tensors = uncha_points()
    for index in range(len(tensors)):
        with pytest.raises(AssertionError, match=f"result {index + 1}"):
            assert_as_defined(with_one_gradient_scaled(uncha, index), uncha_definition, tensors)


def test_rows_of_uncha_among_all():
    """This process is the second: its wholes are the last four of six, its parts the last nine of eleven."""
    gathered = [points(n, 6, seed=8 + i, size=0.6) for i, n in enumerate((6, 6, 11, 11))]
    owners = torch.cat([torch.tensor([1, 0]), 2 + OWNER])

    def found(*tensors):
        images, texts, part_images, part_texts = tensors[8:]
        others = {"all_image": images, "all_text": texts, "offset": 2, "all_owner": owners, "part_offset": 2}
        return uncha(*tensors[:8], all_part_image=part_images, all_part_text=part_texts, **others)

    def definition(*tensors):
        return uncha_definition(*tensors[:8], (), 2, *tensors[8:], owners=owners, part_offset=2)

    assert_as_defined(found, definition, [*uncha_points(), *gathered])


def test_options_of_uncha():
    tensors = uncha_points()
    names = (
        "entail_weight",
        "calibration_weight",
        "inter_aperture_scale",
        "intra_aperture_scale",
        "leak",
        "min_radius",
    )
    options = dict(zip(names, (0.5, 3.0, 0.9, 1.4, 0.3, 0.2), strict=True))
    found = uncha(*tensors, **options)
    assert torch.allclose(found, uncha_definition(*tensors, tuple(options.values())), rtol=1e-12)
    module = UNCHALoss(**options)
    assert torch.equal(module(*tensors[:4], OWNER, *tensors[4:]).loss, found)
    assert "calibration_weight=3.0" in repr(module)


def test_uncha_without_parts_is_merus_with_a_leak():
    image, text = sets(2)
    parts = torch.zeros(0, 6, dtype=torch.float64, requires_grad=True)
    owner = torch.zeros(0, dtype=torch.int64)
    found = uncha_loss(image, text, parts, parts, owner, 0.7, 5.0)
    assert torch.allclose(found.contrastive, meru_loss(image, text, 0.7, 5.0).contrastive, rtol=1e-12)
    cones = hk.entailment_loss(text, image, 0.7, aperture_scale=0.7, leak=0.1)
    assert torch.allclose(found.entailment, cones / 2, rtol=1e-12)
    found.loss.backward()


@pytest.mark.parametrize("dtype", DTYPES)
def test_uncertainty_entropy(dtype):
    def definition(x):
        share = F.softplus(-x.norm(dim=1)).softmax(0)
        return -(share * share.log()).sum()

    tensors = [points(5, 6, dtype=dtype)]
    assert_as_defined(uncertainty_entropy, definition, tensors)
    with pytest.raises(AssertionError):
        assert_as_defined(with_one_gradient_scaled(uncertainty_entropy, 0), definition, tensors)
    assert uncertainty_entropy(torch.zeros(0, 6)) == 0


def test_no_parts():
    part = torch.zeros(0, 6, requires_grad=True)
    loss = part_whole_loss(part, points(4, 6, dtype=torch.float32), torch.zeros(0, dtype=torch.int64))
    assert loss == 0
    loss.backward()


@pytest.mark.parametrize("dtype", DTYPES)
def test_uncertainty(dtype):
    assert_as_defined(uncertainty, lambda x: F.softplus(-x.norm(dim=-1)), [points(5, 6, dtype=dtype)])
    origin = torch.zeros(2, 6, dtype=dtype, requires_grad=True)
    uncertainty(origin).sum().backward()
    assert torch.equal(origin.grad, torch.zeros_like(origin))


@pytest.mark.parametrize("dtype", DTYPES)
def test_uncertainty_calibration(dtype):
    residual = points(5, seed=3).abs()

    def definition(x):
        u = F.softplus(-x.norm(dim=-1))
        return (residual / u.exp() / 2 + u / 2).mean()

    def found(x):
        return uncertainty_calibration(residual.requires_grad_(), x)

    assert_as_defined(found, definition, [points(5, 6, dtype=dtype)])
    with pytest.raises(AssertionError):
        assert_as_defined(with_one_gradient_scaled(found, 0), definition, [points(5, 6, dtype=dtype)])
    assert uncertainty_calibration(torch.zeros(0), torch.zeros(0, 6)) == 0


@pytest.mark.slow
def test_no_matrix_of_all_pairs(monkeypatch):
    monkeypatch.setattr(row_strips, "CPU_BYTES", 1 << 20)
    four = [points(600, 8, seed=seed).requires_grad_() for seed in range(4)]
    factors = [one.unflatten(1, (2, 4)) for one in four]
    for loss in (
        lambda: uncha_loss(*four, torch.arange(600)).loss,
        lambda: phyclip_loss(*factors, torch.tensor([0.5, 2.0])).loss,
    ):
        with Largest() as seen:
            loss().backward()
        assert seen.elements < 600 * 600 / 10


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: meru_loss(x, x[:3]), ValueError, "image and text must have as many rows"),
        (lambda x: meru_loss(x, x.double()), TypeError, "image and text must have the same dtype"),
        (lambda x: meru_loss(x, x, entail_weight=-1.0), ValueError, "entail_weight must not be negative"),
        (lambda x: meru_loss(x, x, -1.0), ValueError, "curv must be positive"),
        (lambda x: meru_loss(x, x, offset=1), ValueError, "offset must leave 5 rows"),
        (lambda x: meru_loss(x, x, offset=1.0), TypeError, "offset must be an int"),
        (lambda x: meru_loss(x, x, all_text=x[:, :2]), ValueError, "image and all_text"),
        (lambda x: hycoclip_loss(x, x, x, x[:2]), ValueError, "image and box_text must have as many rows"),
        (lambda x: hycoclip_loss(x, x, x, x, intra_aperture_scale=-1.0), ValueError, "aperture_scale"),
        (lambda x: atmg_loss(x, x, logit_scale=-1.0), ValueError, "logit_scale must not be negative"),
        (lambda x: atmg_loss(x, x, all_text=x[:2]), ValueError, "offset must leave 5 rows"),
        (lambda x: rooted_entailment_loss(x, x, x[0, :2]), ValueError, "root"),
        (lambda x: part_whole_loss(x, x, torch.full((5,), 7)), ValueError, "targets must be in"),
        (lambda x: uncertainty(1.0), TypeError, "points must be a tensor"),
        (lambda x: uncertainty_calibration(x, x), ValueError, "residual must have the leading dimensions"),
        (lambda x: uncertainty_calibration(1.0, x), TypeError, "residual must be a tensor"),
        (lambda x: MERULoss(entail_weight=-1.0), ValueError, "entail_weight"),
        (lambda x: HyCoCLIPLoss(min_radius=0.0), ValueError, "min_radius"),
        (lambda x: uncertainty_entropy(x[0]), ValueError, r"points must have shape \(P, D\)"),
        (lambda x: uncha_loss(x, x, x, x, OWNER), ValueError, r"owner must have shape \(5,\)"),
        (lambda x: uncha_loss(x, x, x, x, OWNER[:5] + 4), ValueError, r"owner must be in \[0, 5\)"),
        (lambda x: uncha_loss(x, x[:3], x, x, OWNER[:5]), ValueError, "image and text must have as many"),
        (lambda x: uncha_loss(x, x, x, x[:3], OWNER[:5]), ValueError, "part_image and part_text must have"),
        (lambda x: uncha_loss(x, x, x, x, OWNER[:5], part_offset=1), ValueError, "part_offset must leave 5"),
        (lambda x: uncha_loss(x, x, x, x, OWNER[:5], part_logit_scale=-1.0), ValueError, "logit_scale must"),
        (
            lambda x: uncha_loss(x, x, x, x, OWNER[:5], all_owner=OWNER[:5] + 4),
            ValueError,
            "all_owner must be in",
        ),
        (lambda x: UNCHALoss(leak=-1.0), ValueError, "leak must not be negative"),
        (lambda x: phyclip_loss(x, x, x, x), ValueError, r"image must have shape \(B, N, D\)"),
        (lambda x: phyclip_loss(*[x[None]] * 3, x[None, :2]), ValueError, "image and box_text must have the"),
        (lambda x: phyclip_loss(*[x[None]] * 4, norm="l3"), ValueError, "norm must be one of"),
        (lambda x: phyclip_loss(*[x[None]] * 4, torch.ones(2)), ValueError, "curv must be a float"),
        (lambda x: phyclip_loss(*[x[None]] * 4, offset=1), ValueError, "offset must leave 1 rows"),
        (lambda x: phyclip_loss(*[x[None]] * 4, all_text=x), ValueError, "x and y must have shapes"),
        (lambda x: PHyCLIPLoss(norm="l0"), ValueError, "norm must be one of"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(points(5, 6, dtype=torch.float32))
