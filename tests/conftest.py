"""Parts of the suite: ``--share 3`` takes a third of each test's cases, ``--op distance`` those of one op.

The Makefile's ``test-fast`` and ``test-op`` are made of them.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from zlib import crc32

import pytest

import hypkernels
from hypkernels.rowwise import RowwiseOp

_OPS = sorted(path.parent.name for path in Path(hypkernels.__file__).parent.glob("*/op.py"))


def pytest_addoption(parser):
    parser.addoption("--share", type=int, default=1, help="of the cases of each test, run one in so many")
    parser.addoption(
        "--op", choices=_OPS, help="run the tests that name this op, in their names or their files'"
    )


@pytest.hookimpl(trylast=True)  # after they are shuffled
def pytest_collection_modifyitems(config, items):
    chosen = _shared(config.getoption("--share"), _of_op(config.getoption("--op"), items))
    kept = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    # Files with slow tests begin, in that order: no process is to end alone with long ones.
    slow = {item.path for item in chosen if item.get_closest_marker("slow")}
    items[:] = sorted(chosen, key=lambda item: item.path not in slow)


def _of_op(op, items):
    """An op's own tests are in files of its name, the others' cases have the names of its functions."""
    if op is None:
        return items
    functions = vars(import_module(f"hypkernels.{op}.op"))
    names = [name for name, function in functions.items() if isinstance(function, RowwiseOp)]
    return [
        item
        for item in items
        if op in item.path.stem.split("_") or any(name in _parameters(item) for name in names)
    ]


def _parameters(item):
    return item.name.partition("[")[2].rstrip("]").split("-")


def _shared(share, items):
    """Of each test its first case in this order, and those whose names say so: no pattern of parameters."""
    if share == 1:
        return items
    seen, chosen = set(), []
    for item in items:
        test = item.nodeid.partition("[")[0]
        if test not in seen or crc32(item.name.encode()) % share == 0:
            chosen.append(item)
        seen.add(test)
    return chosen
