"""Shares of words and patches are derivatives: compared with differences of the distance itself."""

import numpy as np
import pytest
import torch
from scoring import make_model, pictures

import hypkernels as hk
from hysac.scoring import SafetyScorer
from hysac.scoring.attribution import explain_image, explain_text

TEXT = "a small red house by the sea"


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    directory = make_model(tmp_path_factory.mktemp("attribution") / "model")
    scorer = SafetyScorer.from_pretrained(directory)
    scorer.model.double()
    return scorer


def test_a_word_is_the_derivative_by_the_scale_of_its_embedding(scorer):
    model = scorer.model
    shares = explain_text(scorer, TEXT)
    assert [word for word, _ in shares] == TEXT.split()
    tokens = scorer.tokens(TEXT)

    def distance(place, scale):
        factors = torch.ones(tokens.shape[1], 1)
        factors[place] = scale
        handle = model.token_embedding.register_forward_hook(lambda *call: call[2] * factors)
        with torch.no_grad():
            found = hk.dist0(model.eval().encode_text(tokens, normalize=True), model.curvature).item()
        handle.remove()
        return found

    for place, (word, share) in enumerate(shares, start=1):
        step = 1e-2
        wanted = (distance(place, 1 + step) - distance(place, 1 - step)) / (2 * step)
        assert share == pytest.approx(wanted, rel=2e-2, abs=1e-6), word


def test_a_patch_is_the_derivative_by_the_scale_of_its_pixels(scorer, tmp_path):
    (path,) = pictures(tmp_path, 1)
    picture, shares = explain_image(scorer, path)
    assert picture.shape == (3, *shares.shape)
    assert 0 <= picture.min() <= picture.max() <= 1
    model, pixels = scorer.model, scorer.pixels(path)[None]
    patch = model.visual.patch_size[0]
    seen = []
    for top, left in ((0, 0), (0, patch), (patch, 2 * patch)):
        found = []
        for scale in (1.02, 0.98):
            changed = pixels.clone()
            changed[..., top : top + patch, left : left + patch] *= scale
            with torch.no_grad():
                point = model.eval().encode_image(changed, normalize=True)
                found.append(hk.dist0(point, model.curvature).item())
        wanted = (found[0] - found[1]) / 0.04
        block = shares[top : top + patch, left : left + patch]
        assert (block == block[0, 0]).all()
        assert block[0, 0].item() == pytest.approx(wanted, rel=2e-2, abs=1e-6)
        seen.append(wanted)
    assert len(np.unique(np.round(seen, 8))) == 3


def test_the_model_is_as_it_was(scorer):
    scorer.model.train()
    needed = {name: p.requires_grad for name, p in scorer.model.named_parameters()}
    explain_text(scorer, TEXT)
    assert scorer.model.training
    assert {name: p.requires_grad for name, p in scorer.model.named_parameters()} == needed
    assert all(p.grad is None for p in scorer.model.parameters())


def test_another_tokenizer_is_refused(scorer):
    class Other:
        def __call__(self, texts):
            return scorer.tokenizer(texts)

    other = SafetyScorer(scorer.model, scorer.preprocess, Other())
    with pytest.raises(ValueError, match="open_clip's own tokenizer"):
        explain_text(other, TEXT)
