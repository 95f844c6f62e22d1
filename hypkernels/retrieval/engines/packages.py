"""Optional packages: imported where they are used, with an error that names the extra."""

from __future__ import annotations

import importlib
from importlib import metadata
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """The module, or an ImportError that says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this engine needs {module}, which could not be imported ({error}): pip install 'hysac[{extra}]'"
        ) from error


def version_of(distribution: str) -> str:
    return metadata.version(distribution)
