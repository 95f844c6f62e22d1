"""Replace the geometry of an installed package of the MERU family by name, and undo it."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any

from hypkernels.checks import check_choice
from hypkernels.compat import meru

_in_force: dict[str, Patch] = {}


class Patch:
    """What :func:`patch` did; also a context manager that undoes it.

    ``replaced`` are the functions of the package that are now this library's, ``added`` those that the
    package lacked, ``kept`` those that this library lacks.
    """

    def __init__(self, module: ModuleType, mode: str) -> None:
        self.module = module
        originals = {
            name: value
            for name, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        }
        self.replaced = sorted(set(originals) & set(meru.__all__))
        self.added = sorted(set(meru.__all__) - set(vars(module)))
        self.kept = sorted(set(originals) - set(meru.__all__))
        if not self.replaced:
            raise ValueError(f"{module.__name__} has none of the functions {', '.join(meru.__all__)}")
        self._originals = {name: originals[name] for name in self.replaced}
        self._ours = {
            name: _with_defaults(getattr(meru, name), originals.get(name), mode)
            for name in (*self.replaced, *self.added)
        }

    def apply(self) -> None:
        self._exchange(self._originals, self._ours)
        for name in self.added:
            setattr(self.module, name, self._ours[name])

    def undo(self) -> None:
        """Put the package's own functions back, also where it has bound them since. Once is enough."""
        if _in_force.pop(self.module.__name__, None) is None:
            return
        self._exchange(self._ours, self._originals)
        for name in self.added:
            if vars(self.module).get(name) is self._ours[name]:
                delattr(self.module, name)

    def _exchange(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        """Replace functions in all loaded modules of the package, which may have imported some by name."""
        exchanged = {id(before[name]): after[name] for name in self.replaced}
        for module in _modules_of(self.module.__name__.partition(".")[0]):
            for name, value in list(vars(module).items()):
                if id(value) in exchanged:
                    setattr(module, name, exchanged[id(value)])

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        return (
            f"Patch({self.module.__name__}: replaced {', '.join(self.replaced)}; "
            f"added {', '.join(self.added) or 'none'}; kept {', '.join(self.kept) or 'none'})"
        )


def patch(package: str, *, mode: str = "stable") -> Patch:
    """Let an installed package of the MERU family compute with this library.

    Its module ``lorentz`` gets the functions of :mod:`hypkernels.compat.meru`, as does every loaded module of
    the package that had imported one by name. Each keeps the package's own default of ``eps`` and
    ``min_radius``. Nothing is written to disk.

    Args:
        package: what it is imported as, such as ``"hycoclip"``, or the full name of the module itself, such
            as ``"mymodel.geometry"`` for ``mymodel/geometry.py``.
        mode: ``"stable"`` or ``"reference"``, see :mod:`hypkernels.compat.meru`.

    Returns:
        A :class:`Patch`, with ``undo()``; in a ``with`` statement it undoes itself.

    Raises:
        ImportError: there is no such package, or it has no module ``lorentz``.
        ValueError: an unknown mode; a module with none of the functions, or with one whose arguments differ.
        RuntimeError: the package is patched already.

    Example:
        >>> with hypkernels.compat.patch("hycoclip"):
        ...     losses = model(images, box_images, tokens, box_tokens)
    """
    check_choice("mode", mode, meru.MODES)
    module = _geometry_of(package)
    if module.__name__ in _in_force:
        raise RuntimeError(f"{module.__name__} is patched already: undo() that first")
    made = Patch(module, mode)
    made.apply()
    _in_force[module.__name__] = made
    return made


def _geometry_of(package: str) -> ModuleType:
    name = package if package.rpartition(".")[2] == "lorentz" else f"{package}.lorentz"
    try:
        found = importlib.import_module(package)
        is_package = hasattr(found, "__path__")
        return importlib.import_module(name) if is_package else found
    except ModuleNotFoundError as error:
        raise ImportError(f"{name}, the geometry of {package!r}, cannot be imported: {error}") from error


def _modules_of(package: str) -> Iterator[ModuleType]:
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and name.partition(".")[0] == package:
            yield module


def _with_defaults(ours: FunctionType, original: Callable[..., Any] | None, mode: str) -> FunctionType:
    """A copy of ``ours`` with the defaults of ``original`` and the mode."""
    parameters = inspect.signature(ours).parameters
    positional = [one for one in parameters.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
    theirs = inspect.signature(original).parameters if original else {}
    if list(theirs) != [one.name for one in positional][: len(theirs)]:
        raise ValueError(
            f"{ours.__name__} has other arguments than hypkernels.compat.meru's: "
            f"({', '.join(theirs)}) for ({', '.join(one.name for one in positional)})"
        )
    defaults = []
    for one in positional:
        given = theirs[one.name].default if one.name in theirs else one.empty
        value = one.default if given is one.empty else given
        if value is not one.empty:
            defaults.append(value)
    copy = FunctionType(ours.__code__, ours.__globals__, ours.__name__, tuple(defaults))
    copy.__kwdefaults__ = {"mode": mode} if "mode" in parameters else None
    copy.__doc__, copy.__annotations__, copy.__module__ = ours.__doc__, ours.__annotations__, ours.__module__
    return copy
