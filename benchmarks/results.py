"""The files of results: one JSON document per run, written as it goes, small enough to commit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

SCHEMA = 1
FOLDER = Path(__file__).parent / "results"
STATUSES = ("ok", "wrong", "too slow", "out of memory", "failed")
_STATE = ("complete", "whole")
_REQUIRED = ("schema", "date", *_STATE, "size", "device", "software", "commit", "source", "ceilings")

Record = dict[str, Any]


class Results:
    """A run: what identifies it, the providers, and a record for each case, shape and provider.

    It is ``complete`` when it has all that was asked for, and ``whole`` when it has every case of its size.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], records: list[Record] | None = None) -> None:
        self.path = path
        self.header = dict(header)
        self._records = {_key(record): record for record in records or []}

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a file.

        Raises:
            ValueError: it is not a file of results, or of another version of the format.
        """
        try:
            document = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        missing = [name for name in (*_REQUIRED, "records") if name not in document]
        if missing or document["schema"] != SCHEMA:
            raise ValueError(f"{path} is not a file of benchmark results of version {SCHEMA}")
        for record in document["records"]:
            if record.get("status") not in STATUSES:
                raise ValueError(f"{path}: status must be one of {STATUSES}, got {record.get('status')!r}")
        records = document.pop("records")
        return cls(path, document, records)

    @property
    def records(self) -> list[Record]:
        return list(self._records.values())

    def find(self, case: str, shape: Mapping[str, int], provider: str) -> Record | None:
        return self._records.get(_key({"case": case, "shape": shape, "provider": provider}))

    def add(self, records: list[Record]) -> None:
        self._records |= {_key(record): record for record in records}
        self.save()

    def finish(self, whole: bool) -> None:
        self.header |= {"complete": True, "whole": whole}
        self.save()

    def save(self) -> None:
        """One line for each record, and never half a file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        head = json.dumps(self.header, indent=1)[:-2]
        lines = ",\n  ".join(json.dumps(_rounded(record)) for record in self.records)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(f'{head},\n "records": [\n  {lines}\n ]\n}}\n')
        temporary.replace(self.path)


def open_run(header: Mapping[str, Any], folder: Path = FOLDER) -> Results:
    """The unfinished run with the same header, to go on with; else a new one, named by today's date.

    Args:
        header: what identifies the run; the schema, the date and its state are added.
        folder: where each device has its folder.
    """
    place = folder / header["device"]["slug"]
    for path in sorted(place.glob("*.json"), reverse=True):
        try:
            results = Results.load(path)
        except ValueError:
            continue
        if not results.header["complete"] and _same_run(results.header, header):
            return results
    today = date.today().isoformat()
    path = place / f"{today}.json"
    count = 2
    while path.exists():
        path = place / f"{today}-{count}.json"
        count += 1
    return Results(path, {"schema": SCHEMA, "date": today, **dict.fromkeys(_STATE, False), **header})


def _same_run(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one[name] == other[name] for name in ("size", "device", "software", "source"))


def _key(record: Mapping[str, Any]) -> tuple[object, ...]:
    return record["case"], tuple(record["shape"].items()), record["provider"]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return value
