"""Names of another module replaced for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def replaced(module: ModuleType, **functions: Any) -> Iterator[None]:
    """``module`` with other functions under these names, which have their own back afterwards.

    Raises:
        RuntimeError: ``module`` lacks a name, as that of another version may.
    """
    missing = [name for name in functions if not hasattr(module, name)]
    if missing:
        raise RuntimeError(
            f"{module.__name__} has no {', '.join(missing)}: this trainer is for open_clip_torch 3.3"
        )
    before = {name: getattr(module, name) for name in functions}
    try:
        for name, function in functions.items():
            setattr(module, name, function)
        yield
    finally:
        for name, function in before.items():
            setattr(module, name, function)
