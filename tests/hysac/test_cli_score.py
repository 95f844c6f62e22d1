"""``hysac calibrate`` and ``hysac score``: their files, their resumption, what they warn of."""

import csv
import io
import json
import math
import os
import re
import shutil

import numpy as np
import pyarrow.parquet
import pytest
import torch
from scoring import CAPTIONS, calibrate, make_model, pictures

from hysac.cli import main
from hysac.models.pretrained import model_directory
from hysac.scoring import OperatingPoints, SafetyScorer
from hysac.scoring.output import COLUMNS, Table
from hysac.scoring.summary import histogram


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cli_score")
    make_model(directory / "model")
    pictures(directory / "photos")
    return directory


@pytest.fixture
def model_dir(made, tmp_path):
    shutil.copytree(made / "model", tmp_path / "model")
    return tmp_path / "model"


def score(*arguments):
    return main(["score", *map(str, arguments), "--device", "cpu", "--workers", "0"])


def rows_of(path):
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(path.read_text())))
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_table_has_every_item(made, model_dir, tmp_path, capsys, suffix):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "broken.png").write_bytes(b"junk")
    calibrate(model_dir)
    out = tmp_path / f"scores{suffix}"
    inputs = ["--model-dir", model_dir, made / "photos", tmp_path / "photos", "--text", 'a "dog", or two']
    assert score(*inputs, "--out", out) == 0
    told = capsys.readouterr().err
    assert "3 images scored, 1 could not be read" in told
    assert "broken.png" in told
    rows = rows_of(out)
    assert len(rows) == 5
    scorer = SafetyScorer.from_pretrained(model_dir)
    for row in rows:
        if row["item"].endswith("broken.png"):
            assert "cannot be read" in row["error"]
            assert not row["distance"]
            assert not row["decision"]
            continue
        if row["modality"] == "image":
            (wanted,) = scorer(images=[row["item"]])
        else:
            (wanted,) = scorer(texts=['a "dog", or two'])
        assert float(row["distance"]) == pytest.approx(wanted.distance, rel=1e-5)
        assert float(row["probability"]) == pytest.approx(wanted.probability, rel=1e-3, abs=1e-6)
        assert (row["decision"], row["nearest_class"]) == (wanted.decision, wanted.nearest_class)
        assert not row["error"]
    assert not out.with_name(out.name + ".part").exists()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_an_interrupted_run_goes_on(made, model_dir, tmp_path, capsys, monkeypatch, suffix):
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"scores{suffix}"
    arguments = ["--model-dir", model_dir, made / "photos", "--text", "a dog", "--batch-size", 1]
    assert score(*arguments, "--out", whole) == 0
    seen = []
    real = SafetyScorer.encode_prepared

    def interrupted(self, modality, prepared):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(modality)
        return real(self, modality, prepared)

    monkeypatch.setattr(SafetyScorer, "encode_prepared", interrupted)
    assert score(*arguments, "--out", out) == 130
    part = out.with_name(out.name + ".part")
    assert not out.exists()
    with open(part, "a") as file:
        file.write("half of a li")
    assert score(*arguments, "--out", out) == 2
    assert "go on with --resume" in capsys.readouterr().err
    seen.clear()
    monkeypatch.setattr(SafetyScorer, "encode_prepared", lambda *call: seen.append(call[1]) or real(*call))
    assert score(*arguments, "--out", out, "--resume") == 0
    assert seen == ["image", "text"], "two of four were there"
    assert rows_of(out) == rows_of(whole)
    assert not list(tmp_path.glob("scores*.part*"))


@pytest.mark.slow
def test_a_run_goes_on_with_the_model_and_the_thresholds_that_it_began_with(
    model_dir, tmp_path, capsys, monkeypatch
):
    arguments = ["--model-dir", model_dir, "--text", "a dog", "--out", tmp_path / "scores.csv"]
    with monkeypatch.context() as patch:
        patch.setattr("hysac.cli.score._tell", lambda *_: 1 / 0)
        patch.setattr("hysac.scoring.output.Table.close", lambda *_: None)
        with pytest.raises(ZeroDivisionError):
            score(*arguments)
    part = tmp_path / "scores.csv.part"
    before = part.read_bytes()
    assert score(*arguments, "--image-root", tmp_path, "--resume") == 2  # rows of a manifest keep their names
    assert "holds scores of another model, or of other settings" in capsys.readouterr().err
    for change in (
        lambda: calibrate(model_dir, text=9.0),
        lambda: (model_dir / "safety.json").unlink() or make_model(model_dir, seed=1),
        lambda: make_model(model_dir) and part.with_name("scores.csv.part.json").unlink(),
    ):
        change()
        assert score(*arguments, "--resume") == 2
        assert "scores.csv.part holds scores of another model, or of other sett" in capsys.readouterr().err
    assert part.read_bytes() == before


def test_a_probability_of_0_is_kept(tmp_path):
    row = dict.fromkeys(COLUMNS) | {"item": "a", "modality": "text", "distance": 0.0, "probability": 0.0}
    for made in ({}, {}):
        table = Table(tmp_path / "scores.jsonl", resume=True)
        table.begin(made)
        if not table.done:
            table.write([row])
    table.close()
    assert rows_of(tmp_path / "scores.jsonl") == [row]


def test_without_a_file_lines_are_printed(model_dir, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("a dog\n\na cat\n"))
    assert score("--model-dir", model_dir, "-") == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert [line.partition("\t")[0] for line in lines] == ["-:1", "-:3"]
    assert all(float(line.partition("\t")[2]) > 0 for line in lines)
    assert "not calibrated for texts: there are distances, and no decisions" in told.err


@pytest.mark.slow
def test_data_of_another_kind_is_warned_of(made, model_dir, tmp_path, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(CAPTIONS * 8))
    scorer = SafetyScorer.from_pretrained(model_dir)
    distances = [one.distance for one in scorer(texts=CAPTIONS)]
    calibrate(model_dir, text=float(np.mean(distances)), spread=float(np.std(distances)))
    assert score("--model-dir", model_dir, texts) == 0
    assert "lie elsewhere" not in capsys.readouterr().err
    calibrate(model_dir, text=9.0)
    assert score("--model-dir", model_dir, texts) == 0
    assert "the texts lie elsewhere than those that the model was calibrated on" in capsys.readouterr().err


@pytest.mark.slow
def test_data_in_other_directions_are_warned_of(model_dir, tmp_path, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"a dog {number}" for number in range(120)))
    common = ["--model-dir", str(model_dir), "--device", "cpu", "--workers", "0"]
    assert main(["calibrate", *common, "--safe", str(texts), "--unsafe", str(texts)]) == 0
    assert score("--model-dir", model_dir, texts) == 0
    assert "lie elsewhere" not in capsys.readouterr().err
    path = model_directory(model_dir) / "safety.json"
    content = json.loads(path.read_text())
    direction = content["modalities"]["text"]["direction"]
    direction["mean"] = [-value for value in direction["mean"]]
    path.write_text(json.dumps(content))
    assert score("--model-dir", model_dir, texts, "--batch-size", 50) == 0
    told = capsys.readouterr().err
    assert "no mix of its safe and unsafe ones has such directions (gap 1.00" in told
    assert main(["classify-eval", *common, "--safe", str(texts), "--unsafe", str(texts)]) == 0
    assert "such directions" in capsys.readouterr().err


def test_bars_have_the_share_beyond_the_threshold():
    assert histogram(np.array([0.3, 0.3]), 0.2).splitlines() == [
        f"    0.3000 to   0.3000  {'#' * 40} 2",
        "threshold 0.2000: = is safe, # is unsafe",
    ]
    distances = np.array([*np.arange(12.0), 0.9, 0.2, 0.4])
    first, second, *_ = histogram(distances, 0.5).splitlines()
    assert first == f"    0.0000 to   0.9167  {'=' * 30}{'#' * 10} 4"
    assert second == f"    0.9167 to   1.8333  {'#' * 10}{' ' * 30} 1"


def test_a_name_that_is_no_utf_8(made, model_dir, tmp_path, capsys):
    for name in (b"\xff.png", b"\xfe.png"):
        path = os.path.join(os.fsencode(tmp_path), name)
        shutil.copyfile(made / "photos" / "0.png", path)
    with open(path, "wb") as broken:
        broken.write(b"junk")
    assert score("--model-dir", model_dir, tmp_path, "--out", tmp_path / "scores.csv") == 0
    broken, good = rows_of(tmp_path / "scores.csv")
    assert good["item"] == f"{tmp_path}/\\udcff.png"
    assert float(good["distance"]) > 0
    assert "udcfe.png cannot be read" in broken["error"]


def test_words_and_patches_are_explained(made, model_dir, tmp_path, capsys):
    inputs = ["--text", "a small red house", made / "photos" / "0.png"]
    assert score("--model-dir", model_dir, *inputs, "--explain", "--explain-dir", tmp_path / "drawn") == 0
    told = capsys.readouterr().out
    assert re.search(r"text:1: a [+-]0\.\d{3} small [+-]0\.\d{3} red [+-]0\.\d{3} house [+-]0\.\d{3}\n", told)
    (drawn,) = (tmp_path / "drawn").iterdir()
    assert drawn.name == "0001-0.png"
    assert str(drawn) in told


def test_what_cannot_be_read_is_not_explained(model_dir, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"junk")
    inputs = [tmp_path / "broken.png", "--text", " ", "--text", "a dog"]
    assert score("--model-dir", model_dir, *inputs, "--explain") == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[-1].startswith("text:2: a ")
    assert "broken.png: " in told.err
    assert "text:1: a text is empty" in told.err


def test_nothing_that_can_be_read_is_an_error(model_dir, tmp_path, capsys):
    files = [tmp_path / f"{number}.png" for number in range(22)]
    for file in files:
        file.write_bytes(b"junk")
    for command, rest in (("score", "s.csv"), ("index build", "i.index")):
        arguments = [*command.split(), "--model-dir", model_dir, *files, "--out", tmp_path / rest]
        assert main([*map(str, arguments), "--workers", "0", "--device", "cpu"]) == 2
        told = capsys.readouterr().err
        assert "none of the 22 items could be read" in told
        assert "and 2 more that could not be read" in told
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert (
        main([*map(str, ["index", "build", "--model-dir", model_dir, files[0], "--out", tmp_path / "link"])])
        == 2
    )
    assert "none of the 1 items could be read" in capsys.readouterr().err
    assert (tmp_path / "s.csv").read_text().count("cannot be read") == 22
    assert not (tmp_path / "i.index").exists()


def test_files_of_texts(model_dir, tmp_path, capsys):
    texts = tmp_path / "prompts"
    texts.write_text("a dog\n\na cat\n")
    assert score("--model-dir", model_dir, "--texts", texts) == 0
    names = [line.partition("\t")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == [f"{texts}:1", f"{texts}:3"]
    assert score("--model-dir", model_dir, "--texts", texts, "--texts", texts) == 2
    assert f"{texts}:1 is named twice" in capsys.readouterr().err
    texts.write_bytes(b"\xff")
    assert score("--model-dir", model_dir, "--texts", texts) == 2
    assert f"{texts} is not UTF-8 text" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["score", "calibrate", "classify-eval", "index"])
def test_a_distance_that_is_not_finite_ends_all(model_dir, tmp_path, capsys, monkeypatch, command):
    real = SafetyScorer.encode_rows

    def broken(self, modality, rows):
        points, distances = real(self, modality, rows)
        return points, torch.where(torch.arange(len(rows)) == 1, math.nan, distances)

    monkeypatch.setattr(SafetyScorer, "encode_rows", broken)
    texts = tmp_path / "texts.txt"
    texts.write_text("a dog\na cat\na bird\na house\n")
    given = {
        "score": ["score", texts, "--out", tmp_path / "scores.csv"],
        "index": ["index", "build", texts, "--out", tmp_path / "index"],
    }.get(command, [command, "--safe", texts, "--unsafe", texts])
    assert main([*map(str, given), "--model-dir", str(model_dir), "--device", "cpu", "--workers", "0"]) == 2
    assert "texts.txt:2 is nan, which tells nothing" in capsys.readouterr().err
    assert not (tmp_path / "scores.csv").exists()
    assert not (model_dir / "safety.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to score: give an INPUT"),
        (["--text", "a", "--out", "scores.xls"], r"ends in .csv, .jsonl, .parquet"),
        (["--text", "a", "--resume"], "--resume needs --out"),
        (["--text", "a", "--threshold", "youden"], "the model was not calibrated"),
        (["--text", "a", "--batch-size", "0"], "batch_size must be at least 1"),
    ],
)
def test_bad_arguments(model_dir, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert score("--model-dir", model_dir, *arguments) == 2
    assert message in capsys.readouterr().err


class TestCalibrate:
    def labelled(self, path, count):
        rows = [f"a dog {number},{'unsafe' if number % 2 else 'safe'},fire" for number in range(count)]
        path.write_text("\n".join(["item,label,category", *rows]))
        return path

    def run(self, model_dir, data, *arguments):
        given = ["calibrate", "--model-dir", str(model_dir), "--data", str(data), "--device", "cpu"]
        return main([*given, *arguments])

    @pytest.mark.slow
    def test_unpaired_items(self, model_dir, tmp_path, capsys):
        data = self.labelled(tmp_path / "labelled.csv", 240)
        assert self.run(model_dir, data, "--target-fpr", "0.05") == 0
        told = capsys.readouterr().out
        assert "texts: 120 safe, 120 unsafe" in told
        assert "* fpr=0.05" in told
        points = OperatingPoints.load(model_directory(model_dir) / "safety.json")
        assert points.default == "fpr=0.05"
        assert points.data["name"] == "labelled.csv"
        assert points.data["items"] == 240
        safe = [f"a dog {number}" for number in range(0, 240, 2)]
        scores = SafetyScorer.from_pretrained(model_dir)(texts=safe)
        called = np.mean([one.decision == "unsafe" for one in scores])
        assert called == points.point("text").fpr <= 0.05

    def test_images_beside_the_file(self, model_dir, tmp_path, capsys):
        paths = pictures(tmp_path / "data", 4)
        rows = [f"{path.name},{number % 2}" for number, path in enumerate(paths)]
        (tmp_path / "data" / "labelled.csv").write_text("\n".join(["item,label", *rows, "a dog,1"]))
        assert self.run(model_dir, tmp_path / "data" / "labelled.csv", "--probability", "none") == 0
        told = capsys.readouterr().out
        assert "images: 2 safe, 2 unsafe" in told
        assert "texts" not in told

    def test_quadruplets(self, model_dir, tmp_path, capsys):
        rows = [
            {"safe_caption": f"a dog {number}", "unsafe_caption": f"a fire {number}", "tag": "fire"}
            for number in range(30)
        ]
        (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert self.run(model_dir, tmp_path / "data.jsonl") == 0
        assert "texts: 30 safe, 30 unsafe" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("item,label\na dog,maybe\n", "1 of 1 rows cannot be used: line 2 has the label 'maybe'"),
            ("item,label\n,safe\n", "line 2 has no item"),
            ("item,label,modality\na,safe,video\n", "the modality 'video'"),
            ("a,b\n1,2\n", "has the columns a, b: not item and label, and not those of a known prompt set"),
            (
                "item,label\na dog,safe\na cat,safe\n",
                "no modality has safe and unsafe items: there are 2 safe texts",
            ),
            (
                "path,class\na.png,safe\n",
                "A table with labels has the columns item and label, not path, class",
            ),
            ("item,label\na.png,safe\n./a.png,unsafe\n", "1 images are named as safe and as unsafe: "),
            ("item,label\nphone.heic,safe\na.png,unsafe\n", "2 of 2 items cannot be read"),
            ("item,label\ngone.png,safe\na.png,unsafe\n", "2 of 2 items cannot be read"),
        ],
    )
    def test_bad_data(self, model_dir, tmp_path, capsys, content, message):
        (tmp_path / "data.csv").write_text(content)
        assert self.run(model_dir, tmp_path / "data.csv") == 2
        assert message in capsys.readouterr().err
        assert not (model_dir / "safety.json").exists()

    def test_too_few_items_are_told_before_any_work(self, model_dir, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("hysac.cli.calibrate.load_scorer", lambda *_, **__: pytest.fail("too late"))
        data = self.labelled(tmp_path / "labelled.csv", 20)
        assert self.run(model_dir, data, "--target-fpr", "0.01") == 2
        assert "fpr=0.01 needs at least 100 safe texts, got 10" in capsys.readouterr().err
