"""The vector engine of an index: it proposes items, and the index ranks them by its stored points.

    index.json         which engine, its options, and its parts, one of the images and one of the texts
    engines/PART/      what the engine saved; also its rows, unless they are in a database elsewhere

Captions search images and images captions: with two parts the engine proposes no items of the wrong
kind. A part's name is never used again; in a database it is the table's name, too. The engine gets
additions before ``index.json`` is written, and loses deletions after it. So a process that dies may
leave more items in the engine than in the index: these are never found, and the next change removes
them.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hypkernels.retrieval import Gallery, engines, open_gallery
from hysac.files import sync
from hysac.json_object import shown

log = logging.getLogger(__name__)

ENGINES = tuple(engines.ENGINES)
URL_VARIABLE, KEY_VARIABLE = "HYSAC_ENGINE_URL", "HYSAC_ENGINE_KEY"
KINDS = ("image", "text")
FOLDER = "engines"
MOST = 1000
"""The most items that an engine is asked for; pgvector's graph returns no more."""

_RECALL_AT = 10
_SAMPLE = 100
_PIECE_BYTES = 16 << 20
_IDS = 1000  # how many are looked up or deleted at a time

# For each engine: its arguments for an address and for a key; and argument and name for its rows without an
# address.
_ADDRESS = {"pgvector": "url", "qdrant": "url", "lancedb": "uri", "milvus": "uri"}
_KEY = {"qdrant": "api_key", "milvus": "token"}
_ROWS = {
    "qdrant": ("path", "rows"),
    "lancedb": ("uri", "rows"),
    "milvus": ("uri", "rows.db"),
    "sqlite-vec": ("path", "rows.sqlite"),
}
_TYPES: dict[str, Any] = {"bool": bool, "int": int, "float": (float, int), "str": str, "dict": dict}
_REPAIR = "search with --exact, or build it anew with `hysac index engine`"
_OURS = ("curv", "model", "table", "replace")  # arguments that the index sets


@dataclass(frozen=True)
class Address:
    """The address of a database. It is never written to a file.

    Attributes:
        url: of the database; by default that of the environment's ``HYSAC_ENGINE_URL``.
        key: that a server asks for; by default that of ``HYSAC_ENGINE_KEY``.
    """

    url: str | None = field(default=None, repr=False)
    key: str | None = field(default=None, repr=False)

    def any_url(self) -> str | None:
        return self.url or os.environ.get(URL_VARIABLE)

    def any_key(self) -> str | None:
        return self.key or os.environ.get(KEY_VARIABLE)


@dataclass(frozen=True)
class Part:
    """The engine's part of one kind: its name, of how many items it was built, and its recall at 10."""

    name: str
    built: int
    recall: float


@dataclass(frozen=True)
class EngineSettings:
    """The engine's settings in ``index.json``; ``remote``: its rows are in a database elsewhere."""

    name: str
    options: dict[str, Any]
    remote: bool
    parts: dict[str, Part]

    @classmethod
    def of(cls, content: Any) -> EngineSettings:
        """The settings from JSON.

        Raises:
            TypeError, ValueError, AttributeError: ``content`` has another form.
        """
        parts = {kind: Part(**part) for kind, part in content["parts"].items()}
        settings = cls(**{**content, "parts": parts})
        is_named = settings.name in ENGINES and isinstance(settings.remote, bool)
        if not (is_named and isinstance(settings.options, dict) and set(parts) <= set(KINDS)):
            raise ValueError(f"engine cannot be {shown(content)}")
        for part in parts.values():
            counts = isinstance(part.built, int) and part.built >= 1 and isinstance(part.recall, float)
            if not (isinstance(part.name, str) and part.name.isidentifier() and counts):
                raise ValueError(f"engine cannot have the part {shown(vars(part))}")
        return settings


def choose_engine(name: str, options: Mapping[str, Any], address: Address) -> EngineSettings:
    """An engine for an index, after checks of its package, its options and its database.

    Args:
        name: of :data:`ENGINES`, except ``"exact"``, which is no engine.
        options: arguments of the engine's class, such as ``{"kind": "ivf"}``.
        address: of its database. Without one LanceDB, Milvus and Qdrant keep rows in the index's folder.

    Raises:
        ImportError: its package is missing; names the extra.
        TypeError, ValueError: an unknown engine or option, a wrong value of an option, or a database that
            is needed and not named, or cannot be reached.
    """
    if name not in ENGINES or name == "exact":
        raise ValueError(f"engine must be one of {', '.join(ENGINES[1:])}, got {name!r}")
    if address.url is not None and name not in _ADDRESS:
        raise ValueError(f"the engine {name} has no database elsewhere, and was given a URL")
    _check_options(name, options)
    remote = name in _ADDRESS and (name not in _ROWS or address.any_url() is not None)
    settings = EngineSettings(name, dict(options), remote, {})
    with tempfile.TemporaryDirectory() as folder:
        _make(settings, Path(folder), "trial", address, 1.0, "").close()
    return settings


class Engines:
    """The engine's parts, loaded when they are first needed.

    Args:
        path: the index's folder.
        settings: of its engine.
        address: of its database.
        model, curv: the index's.
        counts: how many items of each kind there are; empty if the parts are yet to be built.
    """

    def __init__(
        self,
        path: Path,
        settings: EngineSettings,
        address: Address,
        model: str,
        curv: float,
        counts: dict[str, int],
    ) -> None:
        self._path, self._settings, self._address = path, settings, address
        self._model, self._curv, self._counts = model, curv, counts
        self._loaded: dict[str, engines.Engine] | None = None
        self._lock = threading.Lock()  # engines keep state of a search in themselves
        self._told: set[str] = set()

    @property
    def settings(self) -> EngineSettings:
        return self._settings

    def load(self) -> None:
        """Load the parts that are not loaded yet.

        Raises:
            ImportError: the engine's package is missing; names the extra.
            ValueError: its database cannot be reached, or a part is damaged, another's, or lacks items.
        """
        with self._lock:
            self._parts()

    def propose(self, point: Tensor, k: int, allowed: np.ndarray, images: np.ndarray) -> np.ndarray | None:
        """Places of the ``allowed`` items nearest to a point: ``k`` of each kind, or all if there are
        fewer.

        None if too few of the engine's proposals are allowed: then every point has to be compared.
        """
        with self._lock:
            found = []
            for kind, engine in self._parts().items():
                wanted = allowed & (images == (kind == "image"))
                places = self._near(kind, engine, point, min(k, int(wanted.sum())), wanted)
                if places is None:
                    return None
                found.append(places)
        return np.concatenate(found) if found else None

    def _near(
        self, kind: str, engine: engines.Engine, point: Tensor, need: int, wanted: np.ndarray
    ) -> np.ndarray | None:
        """At most two searches: for as many as suffice if allowed items are spread evenly; for many."""
        if not need:
            return np.empty(0, np.int64)
        total = len(engine)
        likely = max(engine.candidates, math.ceil(1.5 * need * total / int(wanted.sum())))
        for count in (likely, MOST):
            if need <= count <= MOST and total:
                with self._talking():
                    found = engine.search(point[None].cpu(), min(count, total), self._curv, model=self._model)
                places = found.indices[0].numpy()
                places = places[(places >= 0) & (places < len(wanted))]
                places = places[wanted[places]][:need]
                if len(places) == need:
                    return places
        self._tell(kind)
        return None

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """Reports errors of databases, which may be gone or locked; those of engines in memory pass."""
        if self._settings.name not in _ADDRESS and self._settings.name not in _ROWS:
            yield
            return
        with _reaching(self._settings.name, _where(self._settings, self._path, self._address)):
            yield

    def _tell(self, kind: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            log.info(
                "searching %ss exactly where too few of the nearest that %s finds, %d at most, may be "
                "shown (told once)",
                kind,
                self._settings.name,
                MOST,
            )

    def _parts(self) -> dict[str, engines.Engine]:
        if self._loaded is None:
            for kind, count in self._counts.items():
                if count and kind not in self._settings.parts:
                    raise ValueError(f"{self._path} has {kind}s and its engine none; {_REPAIR}")
            self._loaded = {kind: self._load(kind, part) for kind, part in self._settings.parts.items()}
        return self._loaded

    def _load(self, kind: str, part: Part) -> engines.Engine:
        folder = self._path / FOLDER / part.name
        try:
            where = _where(self._settings, folder, self._address)
            with _reaching(self._settings.name, where):
                engine = engines.load(folder, **where)
                there = len(engine)
        except ImportError as error:
            raise ImportError(f"{self._path} has the engine {self._settings.name}: {error}") from error
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ValueError(
                f"{self._path}: the engine's {kind}s cannot be loaded: {error}; {_REPAIR}"
            ) from error
        if engine.name != self._settings.name or (engine.model, engine.curv) != (self._model, self._curv):
            raise ValueError(f"{folder} is of another index; {_REPAIR}")
        if there < self._counts[kind]:
            raise ValueError(
                f"{self._path} has {self._counts[kind]} {kind}s and its engine only {there}; {_REPAIR}"
            )
        return engine

    @contextmanager
    def update(
        self, points_file: Path, images: np.ndarray, there: np.ndarray, start: int, gone: np.ndarray
    ) -> Iterator[EngineSettings]:
        """Change the parts to what the index is about to have; the index is written inside the context.

        Args:
            points_file: the points of all items, new ones too.
            images, there: of all items, ``(N,)`` bool.
            start: the place of the first new item.
            gone: the places of items that go now.

        Yields:
            The new settings. After an error the old ones hold.
        """
        with self._lock:
            change = _Change(self, open_gallery(points_file), images, there, start)
            self._counts = {kind: min(count, change.counts()[kind]) for kind, count in self._counts.items()}
            try:
                with self._talking():
                    for kind in KINDS:
                        change.of(kind, gone[images[gone] == (kind == "image")])
                yield change.settings()
            except BaseException:
                self._loaded = None  # what is in memory may have more by now
                change.undo()
                raise
            self._settings, self._loaded, self._counts = change.settings(), change.loaded, change.counts()
            change.finish()


class _Change:
    """The parts during a change."""

    def __init__(
        self, of: Engines, gallery: Gallery, images: np.ndarray, there: np.ndarray, start: int
    ) -> None:
        self._of, self._gallery, self._images, self._there, self._start = of, gallery, images, there, start
        self.loaded, self._kept = dict(of._parts()), dict(of._settings.parts)
        self._new: list[engines.Engine] = []
        self._old: list[engines.Engine] = []
        self._folders: list[Path] = []

    def settings(self) -> EngineSettings:
        return replace(self._of._settings, parts=self._kept)

    def counts(self) -> dict[str, int]:
        return {kind: int(self._mine(kind).sum()) for kind in KINDS}

    def of(self, kind: str, gone: np.ndarray) -> None:
        mine = self._mine(kind)
        new = np.flatnonzero(mine[self._start :]) + self._start
        engine, part = self.loaded.get(kind), self._kept.get(kind)
        if engine is None or part is None:
            if len(new):
                self._build(kind, mine)
        elif mine.sum() >= 2 * part.built and len(new):  # lists are those of the points they were built of
            self._build(kind, mine)
        elif len(new) or len(gone):
            try:
                _delete(engine, gone)
                if len(engine) != mine[: self._start].sum():  # an earlier process died during a change
                    _delete(engine, np.concatenate([np.flatnonzero(~mine), new]))
                self._add(engine, new)
            except engines.FarPointError:
                log.info("a new %s lies farther out than the engine was built for: building it anew", kind)
                self._build(kind, mine)
                return
            if not _is_database(engine):
                self._save(kind, engine, replace(part, name=_new_name(kind)))

    def _mine(self, kind: str) -> np.ndarray:
        return self._there & (self._images == (kind == "image"))

    def _add(self, engine: engines.Engine, places: np.ndarray) -> None:
        step = max(1, _PIECE_BYTES // (4 * self._gallery.width))
        for start in range(0, len(places), step):
            piece = places[start : start + step]
            engine.add(self._gallery.take(torch.from_numpy(piece)), piece)

    def _build(self, kind: str, mine: np.ndarray) -> None:
        of, name = self._of, _new_name(kind)
        folder = self._folder(name)
        engine = _make(of._settings, folder, name, of._address, of._curv, of._model)
        self._new.append(engine)
        places = np.flatnonzero(mine)
        with _subset(self._gallery, places, folder) as points:
            engine.build(points, places, sample=self._sample(kind), k=_RECALL_AT)
        if kind in self.loaded:
            self._old.append(self.loaded[kind])
        assert engine.recall is not None
        self.loaded[kind] = engine
        self._save(kind, engine, Part(name, len(places), engine.recall))

    def _save(self, kind: str, engine: engines.Engine, part: Part) -> None:
        folder = self._folder(part.name)
        engine.save(folder)
        for path in (*(path for path in folder.rglob("*") if path.is_file()), folder):
            sync(path)
        self._kept[kind] = part

    def _folder(self, name: str) -> Path:
        folder = self._of._path / FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        self._folders.append(folder)
        return folder

    def _sample(self, kind: str) -> Tensor | None:
        """Queries like those to come: items of the other kind, if there are any."""
        others = np.flatnonzero(self._mine("text" if kind == "image" else "image"))
        if not len(others):
            return None
        return self._gallery.take(torch.from_numpy(others[:: -(-len(others) // _SAMPLE)]))

    def undo(self) -> None:
        _drop(self._new)
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)

    def finish(self) -> None:
        _drop(self._old)
        remove_parts(self._of._path, {part.name for part in self._kept.values()})


def remove_parts(path: Path, kept: set[str]) -> None:
    """Remove the folders of an index's parts, except those ``kept``."""
    if (path / FOLDER).is_dir():
        for folder in (path / FOLDER).iterdir():
            if folder.name not in kept:
                shutil.rmtree(folder)


@contextmanager
def _subset(gallery: Gallery, places: np.ndarray, folder: Path) -> Iterator[Gallery]:
    """Some rows of a gallery, as a temporary file; the gallery itself if these are all rows."""
    if len(places) == len(gallery):
        yield gallery
        return
    path = folder / "subset.npy"
    rows = np.lib.format.open_memmap(path, "w+", np.float32, (len(places), gallery.width))
    step = max(1, _PIECE_BYTES // (4 * gallery.width))
    for start in range(0, len(places), step):
        piece = places[start : start + step]
        rows[start : start + step] = gallery.take(torch.from_numpy(piece)).numpy()
    rows.flush()
    del rows
    try:
        yield open_gallery(path)
    finally:
        path.unlink()


def _make(
    settings: EngineSettings, folder: Path, name: str, address: Address, curv: float, model: str
) -> engines.Engine:
    where = _where(settings, folder, address)
    arguments: dict[str, Any] = {**settings.options, **where, "curv": curv, "model": model}
    if "table" in _arguments(settings.name):
        arguments["table"] = name
    with _reaching(settings.name, where):
        return engines.ENGINES[settings.name](**arguments)


def _where(settings: EngineSettings, folder: Path, address: Address) -> dict[str, str]:
    """The engine's arguments for the place of its rows."""
    if not settings.remote:
        if settings.name not in _ROWS:
            return {}
        argument, file = _ROWS[settings.name]
        return {argument: str(folder / file)}
    url, key = address.any_url(), address.any_key()
    if url is None:
        raise ValueError(
            f"the rows of the engine {settings.name} are in a database: say where with {URL_VARIABLE} in the "
            "environment, or --engine-url"
        )
    named = {_ADDRESS[settings.name]: url}
    return named | ({_KEY[settings.name]: key} if key is not None and settings.name in _KEY else {})


@contextmanager
def _reaching(name: str, where: Mapping[str, str]) -> Iterator[None]:
    """What drivers raise, each its own, as ValueError, without what it may quote of the address."""
    try:
        yield
    except (ImportError, TypeError, ValueError, OSError, KeyError):
        raise
    except Exception as error:  # drivers have no common base of their errors
        text = " ".join(str(error).split())
        for argument, value in where.items():
            text = text.replace(value, argument.upper())
        raise ValueError(f"the database of the engine {name} cannot be used: {text}") from None


def _arguments(name: str) -> dict[str, Any]:
    """The fields of an engine's class that are options or the index's to set, by name."""
    taken = {_ADDRESS.get(name), _KEY.get(name), _ROWS.get(name, (None,))[0]}
    return {one.name: one for one in fields(engines.ENGINES[name]) if one.name not in taken}


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    allowed = {option: one for option, one in _arguments(name).items() if option not in _OURS}
    for option, value in options.items():
        if option not in allowed:
            raise ValueError(f"the engine {name} has no option {option!r}: it has {', '.join(allowed)}")
        wanted = allowed[option].type.split("[")[0].split(" ")[0]  # of such as "int | None"
        is_good = isinstance(value, _TYPES[wanted]) and (wanted == "bool") == isinstance(value, bool)
        if not is_good or (wanted == "int" and value < 1):
            kind = "an int of at least 1" if wanted == "int" else f"a {wanted}"
            raise ValueError(f"the engine {name}'s option {option} must be {kind}, got {value!r}")


def _is_database(engine: engines.Engine) -> bool:
    return "table" in _arguments(engine.name)


def _delete(engine: engines.Engine, places: np.ndarray) -> None:
    """Delete those places that the engine has."""
    for start in range(0, len(places), _IDS):
        present = engine.present(places[start : start + _IDS])
        if len(present):
            engine.delete(present)


def _drop(some: list[engines.Engine]) -> None:
    for engine in some:
        engine.drop()
        engine.close()


def _new_name(kind: str) -> str:
    return f"hysac_{uuid.uuid4().hex[:12]}_{kind}"
