"""Imports within hypkernels run one way: what ops share knows no op, and an op knows only those before it."""

import ast
from pathlib import Path

import pytest
from lorentz_oracle import DEFINITIONS
from rowwise_ops import OPS as ROWWISE
from transforms import SUBJECTS

import hypkernels
from hypkernels.tritonlib.manifest import KERNEL_MODULES

ROOT, TESTS = Path(hypkernels.__file__).parent, Path(__file__).parents[1]
SHARED = ("tritonlib", "cpu")
OPS = ("distance", "horosphere", "maps", "cone", "entailment", "pairwise", "contrastive", "retrieval")
# The compiled lane of a search is one of its implementations, on the search's own types.
IMPLEMENTATION = {"cpu/retrieval.py": "retrieval"}
FILES = [path for part in (*SHARED, *OPS) for path in sorted((ROOT / part).rglob("*.py"))]


def imported(path):
    """The parts of hypkernels that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "hypkernels":
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hypkernels."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (name.name.split(".")[1] for name in node.names if name.name.startswith("hypkernels."))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    relative = path.relative_to(ROOT)
    part = relative.parts[0]
    later = OPS if part in SHARED else OPS[OPS.index(part) + 1 :]
    wrong = set(imported(path)) & set(later) - {IMPLEMENTATION.get(relative.as_posix())}
    assert not wrong


def test_every_op_is_listed():
    assert {path.parent.name for path in ROOT.glob("*/op.py")} <= set(OPS)


def test_every_row_wise_op_is_listed_where_all_are_tested():
    """What tests take from these lists, they take of each: see rowwise_ops.py."""
    oracle = {*DEFINITIONS, "scaled_exp_map0"}  # exp_map0 of a product, with a test of its own
    assert set(ROWWISE) == oracle
    assert set(ROWWISE) <= set(SUBJECTS)
    assert {op.kernels for op in ROWWISE.values()} <= set(KERNEL_MODULES)
    for family in {op.kernels.split(".")[1] for op in ROWWISE.values()}:
        assert (TESTS / "kernels" / f"test_{family}_kernel.py").exists()
        assert (TESTS / "hypkernels" / f"test_{family}.py").exists()
