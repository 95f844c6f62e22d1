"""``hysac export``: the graphs are the model, in every runtime, and what stands beside them suffices."""

import importlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import open_clip
import pytest
import torch
from filelock import FileLock
from PIL import Image
from scoring import CAPTIONS, calibrate, pictures

import hypkernels as hk
import hysac
from hysac.cli import main
from hysac.export import FORMATS, export_model, exporting
from hysac.export.description import describe_images, write_tokenizer
from hysac.export.towers import Tower, example
from hysac.files import check_sums, new_directory
from hysac.models.model import HySAC
from hysac.safety import Bounds, ClassBounds
from hysac.scoring import SafetyScorer
from hysac.scoring.identity import weights_digest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "docs/examples/score_without_torch.py"
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
LONG = " ".join(CAPTIONS)
MODALITIES = ("image", "text")


def tiny(kind=open_clip.CLIP):
    torch.manual_seed(0)
    model = HySAC.from_clip(kind(**TINY), model_cfg=TINY, curv_init=0.5).eval()
    with torch.no_grad():
        model.visual_alpha.fill_(math.log(0.5))
        model.textual_alpha.fill_(math.log(0.3))
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A calibrated model, pictures, and all that is exported of it: once for all processes of a run."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "export-tests"
    with FileLock(f"{place}.lock"):
        if not (place / "done").exists():
            make(place)
    return place


def make(place):
    classes = {letter: ClassBounds(0.1, mean, 9.0) for letter, mean in zip("SVUG", (1, 2, 2, 3), strict=True)}
    hysac.save_pretrained(tiny(), place / "model", bounds=Bounds(classes, 0.5))
    paths = pictures(place / "pictures", 4)
    items = [*(path.name for path in paths), *CAPTIONS]
    labelled = "\n".join(["item,label", *(f"{item},{n % 2}" for n, item in enumerate(items))])
    (place / "pictures" / "labelled.csv").write_text(labelled)
    scorer = SafetyScorer.from_pretrained(place / "model")
    middles = {
        "text": float(np.median(scorer.distances("text", CAPTIONS))),
        "image": float(np.median(scorer.distances("image", paths))),
    }
    calibrate(place / "model", **middles, spread=0.01)
    arguments = ["--model-dir", place / "model", "--out", place / "out", "--format", "onnx", "pt2"]
    labelled = ["--int8", place / "pictures" / "labelled.csv"]
    assert main(["export", *map(str, [*arguments, *labelled])]) == 0
    (place / "done").touch()


@pytest.fixture(scope="module")
def scorer(made):
    return SafetyScorer.from_pretrained(made / "model")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("score_without_torch", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_onnxruntime(model):
    session = onnxruntime.InferenceSession(model)
    return lambda batch: session.run(None, {session.get_inputs()[0].name: batch})


def in_openvino(model):
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed: extra export-openvino")
    core = openvino.Core()
    model = core.read_model(model)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda batch: [np.array(compiled(batch)[name]) for name in ("points", "distances")]


RUNTIMES = [in_onnxruntime, in_openvino]


def relative(found, wanted):
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    if found.ndim == 1:
        return np.abs(found / wanted - 1).max()
    return (np.linalg.norm(found - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)).max()


def batches(scorer, modality):
    """Of sizes that the export itself does not try, too."""
    for count in (1, 3, 8):
        yield example(scorer.model, scorer.tokenizer, modality, count)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("modality", MODALITIES)
def test_graphs_are_the_model(made, scorer, modality, runtime):
    run = runtime(made / "out" / f"{modality}.onnx")
    for batch in batches(scorer, modality):
        for found, wanted in zip(run(batch.numpy()), scorer.encode_rows(modality, batch), strict=True):
            assert found.dtype == np.float32
            assert relative(found, wanted) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("modality", MODALITIES)
def test_programs_are_the_model(made, scorer, modality):
    run = torch.export.load(made / "out" / f"{modality}.pt2").module()
    for batch in batches(scorer, modality):
        for found, wanted in zip(run(batch), scorer.encode_rows(modality, batch), strict=True):
            assert relative(found.detach(), wanted) < 1e-5


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.slow
def test_the_lift_is_right_at_every_norm(made, tmp_path, runtime):
    """What the graph has behind the features, from a norm of 1e-6, which the towers here never have."""
    graph = onnx.load(made / "out" / "image.onnx")
    (multiplied,) = [node for node in graph.graph.node if node.op_type == "Mul" and "factor" in node.input]
    (features,) = set(multiplied.input) - {"factor"}
    onnx.utils.extract_model(
        made / "out" / "image.onnx", tmp_path / "lift.onnx", [features], ["points", "distances"]
    )
    run = runtime(tmp_path / "lift.onnx")
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(41, 16, dtype=torch.float64), dim=-1)
    x = (torch.logspace(-6, 1, 41, dtype=torch.float64).unsqueeze(-1) * directions).float()
    wanted = hk.scaled_exp_map0(x.double(), 0.5, 0.5)
    points, distances = run(x.numpy())
    assert relative(points, wanted) < 2e-6
    assert relative(distances, 0.5 * x.double().norm(dim=-1)) < 2e-6
    zero = run(np.zeros((1, 16), np.float32))
    assert not np.any(zero[0])
    assert not np.any(zero[1])


@pytest.mark.parametrize("kind", [open_clip.CLIP, open_clip.CustomTextCLIP])
def test_towers_are_those_of_both_classes(kind):
    model = tiny(kind)
    tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=12)
    for modality in MODALITIES:
        tower, batch = Tower(model, modality), example(model, tokenizer, modality, 3)
        encode = model.encode_image if modality == "image" else model.encode_text
        with torch.no_grad():
            points, distances = tower(batch)
            wanted = encode(batch, normalize=True)
        assert relative(points, wanted) < 1e-6
        assert relative(distances, hk.dist0(wanted, 0.5)) < 1e-6
        text = model.text if kind is open_clip.CustomTextCLIP else model.transformer
        others = model.visual if modality == "text" else text
        assert not {id(one) for one in tower.parameters()} & {id(one) for one in others.parameters()}
    assert hasattr(model, "visual")


def test_encoders_export_with_any_batch():
    """Of the model itself, operators and all, in PyTorch."""
    model = tiny()

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, image):
            return self.model.encode_image(image, normalize=True)

    with torch.no_grad():
        shapes = ({0: torch.export.Dim.DYNAMIC},)
        program = torch.export.export(Encoder(), (torch.randn(2, 3, 16, 16),), dynamic_shapes=shapes)
        batch = torch.randn(3, 3, 16, 16)
        torch.testing.assert_close(program.module()(batch), model.encode_image(batch, normalize=True))


@pytest.mark.slow
def test_the_description_is_that_of_the_model(made, scorer):
    out = made / "out"
    check_sums(out / "SHA256SUMS")
    told = json.loads((out / "export.json").read_text())
    assert told["model"] == weights_digest(made / "model")
    assert told["curvature"] == pytest.approx(0.5)
    assert told["width"] == 16
    assert told["thresholds"] == json.loads(json.dumps(exporting.asdict(scorer.points)))
    assert told["bounds"]["G"]["avg"] == 3
    assert told["text"]["context_length"] == 12
    assert set(told["graphs"]) == {f"{one}.{suffix}" for one in MODALITIES for suffix in ("onnx", "pt2")}
    assert all(0 < graph["worst_relative_error"] < 1e-5 for graph in told["graphs"].values())
    assert told["versions"]["onnxruntime"] == onnxruntime.__version__
    session = onnxruntime.InferenceSession(out / "text.onnx")
    assert [(one.name, one.shape, one.type) for one in session.get_inputs()] == [
        ("tokens", ["batch", 12], "tensor(int64)")
    ]
    assert [(one.name, one.shape) for one in session.get_outputs()] == [
        ("points", ["batch", 16]),
        ("distances", ["batch"]),
    ]


@pytest.mark.slow
def test_no_path_of_the_machine_is_in_a_file(made):
    for path in (made / "out").iterdir():
        content = path.read_bytes()
        for place in (ROOT, made, Path(torch.__file__).parent, Path(open_clip.__file__).parent):
            assert str(place).encode() not in content, path.name


@pytest.mark.slow
def test_the_loss_of_int8_is_told(made, scorer):
    report = json.loads((made / "out" / "export.json").read_text())["int8"]
    assert report["data"]["name"] == "labelled.csv"
    paths = [made / "pictures" / f"{number}.png" for number in range(4)]
    for modality, items in (("image", paths), ("text", CAPTIONS)):
        graph = onnx.load(made / "out" / f"{modality}.int8.onnx").graph
        assert sum(node.op_type == "MatMulInteger" for node in graph.node) >= 4
        run = in_onnxruntime(made / "out" / f"{modality}.int8.onnx")
        prepare = scorer.pixels if modality == "image" else lambda text: scorer.tokens(text)[0]
        prepared = torch.stack([prepare(item) for item in items])
        found, wanted = run(prepared.numpy())[1], scorer.encode_rows(modality, prepared)[1]
        told = report[modality]
        assert told["items"] == 4
        assert 1e-5 < told["distance_error"] < 0.05
        assert told["distance_error"] == pytest.approx(relative(found, wanted), rel=1e-3)
        for name, distances in (("auc_int8", found), ("auc", wanted.numpy())):
            pairs = [np.sign(unsafe - safe) for unsafe in distances[1::2] for safe in distances[0::2]]
            assert told[name] == np.mean(pairs) / 2 + 0.5
        threshold = scorer.points.point(modality).threshold
        assert told["decisions_changed"] == np.mean((found > threshold) != (wanted.numpy() > threshold))


@pytest.mark.slow
def test_the_example_scores_as_hysac_does(made, tmp_path):
    """In a process that has no torch."""
    texts = ["--text", CAPTIONS[0], "--text", LONG]
    items = [str(made / "pictures" / f"{number}.png") for number in range(2)]
    place = ["--out", str(tmp_path / "scores.jsonl"), "--device", "cpu", "--workers", "0"]
    assert main(["score", "--model-dir", str(made / "model"), *items, *texts, *place]) == 0
    wanted = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    run = "sys.modules['torch'] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    command = [
        sys.executable,
        "-c",
        f"import sys, runpy; {run}",
        str(SCRIPT),
        str(made / "out"),
        *items,
        *texts,
    ]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = [json.loads(line) for line in told.splitlines()]
    assert len(found) == len(wanted) == 4
    for one, other in zip(found, wanted, strict=True):
        assert one["distance"] == pytest.approx(other["distance"], rel=1e-5)
        assert one["probability"] == pytest.approx(other["probability"], rel=1e-2)
        for name in ("modality", "decision", "nearest_class"):
            assert one[name] == other[name] is not None


@pytest.mark.slow
def test_the_example_reads_8_bits_and_refuses_what_it_cannot(made, script, scorer):
    scores = script.Scorer(made / "out", ".int8.onnx")
    found = scores("text", CAPTIONS[1])["distance"]
    assert found == pytest.approx(scorer.distances("text", [CAPTIONS[1]])[0], rel=0.05)
    with pytest.raises(ValueError, match="empty"):
        scores("text", " ")
    with pytest.raises(ValueError, match="no defined range"):
        scores("image", Image.new("F", (20, 20)))
    scores.graphs["text"] = SimpleNamespace(
        get_inputs=lambda: [SimpleNamespace(name="tokens")],
        run=lambda *_: (np.ones((1, 16)), np.array([np.nan])),
    )
    with pytest.raises(FloatingPointError):
        scores("text", "a dog")


@pytest.mark.slow
def test_tokenizers_of_hugging_face_go_along(made, tmp_path, script):
    home, out = tmp_path / "home", tmp_path / "out"
    home.mkdir()
    out.mkdir()
    config = json.loads((made / "model" / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": "canonicalize"}
    (home / "open_clip_config.json").write_text(json.dumps(config))
    (home / "tokenizer.json").write_text("{}")
    scorer = SimpleNamespace(tokenizer=SimpleNamespace(context_length=64))
    told = write_tokenizer(scorer, home, out)
    assert told["tokenizer"] == "transformers"
    assert told["settings"] == {"clean": "canonicalize"}
    assert told["context_length"] == 64
    assert told["files"] == [path.name for path in out.iterdir()] == ["tokenizer.json"]
    (out / "export.json").write_text(json.dumps({"text": told}))
    with pytest.raises(ValueError, match="one of transformers"):
        script.Scorer(out)
    scorer.tokenizer = open_clip.tokenizer.SimpleTokenizer(reduction_mask="random")
    with pytest.raises(ValueError, match="reduction_mask drops tokens at random"):
        write_tokenizer(scorer, home, out)


TEXTS = [
    *CAPTIONS,
    LONG,
    "It's the dogs' day: they'LL, we've, I'm, he'd!",
    "naïve café, 東京タワー 12345 ½ ٣",
    "<end_of_text> <start_of_text>x</w>",
    "AT&amp;T &amp;lt;b&gt;  \t tabs\nand\u2003spaces ",
    "👩‍👩‍👧 emoji 🎉🎉, ﬁ ligature, â€œmojibakeâ€\x9d",
    "aaaaaaaaaaa!!!!!!??.. --- ___ ''s 's'S",
    "Ünïcödé İstanbul ǅ straße \u017f's",
]


@pytest.mark.slow
def test_tokens_are_those_of_open_clip(made, script, scorer):
    scores = script.Scorer(made / "out")
    for text in TEXTS:
        np.testing.assert_array_equal(scores.tokens(text), scorer.tokens(text).numpy(), err_msg=text)
    generator = np.random.default_rng(0)
    words = [word for text in TEXTS for word in text.split()]
    letters = list("abcdeéßñ'\u20190 9.,!-—\u00a0日本ж💥")
    for _ in range(100):
        text = " ".join(generator.choice(words, 5)) + "".join(generator.choice(letters, 12)) + "."
        np.testing.assert_array_equal(scores.tokens(text), scorer.tokens(text).numpy(), err_msg=text)


@pytest.mark.parametrize(
    "cfg",
    [
        {"size": 16},
        {"size": (16, 16), "interpolation": "bilinear", "mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3)},
        {"size": (16, 16), "resize_mode": "squash"},
        {"size": (16, 16), "resize_mode": "longest", "fill_color": 99},
        {"size": (12, 20), "resize_mode": "longest", "interpolation": "random"},
        {"size": (12, 20), "interpolation": "bilinear"},
        {"size": (21, 11), "resize_mode": "squash", "interpolation": "bilinear"},
    ],
)
def test_pixels_are_those_of_the_transform(script, cfg):
    model = SimpleNamespace(visual=SimpleNamespace(preprocess_cfg=cfg, image_size=cfg["size"]))
    transform = hysac.transforms(model)[1]
    scores = SimpleNamespace(about={"image": json.loads(json.dumps(describe_images(model)))})
    generator = np.random.default_rng(0)
    for shape in ((40, 36), (17, 55), (7, 5), (16, 16), (33, 100)):
        image = Image.fromarray(generator.integers(0, 256, (*shape, 3), dtype=np.uint8))
        found = script.Scorer.pixels(scores, image)
        np.testing.assert_array_equal(found[0], transform(image).numpy())


@pytest.mark.slow
def test_the_script_scores_what_can_be_read(made, script, tmp_path, monkeypatch, capsys):
    (tmp_path / "broken.png").write_bytes(b"junk")
    Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
    files = [str(tmp_path / name) for name in ("broken.png", "black.png")]
    monkeypatch.setattr(sys, "argv", ["score", str(made / "out"), *files])
    script.main()
    broken, black = map(json.loads, capsys.readouterr().out.splitlines())
    assert broken["error"].startswith("UnidentifiedImageError: ")
    assert black["distance"] > 0


def test_pictures_of_every_mode_are_those_of_the_transform(script):
    generator = np.random.default_rng(0)
    grey = generator.integers(0, 65536, (20, 30), dtype=np.uint16)
    colours = Image.fromarray(generator.integers(0, 256, (20, 30, 4), dtype=np.uint8), "RGBA")
    turned = colours.convert("RGB")
    turned.getexif()[0x0112] = 6
    palette = colours.convert("RGB").quantize(16)
    palette.info["transparency"] = 3
    others = (colours.convert(mode) for mode in ("L", "LA", "CMYK"))
    assert script.rgb(turned).size == (20, 30)
    for image in (Image.fromarray(grey), colours, turned, palette, *others):
        wanted = hysac.data.images.to_rgb(image)
        np.testing.assert_array_equal(np.asarray(script.rgb(image)), np.asarray(wanted), err_msg=image.mode)


class TestRefusals:
    """Nothing is written, not even a part."""

    def refused(self, made, tmp_path, error, message, **options):
        with pytest.raises(error, match=message):
            export_model(made / "model", tmp_path / "out", **options)
        assert not list(tmp_path.iterdir())

    @pytest.mark.slow
    def test_a_graph_that_differs(self, made, tmp_path, monkeypatch):
        self.give_programs(monkeypatch, lambda points, distances: (points, distances * 1.001))
        message = (
            r"image\.pt2 differs from the model by 0\.001, relative, more than 1e-05: nothing was written"
        )
        self.refused(made, tmp_path, ValueError, message, formats=["pt2"])
        self.give_programs(monkeypatch, lambda points, distances: (points * torch.nan, distances))
        self.refused(made, tmp_path, ValueError, "differs from the model by inf", formats=["pt2"])

    @staticmethod
    def give_programs(monkeypatch, change):
        """In place of programs, which take seconds to make, the towers, and changed results of them."""
        monkeypatch.setattr(exporting, "program_of", lambda tower, _: tower)
        kind = FORMATS["pt2"]
        seen = []

        def write(tower, modality, path):
            seen.append(tower)
            path.write_bytes(b"")

        fake = exporting.FORMATS | {
            "pt2": type(kind)(kind.suffix, (), write, lambda _: lambda batch: change(*seen[-1](batch)))
        }
        monkeypatch.setattr(exporting, "FORMATS", fake)

    @pytest.mark.slow
    @pytest.mark.parametrize("formats", [[], ["tflite"], "onnx"])
    def test_formats(self, made, tmp_path, formats):
        self.refused(made, tmp_path, ValueError, "formats must be some of onnx, pt2, aoti", formats=formats)

    def test_int8_of_no_onnx(self, made, tmp_path):
        self.refused(made, tmp_path, ValueError, "int8 needs the format onnx", formats=["pt2"], int8="a.csv")

    def test_a_missing_package(self, made, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxscript", None)
        self.refused(made, tmp_path, ImportError, r"onnx needs onnxscript: pip install 'hysac\[export\]'")

    def test_a_missing_compiler(self, made, tmp_path, monkeypatch):
        from torch._inductor import cpp_builder, exc

        def absent():
            raise exc.InvalidCxxCompiler

        monkeypatch.setattr(cpp_builder, "get_cpp_compiler", absent)
        self.refused(made, tmp_path, FileNotFoundError, "aoti needs a C\\+\\+ compiler", formats=["aoti"])

    @pytest.mark.slow
    def test_a_directory_that_is_there(self, made, capsys):
        before = (made / "out" / "export.json").read_bytes()
        assert main(["export", "--model-dir", str(made / "model"), "--out", str(made / "out")]) == 2
        assert "exists, and is no empty directory" in capsys.readouterr().err
        assert (made / "out" / "export.json").read_bytes() == before

    def test_no_model(self, tmp_path, capsys):
        assert main(["export", "--model-dir", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
        assert "is not a HySAC model" in capsys.readouterr().err


@pytest.mark.slow
def test_compiled_programs_are_checked_like_the_others(made, tmp_path, monkeypatch):
    """The compiler takes minutes: here it is a stand-in, whose program is the tower."""
    TestRefusals.give_programs(monkeypatch, lambda *results: results)
    towers = {}

    def compile_and_package(program, package_path):
        towers[package_path] = program
        Path(package_path).write_bytes(b"compiled")
        return package_path

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compile_and_package)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", towers.__getitem__)
    out = export_model(made / "model", tmp_path / "out", formats=["aoti"])
    assert {path.name for path in out.iterdir()} == {
        *(f"{modality}.aoti.pt2" for modality in MODALITIES),
        *("export.json", "tokenizer.json", "SHA256SUMS"),
    }


PAGE = ROOT / "docs/serve_without_pytorch.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_page_runs(made, tmp_path, monkeypatch, number):
    if "openvino" in BLOCKS[number]:
        pytest.importorskip("openvino", reason="OpenVINO is not installed: extra export-openvino")
    (tmp_path / "exported").symlink_to(made / "out")
    Image.new("RGB", (30, 20), "teal").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(SCRIPT.parent)
    exec(compile(BLOCKS[number], f"{PAGE.name} {number}", "exec"), {"__name__": "__main__"})


def test_a_new_directory_is_whole_or_absent(tmp_path):
    with new_directory(tmp_path / "a" / "b") as place:
        (place / "file").write_text("x")
        assert not (tmp_path / "a" / "b").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert (tmp_path / "a" / "b" / "file").read_text() == "x"

    def interrupted():
        with new_directory(tmp_path / "c") as place:
            (place / "file").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    with pytest.raises(FileExistsError), new_directory(tmp_path / "a"):
        pytest.fail("too late")
