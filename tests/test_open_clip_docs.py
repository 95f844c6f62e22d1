"""docs/open_clip.md: its code runs, its commands have the flags they show, what it names exists."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch

from hysac.cli.main import make_parser
from hysac.open_clip_trainer.flags import check_flags, split_flags

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/open_clip.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines()
    if line and not line.startswith("#")
]


@pytest.mark.slow
def test_code_runs(tmp_path, monkeypatch):
    """All blocks in their order, as a reader would run them."""
    pytest.importorskip("webdataset", reason="open_clip_train needs webdataset: pip install webdataset")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    assert len(BLOCKS) == 3
    namespace = {"__name__": "__main__"}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"docs/open_clip.md block {number}", "exec"), namespace)


@pytest.mark.parametrize("command", [c for c in COMMANDS if "hysac.open_clip_trainer" in c])
def test_flags_of_the_trainer(command):
    from open_clip_train.params import parse_args

    words = shlex.split(command)
    options, others = split_flags(words[words.index("hysac.open_clip_trainer") + 1 :])
    check_flags(options, parse_args(others))


def test_the_other_commands():
    others = [shlex.split(c) for c in COMMANDS if "hysac.open_clip_trainer" not in c]
    for words in others:
        if words[0] == "hysac":
            make_parser().parse_args(words[1:])
        elif words[0] == "pip":
            (extra,) = re.findall(r"hysac\[([\w-]+)\]", words[-1])
            assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text()
        else:
            assert words[:3] == ["python", "-m", "hysac.evaluation.clip_benchmark"]
    assert len(COMMANDS) - len(others) == 3


def test_flags_of_the_table_exist(capsys):
    with pytest.raises(SystemExit):
        split_flags(["--help"])
    known = capsys.readouterr().out
    rows = re.findall(r"^\| (`--.*?) \|", PAGE.partition("## My own loop")[0], flags=re.MULTILINE)
    assert len(rows) == 5
    for row in rows:
        assert all(flag in known for flag in re.findall(r"`(--[\w-]+)", row))


@pytest.mark.slow
def test_the_example_runs(tmp_path, monkeypatch, capsys):
    """At a small size."""
    pytest.importorskip("webdataset", reason="open_clip_train needs webdataset: pip install webdataset")
    sizes = "--train-size 4 --val-size 2 --batch-size 4 --epochs 1"
    program = ROOT / "docs/examples/train_with_open_clip.py"
    monkeypatch.setattr(sys, "argv", [str(program), "--folder", str(tmp_path), *sizes.split()])
    runpy.run_path(str(program), run_name="__main__")
    *_, dot_product, distance = capsys.readouterr().out.splitlines()
    assert dot_product.startswith("dot product ")
    assert distance.startswith("distance ")
    assert distance.endswith("100.0%")


def test_what_the_page_names_exists():
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", PAGE)
    assert len(named) > 8
    assert not [name for name in named if f"def {name}(" not in tests]
