"""The model directory: what is in it, who can read it, and that nothing is lost on the way."""

import hashlib
import json
import math
import os
import random
import stat
import subprocess
import sys
import textwrap

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import hysac
from hysac.models import lora
from hysac.models.factory import PRECISIONS
from hysac.models.model import SCALARS, HySAC
from hysac.models.model_config import read_model_cfg
from hysac.safety import Bounds, ClassBounds

SUMMED = {"open_clip_model.safetensors", "open_clip_config.json", "hysac.safetensors", "hysac_config.json"}
FILES = SUMMED | {"SHA256SUMS"}


def make_model(**options):
    torch.manual_seed(0)
    model = hysac.create_model("hysac-toy", output_dict=True, curv_init=0.6, **options)
    with torch.no_grad():
        model.curv.fill_(0.3)
        model.visual_alpha.fill_(-1.23456789)
        model.textual_alpha.fill_(-2.3456789)
        model.logit_scale.fill_(3.456789)
    return model


def inputs():
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2, 2, 3, 32, 32, generator=generator)
    text = hysac.get_tokenizer("hysac-toy")(["a red circle", "a blue square", "a knife", "a cat"])
    return image, text.unflatten(0, (2, 2))


def assert_equal_outputs(a, b):
    with torch.no_grad():
        expected = b(*inputs())
        for key, value in a(*inputs()).items():
            assert torch.equal(value, expected[key])


def as_lists(cfg):
    """JSON has no tuples."""
    return json.loads(json.dumps(cfg))


@pytest.mark.parametrize("options", [{}, {"force_custom_text": True}, {"force_image_size": 32}])
def test_round_trip(tmp_path, options):
    model = make_model(**options).eval()
    assert hysac.save_pretrained(model, tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert {p.name for p in (tmp_path / "a" / "b").iterdir()} == FILES
    loaded = hysac.from_pretrained(tmp_path / "a" / "b", output_dict=True)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert loaded.curv_init == 0.6
    assert loaded.scalar_ranges == model.scalar_ranges
    assert as_lists(loaded.visual.preprocess_cfg) == as_lists(model.visual.preprocess_cfg)
    assert loaded.model_cfg == model.model_cfg
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert_equal_outputs(loaded, model)


@pytest.mark.slow
def test_inference_is_deterministic(tmp_path):
    """Also with a tower that drops patches in training."""
    model = make_model(force_patch_dropout=0.5)
    hysac.save_pretrained(model, tmp_path)
    loaded = hysac.from_pretrained(tmp_path, output_dict=True)
    assert_equal_outputs(loaded, loaded)
    assert_equal_outputs(loaded, hysac.from_pretrained(tmp_path, output_dict=True))
    first, second = (model.encode_image(inputs()[0]) for _ in range(2))
    assert not torch.equal(first, second)


def test_stock_open_clip_reads_the_towers(tmp_path):
    model = make_model().eval()
    hysac.save_pretrained(model, tmp_path)
    stock, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    assert type(stock) is open_clip.CLIP
    image, text = (batch.flatten(0, 1) for batch in inputs())
    with torch.no_grad():
        assert torch.equal(stock.eval().encode_image(image), model.encode_image(image))
        assert torch.equal(stock.encode_text(text), model.encode_text(text))
    assert stock.logit_scale.item() == model.logit_scale.item()
    picture = Image.effect_mandelbrot((50, 40), (-3, -2.5, 2, 2.5), 100).convert("RGB")
    assert torch.equal(preprocess(picture), hysac.transforms(model)[1](picture))
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    assert torch.equal(tokenizer(["a cat"]), hysac.get_tokenizer("hysac-toy")(["a cat"]))


def test_create_model_from_the_directory(tmp_path):
    model = make_model().eval()
    hysac.save_pretrained(model, tmp_path)
    name = f"local-dir:{tmp_path}"
    loaded, _, preprocess = hysac.create_model_and_transforms(name, output_dict=True)
    assert loaded.training
    assert loaded.curv_init == 0.6
    picture = Image.effect_mandelbrot((50, 40), (-3, -2.5, 2, 2.5), 100).convert("RGB")
    assert torch.equal(preprocess(picture), hysac.transforms(model)[1](picture))
    assert hysac.create_model(name, curv_init=0.6).curv_init == 0.6
    with pytest.raises(ValueError, match=r"curv_init must be 0\.6.*got 1\.0"):
        hysac.create_model(name, curv_init=1.0)
    assert_equal_outputs(loaded.eval(), model)
    assert hysac.get_tokenizer(name).context_length == model.context_length


@pytest.mark.parametrize("precision", PRECISIONS)
def test_scalars_survive_any_precision(tmp_path, precision):
    model = make_model()
    hysac.save_pretrained(model, tmp_path / "wide")
    loaded = hysac.from_pretrained(tmp_path / "wide", precision=precision, output_dict=True)
    hysac.save_pretrained(loaded, tmp_path / "again")
    again = hysac.from_pretrained(tmp_path / "again", precision=precision, output_dict=True)
    for name in SCALARS:
        for other in (loaded, again):
            assert getattr(other, name).dtype == torch.float32
            assert torch.equal(getattr(other, name), getattr(model, name))
    assert_equal_outputs(again, loaded)


def test_adapters_are_saved_merged(tmp_path):
    model = lora.add_lora(make_model(), r=4).eval()
    with torch.no_grad():
        for factor in lora.lora_parameters(model):
            factor.uniform_(-0.2, 0.2)
    hysac.save_pretrained(model, tmp_path)
    assert len(lora.lora_parameters(model)) == 2 * (1 + 5 * 5)
    loaded = hysac.from_pretrained(tmp_path, output_dict=True)
    # PyTorch's linear layer takes another path, and rounds differently, where the weight is frozen.
    assert_equal_outputs(loaded, lora.merge_lora(model).requires_grad_(True))
    open_clip.create_model(f"local-dir:{tmp_path}")


BOUNDS = Bounds({c: ClassBounds(0.4, 0.5, 0.6) for c in "SVUG"}, 0.7)


def test_bounds(tmp_path):
    hysac.save_pretrained(make_model(), tmp_path, bounds=BOUNDS)
    assert Bounds.load(tmp_path / "bounds.json") == BOUNDS


def test_bounds_and_an_evaluation_stay_with_their_weights(tmp_path, caplog):
    model = make_model()
    hysac.save_pretrained(model, tmp_path, bounds=BOUNDS)
    (tmp_path / "evaluation.json").write_text("{}")
    hysac.save_pretrained(model, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == FILES | {"bounds.json", "evaluation.json"}
    assert not caplog.records or "weights before" not in caplog.text


@pytest.mark.parametrize("what", ["a weight", "a scalar", "the preprocessing"])
def test_bounds_of_other_weights_are_set_aside(tmp_path, what, caplog):
    model = make_model()
    hysac.save_pretrained(model, tmp_path, bounds=BOUNDS)
    (tmp_path / "evaluation.json").write_text("{}")
    with torch.no_grad():
        if what == "a weight":
            model.visual.proj[0, 0] += 1
        elif what == "a scalar":
            model.visual_alpha += 0.1
        else:
            model.visual.preprocess_cfg = {**model.visual.preprocess_cfg, "mean": (0.5, 0.5, 0.5)}
    hysac.save_pretrained(model, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == FILES | {"bounds.old.json", "evaluation.old.json"}
    assert Bounds.load(tmp_path / "bounds.old.json") == BOUNDS
    assert "bounds.json is of the weights before: it is now bounds.old.json" in caplog.text
    hysac.save_pretrained(make_model(), tmp_path, bounds=BOUNDS)
    assert Bounds.load(tmp_path / "bounds.json") == BOUNDS


@pytest.mark.parametrize(
    ("bounds", "fails"), [*((BOUNDS, file) for file in range(6)), *((None, file) for file in range(5))]
)
def test_a_disk_that_fills_at_any_file_leaves_the_old_directory(tmp_path, monkeypatch, bounds, fails):
    """Every file reaches the disk before the first takes its place."""
    model = make_model().eval()
    hysac.save_pretrained(model, tmp_path, bounds=BOUNDS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls, fsync = iter(range(100)), os.fsync

    def full(descriptor):
        if next(calls) == fails:
            raise OSError("no space left on device")
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", full)
    other = make_model(force_quick_gelu=True)
    with pytest.raises(OSError, match="no space"):
        hysac.save_pretrained(other, tmp_path, bounds=bounds)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert_equal_outputs(hysac.from_pretrained(tmp_path, output_dict=True), model)


def test_a_directory_in_the_place_of_a_file_is_refused_before_any_write(tmp_path):
    (tmp_path / "hysac.safetensors").mkdir()
    with pytest.raises(IsADirectoryError, match=r"hysac\.safetensors is a directory"):
        hysac.save_pretrained(make_model(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["hysac.safetensors"]


def test_a_model_made_by_hand_needs_its_configuration(tmp_path):
    cfg = open_clip.get_model_config("hysac-toy")
    model = HySAC.from_clip(open_clip.CLIP(**cfg))
    with pytest.raises(ValueError, match="model_cfg"):
        hysac.save_pretrained(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    hysac.save_pretrained(model, tmp_path / "model", model_cfg=cfg)
    assert hysac.from_pretrained(tmp_path / "model").visual.preprocess_cfg["size"] == (32, 32)


def test_only_hysac_models_are_saved(tmp_path):
    with pytest.raises(TypeError, match="HySAC"):
        hysac.save_pretrained(torch.nn.Linear(2, 2), tmp_path)


def test_a_failed_write_leaves_the_old_model(tmp_path, monkeypatch):
    model = make_model().eval()
    hysac.save_pretrained(model, tmp_path)

    def fail(tensors, file, metadata):
        file.write_bytes(b"half a file")
        raise OSError("no space left on device")

    monkeypatch.setattr("hysac.models.pretrained.save_file", fail)
    with pytest.raises(OSError, match="no space"):
        hysac.save_pretrained(make_model(force_quick_gelu=True), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == FILES
    assert_equal_outputs(hysac.from_pretrained(tmp_path, output_dict=True), model)


def test_a_directory_without_hysac_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="hysac_config"):
        hysac.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError):
        hysac.from_pretrained(tmp_path / "absent")


def test_other_versions_and_tensors_are_refused(tmp_path):
    hysac.save_pretrained(make_model(), tmp_path)
    scalars = load_file(tmp_path / "hysac.safetensors")
    save_file({"curv": scalars["curv"]}, tmp_path / "hysac.safetensors")
    with pytest.raises(ValueError, match="visual_alpha"):
        hysac.from_pretrained(tmp_path, verify=False)
    settings = json.loads((tmp_path / "hysac_config.json").read_text())
    (tmp_path / "hysac_config.json").write_text(json.dumps(settings | {"format_version": 2}))
    with pytest.raises(ValueError, match="format_version"):
        hysac.from_pretrained(tmp_path, verify=False)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [20_000, 500])
def test_a_file_size_limit_leaves_the_old_model(tmp_path, limit):
    """The kernel refuses the write, as it does on a full disk: first of the towers, then of their config."""
    model = make_model().eval()
    hysac.save_pretrained(model, tmp_path)
    program = f"""
        import resource, sys, torch, hysac
        model = hysac.create_model("hysac-toy")
        if {limit} < 1000:
            hysac.models.pretrained._write_tensors = lambda path, tensors: None
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
        try:
            hysac.save_pretrained(model, {str(tmp_path)!r})
        except OSError as error:
            sys.exit(17 if "File too large" in str(error) else 1)
    """
    process = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert process.returncode == 17
    assert {p.name for p in tmp_path.iterdir()} == FILES
    assert_equal_outputs(hysac.from_pretrained(tmp_path, output_dict=True), model)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", sorted(SUMMED))
def test_a_missing_or_damaged_file_is_named(tmp_path, name, verify):
    hysac.save_pretrained(make_model(), tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=name):
        hysac.from_pretrained(tmp_path, verify=verify)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        hysac.from_pretrained(tmp_path, verify=verify)


@pytest.mark.parametrize("name", sorted(SUMMED))
def test_a_flipped_bit_anywhere_is_found(tmp_path, name):
    hysac.save_pretrained(make_model(), tmp_path)
    whole = (tmp_path / name).read_bytes()
    generator = random.Random(0)
    for place in (0, len(whole) - 1, *(generator.randrange(len(whole)) for _ in range(10))):
        content = bytearray(whole)
        content[place] ^= 1 << generator.randrange(8)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is not what was saved: its SHA-256 differs"):
            hysac.from_pretrained(tmp_path)
    (tmp_path / name).write_bytes(whole)
    hysac.from_pretrained(tmp_path)


def test_checksums_are_those_of_sha256sum(tmp_path):
    hysac.save_pretrained(make_model(), tmp_path)
    sums = (tmp_path / "SHA256SUMS").read_text()
    expected = {hashlib.sha256((tmp_path / name).read_bytes()).hexdigest(): name for name in SUMMED}
    assert dict(line.split("  ") for line in sums.splitlines()) == expected
    for wrong, message in (
        (sums[:-7], "hysac_conf"),
        (sums.replace("  h", "  ../h"), "no checksum of a file beside"),
    ):
        (tmp_path / "SHA256SUMS").write_text(wrong)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            hysac.from_pretrained(tmp_path)
    (tmp_path / "SHA256SUMS").unlink()
    hysac.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, "has surprise, which is no setting"),
        ({"model_cfg": {"surprise": 1}}, "has model_cfg.surprise, which"),
        (
            {"model_cfg": {"text_cfg": {"trust_remote_code": True}}},
            "has model_cfg.text_cfg.trust_remote_code, which",
        ),
        (
            {"model_cfg": {"text_cfg": {"tokenizer_kwargs": {"trust_remote_code": True}}}},
            "has model_cfg.text_cfg.tokenizer_kwargs.trust_remote_code, which",
        ),
        (
            {"model_cfg": {"text_cfg": {"hf_model_name": "some/model"}}},
            "model_cfg.text_cfg.hf_model_name = 'some/model' is fetched from a network",
        ),
        (
            {"model_cfg": {"text_cfg": {"hf_tokenizer_name": "some/model"}}},
            "names the tokenizer 'some/model', which would be fetched from a network",
        ),
        (
            {"model_cfg": {"vision_cfg": {"timm_model_pretrained": True}}},
            "timm_model_pretrained = True is fetched",
        ),
        ({"preprocess_cfg": {"std": [0.2, 0.0, 0.2]}}, r"std of the pixels must be positive, got \[0.2, 0.0"),
        ({"preprocess_cfg": {"std": [0.2, math.nan, 0.2]}}, "std of the pixels must be three finite numbers"),
        ({"preprocess_cfg": {"mean": [0.2, 0.2]}}, "mean of the pixels must be three finite numbers"),
        ({"preprocess_cfg": {"code": "x"}}, "has preprocess_cfg.code, which"),
        (
            {"model_cfg": {"text_cfg": {"norm_kwargs": {"eps": "x"}}}},
            "norm_kwargs.eps must be a finite number",
        ),
        ({"preprocess_cfg": []}, r"preprocess_cfg must be an object, got \[\]"),
        ({"preprocess_cfg": {"mean": None}}, "mean of the pixels must be three finite numbers, got None"),
        ({"preprocess_cfg": {"std": [0.2, 10**400, 0.2]}}, "std of the pixels must be three finite numbers"),
        ({"preprocess_cfg": {"mode": "L"}}, "mode of the images must be one of RGB, got 'L'"),
        ({"preprocess_cfg": {"resize_mode": ["squash"]}}, "resize_mode of the images must be one of"),
        ({"model_cfg": []}, r"model_cfg must be an object, got \[\]"),
        ({"model_cfg": {"vision_cfg": None}}, "model_cfg.vision_cfg must be an object, got None"),
        ({"model_cfg": {"text_cfg": []}}, r"model_cfg.text_cfg must be an object, got \[\]"),
        ({"model_cfg": {"embed_dim": True}}, "model_cfg.embed_dim must be an integer, got True"),
        ({"model_cfg": {"embed_dim": 10**400}}, "model_cfg.embed_dim must be an integer, got 10+"),
        ({"model_cfg": {"embed_dim": 0}}, "model_cfg.embed_dim must be positive, got 0"),
        ({"model_cfg": {"cast_dtype": "float16"}}, "has model_cfg.cast_dtype, which"),
        ({"model_cfg": {"quick_gelu": 1}}, "model_cfg.quick_gelu must be true or false, got 1"),
        (
            {"model_cfg": {"vision_cfg": {"width": "96"}}},
            "model_cfg.vision_cfg.width must be an integer or null",
        ),
        (
            {"model_cfg": {"vision_cfg": {"layers": [1, 2]}}},
            "vision_cfg.layers must be 4 integers or an integer",
        ),
        (
            {"model_cfg": {"vision_cfg": {"layers": 10**9}}},
            r"vision_cfg.layers must be at most \d+, the number",
        ),
        (
            {"model_cfg": {"vision_cfg": {"head_width": -32}}},
            "vision_cfg.head_width must be positive, got -32",
        ),
        ({"model_cfg": {"text_cfg": {"mlp_ratio": math.nan}}}, "text_cfg.mlp_ratio must be a finite number"),
        (
            {"model_cfg": {"text_cfg": {"tokenizer_kwargs": []}}},
            r"tokenizer_kwargs must be an object or null",
        ),
        (
            {"model_cfg": {"text_cfg": {"tokenizer_kwargs": None}}},
            "tokenizer_kwargs must be an object, got None",
        ),
    ],
)
def test_a_directory_cannot_choose_what_runs(tmp_path, change, message):
    hysac.save_pretrained(make_model(), tmp_path)
    path = tmp_path / "open_clip_config.json"

    def updated(old, new):
        both = {
            key: updated(old.get(key) or {}, value) if isinstance(value, dict) else value
            for key, value in new.items()
        }
        return {**old, **both}

    path.write_text(json.dumps(updated(json.loads(path.read_text()), change)))
    for load in (
        hysac.from_pretrained,
        lambda path, **options: hysac.create_model(f"local-dir:{path}", **options),
    ):
        with pytest.raises(ValueError, match=rf"open_clip_config\.json:? .*{message}"):
            load(tmp_path, verify=False)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["visual.conv1.weight", "logit_scale", "curv"])
def test_numbers_that_are_not_finite_are_named(tmp_path, name, value):
    model = make_model()
    hysac.save_pretrained(model, tmp_path / "good")
    with torch.no_grad():
        dict(model.named_parameters())[name].view(-1)[0] = value
    with pytest.raises(ValueError, match=rf"model: {name} has 1 of \d+ numbers that are not finite"):
        hysac.save_pretrained(model, tmp_path / "bad")
    assert not any((tmp_path / "bad").glob("*"))
    file = tmp_path / "good" / ("hysac.safetensors" if name == "curv" else "open_clip_model.safetensors")
    tensors = load_file(file)
    tensors[name].view(-1)[0] = value
    save_file(tensors, file)
    with pytest.raises(ValueError, match=rf"good: {name} has 1 of \d+ numbers that are not finite"):
        hysac.from_pretrained(tmp_path / "good", verify=False)


def test_counters_of_batch_normalisation_are_no_weights(tmp_path):
    cfg = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 64, "heads": 1, "layers": 1},
    }
    model = HySAC.from_clip(open_clip.CLIP(**cfg), model_cfg=cfg)
    hysac.save_pretrained(model, tmp_path)
    loaded = hysac.from_pretrained(tmp_path)
    assert any("num_batches_tracked" in name for name in loaded.state_dict())


def test_a_run_is_as_good_as_its_model(tmp_path):
    model = make_model().eval()
    hysac.save_pretrained(model, tmp_path / "run" / "model")
    assert_equal_outputs(hysac.from_pretrained(tmp_path / "run", output_dict=True), model)


@pytest.mark.parametrize(
    "settings",
    [
        [],
        {"format_version": True, "curv_init": 1.0},
        {"format_version": 1},
        {"format_version": 1, "curv_init": "one"},
        {"format_version": 1, "curv_init": 10**400},
        {"format_version": 1, "curv_init": -1.0},
    ],
)
def test_settings_of_another_kind_are_refused(tmp_path, settings):
    hysac.save_pretrained(make_model(), tmp_path)
    (tmp_path / "hysac_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        ValueError, match=r"hysac_config\.json: (its content|format_version|curv_init) must be"
    ):
        hysac.from_pretrained(tmp_path, verify=False)


@pytest.mark.parametrize(
    ("tower", "settings"),
    [
        ("vision_cfg", {"width": None}),
        ("vision_cfg", {"head_width": 7}),
        ("vision_cfg", {"head_width": 960}),
        ("vision_cfg", {"pool_type": "nonsense"}),
        ("vision_cfg", {"act_kwargs": {"nonsense": 1}}),
        ("vision_cfg", {"timm_model_name": "nonsense"}),
        ("vision_cfg", {"layers": [1, 1, 1, 1]}),
        ("text_cfg", {"heads": 5}),
    ],
)
def test_settings_that_make_no_model_are_a_value_error(tmp_path, tower, settings):
    """Each is of the right kind, and open_clip raises what it will."""
    hysac.save_pretrained(make_model(), tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"][tower] |= settings
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"cannot make model 'local-dir:"):
        hysac.from_pretrained(tmp_path, verify=False)


def test_the_configurations_of_open_clip_are_read(tmp_path):
    """All but those that name a tower of the hub, and those of CoCa."""
    refused = []
    for name in open_clip.list_models():
        cfg = open_clip.get_model_config(name)
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg}))
        try:
            assert read_model_cfg(tmp_path / "open_clip_config.json") == cfg
        except ValueError:
            refused.append(cfg)
    assert all("multimodal_cfg" in cfg or cfg["text_cfg"].get("hf_model_name") for cfg in refused)


def test_towers_of_another_architecture_are_refused(tmp_path):
    hysac.save_pretrained(make_model(), tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["layers"] += 1
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"cannot make model.*visual\.transformer\.resblocks"):
        hysac.from_pretrained(tmp_path, verify=False)


def test_files_are_as_readable_as_the_umask_says(tmp_path):
    """safetensors and temporary files are private to their user; a model directory is for sharing."""
    bounds = Bounds({c: ClassBounds(0.4, 0.5, 0.6) for c in "SVUG"}, 0.7)
    mask = os.umask(0o027)
    try:
        hysac.save_pretrained(make_model(), tmp_path, bounds=bounds)
    finally:
        os.umask(mask)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o640}
