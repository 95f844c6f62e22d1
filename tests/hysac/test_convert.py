"""Checkpoint conversion against an independent float64 CLIP that reads the checkpoint's own names."""

import json
import logging
import math
import pickle
import re
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import hysac
from hysac.models.convert import (
    convert_state_dict,
    from_reference,
    infer_model_cfg,
    load_reference_checkpoint,
    mlp_ratio,
)
from hysac.models.model import HySAC

# Heads are 64 wide, as in every published CLIP; the text width equals the embedding's, as in ViT-L/14, so
# that a projection that was not transposed still has the right shape.
LAYERS, RANK, HEAD = 2, 4, 64
WIDTH = {"vision": 128, "text": 64}
EMBED, VOCAB, LENGTH, PATCH, GRID = 64, 50, 7, 4, 3
SIZE = PATCH * GRID
ADAPTED = ("self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
PATCHES = "vision_model.embeddings.patch_embedding"
SCALARS = {"logit_scale": 3.1, "curv": -2.3026, "visual_alpha": -1.5, "textual_alpha": -0.7}


def linear_shapes(width):
    square = {f"self_attn.{p}_proj": (width, width) for p in ("q", "k", "v", "out")}
    return square | {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}


def make_weights(dtype=torch.float64, conv_bias=True):
    """Every tensor of a CLIP under Hugging Face names, random; adapters beside their weights."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape, scale=0.3):
        return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)

    weights = {
        "vision_model.embeddings.class_embedding": random(WIDTH["vision"]),
        f"{PATCHES}.weight": random(WIDTH["vision"], 3, PATCH, PATCH),
        f"{PATCHES}.lora_A.default.weight": random(RANK, 3, PATCH, PATCH),
        f"{PATCHES}.lora_B.default.weight": random(WIDTH["vision"], RANK, 1, 1),
        "vision_model.embeddings.position_embedding.weight": random(GRID**2 + 1, WIDTH["vision"]),
        "visual_projection.weight": random(EMBED, WIDTH["vision"]),
        "text_model.embeddings.token_embedding.weight": random(VOCAB, WIDTH["text"]),
        "text_model.embeddings.position_embedding.weight": random(LENGTH, WIDTH["text"]),
        "text_projection.weight": random(EMBED, WIDTH["text"]),
    }
    if conv_bias:
        weights[f"{PATCHES}.bias"] = random(WIDTH["vision"])
    norms = [
        ("vision", "vision_model.pre_layrnorm"),
        ("vision", "vision_model.post_layernorm"),
        ("text", "text_model.final_layer_norm"),
    ]
    for tower, width in WIDTH.items():
        for i in range(LAYERS):
            layer = f"{tower}_model.encoder.layers.{i}"
            norms += [(tower, f"{layer}.layer_norm1"), (tower, f"{layer}.layer_norm2")]
            for name, (rows, columns) in linear_shapes(width).items():
                weights[f"{layer}.{name}.weight"] = random(rows, columns, scale=columns**-0.5)
                weights[f"{layer}.{name}.bias"] = random(rows)
                if name in ADAPTED:
                    weights[f"{layer}.{name}.lora_A.default.weight"] = random(RANK, columns)
                    weights[f"{layer}.{name}.lora_B.default.weight"] = random(rows, RANK)
    for tower, name in norms:
        weights[f"{name}.weight"] = 1 + random(WIDTH[tower])
        weights[f"{name}.bias"] = random(WIDTH[tower])
    return weights


class HuggingFaceCLIP:
    """CLIP's forward pass from its published definition; adapters stay two extra products."""

    def __init__(self, weights, lora_alpha=1.0, head=HEAD, quick_gelu=True):
        self.weights = {name: tensor.double() for name, tensor in weights.items()}
        self.scaling = lora_alpha / RANK
        self.head, self.activation = head, (lambda x: x * torch.sigmoid(1.702 * x)) if quick_gelu else F.gelu

    def linear(self, name, x):
        y = F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))
        if f"{name}.lora_A.default.weight" in self.weights:
            down = F.linear(x, self.weights[f"{name}.lora_A.default.weight"])
            y = y + self.scaling * F.linear(down, self.weights[f"{name}.lora_B.default.weight"])
        return y

    def norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def attention(self, name, x, mask):
        query, key, value = (
            self.linear(f"{name}.{p}_proj", x).unflatten(-1, (-1, self.head)).transpose(1, 2) for p in "qkv"
        )
        scores = query * self.head**-0.5 @ key.transpose(-1, -2) + mask
        return self.linear(f"{name}.out_proj", (scores.softmax(-1) @ value).transpose(1, 2).flatten(2))

    def encoder(self, tower, x, mask):
        for i in range(LAYERS):
            layer = f"{tower}_model.encoder.layers.{i}"
            x = x + self.attention(f"{layer}.self_attn", self.norm(f"{layer}.layer_norm1", x), mask)
            hidden = self.linear(f"{layer}.mlp.fc1", self.norm(f"{layer}.layer_norm2", x))
            x = x + self.linear(f"{layer}.mlp.fc2", self.activation(hidden))
        return x

    def image(self, pixels):
        w = self.weights
        patches = F.conv2d(pixels, w[f"{PATCHES}.weight"], w.get(f"{PATCHES}.bias"), stride=PATCH)
        if f"{PATCHES}.lora_A.default.weight" in w:
            down = F.conv2d(pixels, w[f"{PATCHES}.lora_A.default.weight"], stride=PATCH)
            patches = patches + self.scaling * F.conv2d(down, w[f"{PATCHES}.lora_B.default.weight"])
        patches = patches.flatten(2).transpose(1, 2)
        cls = w["vision_model.embeddings.class_embedding"].expand(len(pixels), 1, -1)
        x = torch.cat([cls, patches], 1) + w["vision_model.embeddings.position_embedding.weight"]
        x = self.encoder("vision", self.norm("vision_model.pre_layrnorm", x), 0.0)
        return self.linear("visual_projection", self.norm("vision_model.post_layernorm", x[:, 0]))

    def text(self, tokens):
        w = self.weights
        x = w["text_model.embeddings.token_embedding.weight"][tokens]
        x = x + w["text_model.embeddings.position_embedding.weight"]
        causal = torch.full((LENGTH, LENGTH), -math.inf, dtype=x.dtype).triu(1)
        x = self.norm("text_model.final_layer_norm", self.encoder("text", x, causal))
        return self.linear("text_projection", x[torch.arange(len(tokens)), tokens.argmax(-1)])


def as_saved(weights, layout="new", wrapper="flat"):
    """The names a checkpoint has: PEFT's, under the two towers' prefixes, and what wrapped the model."""
    saved = {name: torch.tensor(value) for name, value in SCALARS.items()}
    saved |= {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}
    saved["textual.base_model.model.text_model.embeddings.position_ids"] = torch.arange(LENGTH)[None]
    adapted = {name.partition(".lora_")[0] for name in weights if ".lora_" in name}
    for name, tensor in weights.items():
        module, _, kind = name.rpartition(".")
        if layout == "new" and module in adapted:
            name = f"{module}.base_layer.{kind}"
        tower = "visual" if name.startswith(("vision_model", "visual_projection")) else "textual"
        saved[f"{tower}.base_model.model.{name}"] = tensor
    if wrapper == "ddp":
        return {f"module.{name}": tensor for name, tensor in saved.items()}
    return {"model": saved, "last_epoch": 3} if wrapper == "trainer" else saved


def merged(weights, scaling):
    """What remains after the adapters were merged before saving."""
    plain = {name: t for name, t in weights.items() if ".lora_" not in name}
    for name in weights:
        if ".lora_A." in name:
            A, B = weights[name], weights[name.replace("lora_A", "lora_B")]
            weight = plain[f"{name.partition('.lora_')[0]}.weight"]
            plain[f"{name.partition('.lora_')[0]}.weight"] = weight + scaling * torch.einsum(
                "or,r...->o...", B.flatten(1), A
            )
    return plain


def inputs():
    generator = torch.Generator().manual_seed(7)
    pixels = torch.randn(3, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    tokens = torch.randint(1, VOCAB - 1, (3, LENGTH), generator=generator)
    tokens[torch.arange(3), torch.tensor([2, 4, 6])] = VOCAB - 1
    return pixels, tokens


def open_clip_features(state_dict, **architecture):
    """Features in float64 of stock open_clip with a converted state dict, loaded strictly."""
    model = open_clip.CLIP(**infer_model_cfg(state_dict, **architecture)).double().eval()
    model.load_state_dict(state_dict, strict=True)
    pixels, tokens = inputs()
    with torch.no_grad():
        return model.encode_image(pixels), model.encode_text(tokens)


def expected_features(weights, lora_alpha=1.0, **architecture):
    reference = HuggingFaceCLIP(weights, lora_alpha, **architecture)
    pixels, tokens = inputs()
    return reference.image(pixels), reference.text(tokens)


def relative_error(actual, expected):
    return ((actual.double() - expected).abs().max() / expected.abs().max()).item()


# -- the conversion is right -------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["new", "legacy"])
@pytest.mark.parametrize("wrapper", ["flat", "ddp"])
@pytest.mark.parametrize("conv_bias", [True, False])
def test_converted_model_computes_the_same(layout, wrapper, conv_bias):
    weights = make_weights(conv_bias=conv_bias)
    state_dict, scalars = convert_state_dict(as_saved(weights, layout, wrapper))
    for actual, expected in zip(open_clip_features(state_dict), expected_features(weights), strict=True):
        assert relative_error(actual, expected) < 1e-12
    assert set(scalars) == {"curv", "visual_alpha", "textual_alpha"}
    for name, value in {**scalars, "logit_scale": state_dict["logit_scale"]}.items():
        assert value.shape == ()
        assert value.item() == pytest.approx(SCALARS[name], rel=1e-6)


def test_lora_alpha():
    weights = make_weights()
    state_dict, _ = convert_state_dict(as_saved(weights), lora_alpha=3.0)
    for actual, expected in zip(open_clip_features(state_dict), expected_features(weights, 3.0), strict=True):
        assert relative_error(actual, expected) < 1e-12


def test_merged_checkpoint():
    weights = make_weights()
    state_dict, _ = convert_state_dict(as_saved(merged(weights, 1 / RANK)))
    for actual, expected in zip(open_clip_features(state_dict), expected_features(weights), strict=True):
        assert relative_error(actual, expected) < 1e-12


def test_plain_hugging_face_clip():
    weights = make_weights(conv_bias=False)
    plain = merged(weights, 1 / RANK) | {"logit_scale": torch.tensor(4.6)}
    state_dict, scalars = convert_state_dict(plain)
    assert scalars == {}
    for actual, expected in zip(open_clip_features(state_dict), expected_features(weights), strict=True):
        assert relative_error(actual, expected) < 1e-12


def swap_query_and_key(sd):
    for name, tensor in sd.items():
        if name.endswith("in_proj_weight"):
            q, k, v = tensor.chunk(3)
            sd[name] = torch.cat([k, q, v])


def move_class_position(sd, weights):
    sd["visual.positional_embedding"][0] += weights[f"{PATCHES}.bias"]


TRAPS = {
    "adapters ignored": lambda w, s: convert_state_dict(
        {name: t for name, t in s.items() if ".lora_" not in name}
    )[0],
    "alpha not divided by r": lambda w, s: convert_state_dict(s, lora_alpha=RANK)[0],
    "bias dropped": lambda w, s: convert_state_dict(
        {name: t for name, t in s.items() if not name.endswith("patch_embedding.base_layer.bias")}
    )[0],
}
CORRUPTIONS = {
    "query and key swapped": lambda w, sd: swap_query_and_key(sd),
    "text projection not transposed": lambda w, sd: sd.update(text_projection=sd["text_projection"].T),
    "bias on the class token": lambda w, sd: move_class_position(sd, w),
}


@pytest.mark.parametrize("trap", [*TRAPS, *CORRUPTIONS])
def test_the_comparison_sees_every_trap(trap):
    """Each known mistake loads strictly and moves a feature by far more than the tolerance."""
    weights = make_weights()
    saved = as_saved(weights)
    if trap in TRAPS:
        state_dict = TRAPS[trap](weights, saved)
    else:
        state_dict, _ = convert_state_dict(saved)
        CORRUPTIONS[trap](weights, state_dict)
    features = zip(open_clip_features(state_dict), expected_features(weights), strict=True)
    assert max(relative_error(actual, expected) for actual, expected in features) > 1e-2


def test_input_is_not_changed():
    saved = as_saved(make_weights())
    before = {name: tensor.clone() for name, tensor in saved.items()}
    convert_state_dict(saved)
    assert saved.keys() == before.keys()
    assert all(torch.equal(saved[name], before[name]) for name in saved)


# -- what shapes do not tell -------------------------------------------------------------------------------

HEADS = {"vision_heads": WIDTH["vision"] // 16, "text_heads": WIDTH["text"] // 16}
CONFIG = {
    "model_type": "clip",
    "vision_config": {"hidden_act": "gelu", "num_attention_heads": HEADS["vision_heads"]},
    "text_config": {"hidden_act": "gelu", "num_attention_heads": HEADS["text_heads"]},
}


def plain_clip():
    return merged(make_weights(torch.float32, conv_bias=False), 1 / RANK) | {"logit_scale": torch.tensor(4.6)}


def assert_features(model, weights, tolerance=1e-5, **architecture):
    pixels, tokens = inputs()
    with torch.no_grad():
        actual = model.encode_image(pixels.float()), model.encode_text(tokens)
    for features, expected in zip(actual, expected_features(weights, **architecture), strict=True):
        assert relative_error(features, expected) < tolerance


@pytest.mark.parametrize("how", ["config", "flags"])
def test_heads_and_activation_are_those_that_something_tells(tmp_path, how, caplog):
    weights = plain_clip()
    save_file(weights, tmp_path / "model.safetensors")
    told = {"quick_gelu": False, **HEADS}
    if how == "config":
        (tmp_path / "config.json").write_text(json.dumps(CONFIG))
        told = {}
    with caplog.at_level(logging.INFO):
        model = from_reference(tmp_path / "model.safetensors", **told)
    assert "assumed" not in caplog.text
    assert_features(model, weights, head=16, quick_gelu=False)
    hysac.save_pretrained(model, tmp_path / "converted")
    assert_features(hysac.from_pretrained(tmp_path / "converted"), weights, head=16, quick_gelu=False)
    assert hysac.from_pretrained(tmp_path / "converted").model_cfg["quick_gelu"] is False


def test_flags_overrule_the_config(tmp_path):
    weights = plain_clip()
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    model = from_reference(tmp_path, quick_gelu=True, vision_heads=2, text_heads=1)
    assert_features(model, weights)


def test_what_nothing_tells_is_assumed_aloud(tmp_path, caplog):
    save_file(plain_clip(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model": "of a training run"}))
    with caplog.at_level(logging.INFO):
        from_reference(tmp_path / "model.safetensors", text_heads=1)
    assert "nothing tells quick_gelu, vision_heads; assumed are QuickGELU and heads 64 wide" in caplog.text
    assert "has no curvature and factors of features" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_config": {"hidden_act": "gelu_new"}}, "hidden_act must be quick_gelu or gelu in both towers"),
        (
            {"text_config": {"hidden_act": "quick_gelu"}},
            "hidden_act must be quick_gelu or gelu in both towers",
        ),
        (
            {"vision_config": {"hidden_act": "gelu", "layer_norm_eps": 1e-6}},
            r"config\.json: vision_config\.layer_norm_eps must be 1e-05, got 1e-06",
        ),
        (
            {"vision_config": {"hidden_act": "gelu", "num_attention_heads": 3}},
            "vision_heads must divide the width 128",
        ),
    ],
)
def test_a_config_that_open_clip_has_no_towers_for(tmp_path, change, message):
    save_file(plain_clip(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(ValueError, match=message):
        from_reference(tmp_path)


def test_a_directory_of_transformers_with_its_preprocessing(tmp_path):
    weights = plain_clip()
    half = {name: tensor.half() for name, tensor in weights.items()}
    names = sorted(half)
    index = {"weight_map": {}}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: half[name] for name in part}, tmp_path / file)
        index["weight_map"] |= dict.fromkeys(part, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    preprocessor = {
        "crop_size": {"height": SIZE, "width": SIZE},
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
        "resample": 2,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    model = from_reference(tmp_path)
    assert_features(model, half, head=16, quick_gelu=False)
    cfg = model.visual.preprocess_cfg
    assert (cfg["mean"], cfg["std"], cfg["interpolation"]) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear")

    for change, message in (
        ({"image_std": [0.2, 0, 0.2]}, "std of the pixels must be positive"),
        ({"crop_size": 224}, f"crop_size must be that of the model's images, {SIZE} x {SIZE}, got 224"),
        ({"resample": 1}, "resample must be one of"),
    ):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor | change))
        with pytest.raises(ValueError, match=message):
            from_reference(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    for wrong, message in (
        ("../model.safetensors", "not a file beside it"),
        ("gone.safetensors", "does not exist"),
    ):
        index["weight_map"]["logit_scale"] = wrong
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            from_reference(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no weights: none of model\.safetensors"):
        from_reference(tmp_path)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_a_checkpoint_of_open_clips_trainer(tmp_path, prefix, caplog):
    """Names are open_clip's; those of a sigmoid loss have a bias, too."""
    weights = make_weights(torch.float32)
    state_dict, scalars = convert_state_dict(as_saved(weights))
    saved = {f"{prefix}{name}": tensor for name, tensor in {**state_dict, **scalars}.items()}
    saved[f"{prefix}logit_bias"] = torch.tensor(-10.0)
    torch.save({"epoch": 3, "name": "run", "state_dict": saved, "optimizer": {}}, tmp_path / "epoch_3.pt")
    with caplog.at_level(logging.INFO):
        model = from_reference(tmp_path / "epoch_3.pt")
    assert "logit_bias is dropped" in caplog.text
    assert_features(model, weights)
    assert model.curv.item() == pytest.approx(SCALARS["curv"])


# -- adapters ----------------------------------------------------------------------------------------------


def test_several_adapters_are_refused_unless_one_is_named():
    weights = make_weights()
    saved = as_saved(weights)
    second = {
        name.replace(".default.", ".other."): 2 * tensor if ".lora_A." in name else tensor
        for name, tensor in saved.items()
        if ".lora_" in name
    }
    with pytest.raises(
        ValueError, match=r"there are 2 adapters, default, other; adapter \(--adapter\) chooses one"
    ):
        convert_state_dict(saved | second)
    with pytest.raises(ValueError, match="there is no adapter 'third'; there are default, other"):
        convert_state_dict(saved | second, adapter="third")
    for name, alpha in (("default", 1.0), ("other", 2.0)):
        state_dict, _ = convert_state_dict(saved | second, adapter=name)
        for actual, expected in zip(
            open_clip_features(state_dict), expected_features(weights, alpha), strict=True
        ):
            assert relative_error(actual, expected) < 1e-12


@pytest.mark.parametrize("rslora", [False, True])
def test_the_scaling_is_that_of_adapter_config(tmp_path, rslora):
    weights = make_weights(torch.float32)
    torch.save(as_saved(weights), tmp_path / "model.pth")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 3, "use_rslora": rslora}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    alpha = 3.0 * RANK**0.5 if rslora else 3.0  # the reference divides by r
    assert_features(from_reference(tmp_path / "model.pth"), weights, lora_alpha=alpha)


def test_some_modules_have_an_alpha_of_their_own():
    weights = make_weights()
    config = {"lora_alpha": 1, "alpha_pattern": {"mlp.fc1": 5, r"vision_model.*k_proj": 7}}
    for name in weights:
        if ".lora_B." in name and ".mlp.fc1." in name:
            weights[name] = weights[name] * 5
        if ".lora_B." in name and name.startswith("vision_model") and ".k_proj." in name:
            weights[name] = weights[name] * 7
    plain = make_weights()
    state_dict, _ = convert_state_dict(as_saved(plain), adapter_config=config)
    for actual, expected in zip(open_clip_features(state_dict), expected_features(weights), strict=True):
        assert relative_error(actual, expected) < 1e-12


def test_adapters_that_open_clip_never_used_are_left_out(caplog):
    """open_clip's attention multiplies by out_proj.weight itself: an adapter around it is not called."""
    weights = make_weights()
    state_dict, _ = convert_state_dict(as_saved(merged(weights, 1 / RANK)))
    name = "visual.transformer.resblocks.0.attn.out_proj"
    wrapped = {f"base_model.model.{key}": tensor for key, tensor in state_dict.items()}
    wrapped[f"base_model.model.{name}.base_layer.weight"] = wrapped.pop(f"base_model.model.{name}.weight")
    wrapped[f"base_model.model.{name}.lora_A.default.weight"] = torch.ones(2, WIDTH["vision"])
    wrapped[f"base_model.model.{name}.lora_B.default.weight"] = torch.ones(WIDTH["vision"], 2)
    with caplog.at_level(logging.WARNING):
        again, _ = convert_state_dict(wrapped)
    assert "1 adapters of attn.out_proj are left out" in caplog.text
    assert again.keys() == state_dict.keys()
    assert all(torch.equal(again[key], state_dict[key]) for key in again)


# -- numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("logit_scale", torch.tensor(math.nan), "logit_scale has 1 of 1 numbers that are not finite"),
        ("curv", torch.tensor(math.inf), "curv has 1 of 1 numbers that are not finite"),
        (
            "text_projection.weight",
            torch.ones(EMBED, WIDTH["text"], dtype=torch.int8),
            "must be float64.*got torch.int8",
        ),
    ],
)
def test_weights_that_are_no_finite_numbers_are_named(tmp_path, name, value, message):
    saved = as_saved(make_weights(torch.float32))
    key = next(key for key in saved if key.endswith(name))
    torch.save(saved | {key: value}, tmp_path / "model.pth")
    with pytest.raises(
        ValueError, match=rf"model\.pth: {key.replace('.', '.')}.* {message.partition(' ')[2]}"
    ):
        from_reference(tmp_path / "model.pth")


@pytest.mark.parametrize("curvature", [0.02, 40.0])
def test_a_curvature_out_of_the_usual_range_is_kept(tmp_path, curvature):
    saved = as_saved(make_weights(torch.float32)) | {"curv": torch.tensor(math.log(curvature))}
    torch.save(saved, tmp_path / "model.pth")
    model = from_reference(tmp_path / "model.pth")
    assert model.curvature.item() == pytest.approx(curvature, rel=1e-6)
    hysac.save_pretrained(model, tmp_path / "directory")
    assert hysac.from_pretrained(tmp_path / "directory").curvature.item() == pytest.approx(
        curvature, rel=1e-6
    )


# -- files and the model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", ["flat", "trainer", "ddp", "safetensors"])
def test_from_reference(tmp_path, wrapper):
    weights = make_weights(torch.float32)
    path = tmp_path / ("model.safetensors" if wrapper == "safetensors" else "model.pth")
    if wrapper == "safetensors":
        save_file(as_saved(weights), path)
    else:
        torch.save(as_saved(weights, wrapper=wrapper), path)
    model = from_reference(path)
    assert isinstance(model, HySAC)
    assert not model.training
    assert model.visual.preprocess_cfg["size"] == (SIZE, SIZE)
    pixels, tokens = inputs()
    expected = expected_features(weights)
    with torch.no_grad():
        actual = model.encode_image(pixels.float()), model.encode_text(tokens)
        points = model.encode_text(tokens, normalize=True)
    for features, reference in zip(actual, expected, strict=True):
        assert relative_error(features, reference) < 1e-5

    assert model.curv.item() == pytest.approx(-2.3026, rel=1e-6)
    curv = model.curvature.item()
    assert curv == pytest.approx(0.1, rel=1e-5)
    tangent = math.exp(-0.7) * expected[1]
    norm = math.sqrt(curv) * tangent.norm(dim=-1, keepdim=True)
    assert relative_error(points, torch.sinh(norm) / norm * tangent) < 1e-4

    hysac.save_pretrained(model, tmp_path / "directory")
    reloaded = hysac.from_pretrained(tmp_path / "directory")
    with torch.no_grad():
        assert torch.equal(reloaded.encode_text(tokens, normalize=True), points)
    assert torch.equal(reloaded.curv, model.curv)


def test_load_reference_checkpoint(tmp_path):
    torch.save(as_saved(make_weights(torch.float32)), tmp_path / "model.pth")
    statistics = {c: {"low_05": 0.4, "avg": 0.5, "up_95": 0.6} for c in "SVUG"}
    (tmp_path / "bounds.json").write_text(json.dumps(statistics))
    state_dict, scalars, bounds = load_reference_checkpoint(
        tmp_path / "model.pth", bounds=tmp_path / "bounds.json"
    )
    assert bounds["V"].up_95 == 0.6
    HySAC.from_clip(open_clip.CLIP(**infer_model_cfg(state_dict))).load_state_dict({**state_dict, **scalars})
    assert load_reference_checkpoint(tmp_path / "model.pth").bounds is None

    del statistics["U"]["avg"]
    (tmp_path / "bounds.json").write_text(json.dumps(statistics))
    with pytest.raises(ValueError, match="avg"):
        load_reference_checkpoint(tmp_path / "model.pth", bounds=tmp_path / "bounds.json")


class Payload:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_no_code_is_unpickled(tmp_path, capsys):
    torch.save({"model": Payload()}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="not unpickled") as raised:
        from_reference(tmp_path / "model.pth")
    assert isinstance(raised.value.__cause__, pickle.UnpicklingError)
    assert capsys.readouterr().out == ""


def test_published_checkpoint_is_vit_l_14():
    """The whole inventory of the released file, by name and shape, against open_clip's ViT-L/14."""
    saved = dict.fromkeys(SCALARS, ()) | {"pixel_mean": (3, 1, 1), "pixel_std": (3, 1, 1)}
    towers = {
        "textual": ("text", 12, 768, {
            "text_model.embeddings.token_embedding.weight": (49408, 768),
            "text_model.embeddings.position_embedding.weight": (77, 768),
            "text_projection.weight": (768, 768),
        }, ["text_model.final_layer_norm"]),
        "visual": ("vision", 24, 1024, {
            "vision_model.embeddings.class_embedding": (1024,),
            f"{PATCHES}.base_layer.weight": (1024, 3, 14, 14),
            f"{PATCHES}.lora_A.default.weight": (16, 3, 14, 14),
            f"{PATCHES}.lora_B.default.weight": (1024, 16, 1, 1),
            "vision_model.embeddings.position_embedding.weight": (257, 1024),
            "visual_projection.weight": (768, 1024),
        }, ["vision_model.pre_layrnorm", "vision_model.post_layernorm"]),
    }  # fmt: skip
    for tower, (kind, layers, width, shapes, norms) in towers.items():
        for i in range(layers):
            layer = f"{kind}_model.encoder.layers.{i}"
            norms += [f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
            for name, (rows, columns) in linear_shapes(width).items():
                base = ".base_layer" if name in ADAPTED else ""
                shapes[f"{layer}.{name}{base}.weight"] = (rows, columns)
                shapes[f"{layer}.{name}{base}.bias"] = (rows,)
                if base:
                    shapes[f"{layer}.{name}.lora_A.default.weight"] = (16, columns)
                    shapes[f"{layer}.{name}.lora_B.default.weight"] = (rows, 16)
        shapes |= {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}
        saved |= {f"{tower}.base_model.model.{name}": shape for name, shape in shapes.items()}
    assert len(saved) == 957

    tensors = {name: torch.empty(shape, device="meta") for name, shape in saved.items()}
    state_dict, scalars = convert_state_dict(tensors)
    published = open_clip.get_model_config("ViT-L-14-quickgelu")
    assert infer_model_cfg(state_dict) == published
    with torch.device("meta"):
        model = open_clip.CLIP(**published)
    expected = {name: t.shape for name, t in model.state_dict().items()}
    assert {name: t.shape for name, t in state_dict.items()} == expected
    assert set(scalars) == {"curv", "visual_alpha", "textual_alpha"}


# -- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.inf])
def test_bad_alpha(alpha):
    with pytest.raises(ValueError, match="lora_alpha"):
        convert_state_dict({}, lora_alpha=alpha)


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("self_attn.q_proj.weight", "in_proj_weight"),
        ("self_attn.k_proj.lora_A.default.weight", "incomplete adapter"),
        ("self_attn.out_proj.base_layer.weight", "incomplete adapter"),
    ],
)
def test_missing_parts(removed, message):
    saved = {n: t for n, t in as_saved(make_weights()).items() if not n.endswith(f"layers.1.{removed}")}
    with pytest.raises(ValueError, match=message):
        convert_state_dict(saved)


def test_unknown_names():
    with pytest.raises(ValueError, match=r"2 names.*conv1"):
        convert_state_dict({"visual.conv1.weight": torch.zeros(1), "visual.proj": torch.zeros(1)})


def test_not_a_state_dict(tmp_path):
    torch.save({"model": {"curv": 1.0}}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="state dict"):
        load_reference_checkpoint(tmp_path / "model.pth")


def test_from_reference_needs_the_scalars(tmp_path):
    saved = as_saved(make_weights())
    del saved["curv"]
    torch.save(saved, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="curv"):
        from_reference(tmp_path / "model.pth")


def test_infer_model_cfg_needs_a_vision_transformer():
    with pytest.raises(ValueError, match=r"visual\.conv1"):
        infer_model_cfg({})


ODD_SHAPES = ((), (3,), (0, 4), (5, 3, 2, 7))


@pytest.mark.slow
@pytest.mark.parametrize("shape", ODD_SHAPES)
@pytest.mark.parametrize("layout", ["of transformers", "of open_clip"])
def test_no_tensor_of_an_odd_shape_is_taken(tmp_path, shape, layout):
    """Each tensor in turn; those of one layer stand for the other's."""
    saved = as_saved(make_weights(torch.float32))
    if layout == "of open_clip":
        state_dict, scalars = convert_state_dict(saved)
        saved = {**state_dict, **scalars}
    for name in saved:
        if ".1." in name or name.endswith(("pixel_mean", "pixel_std", "position_ids")):
            continue
        if saved[name].numel() == math.prod(shape):  # of a scalar: any number of dimensions will do
            continue
        torch.save(saved | {name: torch.ones(shape)}, tmp_path / "model.pth")
        with pytest.raises(ValueError, match=r"must|do not fit|an adapter of|is not of a CLIP"):
            from_reference(tmp_path / "model.pth")


def test_any_hidden_width_is_kept():
    """open_clip truncates width * ratio: of 1 to 2048 a few widths in a hundred lost one."""
    lost = 0
    for width in (1, 3, 48, 49, 64, 192, 384, 509, 768, 1000, 1024, 1280, 1408, 1664):
        for hidden in range(1, 6 * width + 2, 1 + width // 100):
            assert int(width * mlp_ratio(hidden, width)) == hidden
            lost += int(width * (hidden / width)) != hidden
    assert lost > 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", [], "its content must be an object"),
        ("config.json", {"vision_config": []}, r"vision_config must be an object, got \[\]"),
        (
            "config.json",
            {"text_config": {"hidden_act": ["gelu"]}},
            "hidden_act must be quick_gelu or gelu in",
        ),
        (
            "config.json",
            {"text_config": {"layer_norm_eps": None}},
            "text_config.layer_norm_eps must be a finite",
        ),
        (
            "config.json",
            {"text_config": {"layer_norm_eps": "1e-5"}},
            "text_config.layer_norm_eps must be a fin",
        ),
        (
            "config.json",
            {"text_config": {"layer_norm_eps": 10**400}},
            "text_config.layer_norm_eps must be a fin",
        ),
        (
            "config.json",
            {"vision_config": {"num_attention_heads": True}},
            "vision_config.num_attention_heads",
        ),
        ("config.json", {"vision_config": {"num_attention_heads": 2.0}}, "vision_config.num_attention_heads"),
        ("adapter_config.json", [], "its content must be an object"),
        ("adapter_config.json", {"lora_alpha": None}, "lora_alpha must be a finite number, got None"),
        ("adapter_config.json", {"lora_alpha": True}, "lora_alpha must be a finite number, got True"),
        ("adapter_config.json", {"lora_alpha": 10**400}, "lora_alpha must be a finite number, got 10+"),
        ("adapter_config.json", {"lora_alpha": -1}, "lora_alpha must be positive, got -1"),
        ("adapter_config.json", {"use_rslora": "no"}, "use_rslora must be true or false, got 'no'"),
        ("adapter_config.json", {"alpha_pattern": ["fc1"]}, "alpha_pattern must be an object"),
        (
            "adapter_config.json",
            {"alpha_pattern": {"fc1": None}},
            "alpha_pattern.fc1 must be a finite number",
        ),
        (
            "adapter_config.json",
            {"alpha_pattern": {"fc(1": 2}},
            r"alpha_pattern has 'fc\(1', which is no regular",
        ),
        (
            "adapter_config.json",
            {"rank_pattern": {"*fc1": 2}},
            r"rank_pattern has '\*fc1', which is no regular",
        ),
        (
            "adapter_config.json",
            {"rank_pattern": {"fc1": 0}},
            "rank_pattern.fc1 must be an integer of at least",
        ),
    ],
)
def test_odd_json_beside_the_weights(tmp_path, name, content, message):
    torch.save(as_saved(make_weights(torch.float32)), tmp_path / "model.pth")
    if isinstance(content, dict) and name == "config.json":
        content = {"model_type": "clip"} | content
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"/{re.escape(name)}: {message}"):
        from_reference(tmp_path / "model.pth")


def test_the_page_on_these_weights(tmp_path, monkeypatch):
    """docs/hysac_weights.md, with a small checkpoint of that layout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(globals(), "VOCAB", 49408)
    monkeypatch.setitem(globals(), "LENGTH", 77)
    weights = {name: one.float() for name, one in make_weights().items()}
    torch.save(weights | {name: torch.tensor(value) for name, value in SCALARS.items()}, "hysac_model.pth")
    page = (Path(__file__).parents[2] / "docs/hysac_weights.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    found = {}
    exec(compile(block, "docs/hysac_weights.md", "exec"), found)
    assert found["distance"].shape == (1,)
    texts = found["tokenizer"](["a boat on the sea"])
    torch.testing.assert_close(found["again"].encode_text(texts), found["text"])
