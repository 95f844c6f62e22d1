"""``patch``: a package of the MERU family computes with this library, and as before when it is undone."""

import importlib
import sys

import pytest
import torch

import hypkernels as hk
from hypkernels.compat import patch

GEOMETRY = """
def pairwise_inner(x, y, curv=1.0):
    return "theirs"

def log_map0(x, curv=1.0, eps=1e-5):
    return "theirs"

def half_aperture(x, curv=1.0, min_radius=0.3, eps=1e-5):
    return "theirs"

def of_their_own(x):
    return "theirs"
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """``importable``: a module ``lorentz``, one that uses it whole, one that imports a name from it."""
    folder = tmp_path / "importable"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "lorentz.py").write_text(GEOMETRY)
    (folder / "models.py").write_text("from importable import lorentz as L\n")
    (folder / "scripts.py").write_text("from importable.lorentz import pairwise_inner as score\n")
    (folder / "other.py").write_text(GEOMETRY.replace("half_aperture(x", "half_aperture(point"))
    (folder / "empty.py").write_text("")
    (folder / "geometry.py").write_text(GEOMETRY)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "importable"
    for name in [name for name in sys.modules if name.partition(".")[0] == "importable"]:
        del sys.modules[name]


@pytest.fixture
def x():
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def module(name):
    return importlib.import_module(f"importable.{name}")


def test_replaces_by_name_and_undoes_it(package, x):
    models, scripts = module("models"), module("scripts")
    before = dict(vars(module("lorentz")))
    patched = patch(package)
    assert torch.equal(models.L.pairwise_inner(x, x), hk.pairwise_inner(x, x))
    assert torch.equal(scripts.score(x, x), hk.pairwise_inner(x, x))
    assert models.L.of_their_own(x) == "theirs"
    assert patched.replaced == ["half_aperture", "log_map0", "pairwise_inner"]
    assert patched.kept == ["of_their_own"]
    assert "oxy_angle_withroot" in patched.added
    patched.undo()
    patched.undo()
    assert vars(module("lorentz")) == before
    assert scripts.score(x, x) == models.L.log_map0(x) == "theirs"


def test_a_module_imported_meanwhile_is_undone_too(package, x):
    with patch(package):
        scripts = module("scripts")
        assert torch.equal(scripts.score(x, x), hk.pairwise_inner(x, x))
    assert scripts.score(x, x) == "theirs"


def test_each_function_keeps_the_defaults_of_the_package(package, x):
    from hypkernels.compat import meru_reference

    with patch(package, mode="reference"):
        L = module("lorentz")
        assert torch.equal(L.half_aperture(x), meru_reference.half_aperture(x, 1.0, 0.3, 1e-5))
        assert torch.equal(L.log_map0(1e-6 * x), meru_reference.log_map0(1e-6 * x, eps=1e-5))
        assert torch.equal(L.log_map0(1e-6 * x, 2.0, 1e-8), meru_reference.log_map0(1e-6 * x, 2.0, 1e-8))
    with patch(package):
        assert torch.equal(L.half_aperture(x), hk.half_aperture(x, 1.0, 0.3))


def test_undone_after_an_error(package, x):
    with pytest.raises(RuntimeError, match="mine"), patch(package):
        raise RuntimeError("mine")
    assert module("lorentz").log_map0(x) == "theirs"


def test_twice_is_refused(package):
    with patch(package), pytest.raises(RuntimeError, match=r"importable\.lorentz is patched already"):
        patch(package)
    patch(package).undo()


@pytest.mark.parametrize("name", ["lorentz", "geometry"])
def test_a_module_by_its_full_name(package, x, name):
    with patch(f"importable.{name}"):
        assert torch.equal(module(name).log_map0(x), hk.log_map0(x))
    assert module(name).log_map0(x) == "theirs"


def test_a_package_without_geometry():
    with pytest.raises(ImportError, match=r"torch\.lorentz, the geometry of 'torch', cannot be imported"):
        patch("torch")


def test_other_arguments_are_refused_before_anything_is_replaced(package, monkeypatch, x):
    monkeypatch.setitem(sys.modules, "importable.lorentz", module("other"))
    with pytest.raises(ValueError, match=r"half_aperture has other arguments .*\(point, curv"):
        patch(package)
    assert module("other").log_map0(x) == "theirs"


def test_none_of_the_functions(package, monkeypatch):
    monkeypatch.setitem(sys.modules, "importable.lorentz", module("empty"))
    with pytest.raises(ValueError, match=r"importable\.empty has none of the functions"):
        patch(package)


def test_unknown_mode(package):
    with pytest.raises(ValueError, match="mode must be one of 'stable', 'reference'"):
        patch(package, mode="fast")
