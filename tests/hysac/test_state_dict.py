"""The names, shapes and dtypes of models' tensors are what they were when state_dict.json was written.

Checkpoints are read by these names for years: a change of what is there needs a way to read those before it.
``python tests/hysac/test_state_dict.py`` adds what is not there.
"""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from test_lora import adapted_model
from test_model import CFG, make_clip

import hysac
from hysac.models import lora
from hysac.models.model import HySAC

RECORD = Path(__file__).with_name("state_dict.json")


def named():
    """The architecture HySAC was trained with, without its numbers."""
    with torch.device("meta"):
        clip = CLIP(**open_clip.get_model_config("ViT-L-14"))
    return HySAC.from_clip(clip, scale_init=1 / 0.07)


TENSORS = {
    "toy": lambda: HySAC.from_clip(make_clip()).state_dict(),
    "toy with its text tower apart": lambda: HySAC.from_clip(
        make_clip(open_clip.CustomTextCLIP)
    ).state_dict(),
    "ViT-L-14": lambda: named().state_dict(),
    "toy with adapters": lambda: adapted_model(targets=lora.TARGETS).state_dict(),
    "adapters of the toy": lambda: lora.lora_state_dict(adapted_model(targets=lora.TARGETS)),
}


def described(state):
    return {name: [str(one.dtype).removeprefix("torch."), *one.shape] for name, one in state.items()}


def recorded():
    return json.loads(RECORD.read_text())


def drawn(record, seed=5):
    """Tensors of a record: a checkpoint as it was saved then."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator).mul(0.1).to(getattr(torch, dtype))
        for name, (dtype, *shape) in record.items()
    }


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_are_those_of_the_record(name):
    assert described(TENSORS[name]()) == recorded()[name]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("toy", lambda: HySAC.from_clip(make_clip())),
        ("toy with its text tower apart", lambda: HySAC.from_clip(make_clip(open_clip.CustomTextCLIP))),
        ("toy with adapters", lambda: adapted_model(targets=lora.TARGETS)),
    ],
)
def test_an_old_state_dict_loads(name, make):
    model, old = make(), drawn(recorded()[name])
    model.load_state_dict(old, strict=True)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in old.items())


def test_old_adapters_load():
    model, old = adapted_model(targets=lora.TARGETS), drawn(recorded()["adapters of the toy"])
    old["lora_alpha"] = torch.tensor(2.0, dtype=torch.float64)
    lora.load_lora(model, old)
    assert all(torch.equal(lora.lora_state_dict(model)[key], value) for key, value in old.items())


def test_an_old_model_directory_loads(tmp_path):
    """Written here without hysac, in the first version of the format."""
    old = drawn(recorded()["toy"])
    old["logit_scale"] = torch.tensor(3.0)  # within its range, as a saved one is
    added = {name: -old.pop(name).abs() for name in ("curv", "visual_alpha", "textual_alpha")}
    save_file(old, tmp_path / "open_clip_model.safetensors")
    save_file(added, tmp_path / "hysac.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CFG, "preprocess_cfg": {}}))
    (tmp_path / "hysac_config.json").write_text(json.dumps({"format_version": 1, "curv_init": 1.0}))
    state = hysac.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(state[name], value) for name, value in {**old, **added}.items())


if __name__ == "__main__":
    record = recorded() if RECORD.exists() else {}
    for key, state in TENSORS.items():
        record.setdefault(key, described(state()))
    lines = (
        f"  {json.dumps(key)}: {{\n"
        + ",\n".join(f"    {json.dumps(name)}: {json.dumps(one)}" for name, one in tensors.items())
        + "\n  }"
        for key, tensors in record.items()
    )
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")
