"""LorentzClipLoss against dense float64 formulas, and in open_clip's train loop."""

import math

import open_clip
import pytest
import torch
from test_loss import (
    TinyHySAC,
    dense_contrastive,
    dense_margin,
    open_clip_gradients,
    quadruplets,
    scale_parameter,
    tiny_data,
)

import hypkernels as hk
from hypkernels.objectives import meru_loss
from hysac import LorentzClipLoss


def pairs(batch=6, dtype=torch.float64):
    """Images and texts; the texts are nearer to the origin."""
    image, text = (features[:, 0].detach().to(dtype).requires_grad_() for features in quadruplets(batch))
    return image, text


def dense_terms(image, text, scale, entail_weight=0.2, aperture_scale=1.0, min_radius=0.1):
    hinge = dense_margin(text, image, aperture_scale, min_radius).clamp_min(0)
    return {
        "contrastive_loss": dense_contrastive(image, text, scale),
        "entailment_loss": entail_weight * hinge.mean(),
    }


@pytest.mark.parametrize(
    "options",
    [{}, {"entail_weight": 0.7, "aperture_scale": 1.4, "min_radius": 0.05}],
    ids=["defaults", "all options"],
)
def test_both_terms_and_their_gradients(options):
    image, text = pairs()
    scale = scale_parameter()
    terms = LorentzClipLoss(**options)(image, text, scale, output_dict=True)
    expected = dense_terms(image, text, scale, **options)
    assert list(terms) == list(expected)
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name], rtol=1e-11, atol=0)
        inputs = (image, text, scale) if name.startswith("contrastive") else (image, text)
        got = torch.autograd.grad(term, inputs, retain_graph=True)
        wanted = torch.autograd.grad(expected[name], inputs, retain_graph=True)
        for g, w in zip(got, wanted, strict=True):
            assert w.norm() > 1e-4
            assert (g - w).norm() <= 1e-9 * w.norm()
    total = LorentzClipLoss(**options)(image, text, scale)
    assert total.item() == pytest.approx(sum(terms.values()).item(), rel=1e-12)


def test_it_is_merus_objective_of_the_models_points():
    image, text = (points.detach() for points in pairs())
    curv, scale = 0.3, 20.0
    loss = LorentzClipLoss()(math.sqrt(curv) * image, math.sqrt(curv) * text, scale / math.sqrt(curv))
    assert loss.item() == pytest.approx(meru_loss(image, text, curv, scale).loss.item(), rel=1e-12)


def test_without_entailment_there_is_one_term():
    image, text = pairs()
    terms = LorentzClipLoss(entail_weight=0)(image, text, 5.0, output_dict=True)
    assert list(terms) == ["contrastive_loss"]
    wanted = hk.contrastive_loss(image, text, 1.0, 5.0)
    assert terms["contrastive_loss"].item() == pytest.approx(wanted.item(), rel=1e-14)


def test_it_takes_what_clip_loss_takes():
    """By position and by name, in half precision under autocast; a bias of all logits changes nothing."""
    options = (False, False, True, 0, 1, False)
    image, text = (points.detach() for points in pairs(dtype=torch.float32))
    open_clip.ClipLoss(*options)(image, text, torch.tensor(5.0), None, True)
    terms = LorentzClipLoss(*options)(image, text, torch.tensor(5.0), torch.tensor(-10.0), True)
    wanted = dense_terms(image.double(), text.double(), 5.0)
    for name, term in terms.items():
        assert term.dtype == torch.float32
        assert term.item() == pytest.approx(wanted[name].item(), rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        same = LorentzClipLoss()(image, text, 5.0, output_dict=True)
    assert same["contrastive_loss"].item() == pytest.approx(terms["contrastive_loss"].item(), rel=1e-6)


def pair_data(batch=8):
    return tuple(data[:, 0].contiguous() for data in tiny_data(batch))


class Marked(TinyHySAC):
    """With what a HySAC model adds to its output while training."""

    def forward(self, image, text):
        return super().forward(image, text) | {"unit_hyperboloid": torch.ones(1)}


def whole_batch_gradients(images, texts):
    model = TinyHySAC()
    sum(dense_terms(**_renamed(model(images, texts))).values()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def _renamed(output):
    return {name.split("_")[0 if "features" in name else 1]: one for name, one in output.items()}


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_accumulation_in_open_clips_train_loop_is_exact(parts):
    images, texts = pair_data()
    got = open_clip_gradients(images, texts, parts, LorentzClipLoss(accum_freq=parts), Marked())
    for name, wanted in whole_batch_gradients(images, texts).items():
        assert wanted.norm() > 1e-6, name
        assert (got[name] - wanted).norm() <= 1e-9 * wanted.norm(), name


@pytest.mark.parametrize(("parts", "accum_freq"), [(2, 1), (4, 2), (1, 4)])
def test_another_accum_freq_than_the_loops_is_refused(parts, accum_freq):
    images, texts = pair_data()
    message = f"accum_freq must be {parts}, .* got {accum_freq}: .* {parts / accum_freq:g} times"
    with pytest.raises(ValueError, match=message):
        open_clip_gradients(images, texts, parts, LorentzClipLoss(accum_freq=accum_freq), Marked())


def test_open_clips_loss_is_refused_in_its_train_loop():
    with pytest.raises(TypeError, match="unit_hyperboloid"):
        open_clip_gradients(*pair_data(), 1, open_clip.ClipLoss(), Marked())


def test_without_gradients_any_accum_freq_will_do():
    image, text = (points.detach() for points in pairs())
    with torch.no_grad():
        loss = LorentzClipLoss(accum_freq=4)(image, text, 5.0, unit_hyperboloid=torch.ones(1))
    assert loss.item() == pytest.approx(LorentzClipLoss()(image, text, 5.0).item(), rel=1e-14)


def test_memory_is_bounded():
    """No matrix of all pairs is kept for the backward pass: with 4096 rows one is 64 MiB."""
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(4096, 4, generator=generator).requires_grad_() for _ in range(2))
    kept = []

    def keep(tensor):
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        LorentzClipLoss()(image, text, 5.0)
    assert 0 < sum(kept) < 2 << 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: (x[:, None], x[:, None]), r"image_features must have shape \(B, D\) with D >= 1"),
        (lambda x: (x, x[:3]), "must have the same shape and device"),
        (lambda x: (x[:0], x[:0]), "hold no pairs on any process"),
        (lambda x: (x, None), "text_features is None"),
    ],
)
def test_features_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        LorentzClipLoss()(*change(torch.ones(4, 3)), 5.0)


def test_options_that_do_not_fit():
    for options, message in (
        ({"local_loss": True}, "gather_with_grad"),
        ({"use_horovod": True}, "use_horovod"),
        ({"entail_weight": -1.0}, "entail_weight"),
        ({"accum_freq": 0}, "accum_freq"),
    ):
        with pytest.raises(ValueError, match=message):
            LorentzClipLoss(**options)
