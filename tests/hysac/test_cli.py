"""The hysac command, as a user types it."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from importlib import metadata

import pytest
import torch
from PIL import Image

from hysac import Bounds, create_model, from_pretrained, save_pretrained
from hysac.cli import main
from hysac.cli.main import COMMANDS
from hysac.data import load_manifest
from hysac.scoring import OperatingPoints
from hysac.scoring.identity import weights_digest
from hysac.training.config import TrainConfig

ACTIONS = ("index build", "index add", "index delete", "index engine", "index info")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def toy(folder):
    arguments = ["toy", "--out", str(folder / "toy"), "--train-size", "16", "--val-size", "8", "--seed", "4"]
    assert main(arguments) == 0
    return folder / "toy"


def train_arguments(toy, **options):
    settings = {
        "train-data": toy / "train.jsonl",
        "val-data": toy / "val.jsonl",
        "model": "hysac-toy",
        "batch-size": 4,
        "max-steps": 2,
        "workers": 0,
        "device": "cpu",
        "logs": toy.parent / "runs",
        "name": "first",
    } | options
    return ["train", *(text for name, value in settings.items() for text in (f"--{name}", str(value)))]


@pytest.fixture(scope="module")
def run(toy):
    assert main(train_arguments(toy)) == 0
    return toy.parent / "runs" / "first"


@pytest.fixture
def fails(capsys):
    """Asserts that a command ends with exit code 2 and one line; returns the line."""

    def check(arguments):
        assert main([str(argument) for argument in arguments]) == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        told = [line for line in error.splitlines() if not line.startswith("warning: ")]
        assert told[0].startswith(f"hysac {arguments[0]}: error: ")
        return "\n".join(told)

    return check


class TestHelp:
    def test_lists_the_commands(self, capsys):
        with pytest.raises(SystemExit, match="0"):
            main(["--help"])
        told = capsys.readouterr().out
        assert all(command in told for command in COMMANDS)

    @pytest.mark.parametrize("command", [*COMMANDS, *ACTIONS])
    def test_every_command_explains_itself(self, command, capsys):
        with pytest.raises(SystemExit, match="0"):
            main([*command.split(), "--help"])
        told = capsys.readouterr().out
        assert f"usage: hysac {command} " in told
        if command != "demo":
            assert "example" in told
        assert "None" not in told
        assert max(map(len, told.splitlines())) <= 110

    def test_the_list_of_commands_needs_no_pytorch(self):
        program = (
            "import runpy, sys\ntry: runpy.run_module('hysac', run_name='__main__')\n"
            "finally: assert not {'torch', 'open_clip', 'PIL'} & set(sys.modules)"
        )
        command = [sys.executable, "-c", program, "--help"]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert told.startswith("usage: hysac ")

    def test_an_action_that_fails_names_its_usage(self, capsys):
        with pytest.raises(SystemExit, match="2"):
            main(["index", "build", "photos"])
        usage, error = capsys.readouterr().err.splitlines()
        assert usage == "usage: hysac index build --model-dir DIR INPUT... --out INDEX [options]"
        assert error.startswith("hysac index build: error: ")

    def test_train_shows_defaults_by_group(self, capsys):
        with pytest.raises(SystemExit):
            main(["train", "--help"])
        told = " ".join(capsys.readouterr().out.split())
        for group in ("data:", "model:", "loss:", "optimisation:", "selection:", "run:"):
            assert group in told
        assert "peak learning rate (default: 0.0001)" in told
        assert "(default: 'T->I R@1' 'I->T R@1' 'T*->I u I* (traversed) R@1'" in told
        assert "(default: k v out_proj c_fc c_proj conv1)" in told
        assert "of weights, order and augmentation (default: 0)" in told

    def test_evaluation_has_no_flag_without_effect(self, capsys):
        with pytest.raises(SystemExit):
            main(["evaluate", "--help"])
        told = capsys.readouterr().out
        assert "--image-root" in told
        assert "--aug-cfg" not in told

    def test_every_setting_has_a_flag(self, capsys):
        with pytest.raises(SystemExit):
            main(["train", "--help"])
        told = capsys.readouterr().out
        for name in TrainConfig(train_data="", model="").to_dict():
            assert f"--{name.replace('_', '-')}" in told

    def test_no_command(self, capsys):
        with pytest.raises(SystemExit, match="2"):
            main([])


class TestTrain:
    def test_settings_arrive(self, run):
        settings = json.loads((run / "config.json").read_text())
        assert settings["batch_size"] == 4
        assert settings["lr"] == TrainConfig(train_data="", model="").lr
        assert settings["precision"] == "fp32"

    def test_says_what_it_did(self, toy, run, capsys):
        assert main(train_arguments(toy, resume="latest")) == 0
        told = capsys.readouterr()
        assert told.out.splitlines() == [f"finished after 2 steps: {run}", f"model: {run / 'model'}"]

    def test_flags_of_every_kind(self, toy, monkeypatch):
        seen = []
        noted = lambda config: seen.append(config) or pytest.skip("seen")  # noqa: E731
        monkeypatch.setattr("hysac.cli.train.train", noted)
        more = ["--lora-targets", "q", "v", "--no-learn-curv", "--select-metric", "T->I R@1", "text AUC"]
        with pytest.raises(pytest.skip.Exception):
            main(
                [*train_arguments(toy, lr="3e-3", wd=0), *more, "--warmup", "0", "--csv-img-key", "filepath"]
            )
        (config,) = seen
        assert (config.lr, config.wd, config.warmup, config.learn_curv) == (3e-3, 0.0, 0, False)
        assert (config.lora_targets, config.select_metric) == (("q", "v"), ("T->I R@1", "text AUC"))
        assert config.csv_img_key == "filepath"

    def test_bad_input(self, toy, run, fails, folder):
        assert "holds a run already" in fails(train_arguments(toy))
        assert "gone.jsonl" in fails(train_arguments(toy, **{"train-data": "gone.jsonl", "name": "x"}))
        assert "model_name 'VIT-32' is unknown" in fails(train_arguments(toy, model="VIT-32", name="x"))
        assert "batch_size must be greater than 0, got 0" in fails(train_arguments(toy, **{"batch-size": 0}))
        assert "aug_cfg must be NAME=VALUE" in fails(train_arguments(toy, **{"aug-cfg": "size=3"}))
        assert "no checkpoint at" in fails(train_arguments(toy, resume="gone.pt", name="x"))
        assert "lr was 0.0001 and is now 0.1" in fails(train_arguments(toy, resume="latest", lr=0.1))
        broken = folder / "broken"
        broken.mkdir()
        (broken / "image.png").write_bytes(b"no image")
        row = {
            "safe_caption": "a",
            "unsafe_caption": "b",
            "safe_image": "image.png",
            "unsafe_image": "image.png",
        }
        (broken / "rows.jsonl").write_text(json.dumps(row) + "\n")
        told = fails(train_arguments(toy, **{"train-data": broken / "rows.jsonl", "name": "x"}))
        assert "image.png cannot be read" in told

    def test_an_error_of_one_process_is_told(self, toy, monkeypatch, capsys):
        monkeypatch.setenv("RANK", "3")
        assert main([*map(str, train_arguments(toy, **{"batch-size": 0}))]) == 2
        assert "hysac train (process 3): error: batch_size must be" in capsys.readouterr().err

    def test_debug_shows_the_traceback(self, toy):
        with pytest.raises(FileNotFoundError):
            main([*train_arguments(toy, **{"train-data": "gone.jsonl", "name": "x"}), "--debug"])

    def test_wrong_flags_are_usage_errors(self, capsys):
        with pytest.raises(SystemExit, match="2"):
            main(["train", "--model", "hysac-toy", "--train-data", "toy", "--batchsize", "3"])
        assert "unrecognized arguments: --batchsize" in capsys.readouterr().err

    def test_bad_images_are_skipped_on_request(self, toy, folder, caplog):
        rows = [json.loads(line) for line in (toy / "train.jsonl").read_text().splitlines()]
        rows[3]["safe_image"] = "missing.png"
        manifest = toy / "with_missing.jsonl"
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
        options = {"train-data": manifest, "on-bad-image": "skip", "name": "skipping", "max-steps": 1}
        assert main(train_arguments(toy, **options)) == 0
        assert "missing.png" in caplog.text


class TestEvaluate:
    def test_tables_and_json(self, toy, run, capsys):
        assert main(["evaluate", "--model-dir", str(run), "--val-data", str(toy / "val.jsonl")]) == 0
        told = capsys.readouterr().out
        for text in ("T*->I u I* (traversed)", "R@1 per tag", "Distance to the origin", "8 quadruplets"):
            assert text in told
        report = json.loads((run / "model" / "evaluation.json").read_text())
        assert report["quadruplets"] == 8
        assert report["curv"] == from_pretrained(run / "model").curvature.item()
        assert set(report["retrieval"]["T->I"]) == {"R@1", "R@10", "R@20"}
        assert report["safety"]["classification"]["text"]["calibrated_here"]

    @pytest.mark.slow
    def test_calibration_and_options(self, toy, run, capsys, folder):
        arguments = ["evaluate", "--model-dir", str(run / "model"), "--val-data", str(toy / "val.jsonl")]
        arguments += ["--calibration-data", str(toy / "train.jsonl"), "--ks", "2", "--statistic", "avg"]
        arguments += [
            "--out",
            str(folder / "report.json"),
            "--plots",
            str(folder / "plots"),
            "--workers",
            "0",
        ]
        assert main(arguments) == 0
        report = json.loads((folder / "report.json").read_text())
        assert set(report["retrieval"]["I->T"]) == {"R@2"}
        assert not report["safety"]["classification"]["image"]["calibrated_here"]
        names = {path.name for path in (folder / "plots").iterdir()}
        assert names == {"distances.png", "polar.png", "retrieved_images.png", "retrieved_texts.png"}
        told = capsys.readouterr().out
        assert all(f"picture: {folder / 'plots' / name}" in told for name in names)

    @pytest.mark.slow
    def test_a_checkpoint_is_the_same_model(self, toy, run, capsys, folder):
        common = ["--val-data", str(toy / "val.jsonl"), "--bounds", str(run / "model" / "bounds.json")]
        reports = []
        for source in (["--model-dir", str(run / "model")], ["--checkpoint", str(run)]):
            out = folder / f"report{len(reports)}.json"
            assert main(["evaluate", *source, *common, "--out", str(out)]) == 0
            reports.append(json.loads(out.read_text()))
        made = [report.pop("made_with") for report in reports]
        assert reports[0] == reports[1]
        assert made[1].pop("model") == str(run)
        assert made[0].pop("model") == weights_digest(run / "model")
        assert made[0] == made[1]
        assert made[0]["statistic"] == "avg"
        assert made[0]["data"]["name"] == "val.jsonl"
        assert made[0]["bounds"]["V"]["avg"] > 0
        assert set(made[0]["versions"]) == {"hysac", "torch", "open_clip_torch"}

    def test_texts_alone_get_what_is_defined(self, run, folder, capsys, fails):
        path = folder / "texts.jsonl"
        rows = [
            {"safe_caption": f"a dog {n}", "unsafe_caption": f"a bad dog {n}", "tag": "harm"}
            for n in range(4)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        out = folder / "texts.json"
        assert main(["evaluate", "--model-dir", str(run), "--val-data", str(path), "--out", str(out)]) == 0
        assert "Retrieval is not defined" in capsys.readouterr().out
        report = json.loads(out.read_text())
        assert list(report["safety"]["classification"]) == ["text"]
        assert report["retrieval"] == {}
        start = ["--model-dir", run, "--val-data", path, "--start"]
        assert "--start compares recalls, and text-only data has none" in fails(["evaluate", *start])

    def test_without_bounds_it_says_so(self, toy, folder, capsys):
        torch.manual_seed(0)
        plain = save_pretrained(create_model("hysac-toy"), folder / "plain")
        assert main(["evaluate", "--model-dir", str(plain), "--val-data", str(toy / "val.jsonl")]) == 0
        told = capsys.readouterr()
        assert "there are no bounds" in told.err
        assert "traversed" not in told.out

    @pytest.mark.slow
    def test_bad_input(self, toy, run, fails, folder):
        data = ["--val-data", toy / "val.jsonl"]
        assert "is not a HySAC model" in fails(["evaluate", "--model-dir", folder, *data])
        assert "has no checkpoints" in fails(["evaluate", "--checkpoint", folder, *data])
        assert "gone.json" in fails(["evaluate", "--model-dir", run, *data, "--bounds", "gone.json"])
        assert "ks must be positive" in fails(["evaluate", "--model-dir", run, *data, "--ks", "0"])
        broken = folder / "damaged-model"
        shutil.copytree(run / "model", broken)
        (broken / "hysac.safetensors").write_bytes(b"half")
        assert "hysac.safetensors is not what was saved" in fails(["evaluate", "--model-dir", broken, *data])
        other = folder / "other_bounds.json"
        bounds = Bounds.load(run / "model" / "bounds.json").to_dict()
        other.write_text(json.dumps({**bounds, "curv": 7.0}))
        assert "fitted at curv=7.0" in fails(["evaluate", "--model-dir", run, *data, "--bounds", other])


class TestBounds:
    def test_written_beside_the_model(self, toy, folder, capsys):
        torch.manual_seed(1)
        model = save_pretrained(create_model("hysac-toy", curv_init=0.3), folder / "unbounded")
        assert main(["bounds", "--model-dir", str(model), "--data", str(toy / "train.jsonl")]) == 0
        bounds = Bounds.load(model / "bounds.json")
        assert bounds.curv == pytest.approx(0.3)
        told = capsys.readouterr().out
        for letter, name in (("S", "safe text"), ("G", "unsafe image")):
            (line,) = [line for line in told.splitlines() if line.startswith(letter + " ")]
            assert name in line
            assert f"{bounds[letter].avg:.4f}" in line

    def test_written_elsewhere(self, toy, run, folder):
        out = folder / "elsewhere.json"
        arguments = ["bounds", "--checkpoint", str(run), "--data", str(toy / "val.jsonl"), "--out", str(out)]
        assert main(arguments) == 0
        assert Bounds.load(out)["V"].avg == pytest.approx(Bounds.load(run / "model/bounds.json")["V"].avg)

    @pytest.mark.slow
    def test_never_shrink_in_silence(self, toy, run, folder, fails):
        out = folder / "kept.json"
        shutil.copy(run / "model" / "bounds.json", out)
        before = out.read_bytes()
        rows = [
            {"safe_caption": record.safe_caption, "unsafe_caption": record.unsafe_caption}
            for record in load_manifest(toy / "val.jsonl").records
        ]
        texts = folder / "texts.jsonl"
        texts.write_text("\n".join(map(json.dumps, rows)))
        arguments = ["bounds", "--model-dir", str(run), "--data", str(texts), "--out", str(out)]
        told = fails(arguments)
        assert f"{out} has bounds of safe images and unsafe images, which the new ones lack" in told
        assert "--drop-classes" in told
        assert out.read_bytes() == before
        assert main([*arguments, "--drop-classes"]) == 0
        assert set(Bounds.load(out).classes) == {"S", "U"}
        assert (
            main(["bounds", "--model-dir", str(run), "--data", str(toy / "val.jsonl"), "--out", str(out)])
            == 0
        )
        assert set(Bounds.load(out).classes) == {"S", "V", "U", "G"}
        out.write_text("[]")
        assert "is there and holds no bounds" in fails(arguments)


@pytest.mark.slow
class TestConsole:
    def test_version(self, capsys):
        with pytest.raises(SystemExit) as exit:
            main(["--version"])
        assert exit.value.code == 0
        assert capsys.readouterr().out == (
            f"hysac {metadata.version('hysac')}, open_clip_torch {metadata.version('open_clip_torch')}, "
            f"torch {metadata.version('torch')}\n"
        )

    def test_a_closed_pipe_is_no_error(self):
        command = (
            f"{shlex.quote(sys.executable)} -m hysac.cli train --help | head -n 1; echo ${{PIPESTATUS[0]}}"
        )
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "0"
        assert done.stderr == ""

    @pytest.mark.parametrize(("command", "data"), [("bounds", "--data"), ("evaluate", "--val-data")])
    def test_results_are_written_though_nobody_reads_the_output(self, toy, run, folder, command, data):
        out = folder / f"unread-{command}.json"
        arguments = [command, "--model-dir", run, data, toy / "val.jsonl", "--out", out, "--workers", "0"]
        words = shlex.join([sys.executable, "-u", "-m", "hysac.cli", *map(str, arguments), "--device", "cpu"])
        script = f"{words} | true; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout == "0\n"
        assert json.loads(out.read_text())

    def test_another_broken_pipe_is_one(self, fails, monkeypatch, tmp_path):
        def broken(*args, **options):
            raise BrokenPipeError(32, "Broken pipe")

        monkeypatch.setattr("hysac.cli.toy.write_toy", broken)
        assert "Broken pipe" in fails(["toy", "--out", tmp_path])  # capsys' output has no descriptor
        with open(tmp_path / "out", "w") as out:
            monkeypatch.setattr(sys.stdout, "fileno", out.fileno)
            assert "Broken pipe" in fails(["toy", "--out", tmp_path])


class TestConvert:
    def test_bad_input(self, folder, fails):
        junk = folder / "junk.pth"
        junk.write_bytes(b"junk")
        assert fails(["convert", junk, "--out", folder / "converted"])
        assert "gone.pth" in fails(["convert", folder / "gone.pth", "--out", folder / "converted"])


class TestToy:
    def test_is_a_manifest(self, toy, capsys):
        for split, count in (("train", 16), ("val", 8)):
            manifest = load_manifest(toy / f"{split}.jsonl")
            assert len(manifest) == count
            with Image.open(manifest.records[0].safe_image) as image:
                assert image.size == (32, 32)

    def test_is_not_overwritten(self, toy, fails):
        assert "train.jsonl" in fails(["toy", "--out", toy])


class TestDemo:
    def test_leaves_other_things_alone(self, run, fails):
        before = sorted(run.iterdir())
        assert "holds something other than a demonstration" in fails(["demo", "--out", run])
        assert sorted(run.iterdir()) == before

    @pytest.mark.slow
    def test_in_small(self, folder, monkeypatch, capsys):
        """The whole demonstration with less data, twice into the same directory."""
        import hysac.demonstration

        monkeypatch.setattr(hysac.demonstration, "TRAIN_SIZE", 64)
        monkeypatch.setattr(hysac.demonstration, "HELD_OUT_SIZE", 32)
        monkeypatch.setitem(hysac.demonstration.SETTINGS, "epochs", 1)
        for _ in range(2):
            assert main(["demo", "--out", str(folder / "demo")]) == 0
        told = capsys.readouterr().out
        for text in ("T*->I u I* (traversed)", "Unsafe by distance to the origin", "What this shows"):
            assert text in told
        pictures = [line.strip() for line in told.splitlines() if line.endswith(".png")]
        assert len(pictures) == 2 * 5
        assert told.count(f".venv/bin/hysac score --model-dir {folder / 'demo'}") == 2
        points = OperatingPoints.load(folder / "demo" / "model" / "safety.json")
        assert set(points.modalities) == {"text", "image"}
        assert all(os.path.getsize(path) > 1000 for path in pictures)
        report = json.loads((folder / "demo" / "evaluation.json").read_text())
        assert report["quadruplets"] == 16
        assert not report["safety"]["classification"]["text"]["calibrated_here"]
        made = report["made_with"]
        assert made["model"] == weights_digest(folder / "demo" / "model")
        assert made["data"]["name"] == "test.jsonl"
        assert set(made["thresholds"]) == {"text", "image"}


@pytest.mark.slow
def test_as_a_module_and_a_script():
    for command in (
        [sys.executable, "-m", "hysac.cli"],
        [os.path.join(os.path.dirname(sys.executable), "hysac")],
    ):
        done = subprocess.run(
            [*command, "evaluate", "--model-dir", "gone", "--val-data", "toy"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr == "hysac evaluate: error: gone does not exist\n"
