"""The code blocks of docs/compat.md run; those marked so need geoopt."""

import re
import sys
from pathlib import Path

import pytest
import torch

from hypkernels.compat import meru

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/compat.md").read_text()
BLOCKS = re.findall(r"```python( geoopt)?\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def hycoclip(tmp_path, monkeypatch):
    """A package of that name with a geometry of one function."""
    folder = tmp_path / "hycoclip"
    folder.mkdir()
    for name, text in (
        ("__init__", ""),
        ("models", "from hycoclip import lorentz as L\n"),
        ("lorentz", "def pairwise_dist(x, y, curv=1.0, eps=1e-8):\n    raise NotImplementedError\n"),
    ):
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "hycoclip"]:
        del sys.modules[name]


def test_there_are_blocks():
    assert len(BLOCKS) == 8


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs(number, hycoclip):
    needs_geoopt, block = BLOCKS[number]
    if needs_geoopt:
        pytest.importorskip("geoopt", reason="geoopt is not installed: pip install 'hysac[geoopt]'")
    exec(compile(block, f"docs/compat.md block {number}", "exec"), {"__name__": "__main__"})


def test_small_batches_have_the_gradients_of_the_whole():
    (block,) = [block for _, block in BLOCKS if "batches" in block]
    names = {}
    exec(compile(block, "docs/compat.md", "exec"), names)
    leaves = [*names["towers"].parameters(), names["log_curv"], names["log_scale"]]
    points = names["encode"](torch.cat(list(names["batches"]), dim=1))
    scalars = names["log_curv"].exp(), names["log_scale"].exp()
    wanted = torch.autograd.grad(names["meru_loss"](*points, *scalars).loss, leaves)
    for leaf, one in zip(leaves, wanted, strict=True):
        assert (leaf.grad - one).norm() < 1e-4 * one.norm()


def test_every_name_is_on_the_page():
    assert not [name for name in meru.__all__ if f"`{name}" not in PAGE]


def test_what_the_page_names_exists():
    for script in re.findall(r"findings/\w+\.sh", PAGE):
        assert (ROOT / script).is_file()
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", PAGE)
    assert named
    assert all(f"def {name}(" in tests for name in named)
