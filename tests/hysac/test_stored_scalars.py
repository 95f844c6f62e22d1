"""The scalars and pixel statistics that a checkpoint of MERU's kind stores, for a CLIP without."""

import json
import logging
import math

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_convert import as_saved, make_weights, plain_clip

import hysac
from hysac.cli import main
from hysac.models.model import SCALARS
from hysac.models.stored_scalars import read_stored_scalars

LOGARITHMS = {"curv": -1.9, "visual_alpha": -0.8, "textual_alpha": -1.1, "logit_scale": 4.2}
STATISTICS = (0.229, 0.224, 0.225)  # for mean and deviation alike, as no default has it


def checkpoint_of_meru(**changes):
    """The names and shapes of such a checkpoint, in small; None leaves a tensor out."""
    tensors = {name: torch.tensor(value) for name, value in LOGARITHMS.items()}
    tensors |= {name: torch.tensor(STATISTICS).view(3, 1, 1) for name in ("pixel_mean", "pixel_std")}
    tensors |= {
        "visual.cls_token": torch.zeros(1, 1, 8),
        "visual.patch_embed.proj.weight": torch.zeros(8, 3, 4, 4),
        "visual.blocks.0.norm1.weight": torch.ones(8),
        "textual.token_embed.weight": torch.zeros(20, 8),
        "textual.attn_mask": torch.ones(5, 5).triu(1).bool(),
        "visual_proj.weight": torch.zeros(4, 8),
        "textual_proj.weight": torch.zeros(4, 8),
    }
    return {name: one for name, one in (tensors | changes).items() if one is not None}


@pytest.fixture
def clip(tmp_path):
    (tmp_path / "clip").mkdir()
    save_file(plain_clip(), tmp_path / "clip" / "model.safetensors")
    (tmp_path / "clip" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5, 0.5, 0.5], "resample": 2})
    )
    return tmp_path / "clip"


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_clip_gets_all_four_and_the_statistics(tmp_path, clip, prefix, caplog):
    saved = {f"{prefix}{name}": tensor for name, tensor in checkpoint_of_meru().items()}
    torch.save({"model": saved, "iteration": 7}, tmp_path / "meru.pth")
    with caplog.at_level(logging.INFO):
        model = hysac.from_reference(clip, scalars_from=tmp_path / "meru.pth")
    for name, value in LOGARITHMS.items():
        assert getattr(model, name).item() == pytest.approx(value, rel=1e-6)
    assert model.visual.preprocess_cfg["mean"] == pytest.approx(STATISTICS)
    assert model.visual.preprocess_cfg["std"] == pytest.approx(STATISTICS)
    assert model.visual.preprocess_cfg["interpolation"] == "bilinear"
    assert "meru.pth has curv exp(-1.9), visual_alpha exp(-0.8)" in caplog.text
    assert "meru.pth has pixels of mean 0.229, 0.224, 0.225 and std 0.229" in caplog.text
    pixels = hysac.transforms(model)[1](Image.new("RGB", (20, 20), "white"))
    assert pixels[:, 0, 0].tolist() == pytest.approx([(1 - value) / value for value in STATISTICS], rel=1e-5)


def test_from_the_command_line(tmp_path, clip):
    torch.save({"model": checkpoint_of_meru()}, tmp_path / "meru.pth")
    arguments = ["convert", str(clip), "--scalars-from", str(tmp_path / "meru.pth")]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    model = hysac.from_pretrained(tmp_path / "out")
    assert {name: getattr(model, name).item() for name in SCALARS} == pytest.approx(LOGARITHMS)
    assert model.visual.preprocess_cfg["mean"] == pytest.approx(STATISTICS)


@pytest.mark.parametrize("name", [*SCALARS, "pixel_mean", "pixel_std"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: None, r"must have curvature, factors and pixel statistics: no {name}$"),
        (lambda one: torch.full_like(one, math.nan), r"{name} has \d of \d numbers that are not finite"),
        (lambda one: one.int(), r"{name} must be float64.*got torch\.int32"),
        (lambda one: one.new_ones(2), r"must (have one element, got shape \(2,\)|be three finite numbers)"),
    ],
)
def test_what_is_missing_or_no_number_is_named(tmp_path, clip, name, change, message):
    saved = checkpoint_of_meru()
    torch.save(checkpoint_of_meru(**{name: change(saved[name])}), tmp_path / "meru.pth")
    with pytest.raises(ValueError, match=rf"meru\.pth:? .*{message.format(name=name)}"):
        hysac.from_reference(clip, scalars_from=tmp_path / "meru.pth")


@pytest.mark.parametrize("value", [0.0, -0.2])
def test_a_deviation_is_positive(tmp_path, value):
    torch.save(checkpoint_of_meru(pixel_std=torch.full((3, 1, 1), value)), tmp_path / "meru.pth")
    with pytest.raises(ValueError, match=r"meru\.pth: std of the pixels must be positive"):
        read_stored_scalars(tmp_path / "meru.pth")


def test_a_name_that_is_there_twice(tmp_path):
    torch.save(checkpoint_of_meru() | {"module.curv": torch.tensor(0.1)}, tmp_path / "meru.pth")
    with pytest.raises(ValueError, match=r"has several tensors curv, such as module\.curv"):
        read_stored_scalars(tmp_path / "meru.pth")


def test_statistics_of_hysacs_checkpoint_are_not_taken(tmp_path):
    torch.save(as_saved(make_weights(torch.float32)), tmp_path / "hysac.pth")
    with pytest.raises(ValueError, match=r"took no part in training\. Convert that checkpoint itself"):
        read_stored_scalars(tmp_path / "hysac.pth")


def test_a_checkpoint_with_scalars_of_its_own(tmp_path):
    torch.save(as_saved(make_weights(torch.float32)), tmp_path / "hysac.pth")
    torch.save(checkpoint_of_meru(), tmp_path / "meru.pth")
    with pytest.raises(ValueError, match=r"hysac\.pth has scalars of its own: scalars_from must be None"):
        hysac.from_reference(tmp_path / "hysac.pth", scalars_from=tmp_path / "meru.pth")


def test_towers_of_timm_are_not_converted(tmp_path):
    torch.save({"model": checkpoint_of_meru()}, tmp_path / "meru.pth")
    with pytest.raises(ValueError, match=r"has towers of timm.*cannot be converted.*--scalars-from"):
        hysac.from_reference(tmp_path / "meru.pth")


@pytest.mark.parametrize(
    ("name", "value", "used"), [("logit_scale", 1.5, -math.log(0.07)), ("visual_alpha", 0.5, 0)]
)
def test_a_scalar_out_of_its_range_is_told(tmp_path, clip, name, value, used, caplog):
    torch.save(checkpoint_of_meru(**{name: torch.tensor(value)}), tmp_path / "meru.pth")
    with caplog.at_level(logging.WARNING):
        hysac.from_reference(clip, scalars_from=tmp_path / "meru.pth")
    assert f"{name} is exp({value:g}), used as the bound of its range, exp({used:.6g})" in caplog.text


@pytest.mark.parametrize("value", [1e4, -1e4])
def test_a_curvature_beyond_all_numbers(tmp_path, clip, value):
    torch.save(checkpoint_of_meru(curv=torch.tensor(value)), tmp_path / "meru.pth")
    with pytest.raises(ValueError, match="curv must be the logarithm of a curvature"):
        hysac.from_reference(clip, scalars_from=tmp_path / "meru.pth")
