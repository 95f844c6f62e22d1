"""The README's examples run, and its commands exist."""

import re
from pathlib import Path

import pytest

from benchmarks.demo import block, use_block

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_readme_has_examples():
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[number], f"README example {number}", "exec"), {"__name__": "__main__"})


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make ([\w-]+)", README, flags=re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_pictures_exist():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)


def test_demo_is_the_recorded_one():
    (path,) = ROOT.glob("benchmarks/results/*/demo.json")
    assert block(path) in README
    assert use_block(path.with_name("demo_use.txt")) in README


def test_every_public_name_is_in_the_table():
    import hypkernels
    import hysac

    names = [*hypkernels.__all__, *hysac.__all__]
    assert not [name for name in names if f"`{name}" not in README]


def test_differences_name_tests_that_exist():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/differences.md").read_text()))
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 20
    assert not [name for name in sorted(named) if f"def {name}(" not in tests]
