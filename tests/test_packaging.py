"""What a fresh install must offer: every module imports, importing is light, the metadata is complete."""

import importlib
import pkgutil
import subprocess
import sys
from importlib.metadata import entry_points, metadata

import pytest

import hypkernels
import hysac


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
