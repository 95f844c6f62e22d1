"""Temporary changes of global state: names of another module, and logging."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def replaced(module: ModuleType, **functions: Any) -> Iterator[None]:
    """Replace functions of ``module`` by name, and put its own back afterwards.

    Raises:
        RuntimeError: ``module`` lacks a name, as another version may.
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


@contextmanager
def restored_logging() -> Iterator[None]:
    """Restore logging's levels and handlers afterwards: open_clip's program sets every logger's level."""
    root = logging.root
    loggers = [root, *map(logging.getLogger, list(root.manager.loggerDict))]
    levels, handlers = [logger.level for logger in loggers], list(root.handlers)
    try:
        yield
    finally:
        for handler in root.handlers[:]:
            if handler not in handlers:
                root.removeHandler(handler)
                handler.close()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
