"""Adapter directories as PEFT 0.21 writes them, over open_clip's names and Hugging Face's."""

import copy
import json
import logging

import open_clip
import pytest
import torch
from safetensors.torch import save_file

import hysac
from hysac.models.convert import infer_model_cfg

R = 3
CONFIG = {
    "peft_type": "LORA",
    "r": R,
    "lora_alpha": 6,
    "use_rslora": False,
    "alpha_pattern": {},
    "fan_in_fan_out": False,
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return hysac.create_model("hysac-toy").double().eval()


def factors(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "A": torch.randn(R, columns, generator=generator, dtype=torch.float64),
        "B": 0.1 * torch.randn(rows, R, generator=generator, dtype=torch.float64),
    }


def write(directory, adapters, **changes):
    """Modules and their factors, under the names of PEFT."""
    directory.mkdir(exist_ok=True)
    tensors = {
        f"base_model.model.{module}.lora_{factor}.weight": tensor
        for module, pair in adapters.items()
        for factor, tensor in pair.items()
    }
    save_file(tensors, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps(CONFIG | changes))
    return directory


def expected(pair, scaling=2.0):
    return scaling * pair["B"] @ pair["A"]


def assert_changed(model, before, changes):
    """Only the tensors of ``changes`` differ, by as much as they say."""
    for name, tensor in model.state_dict().items():
        difference = tensor - before[name]
        torch.testing.assert_close(
            difference, changes.get(name, torch.zeros_like(difference)), rtol=1e-9, atol=1e-12
        )


def placed(tensor, block, update):
    """An update of one of three row blocks."""
    whole = torch.zeros_like(tensor)
    whole.chunk(3)[block].copy_(update)
    return whole


@pytest.mark.parametrize("tower", [None, "visual", "text"])
def test_names_of_open_clip(model, tmp_path, tower):
    prefix = {None: "visual.", "visual": "", "text": ""}[tower]
    own = "transformer." if tower == "text" else "visual.transformer."
    name = f"{own}resblocks.1.mlp.c_fc.weight"
    weight = model.state_dict()[name]
    pair = factors(*weight.shape)
    before = copy.deepcopy(model.state_dict())
    write(tmp_path / "adapter", {f"{prefix}transformer.resblocks.1.mlp.c_fc": pair})
    assert hysac.merge_adapter(model, tmp_path / "adapter", tower=tower) is model
    assert_changed(model, before, {name: expected(pair)})


@pytest.mark.parametrize("whole", [True, False])
def test_names_of_hugging_face(model, tmp_path, whole):
    before = copy.deepcopy(model.state_dict())
    width = model.visual.conv1.weight.shape[0]
    layer = "encoder.layers.0"
    adapters = {
        f"{layer}.self_attn.q_proj": factors(width, width, 1),
        f"{layer}.self_attn.v_proj": factors(width, width, 2),
        f"{layer}.self_attn.out_proj": factors(width, width, 3),
        f"{layer}.mlp.fc2": factors(*before["visual.transformer.resblocks.0.mlp.c_proj.weight"].shape, 4),
        "embeddings.patch_embedding": factors(width, before["visual.conv1.weight"][0].numel(), 5),
    }
    a = adapters["embeddings.patch_embedding"]
    conv = before["visual.conv1.weight"]
    changes = {
        "visual.transformer.resblocks.0.attn.out_proj.weight": expected(
            adapters[f"{layer}.self_attn.out_proj"]
        ),
        "visual.transformer.resblocks.0.mlp.c_proj.weight": expected(adapters[f"{layer}.mlp.fc2"]),
        "visual.conv1.weight": expected(a).view_as(conv),
    }
    packed = "visual.transformer.resblocks.0.attn.in_proj_weight"
    changes[packed] = placed(before[packed], 0, expected(adapters[f"{layer}.self_attn.q_proj"]))
    changes[packed] += placed(before[packed], 2, expected(adapters[f"{layer}.self_attn.v_proj"]))
    adapters["embeddings.patch_embedding"] = {
        "A": a["A"].view(R, *conv.shape[1:]),
        "B": a["B"].view(width, R, 1, 1),
    }
    if whole:
        adapters = {f"vision_model.{module}": pair for module, pair in adapters.items()}
        proj = before["text_projection"]
        adapters["text_projection"] = factors(*proj.T.shape, 6)
        changes["text_projection"] = expected(adapters["text_projection"]).T
    hysac.merge_adapter(model, write(tmp_path / "a", adapters), tower=None if whole else "visual")
    assert_changed(model, before, changes)


@pytest.mark.slow
def test_the_scaling_is_the_configurations(model, tmp_path):
    name = "transformer.resblocks.0.mlp.c_fc"
    weight = model.state_dict()[f"{name}.weight"]
    pair = factors(*weight.shape)
    for changes, scaling in (
        ({"use_rslora": True}, 6 / R**0.5),
        ({"alpha_pattern": {"mlp.c_fc": 12}}, 4.0),
        ({"alpha_pattern": {"mlp.c_proj": 12}}, 2.0),
    ):
        before = copy.deepcopy(model.state_dict())
        hysac.merge_adapter(model, write(tmp_path / "a", {name: pair}, **changes))
        assert_changed(model, before, {f"{name}.weight": expected(pair, scaling)})


def test_adapters_that_took_no_part_are_left_out(model, tmp_path, caplog):
    name = "visual.transformer.resblocks.0.attn.out_proj"
    before = copy.deepcopy(model.state_dict())
    pair = factors(*before[f"{name}.weight"].shape)
    with caplog.at_level(logging.WARNING):
        hysac.merge_adapter(model, write(tmp_path / "a", {name: pair}))
    assert f"the adapter of {name} is left out" in caplog.text
    assert_changed(model, before, {})


@pytest.mark.parametrize(
    ("adapters", "changes", "message"),
    [
        (
            {"visual.nothing": factors(4, 4)},
            {},
            r"an adapter of visual\.nothing\.weight, which the model does not have",
        ),
        (
            {"visual.transformer.resblocks.0.mlp.c_fc": factors(4, 5)},
            {},
            r"an adapter of \(4, 5\) for visual\.tr",
        ),
        ({"visual.conv1": {"A": torch.ones(R, 4)}}, {}, r"visual\.conv1 has lora_A alone"),
        ({"visual.conv1": factors(4, 4)}, {"use_dora": True}, r"has DoRA \(use_dora\)"),
        ({"visual.conv1": factors(4, 4)}, {"modules_to_save": ["head"]}, "has modules saved whole"),
        ({"visual.conv1": factors(4, 4)}, {"peft_type": "IA3"}, "peft_type must be LORA, got 'IA3'"),
        ({"visual.conv1": factors(4, 4)}, {"lora_alpha": "x"}, "lora_alpha must be a finite number, got 'x'"),
        (
            {"visual.conv1": factors(4, 4)},
            {"init_lora_weights": "pissa"},
            r"from a changed base \(init_lora_weights",
        ),
        (
            {"visual.conv1": {"A": torch.ones(R), "B": torch.ones(4, R)}},
            {},
            r"factors of visual\.conv1 do not fit",
        ),
        (
            {"visual.conv1": {"A": torch.ones(R, 4), "B": torch.ones(4, 2)}},
            {},
            r"factors of visual\.conv1 do not fit",
        ),
        ({"visual.conv1": {"A": torch.full((R, 4), torch.nan), "B": torch.ones(4, R)}}, {}, "not finite"),
    ],
)
def test_refusals_change_nothing(model, tmp_path, adapters, changes, message):
    before = copy.deepcopy(model.state_dict())
    name = "transformer.resblocks.0.mlp.c_fc"
    good = {name: factors(*before[f"{name}.weight"].shape)}
    with pytest.raises(ValueError, match=message):
        hysac.merge_adapter(model, write(tmp_path / "a", good | adapters, **changes))
    assert_changed(model, before, {})


def test_files_that_are_missing(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json"):
        hysac.merge_adapter(model, tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(FileNotFoundError, match=r"none of adapter_model\.safetensors"):
        hysac.merge_adapter(model, tmp_path)
    hysac.add_lora(model, 2)
    write(tmp_path / "a", {"visual.conv1": factors(4, 4)})
    with pytest.raises(ValueError, match="has adapters already"):
        hysac.merge_adapter(model, tmp_path / "a")


def test_the_hidden_width_is_inferred():
    cfg = {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8, "mlp_ratio": 2.0},
        "text_cfg": {
            "context_length": 8,
            "vocab_size": 20,
            "width": 64,
            "heads": 1,
            "layers": 1,
            "mlp_ratio": 3.0,
        },
    }
    assert infer_model_cfg(open_clip.CLIP(**cfg).state_dict()) == cfg
