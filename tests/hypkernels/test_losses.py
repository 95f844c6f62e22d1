"""The losses as modules: their options are those of the functions, checked when the module is made."""

import pytest
import torch
from torch import nn

import hypkernels as hk


def sets(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


CONTRASTIVE = {"similarity": "angle", "reduction": "sum", "symmetric": False, "precision": "ieee"}
ENTAILMENT = {
    "aperture_scale": 0.7,
    "min_radius": 0.2,
    "margin": 0.1,
    "leak": 0.3,
    "reduction": "none",
}


@pytest.mark.parametrize("options", [{}, *({key: CONTRASTIVE[key]} for key in CONTRASTIVE), CONTRASTIVE])
def test_contrastive_module_is_the_function(options):
    x, y = sets((5, 4), (7, 4))
    module = hk.LorentzContrastiveLoss(**options)
    assert torch.equal(module(x, y), hk.contrastive_loss(x, y, **options))
    targets = torch.tensor([6, 0, 0, 1, 2])
    assert torch.equal(
        module(x, y, 0.5, 3.0, targets), hk.contrastive_loss(x, y, 0.5, 3.0, targets=targets, **options)
    )


@pytest.mark.parametrize("options", [{}, *({key: ENTAILMENT[key]} for key in ENTAILMENT), ENTAILMENT])
def test_entailment_module_is_the_function(options):
    apex, point = sets((5, 4), (5, 4))
    module = hk.EntailmentConeLoss(**options)
    assert torch.equal(module(apex, point), hk.entailment_loss(apex, point, **options))
    assert torch.equal(module(apex, point, 0.5), hk.entailment_loss(apex, point, 0.5, **options))


def test_every_option_matters():
    """Else the tests above would not notice one that a module drops."""
    x, y = sets((5, 4), (7, 4))
    for key in ("similarity", "reduction", "symmetric"):
        changed = hk.contrastive_loss(x, y, **{key: CONTRASTIVE[key]})
        assert not torch.equal(changed, hk.contrastive_loss(x, y))
    apex, point = sets((5, 4), (5, 4))
    for key, value in ENTAILMENT.items():
        changed = hk.entailment_loss(apex, point, **{key: value})
        assert not torch.equal(changed, hk.entailment_loss(apex, point))


def test_modules_show_their_options_and_hold_no_state():
    contrastive, entailment = hk.LorentzContrastiveLoss(**CONTRASTIVE), hk.EntailmentConeLoss(**ENTAILMENT)
    assert repr(contrastive) == (
        "LorentzContrastiveLoss(similarity='angle', reduction='sum', symmetric=False, precision='ieee')"
    )
    assert repr(entailment) == (
        "EntailmentConeLoss(aperture_scale=0.7, min_radius=0.2, margin=0.1, leak=0.3, reduction='none')"
    )
    for module in (contrastive, entailment):
        assert isinstance(module, nn.Module)
        assert not module.state_dict()


@pytest.mark.parametrize(
    ("module", "options", "error", "message"),
    [
        (hk.LorentzContrastiveLoss, {"similarity": "cosine"}, ValueError, "similarity must be one of"),
        (hk.LorentzContrastiveLoss, {"reduction": "max"}, ValueError, "reduction must be one of"),
        (hk.LorentzContrastiveLoss, {"symmetric": 1}, TypeError, "symmetric must be True or False, got int"),
        (hk.EntailmentConeLoss, {"min_radius": None}, TypeError, "min_radius must be a float, got NoneType"),
        (hk.LorentzContrastiveLoss, {"precision": "fp8"}, ValueError, "precision must be one of"),
        (hk.EntailmentConeLoss, {"reduction": "max"}, ValueError, "reduction must be one of"),
        (hk.EntailmentConeLoss, {"aperture_scale": -1}, ValueError, "aperture_scale must not be negative"),
        (hk.EntailmentConeLoss, {"min_radius": 0}, ValueError, "min_radius must be positive"),
        (hk.EntailmentConeLoss, {"margin": None}, TypeError, "margin must be a number"),
        (hk.EntailmentConeLoss, {"leak": -1}, ValueError, "leak must not be negative"),
    ],
)
def test_bad_options_are_refused_when_the_module_is_made(module, options, error, message):
    with pytest.raises(error, match=message):
        module(**options)


def test_modules_train_a_curvature_and_a_scale():
    """A few steps with everything learnable make both losses smaller."""
    x, y = (nn.Parameter(0.5 * p) for p in sets((16, 4), (16, 4)))
    log_curv, log_scale = nn.Parameter(torch.zeros(())), nn.Parameter(torch.ones(()))
    contrastive, entailment = hk.LorentzContrastiveLoss(), hk.EntailmentConeLoss()
    optimizer = torch.optim.Adam([x, y, log_curv, log_scale], lr=0.05)
    history = []
    for _ in range(30):
        losses = contrastive(x, y, log_curv.exp(), log_scale.exp()), entailment(x, y, log_curv.exp())
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
        history.append([loss.item() for loss in losses])
    assert all(last < 0.5 * first for first, last in zip(history[0], history[-1], strict=True))
