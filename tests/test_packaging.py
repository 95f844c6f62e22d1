"""What a fresh install must offer: every module imports, importing is light, the metadata is complete."""

import importlib
import os
import pkgutil
import platform
import re
import subprocess
import sys
from importlib.metadata import entry_points, metadata
from pathlib import Path

import pytest

import hypkernels
import hysac
from hypkernels.cpu import library

ROOT = Path(__file__).parents[1]


def modules(package):
    prefix = f"{package.__name__}."
    return [package.__name__, *(m.name for m in pkgutil.walk_packages(package.__path__, prefix))]


@pytest.mark.parametrize("name", [*modules(hypkernels), *modules(hysac)])
def test_module_imports(name):
    if name == "hypkernels.compat.geoopt":
        pytest.importorskip("geoopt", reason="geoopt is not installed: pip install 'hysac[geoopt]'")
    importlib.import_module(name)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "geoopt", None)
    monkeypatch.delitem(sys.modules, "hypkernels.compat.geoopt", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'hysac\[geoopt\]'"):
        importlib.import_module("hypkernels.compat.geoopt")


@pytest.mark.slow
def test_hypkernels_import_is_light():
    """No Triton, no CUDA context, nothing of the model packages."""
    program = (
        "import sys, torch; before = set(sys.modules); import hypkernels;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "assert not new & {'triton', 'open_clip', 'hysac', 'torchvision', 'matplotlib', 'geoopt'}, new;"
        "assert not any(m.startswith(('hypkernels.compat', 'hypkernels.objectives')) for m in sys.modules);"
        "assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_console_script_is_declared():
    (script,) = [e for e in entry_points(group="console_scripts") if e.name == "hysac"]
    assert callable(script.load())


def test_metadata():
    meta = metadata("hysac")
    assert meta["License-Expression"] == "Apache-2.0"
    assert {"plot", "train", "bench", "test"} <= set(meta.get_all("Provides-Extra"))


def test_the_version_is_the_newest_released_one():
    def first(file, pattern):
        return re.search(pattern, (ROOT / file).read_text(), re.MULTILINE)[1]

    released = first("docs/changelog.md", r"^## (\S+), \d{4}-\d\d-\d\d$")
    assert first("pyproject.toml", r'^version = "(.+)"$') == released
    assert first("docs/citing.md", r"version = \{(.+)\}") == released


@pytest.mark.skipif(library.why_not() is not None, reason="there is no compiled library")
@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="of Linux on x86-64")
def test_the_library_needs_no_newer_glibc_than_the_wheel_says():
    content = library._PATH.read_bytes()
    needed = {tuple(map(int, found.split(b"."))) for found in re.findall(rb"GLIBC_([\d.]+)\0", content)}
    assert needed
    assert max(needed) <= (2, 17)
    assert b"GLIBCXX" not in content


@pytest.mark.slow
def test_a_pure_build_has_no_library(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    build = ["build", f"--build-lib={tmp_path / 'lib'}", f"--build-base={tmp_path / 'base'}"]
    pure = {**os.environ, "HYPKERNELS_PURE": "1"}
    subprocess.run(
        [sys.executable, "setup.py", "-q", *build], cwd=ROOT, env=pure, check=True, capture_output=True
    )
    assert (tmp_path / "lib/hypkernels/cpu/rows.py").exists()
    assert not list(tmp_path.rglob("libhypkernels*"))
