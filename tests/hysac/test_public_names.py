"""The names of the package, each imported when it is first used."""

import ast
from pathlib import Path

import pytest

import hysac


def test_every_name_is_what_a_type_checker_takes_it_for():
    tree = ast.parse(Path(hysac.__file__).read_text())
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    homes = {name.name: node.module for node in checked.body for name in node.names}
    assert homes == hysac._HOMES
    assert sorted(homes) == hysac.__all__
    for name in hysac.__all__:
        value = getattr(hysac, name)
        assert value.__name__ == name
        assert value.__module__.startswith(homes[name])
    assert set(hysac.__all__) <= set(dir(hysac))


def test_modules_are_attributes(monkeypatch):
    assert hysac.plots.__name__ == "hysac.plots"
    monkeypatch.delattr(hysac, "models", raising=False)
    assert "models" in dir(hysac), "for who completes a name with Tab"


def test_no_such_name():
    with pytest.raises(AttributeError, match="'hysac' has no attribute 'no_such_name'"):
        hysac.no_such_name  # noqa: B018
    with pytest.raises(ImportError):
        from hysac import no_such_name  # noqa: F401
