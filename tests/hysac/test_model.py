"""The HySAC model: its scalars, its geometry, and that it stays an open_clip model."""

import copy
import math
import subprocess
import sys

import open_clip
import pytest
import torch
from open_clip.model import get_cast_dtype
from torch._subclasses import FakeTensorMode
from torch.func import functional_call

import hysac
from hysac.models.factory import PRECISIONS
from hysac.models.model import SCALARS, HySAC, _Bounded

VOCAB, LENGTH, SIZE, WIDTH = 50, 6, 16, 12
TEXT_CFG = {"context_length": LENGTH, "vocab_size": VOCAB, "width": 16, "heads": 2, "layers": 2}
CFG = {
    "embed_dim": WIDTH,
    "vision_cfg": {"image_size": SIZE, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8},
    "text_cfg": TEXT_CFG,
}
CLASSES = [open_clip.CLIP, open_clip.CustomTextCLIP]


def make_clip(kind=open_clip.CLIP, seed=0, **changes):
    torch.manual_seed(seed)
    return kind(**CFG | changes)


def make_model(kind=open_clip.CLIP, **options):
    model = HySAC.from_clip(make_clip(kind), **options)
    model.output_dict = True
    return model


def images(*leading, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*leading, 3, SIZE, SIZE, generator=generator, dtype=dtype)


def tokens(*leading, seed=2):
    text = torch.randint(1, VOCAB - 1, (*leading, LENGTH), generator=torch.Generator().manual_seed(seed))
    text[..., LENGTH // 2] = VOCAB - 1  # the end of text, where the tower pools
    return text


def spread_scalars(model, curv=0.4, visual_alpha=0.3, textual_alpha=0.7, scale=31.0):
    """Four different values within the ranges, none at a bound."""
    with torch.no_grad():
        model.curv.fill_(math.log(curv))
        model.visual_alpha.fill_(math.log(visual_alpha))
        model.textual_alpha.fill_(math.log(textual_alpha))
        model.logit_scale.fill_(math.log(scale))
    return model


def lifted(features, alpha, curv):
    """The exponential map at the origin in float64, from its textbook formula."""
    v = alpha * features.double()
    norm = math.sqrt(curv) * v.norm(dim=-1, keepdim=True)
    return torch.sinh(norm) / norm * v


def distances(x, y, curv):
    x, y = x.double(), y.double()
    time_x, time_y = ((1 / curv + p.square().sum(-1)).sqrt() for p in (x, y))
    inner = x @ y.T - time_x[:, None] * time_y[None, :]
    return torch.acosh(-curv * inner) / math.sqrt(curv)


def assert_close(actual, expected, rtol):
    """Relative to the largest entry: what a float32 tower or matrix product promises."""
    error = (actual.double() - expected.double()).abs().max().item()
    assert error <= rtol * expected.abs().max().item(), error


# -- taking over an open_clip model ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSES)
def test_takes_over_the_instance(kind):
    clip = make_clip(kind)
    names = list(clip.state_dict())
    model = HySAC.from_clip(clip)
    assert model is clip
    assert isinstance(model, kind)
    assert isinstance(model, HySAC)
    assert set(model.state_dict()) == {*names, "curv", "visual_alpha", "textual_alpha"}
    assert not any("pixel" in name for name in model.state_dict())


def test_initial_scalars():
    model = make_model(curv_init=2.5)
    for name in SCALARS:
        assert getattr(model, name).shape == ()
        assert getattr(model, name).dtype == torch.float32
        assert getattr(model, name).requires_grad
    assert model.curv.item() == pytest.approx(math.log(2.5), rel=1e-6)
    assert model.visual_alpha.item() == pytest.approx(-0.5 * math.log(WIDTH), rel=1e-6)
    assert model.textual_alpha.item() == pytest.approx(-0.5 * math.log(WIDTH), rel=1e-6)
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07), rel=1e-6)
    assert model.curvature.item() == pytest.approx(2.5, rel=1e-6)
    assert model.scale.item() == pytest.approx(1 / 0.07, rel=1e-6)
    assert not make_model(learn_curv=False).curv.requires_grad


def test_scale_init_none_keeps_the_scale_of_clip():
    clip = make_clip(init_logit_scale=math.log(42.0))
    assert HySAC.from_clip(clip, scale_init=None).scale.item() == pytest.approx(42.0, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, WIDTH),
        ({"text_cfg": TEXT_CFG | {"proj_bias": True}}, WIDTH),
        ({"text_cfg": TEXT_CFG | {"proj_type": "none"}, "embed_dim": 16}, 16),
    ],
)
@pytest.mark.parametrize("kind", CLASSES)
def test_embed_dim(kind, change, expected):
    model = HySAC.from_clip(make_clip(kind, **change))
    assert model.embed_dim == expected == model.encode_text(tokens(1)).shape[-1]


def test_a_logit_bias_is_dropped():
    clip = make_clip(init_logit_bias=-10.0)
    image, text = images(3), tokens(3)
    model = HySAC.from_clip(clip)
    assert model.logit_bias is None
    assert "logit_bias" not in model.state_dict()
    assert len(model(image, text)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curv_init": 0.0}, "curv_init"),
        ({"curv_init": -1.0}, "curv_init"),
        ({"curv_init": math.inf}, "curv_init"),
        ({"scale_init": 101.0}, "scale_init"),
        ({"scale_init": 14.0}, "scale_init"),
    ],
)
def test_initial_values_out_of_range(options, message):
    clip = make_clip()
    with pytest.raises(ValueError, match=message):
        HySAC.from_clip(clip, **options)
    assert type(clip) is open_clip.CLIP


def test_refuses_what_it_cannot_take_over():
    with pytest.raises(TypeError, match="Linear"):
        HySAC.from_clip(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="already"):
        HySAC.from_clip(make_model())
    with pytest.raises(TypeError, match="from_clip"):
        HySAC()


# -- features ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSES)
def test_euclidean_features_are_those_of_open_clip(kind):
    clip = make_clip(kind).eval()
    image, text = images(3), tokens(3)
    expected = clip.encode_image(image), clip.encode_text(text)
    model = HySAC.from_clip(clip)
    for lift in ({}, {"normalize": False}, {"project": False}):
        assert torch.equal(model.encode_image(image, **lift), expected[0])
        assert torch.equal(model.encode_text(text, **lift), expected[1])


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("curv", [0.3, 1.0, 4.0])
def test_lifted_features(kind, curv):
    model = spread_scalars(make_model(kind), curv=curv).eval()
    image, text = images(5), tokens(5)
    x = model.encode_image(image, normalize=True)
    y = model.encode_text(text, normalize=True)
    assert x.dtype == y.dtype == torch.float32
    assert_close(x, lifted(model.encode_image(image), 0.3, curv), 1e-6)
    assert_close(y, lifted(model.encode_text(text), 0.7, curv), 1e-6)
    assert torch.equal(model.encode_image(image, project=True), x)
    assert torch.equal(model.encode_text(text, True, True), y)


@pytest.mark.parametrize("curv", [0.3, 1.0, 4.0])
def test_forward_is_on_the_unit_hyperboloid(curv):
    model = spread_scalars(make_model(), curv=curv).eval()
    image, text = images(5), tokens(5)
    x, y = model.encode_image(image, normalize=True), model.encode_text(text, normalize=True)
    output = model(image, text)
    assert set(output) == {"image_features", "text_features", "logit_scale"}
    assert_close(output["image_features"], math.sqrt(curv) * x.double(), 1e-6)
    assert_close(output["text_features"], math.sqrt(curv) * y.double(), 1e-6)
    assert output["logit_scale"].shape == ()
    assert output["logit_scale"].item() == pytest.approx(31 / math.sqrt(curv), rel=1e-6)

    unit = distances(output["image_features"], output["text_features"], 1.0)
    assert_close(output["logit_scale"] * unit, 31 * distances(x, y, curv), 1e-5)


def test_forward_returns_what_open_clip_returns():
    model = make_model()
    image, text = images(2), tokens(2)
    output = model(image, text)
    model.output_dict = False
    features = model(image, text)
    assert isinstance(features, tuple)
    assert all(torch.equal(a, b) for a, b in zip(features, list(output.values())[:3], strict=True))
    assert model(image=image)[1] is None
    assert model(text=text)[0] is None


@pytest.mark.parametrize(
    "theirs", [open_clip.ClipLoss(), open_clip.loss.SigLipLoss(), open_clip.CoCaLoss(1.0, 1.0)], ids=str
)
def test_losses_of_dot_products_are_refused(theirs):
    """Only while training; what a model returns otherwise is what open_clip's returns."""
    model = make_model()
    output = model(images(2), tokens(2))
    assert output["unit_hyperboloid"].tolist() == [1.0]
    with pytest.raises(TypeError, match="unexpected keyword argument 'unit_hyperboloid'"):
        theirs(**output)
    assert set(model.eval()(images(2), tokens(2))) == {"image_features", "text_features", "logit_scale"}


@pytest.mark.parametrize("kind", CLASSES)
def test_get_logits(kind):
    model = spread_scalars(make_model(kind)).eval()
    image, text = images(4), tokens(5)
    per_image, per_text = model.get_logits(image, text)
    x, y = model.encode_image(image, normalize=True), model.encode_text(text, normalize=True)
    assert per_image.shape == (4, 5)
    assert_close(per_image, -31 * distances(x, y, 0.4), 1e-5)
    assert torch.equal(per_text, per_image.T)


@pytest.mark.parametrize("kind", CLASSES)
def test_forward_intermediates(kind):
    model = spread_scalars(make_model(kind)).eval()
    image, text = images(2), tokens(3)
    options = {} if kind is open_clip.CLIP else {"text_output_fmt": "NLC"}
    output = model.forward_intermediates(
        image, text, output_logits=True, output_logit_scale_bias=True, **options
    )
    assert torch.equal(output["image_features"], model.encode_image(image, normalize=True))
    assert torch.equal(output["text_features"], model.encode_text(text, normalize=True))
    assert torch.equal(output["image_logits"], model.get_logits(image, text)[0])
    assert torch.equal(output["text_logits"], output["image_logits"].T)
    assert output["logit_scale"].item() == pytest.approx(31, rel=1e-6)
    assert len(output["image_intermediates"]) == len(output["text_intermediates"]) == 2

    plain = model.forward_intermediates(image, normalize=False)
    assert torch.equal(plain["image_features"], model.encode_image(image))
    assert "image_features" not in model.forward_intermediates(image, intermediates_only=True)
    with pytest.raises(ValueError, match="output_logits"):
        model.forward_intermediates(image, output_logits=True)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("leading", [(), (3,), (3, 2), (2, 1, 3)])
def test_leading_dimensions(kind, leading):
    model = make_model(kind).eval()
    image, text = images(*leading), tokens(*leading)
    for encode, batch, dims in ((model.encode_image, image, 3), (model.encode_text, text, 1)):
        features = encode(batch, normalize=True)
        assert features.shape == (*leading, WIDTH)
        flat = batch.flatten(0, -dims - 1) if leading else batch[None]
        assert torch.equal(features.reshape(-1, WIDTH), encode(flat, normalize=True))


def test_quadruplets_pass_each_tower_once():
    model = make_model()
    batches = []
    model.visual.register_forward_hook(lambda *call: batches.append(call[1][0].shape))
    model.transformer.register_forward_hook(lambda *call: batches.append(call[1][0].shape))
    output = model(images(3, 2), tokens(3, 2))
    assert batches == [(6, 3, SIZE, SIZE), (6, LENGTH, 16)]
    assert output["image_features"].shape == output["text_features"].shape == (3, 2, WIDTH)


def test_encoding_does_not_write_its_input():
    model = make_model()
    image, text = images(2, 2), tokens(2, 2)
    image_before, text_before = image.clone(), text.clone()
    model(image, text)
    assert torch.equal(image, image_before)
    assert torch.equal(text, text_before)


@pytest.mark.parametrize("kind", CLASSES)
def test_no_items_have_no_features_and_reach_every_parameter(kind):
    model = make_model(kind).train()
    output = model(images(0, 2), tokens(0, 2))
    assert output["image_features"].shape == output["text_features"].shape == (0, 2, WIDTH)
    sum(output[name].sum() for name in ("image_features", "text_features")).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if name != "logit_scale"}
    assert all(grad is not None and not grad.any() for grad in gradients.values())


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8), TypeError),
        ([1.0], TypeError),
        (torch.zeros(2, 3, SIZE, SIZE + 1), ValueError),
        (torch.zeros(2, 1, SIZE, SIZE), ValueError),
        (torch.zeros(SIZE, SIZE), ValueError),
        (torch.zeros(2, 3, 0, SIZE), ValueError),
    ],
)
def test_bad_images(image, error):
    with pytest.raises(error, match="image must"):
        make_model().encode_image(image)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (torch.zeros(2, LENGTH), TypeError),
        (["a word"], TypeError),
        (torch.zeros(2, LENGTH - 1, dtype=torch.long), ValueError),
        (torch.zeros(2, LENGTH + 1, dtype=torch.long), ValueError),
        (torch.zeros((), dtype=torch.long), ValueError),
        (torch.zeros(2, 0, dtype=torch.long), ValueError),
    ],
)
@pytest.mark.parametrize("kind", CLASSES)
def test_bad_texts(kind, text, error):
    with pytest.raises(error, match="text must"):
        make_model(kind).encode_text(text)


def test_contradicting_options():
    model = make_model()
    with pytest.raises(ValueError, match="project"):
        model.encode_image(images(1), normalize=True, project=False)
    with pytest.raises(ValueError, match="project"):
        model.encode_text(tokens(1), normalize=True, project=False)


def test_a_bidirectional_text_tower_takes_shorter_texts():
    clip = make_clip(open_clip.CustomTextCLIP, text_cfg=TEXT_CFG | {"no_causal_mask": True})
    model = HySAC.from_clip(clip)
    assert model.encode_text(tokens(2)[:, :4]).shape == (2, WIDTH)


def test_a_residual_network_takes_other_image_sizes():
    vision = {"image_size": 32, "layers": (1, 1, 1, 1), "width": 8, "head_width": 32}
    model = HySAC.from_clip(make_clip(vision_cfg=vision))
    image = torch.randn(2, 2, 3, 32, 32)
    assert model.encode_image(image, normalize=True).shape == (2, 2, WIDTH)
    with pytest.raises(ValueError, match=r"\(\.\.\., 3, H, W\)"):
        model.encode_image(image[..., :2, :, :])


# -- gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSES)
def test_gradcheck_of_the_scalars(kind):
    """Through the whole forward pass in float64: every path by which a scalar reaches an output."""
    model = spread_scalars(make_model(kind).double()).eval()
    image, text = images(2, dtype=torch.float64), tokens(2)
    values = tuple(getattr(model, name).detach().clone().requires_grad_() for name in SCALARS)
    assert all(v.dtype == torch.float64 for v in values)

    def forward(*scalars):
        replaced = dict(zip(SCALARS, scalars, strict=True))
        return tuple(functional_call(model, replaced, (image, text)).values())

    assert torch.autograd.gradcheck(forward, values)


def test_float32_gradients_match_float64():
    model = spread_scalars(make_model()).eval()
    wide = copy.deepcopy(model).double()
    gradients = []
    for m, image in ((model, images(4, 2)), (wide, images(4, 2).double())):
        output = m(image, tokens(4, 2))
        unit = torch.cdist(output["image_features"].flatten(0, 1), output["text_features"].flatten(0, 1))
        (output["logit_scale"] * unit).logsumexp(0).sum().backward()
        gradients.append({name: p.grad for name, p in m.named_parameters()})
    for name, expected in gradients[1].items():
        assert expected.abs().max() > 0, name
        assert_close(gradients[0][name], expected, 2e-5)


@pytest.mark.parametrize(
    ("value", "grad", "expected"),
    [
        (0.5, 1.0, 1.0),  # inside
        (0.5, -1.0, -1.0),
        (0.0, 1.0, 1.0),  # on the lower bound: descent leaves, and a projection brings it back
        (0.0, -1.0, -1.0),
        (-0.5, -1.0, -1.0),  # below: descent returns
        (-0.5, 1.0, 0.0),  # below: descent would go further
        (1.5, 1.0, 1.0),  # above: descent returns
        (1.5, -1.0, 0.0),  # above: descent would go further
    ],
)
def test_bounded(value, grad, expected):
    x = torch.tensor(value, requires_grad=True)
    y = _Bounded.apply(x, 0.0, 1.0)
    assert y.item() == min(max(value, 0.0), 1.0)
    y.backward(torch.tensor(grad))
    assert x.grad.item() == expected


def test_bounded_gradcheck_and_vmap():
    x = torch.tensor([0.2, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: _Bounded.apply(v, 0.0, 1.0).exp(), (x,))
    assert torch.autograd.gradgradcheck(lambda v: _Bounded.apply(v, 0.0, 1.0).exp(), (x,))
    grads = torch.func.vmap(torch.func.grad(lambda v: _Bounded.apply(v, 0.0, 1.0).square()))(x.detach())
    assert torch.allclose(grads, 2 * x.detach())


# -- ranges ------------------------------------------------------------------------------------------------

OUTSIDE = [  # parameter, value far outside, what the forward pass must use
    ("curv", 9.0, 20.0),
    ("curv", -9.0, 0.2),
    ("visual_alpha", 3.0, 1.0),
    ("textual_alpha", 3.0, 1.0),
    ("logit_scale", 9.0, 100.0),
    ("logit_scale", -9.0, 1 / 0.07),
]


@pytest.mark.parametrize(("name", "value", "used"), OUTSIDE)
@pytest.mark.parametrize("inference", [False, True])
def test_forward_bounds_and_does_not_write(name, value, used, inference):
    model = make_model(curv_init=2.0).eval()
    parameter = getattr(model, name)
    with torch.no_grad():
        parameter.fill_(value)
    versions = {n: p._version for n, p in model.named_parameters()}
    with torch.inference_mode(inference):
        output = model(images(2), tokens(2))
        logits = model.get_logits(images(2), tokens(2))
        assert model._scalar(name).item() == pytest.approx(used, rel=1e-6)
    assert all(torch.isfinite(t).all() for t in (*output.values(), *logits))
    assert parameter.item() == value
    assert {n: p._version for n, p in model.named_parameters()} == versions
    assert not any(p.is_inference() for p in model.parameters())


@pytest.mark.parametrize(("name", "value", "used"), OUTSIDE)
def test_clamp_parameters(name, value, used):
    model = make_model(curv_init=2.0)
    parameter = getattr(model, name)
    with torch.no_grad():
        parameter.fill_(value)
    others = {n: p.clone() for n, p in model.named_parameters() if n != name}
    model.clamp_parameters_()
    assert parameter.exp().item() == pytest.approx(used, rel=1e-6)
    assert all(torch.equal(p, others[n]) for n, p in model.named_parameters() if n != name)
    assert getattr(model, name) is parameter

    # On the bound the whole gradient arrives, outward as well.
    model._scalar(name).log().mul(3).backward()
    assert parameter.grad.item() == pytest.approx(3, rel=1e-5)


@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize("name", SCALARS)
def test_a_scalar_never_gets_stuck(name, project):
    """Pushed against a bound for long and then released, it is inside again after two steps."""
    model = spread_scalars(make_model(curv_init=0.4))
    parameter = getattr(model, name)
    step = 0.5
    optimizer = torch.optim.SGD([parameter], lr=step)

    def descend(sign):
        optimizer.zero_grad()
        model._scalar(name).log().mul(-sign).backward()
        optimizer.step()
        if project:
            model.clamp_parameters_()

    high = model.scalar_ranges[name][1]
    for _ in range(40):
        descend(+1)
    assert high <= parameter.item() <= high + (0 if project else step)
    for _ in range(2):
        descend(-1)
    assert parameter.item() < high


# -- precision ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_the_model_keeps_the_scalars(dtype):
    model = spread_scalars(make_model()).eval()
    before = {name: getattr(model, name).detach().clone() for name in SCALARS}
    model.curv.grad = torch.tensor(0.1234567)
    model.to(dtype)
    for name, value in before.items():
        assert getattr(model, name).dtype == torch.float32
        assert torch.equal(getattr(model, name), value)
    assert model.curv.grad.item() == torch.tensor(0.1234567).item()
    assert model.positional_embedding.dtype == dtype
    features = model.encode_image(images(3))
    assert features.dtype == dtype
    x = model.encode_image(images(3), normalize=True)
    assert x.dtype == torch.float32
    assert_close(x, lifted(features, 0.3, 0.4), 1e-6)


@pytest.mark.parametrize("kind", CLASSES)
def test_geometry_is_float32_under_autocast(kind):
    model = spread_scalars(make_model(kind))
    with torch.autocast("cpu", torch.bfloat16):
        features = model.encode_image(images(3))
        x = model.encode_image(images(3), normalize=True)
        y = model.encode_text(tokens(4), normalize=True)
        logits, _ = model.get_logits(images(3), tokens(4))
        output = model(images(3, 2), tokens(3, 2))
    assert features.dtype == torch.bfloat16
    assert x.dtype == logits.dtype == torch.float32
    assert_close(x, lifted(features, 0.3, 0.4), 1e-6)
    assert_close(logits, -31 * distances(x, y, 0.4), 1e-5)
    assert all(t.dtype == torch.float32 for t in output.values())
    output["image_features"].sum().backward()
    assert model.curv.grad.dtype == torch.float32


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions(precision):
    model = hysac.create_model("hysac-toy", precision=precision, output_dict=True)
    assert all(getattr(model, name).dtype == torch.float32 for name in SCALARS)
    narrow = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision.removeprefix("pure_"))
    weight = model.visual.transformer.resblocks[0].attn.in_proj_weight
    assert weight.dtype == (narrow or torch.float32)
    assert (get_cast_dtype(precision) is not None) == (model.visual.ln_pre.weight.dtype != weight.dtype)
    text = hysac.get_tokenizer("hysac-toy")(["a red circle", "a blue square"])
    output = model(torch.randn(2, 3, 32, 32), text)
    assert all(t.dtype == torch.float32 for t in output.values())
    (output["image_features"] * output["text_features"]).sum().backward()
    assert all(
        p.grad is not None and torch.isfinite(p.grad).all()
        for n, p in model.named_parameters()
        if n != "logit_scale"
    )


# -- still an open_clip model ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSES)
def test_state_dict(kind):
    model = spread_scalars(make_model(kind))
    other = HySAC.from_clip(make_clip(kind, seed=5))
    other.load_state_dict(model.state_dict(), strict=True)
    other.output_dict = True
    for a, b in zip(model(images(2), tokens(2)).values(), other(images(2), tokens(2)).values(), strict=True):
        assert torch.equal(a, b)

    stock = make_clip(kind, seed=6)
    keys = stock.load_state_dict(model.state_dict(), strict=False)
    assert keys.missing_keys == []
    assert sorted(keys.unexpected_keys) == ["curv", "textual_alpha", "visual_alpha"]
    assert torch.equal(stock.encode_image(images(2)), model.encode_image(images(2)))


@pytest.mark.parametrize("kind", CLASSES)
def test_locking_the_towers(kind):
    model = make_model(kind)
    model.lock_image_tower()
    model.lock_text_tower()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(SCALARS)


def gradients_of(model, function):
    model.zero_grad()
    output = function(images(3, 2), tokens(3, 2))
    loss = output["logit_scale"] * (output["image_features"] - output["text_features"]).square().sum()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same_gradients(actual, expected):
    assert torch.equal(actual[0], expected[0])
    assert actual[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert torch.allclose(actual[1][name], gradient, rtol=1e-5, atol=1e-6 * gradient.abs().max()), name


@pytest.mark.parametrize("kind", CLASSES)
def test_gradient_checkpointing(kind):
    model = spread_scalars(make_model(kind))
    expected = gradients_of(model, model)
    model.set_grad_checkpointing()
    assert_same_gradients(gradients_of(model, model), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLASSES)
def test_compile_in_one_graph(kind):
    model = spread_scalars(make_model(kind))
    expected = gradients_of(model, model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_same_gradients(gradients_of(model, compiled), expected)


def test_deepcopy_is_independent():
    model = spread_scalars(make_model())
    twin = copy.deepcopy(model)
    expected = twin(images(2), tokens(2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    assert type(twin) is type(model)
    assert twin.curv_init == model.curv_init
    actual = twin(images(2), tokens(2))
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


@pytest.mark.parametrize("kind", CLASSES)
def test_no_value_is_read_back(kind):
    """Fake tensors have no values: any ``.item()`` or data-dependent branch raises."""
    with FakeTensorMode():
        model = make_model(kind)
        output = model(images(2, 2), tokens(2, 2))
        (output["logit_scale"] * output["image_features"] * output["text_features"]).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        assert model.get_logits(images(2), tokens(2))[0].shape == (2, 2)
        model.clamp_parameters_()


# -- making models by name ---------------------------------------------------------------------------------


def test_create_model_and_transforms():
    model, train, val = hysac.create_model_and_transforms("hysac-toy", output_dict=True, curv_init=0.5)
    assert model.training
    assert model.curvature.item() == pytest.approx(0.5, rel=1e-6)
    from PIL import Image

    picture = Image.new("RGB", (50, 40), (200, 30, 90))
    image = torch.stack([train(picture), val(picture)])
    text = hysac.get_tokenizer("hysac-toy")(["a red circle"] * 2)
    assert text.shape == (2, model.context_length)
    output = model(image, text)
    assert output["image_features"].shape == output["text_features"].shape == (2, model.embed_dim)


@pytest.mark.parametrize("option", [{}, {"force_custom_text": True}])
def test_create_model_of_open_clip(option):
    model = hysac.create_model("ViT-S-32-alt", **option)
    assert isinstance(model, open_clip.CustomTextCLIP if option else open_clip.CLIP)
    plain = open_clip.create_model("ViT-S-32-alt", **option)
    assert set(model.state_dict()) - set(plain.state_dict()) == {"curv", "visual_alpha", "textual_alpha"}


def test_the_saved_configuration_follows_the_options():
    model = hysac.create_model(
        "hysac-toy", force_image_size=16, force_context_length=9, force_quick_gelu=True, init_logit_scale=3.0
    )
    assert model.model_cfg["vision_cfg"]["image_size"] == 16
    assert model.model_cfg["text_cfg"]["context_length"] == 9
    assert model.model_cfg["quick_gelu"] is True
    assert model.model_cfg["init_logit_scale"] == 3.0
    assert model.encode_image(torch.randn(1, 3, 16, 16)).shape == (1, model.embed_dim)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ViT-B-33", {}, "ViT-B-33"),
        ("hysac-toy", {"precision": "int8"}, "int8"),
        ("hysac-toy", {"jit": True}, "jit"),
    ],
)
def test_create_model_refuses(name, options, message):
    with pytest.raises(ValueError, match=message):
        hysac.create_model(name, **options)


def test_unknown_tokenizer():
    with pytest.raises(ValueError, match="ViT-B-33"):
        hysac.get_tokenizer("ViT-B-33")


@pytest.mark.slow
def test_import_leaves_the_registry_alone():
    program = (
        "import open_clip; before = open_clip.list_models(); import hysac;"
        "assert open_clip.list_models() == before;"
        "hysac.get_tokenizer('hysac-toy'); hysac.get_tokenizer('hysac-toy');"
        "assert set(open_clip.list_models()) - set(before) == {'hysac-toy'}"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
