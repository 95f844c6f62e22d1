"""Imports within hysac run one way: a part imports only those before it."""

import ast
from pathlib import Path

import pytest

import hysac

ROOT = Path(hysac.__file__).parent
LAYERS = (
    ("files",),
    ("json_object",),
    ("embeddings",),
    ("safety",),
    ("data",),
    ("models",),
    ("scoring",),
    ("export",),
    ("index",),
    ("evaluation",),
    ("open_clip_trainer",),
    ("training",),
    ("plots",),
    ("serve",),
    ("demonstration",),
    ("cli",),
    ("__main__",),
)
PLACE = {name: place for place, names in enumerate(LAYERS) for name in names}


def imported(path):
    """The parts of hysac that a file imports, wherever in it, but for what only types need."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hysac."):
            yield node.module.split(".")[1]
        if isinstance(node, ast.ImportFrom) and node.module == "hysac":
            yield from (name.name for name in node.names if name.name in PLACE)
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[1] for name in node.names if name.name.startswith("hysac."))


FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert part in PLACE, f"{part} has no place among {LAYERS}"
    wrong = [name for name in imported(path) if name != part and PLACE[name] >= PLACE[part]]
    assert not wrong


def test_geometry_is_reached_by_public_names():
    """Beside those the checks of arguments, which are hypkernels' own style."""
    allowed = {"hypkernels", "hypkernels.retrieval", "hypkernels.checks"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hypkernels"):
                assert node.module in allowed, path
