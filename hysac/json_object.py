"""Objects of JSON files, read value by value: one of another kind is refused by its file and key."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from hysac.files import read_json


class JSONObject:
    """An object of a JSON file.

    Args:
        content: what the file holds at this place.
        source: the file, for messages.
        place: the keys that lead here, for messages.

    Raises:
        ValueError: ``content`` is no object.
    """

    def __init__(self, content: Any, source: object, place: str = "") -> None:
        if not isinstance(content, dict):
            raise ValueError(f"{source}: {place or 'its content'} must be an object, got {shown(content)}")
        self.content: dict[str, Any] = content
        self._source, self._place = source, place

    @classmethod
    def read(cls, path: Path) -> JSONObject:
        """The object that a file holds; raises ``ValueError`` if it is no JSON, or no object."""
        return cls(read_json(path), path)

    def __contains__(self, key: str) -> bool:
        return key in self.content

    def get(self, key: str, default: Any = None) -> Any:
        """The value, of whatever kind."""
        return self.content.get(key, default)

    def object(self, key: str) -> JSONObject:
        """The object ``key``, empty where it is absent or null."""
        value = self.content.get(key)
        return JSONObject({} if value is None else value, self._source, self._name(key))

    def objects(self, key: str) -> Iterator[tuple[str, JSONObject]]:
        """The names and values of the object ``key``, which are objects themselves."""
        inner = self.object(key)
        for name in inner.content:
            yield name, JSONObject(inner.content[name], self._source, inner._name(name))

    def number(self, key: str, default: float | None = None) -> float:
        """The finite number ``key``; without a default it must be there."""
        value = self.content.get(key, default)
        return float(value) if is_number(value) else self.refuse(key, "a finite number")

    def positive(self, key: str, default: float | None = None) -> float:
        """The positive number ``key``; without a default it must be there."""
        value = self.number(key, default)
        return value if value > 0 else self.refuse(key, "positive")

    def whole(self, key: str, default: int | None = None) -> int:
        """The integer ``key`` of at least 1; without a default it must be there."""
        value = self.content.get(key, default)
        if is_number(value) and isinstance(value, int) and value > 0:
            return value
        self.refuse(key, "an integer of at least 1")

    def flag(self, key: str, default: bool) -> bool:
        """Whether ``key`` is true."""
        value = self.content.get(key, default)
        return value if isinstance(value, bool) else self.refuse(key, "true or false")

    def refuse(self, key: str, expected: str) -> NoReturn:
        """Raise ``ValueError``: what ``key`` must be, and is not."""
        got = f"got {shown(self.content[key])}" if key in self.content else "and is missing"
        raise ValueError(f"{self._source}: {self._name(key)} must be {expected}, {got}")

    def _name(self, key: str) -> str:
        return f"{self._place}.{key}" if self._place else key


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is a finite number; ``true`` and ``false`` are none, nor is one beyond all floats."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer
        return False


def shown(value: object) -> str:
    """``value`` for a message: its beginning, where it is long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
