"""Low-rank adapters against the definition ``W + (alpha / r) B A``, in every mode the towers run in."""

import copy
import io
import math
import pickle

import open_clip
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn.utils import parametrize

import hysac
from hysac.models import lora
from hysac.models.model import SCALARS, HySAC

VOCAB, LENGTH, SIZE = 50, 6, 16
CFG = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": SIZE, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8},
    "text_cfg": {"context_length": LENGTH, "vocab_size": VOCAB, "width": 24, "heads": 2, "layers": 1},
}
CLASSES = [open_clip.CLIP, open_clip.CustomTextCLIP]


def make_model(kind=open_clip.CLIP, **changes):
    torch.manual_seed(0)
    model = HySAC.from_clip(kind(**CFG | changes))
    model.output_dict = True
    return model


def adapted_model(kind=open_clip.CLIP, seed=3, **options):
    """A model whose adapters are not zero."""
    model = lora.add_lora(make_model(kind), **{"r": 4, "alpha": 2.0} | options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for factor in lora.lora_parameters(model):
            factor.copy_(0.3 * torch.randn(factor.shape, generator=generator))
    return model


def inputs():
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(3, 2, 3, SIZE, SIZE, generator=generator)
    text = torch.randint(1, VOCAB - 1, (3, 2, LENGTH), generator=generator)
    text[..., 3] = VOCAB - 1
    return image, text


def text_prefix(kind):
    return "text." if kind is open_clip.CustomTextCLIP else ""


def merged_by_hand(model, scaling):
    """The plain state dict that the adapters of ``model`` stand for, from their exported factors."""
    exported = lora.lora_state_dict(model)
    plain = {}
    for name, tensor in model.state_dict().items():
        if ".parametrizations." not in name:
            plain[name] = tensor.clone()
        elif name.endswith(".original"):
            plain[name.replace(".parametrizations", "").removesuffix(".original")] = tensor.clone()
    for name in exported:
        if not name.endswith(".lora_A"):
            continue
        path = name.removesuffix(".lora_A")
        update = scaling * exported[f"{path}.lora_B"] @ exported[name]
        parent, block = path.rsplit(".", 1)
        if block in "qkv":
            width = update.shape[0]
            start = "qkv".index(block) * width
            plain[f"{parent}.in_proj_weight"][start : start + width] += update
        else:
            plain[path] += update.reshape(plain[path].shape)
    return plain


def assert_same_outputs(actual, expected, rtol=1e-5):
    for key, value in expected.items():
        assert (actual[key] - value).abs().max() <= rtol * value.abs().max(), key


# -- what is adapted ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSES)
def test_default_targets(kind):
    model = lora.add_lora(make_model(kind), r=4)
    shapes = {name: tuple(t.shape) for name, t in lora.lora_state_dict(model).items()}
    expected = {
        "lora_alpha": (),
        "visual.conv1.weight.lora_A": (4, 192),
        "visual.conv1.weight.lora_B": (16, 4),
    }
    for tower, width, layers in (("visual.", 16, 2), (text_prefix(kind), 24, 1)):
        for layer in range(layers):
            block = f"{tower}transformer.resblocks.{layer}"
            for path, rows, columns in (
                ("attn.k", width, width),
                ("attn.v", width, width),
                ("attn.out_proj.weight", width, width),
                ("mlp.c_fc.weight", 4 * width, width),
                ("mlp.c_proj.weight", width, 4 * width),
            ):
                expected[f"{block}.{path}.lora_A"] = (4, columns)
                expected[f"{block}.{path}.lora_B"] = (rows, 4)
    assert shapes == expected


def test_published_number_of_trainable_parameters():
    """HySAC on ViT-L/14 trains 8,676,548 parameters at the default rank and targets."""
    with FakeTensorMode():
        model = HySAC.from_clip(open_clip.CLIP(**open_clip.get_model_config("ViT-L-14-quickgelu")))
        lora.add_lora(model)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 8_676_548


@pytest.mark.parametrize("target", lora.TARGETS)
def test_one_target(target):
    model = adapted_model(targets=[target])
    names = {name.rsplit(".", 1)[0] for name in lora.lora_state_dict(model)} - {"lora_alpha"}
    assert names
    assert all(target in name.split(".") for name in names)
    plain = make_model()
    plain.load_state_dict(merged_by_hand(model, 0.5), strict=True)
    assert_same_outputs(model(*inputs()), plain(*inputs()))


@pytest.mark.parametrize("kind", CLASSES)
def test_everything_but_adapters_and_scalars_is_frozen(kind):
    model = make_model(kind)
    model.curv.requires_grad_(False)
    lora.add_lora(model, r=2)
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    scalars = {id(getattr(model, name)) for name in SCALARS if name != "curv"}
    assert trainable == scalars | {id(p) for p in lora.lora_parameters(model)}


def test_custom_attention_blocks():
    changes = {"vision_cfg": CFG["vision_cfg"] | {"block_type": "custom"}}
    model = lora.add_lora(make_model(**changes), r=2, targets="v")
    with torch.no_grad():
        for factor in lora.lora_parameters(model):
            factor.fill_(0.1)
    plain = make_model(**changes)
    plain.load_state_dict(merged_by_hand(model, 0.5), strict=True)
    assert_same_outputs(model(*inputs()), plain(*inputs()))


# -- what it computes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSES)
def test_starts_without_effect(kind):
    model = make_model(kind)
    expected = model(*inputs())
    lora.add_lora(model)
    for key, value in model(*inputs()).items():
        assert torch.equal(value, expected[key])
    factors = lora.lora_state_dict(model)
    for name, factor in factors.items():
        if name.endswith("lora_A"):
            bound = 1 / math.sqrt(factor.shape[1])
            assert 0.8 * bound < factor.abs().max() <= bound
        elif name.endswith("lora_B"):
            assert not factor.any()


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_computes_the_adapted_weights(kind, training, grad, autocast):
    """Attention takes another path in eval mode without gradients; all must see the adapted weights."""
    model = adapted_model(kind, targets=lora.TARGETS)
    plain = make_model(kind)
    plain.load_state_dict(merged_by_hand(model, 0.5), strict=True)
    outputs = []
    for m in (model, plain):
        m.train(training)
        with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs.append(m(*inputs()))
    assert_same_outputs(*outputs, rtol=2e-2 if autocast else 1e-5)
    base = make_model(kind)(*inputs())
    assert (outputs[1]["text_features"] - base["text_features"]).abs().max() > 0.1


@pytest.mark.parametrize("kind", CLASSES)
def test_gradients_are_those_of_the_definition(kind):
    model = adapted_model(kind).double()
    image, text = inputs()
    exported = {name: t for name, t in lora.lora_state_dict(model).items() if name != "lora_alpha"}

    def loss(m):
        output = m(image.double(), text)
        return (output["image_features"] - 2 * output["text_features"]).square().sum()

    loss(model).backward()
    plain = make_model(kind).double()
    plain.load_state_dict(merged_by_hand(model, 0.5), strict=True)
    loss(plain).backward()
    weights = dict(plain.named_parameters())
    updates = {
        f"{path}.{tensor}": update
        for path, module in model.named_modules()
        if parametrize.is_parametrized(module)
        for tensor, (update,) in module.parametrizations.items()
    }
    checked = 0
    for name, update in updates.items():
        grad_weight = weights[name].grad.flatten(1)
        blocks = grad_weight.chunk(3) if name.endswith("in_proj_weight") else [grad_weight]
        labels = ["q", "k", "v"] if len(blocks) == 3 else ["weight"]
        for label, grad in zip(labels, blocks, strict=True):
            if label in update.lora_A:
                A, B = update.lora_A[label], update.lora_B[label]
                torch.testing.assert_close(A.grad, 0.5 * B.T @ grad, rtol=1e-9, atol=1e-12)
                torch.testing.assert_close(B.grad, 0.5 * grad @ A.T, rtol=1e-9, atol=1e-12)
                assert A.grad.abs().max() > 0
                checked += 2
    assert checked == len(exported)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLASSES)
def test_compile_and_checkpointing(kind):
    model = adapted_model(kind)

    def gradients(function):
        model.zero_grad()
        output = function(*inputs())
        (output["image_features"] - output["text_features"]).square().sum().backward()
        return [p.grad.clone() for p in lora.lora_parameters(model)]

    expected = gradients(model)
    compiled = gradients(torch.compile(model, backend="aot_eager", fullgraph=True))
    model.set_grad_checkpointing()
    for actual in (compiled, gradients(model)):
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * b.abs().max().item())


def test_bf16_weights_have_float32_adapters():
    """The adapted weight is computed in float32, also under autocast, and rounded once."""
    model = make_model().to(torch.bfloat16)
    lora.add_lora(model, r=2, alpha=2.0, targets=["c_fc"])
    assert all(p.dtype == torch.float32 for p in lora.lora_parameters(model))
    layer = model.transformer.resblocks[0].mlp.c_fc
    (update,) = layer.parametrizations.weight
    base = layer.parametrizations.weight.original
    with torch.no_grad():
        for factor in lora.lora_parameters(model):
            factor.uniform_(-0.1, 0.1)
    exact = base.double() + update.lora_B["weight"].double() @ update.lora_A["weight"].double()
    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            assert layer.weight.dtype == torch.bfloat16
            # Rounding to 8 significant bits is off by 2^-8 of the value; 1e-7 is for float32 before it.
            error = (layer.weight.double() - exact).abs()
            assert (error <= 2**-8 * exact.abs() + 1e-7).all()
    output = model(*inputs())
    (output["image_features"] * output["text_features"]).sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in lora.lora_parameters(model))


def test_training_moves_only_the_adapters_and_scalars():
    model = lora.add_lora(make_model(), r=4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):  # the first step moves B, which is zero and hides A
        optimizer.zero_grad()
        output = model(*inputs())
        (
            output["logit_scale"] * (output["image_features"] - output["text_features"]).square()
        ).sum().backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    adapters = {name for name in before if ".lora_" in name}
    assert moved == adapters | set(SCALARS)


# -- merging, saving, loading ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge(kind, dtype):
    model = make_model(kind).to(dtype)
    names = set(model.state_dict())
    lora.add_lora(model, r=4, alpha=2.0, targets=lora.TARGETS)
    with torch.no_grad():
        for factor in lora.lora_parameters(model):
            factor.uniform_(-0.3, 0.3)
    model.eval()
    with torch.no_grad():
        expected = model(*inputs())
    predicted = lora.merged_state_dict(model)
    assert lora.merge_lora(model) is model
    assert set(model.state_dict()) == set(predicted) == names
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, predicted[name])
    assert type(model) is type(make_model(kind))

    plain = make_model(kind).to(dtype).eval()
    plain.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        for m in (model, plain):
            for key, value in m(*inputs()).items():
                assert torch.equal(value, expected[key])


def test_merge_matches_the_definition():
    model = adapted_model(targets=lora.TARGETS)
    by_hand = merged_by_hand(model, 0.5)
    merged = lora.merge_lora(model).state_dict()
    for name, tensor in by_hand.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-6, atol=1e-6)


def test_merged_state_dict_without_adapters_is_the_state_dict():
    model = make_model()
    merged = lora.merged_state_dict(model)
    assert list(merged) == list(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(merged.values(), model.state_dict().values(), strict=True))


@pytest.mark.parametrize("kind", CLASSES)
def test_adapters_travel_alone(kind):
    model = adapted_model(kind)
    other = lora.add_lora(make_model(kind), r=4, alpha=2.0)
    lora.load_lora(other, {name: t.clone() for name, t in lora.lora_state_dict(model).items()})
    for key, value in model(*inputs()).items():
        assert torch.equal(other(*inputs())[key], value)


def test_training_state_round_trip():
    model = adapted_model()
    other = lora.add_lora(make_model(), r=4, alpha=2.0)
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other(*inputs())["text_features"], model(*inputs())["text_features"])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for factor in lora.lora_parameters(model):
            factor.zero_()
    assert torch.equal(other(*inputs())["text_features"], twin(*inputs())["text_features"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 8}, "r the same"),
        ({"targets": ["k", "v"]}, "targets the same"),
        ({"targets": lora.TARGETS}, "targets the same"),
        ({"alpha": 4.0}, r"alpha=4\.0.*alpha=2\.0"),
    ],
)
def test_foreign_adapters_are_refused(options, message):
    model = adapted_model()
    before = {name: t.clone() for name, t in lora.lora_state_dict(model).items()}
    foreign = lora.lora_state_dict(adapted_model(seed=9, **options))
    with pytest.raises(ValueError, match=message):
        lora.load_lora(model, foreign)
    assert all(torch.equal(t, before[name]) for name, t in lora.lora_state_dict(model).items())


# -- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "r must"),
        ({"r": 2.0}, "r must"),
        ({"r": True}, "r must"),
        ({"alpha": 0.0}, "alpha must"),
        ({"alpha": math.nan}, "alpha must"),
        ({"targets": []}, "targets must"),
        ({"targets": ["k_proj"]}, "k_proj"),
        ({"targets": "attn"}, "attn"),
    ],
)
def test_bad_arguments_change_nothing(options, message):
    model = make_model()
    with pytest.raises(ValueError, match=message):
        lora.add_lora(model, **options)
    assert all(p.requires_grad for p in model.parameters())


def test_absent_target():
    vision = {"image_size": 32, "layers": (1, 1, 1, 1), "width": 8, "head_width": 32}
    model = make_model(vision_cfg=vision)  # a residual network: conv1 is not a patch embedding
    with pytest.raises(ValueError, match="conv1"):
        lora.add_lora(model)
    assert all(p.requires_grad for p in model.parameters())
    lora.add_lora(model, targets=["k", "v"])
    with pytest.raises(ValueError, match="match nothing"):
        lora.add_lora(torch.nn.Linear(2, 2), targets=["k"])


def test_adding_twice():
    model = lora.add_lora(make_model(), targets=["k"])
    with pytest.raises(ValueError, match="already"):
        lora.add_lora(model, targets=["v"])
    lora.add_lora(lora.merge_lora(model), targets=["v"])


@pytest.mark.parametrize(
    "call", [lora.merge_lora, lora.lora_parameters, lora.lora_state_dict, lambda m: lora.load_lora(m, {})]
)
def test_without_adapters(call):
    with pytest.raises(ValueError, match="no LoRA adapters"):
        call(make_model())


def test_a_rank_beyond_the_weights_is_refused():
    model = hysac.create_model("hysac-toy")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"r must be at most \d+, the larger side of a weight to adapt, got 100000"
    ):
        lora.add_lora(model, 100_000)
    assert model.state_dict().keys() == before.keys()
    assert all(parameter.requires_grad for parameter in model.parameters())


def through_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied", [lambda model: pickle.loads(pickle.dumps(model)), through_torch_save, copy.deepcopy]
)
@pytest.mark.parametrize("kind", CLASSES)
def test_adapted_models_are_pickled_and_copied(kind, copied):
    model = adapted_model(kind, targets=lora.TARGETS).eval()
    again = copied(copied(model))
    assert list(again.state_dict()) == list(model.state_dict())
    learn = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: p.requires_grad for name, p in again.named_parameters()} == learn
    assert not any(module.training for module in again.modules())
    assert_equal = torch.testing.assert_close
    assert_equal(again(*inputs()), model(*inputs()), rtol=0, atol=0)
    own = {p.data_ptr() for p in model.parameters()}
    assert not own & {p.data_ptr() for p in again.parameters()}
    merged = lora.merge_lora(again).state_dict()
    assert_equal(merged, lora.merged_state_dict(model), rtol=0, atol=0)  # which is still adapted


def test_parametrizations_of_others_stay_unpickled():
    model = adapted_model()
    parametrize.register_parametrization(model.visual.conv1, "weight", torch.nn.Identity())
    assert copy.deepcopy(model).visual.conv1.weight.equal(model.visual.conv1.weight)
    with pytest.raises(RuntimeError, match="parametrized modules is only supported through state_dict"):
        pickle.dumps(model)
