"""The index on disk. Its files are memory-mapped, and may be larger than memory.

    index.json       what it was made with, and how many items it has: written last, at once
    points.npy       their points, (N, D) float32
    distances.f32    the distances that they are scored by
    images.u8        1 for images, 0 for texts
    items.jsonl      a line an item: its name, and its text or where its image lies
    offsets.i64      where each line starts

Items are added at the end of each file. What a process that died left beyond the items of ``index.json``
is overwritten. Deleted items keep their place and are never found. An index may also have a vector
engine, see :mod:`hysac.index.engine`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hypkernels.retrieval import Gallery, open_gallery
from hysac.data.formats import first_few
from hysac.data.images import ImageFile, ShardMember
from hysac.files import read_json, write_json
from hysac.index.engine import Address, Engines, EngineSettings, choose_engine, remove_parts
from hysac.json_object import shown
from hysac.scoring.items import Item
from hysac.scoring.streaming import Encoded

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
_SETTINGS = "index.json"
_POINTS, _DISTANCES, _IMAGES, _ITEMS, _OFFSETS = (
    "points.npy",
    "distances.f32",
    "images.u8",
    "items.jsonl",
    "offsets.i64",
)
_HEADER_BYTES = 256
"""The header of ``points.npy`` has room for any number of items, so that it is rewritten in place."""


@dataclass(frozen=True)
class _Settings:
    model: str
    model_dir: str
    curv: float
    width: int
    count: int
    deleted: tuple[int, ...] = ()
    engine: EngineSettings | None = None


class Index:
    """The points of images and captions under their names. :meth:`create` makes one, :meth:`open` opens it.

    Attributes:
        path: its folder.
        model: the digest of the weights that made it.
        model_dir: where they were.
        curv: the curvature of its space.
        width: of its points.
    """

    def __init__(self, path: Path, settings: _Settings, address: Address | None = None) -> None:
        self.path, self._settings = path, settings
        self._engines: Engines | None = None
        if settings.engine is not None and address is not None:
            self._engines = self._engines_of(settings.engine, address)

    @property
    def model(self) -> str:
        return self._settings.model

    @property
    def model_dir(self) -> str:
        return self._settings.model_dir

    @property
    def curv(self) -> float:
        return self._settings.curv

    @property
    def width(self) -> int:
        return self._settings.width

    def __len__(self) -> int:
        """The number of items, without the deleted ones."""
        return self._settings.count - len(self._settings.deleted)

    @property
    def engine(self) -> EngineSettings | None:
        """The settings of its engine; None if every point is compared."""
        return self._settings.engine

    @property
    def engines(self) -> Engines | None:
        """Its engine, if it has one and was not opened as ``exact``."""
        return self._engines

    @classmethod
    def create(cls, path: Path, *, model: str, model_dir: str, curv: float, width: int) -> Index:
        """An empty index in a new folder.

        Raises:
            ValueError: the folder exists and is not empty.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ValueError(f"{path} is there already: add to it, or choose another name")
        path.mkdir(parents=True, exist_ok=True)
        index = cls(path, _Settings(model, model_dir, curv, width, 0))
        for name in (_DISTANCES, _IMAGES, _ITEMS, _OFFSETS):
            (path / name).touch()
        (path / _POINTS).write_bytes(_npy_header(0, width))
        index._write(index._settings)
        return index

    @classmethod
    def open(
        cls, path: Path, *, url: str | None = None, key: str | None = None, exact: bool = False
    ) -> Index:
        """Open an existing index.

        Args:
            path: its folder.
            url, key: of its engine's database. Neither is ever written; by default they are those of the
                environment, ``HYSAC_ENGINE_URL`` and ``HYSAC_ENGINE_KEY``.
            exact: ignore its engine and compare every point. Such an index can be read, not changed.

        Its engine is loaded when it is first needed: ``index.engines.load()`` does it at once.

        Raises:
            FileNotFoundError: there is none.
            ValueError: its settings are damaged, or a file is shorter than they say; names it.
        """
        if not (path / _SETTINGS).is_file():
            raise FileNotFoundError(f"{path} is no index: it has no {_SETTINGS}")
        content = read_json(path / _SETTINGS)
        try:
            if content.pop("format_version", None) != FORMAT_VERSION:
                raise ValueError(f"format_version must be {FORMAT_VERSION}")
            engine = None if content.get("engine") is None else EngineSettings.of(content["engine"])
            settings = _Settings(**{**content, "deleted": tuple(content["deleted"]), "engine": engine})
            _check_settings(settings)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path / _SETTINGS} is damaged: {error}") from error
        index = cls(path, settings, None if exact else Address(url, key))
        index._check_sizes()
        return index

    def check_model(self, digest: str) -> None:
        """Refuse another model than the one that made the index.

        Raises:
            ValueError: names both.
        """
        if digest != self.model:
            raise ValueError(
                f"{self.path} was made by other weights ({self.model[:12]}..., then in {self.model_dir}) "
                f"than the model's ({digest[:12]}...): build it again, or give --model-dir"
            )

    def use_engine(
        self,
        name: str,
        options: Mapping[str, Any] | None = None,
        *,
        url: str | None = None,
        key: str | None = None,
    ) -> None:
        """Set the vector engine that proposes items to searches, in place of an earlier one.

        It is built from the stored points, images and texts apart. Its recall is measured on a hundred
        items of the other kind, or of its own kind if there are no others. An index without items builds
        it from the first ones that are added.

        Args:
            name: ``"exact"`` for none, or one of :mod:`hypkernels.retrieval.engines`.
            options: arguments of its class, such as ``{"kind": "ivf"}``.
            url, key: of its database, see :meth:`open`.

        Raises:
            ImportError: its package is missing; names the extra.
            TypeError, ValueError: see :func:`hysac.index.engine.choose_engine`.

        Warns:
            RecallWarning: it finds fewer than 0.95 of the 10 nearest.
        """
        address, before, earlier = Address(url, key), self._engines, self.engine
        if name == "exact":
            self._write(replace(self._settings, engine=None))
            self._engines = None
            remove_parts(self.path, set())
        else:
            settings = choose_engine(name, options or {}, address)
            self._engines = Engines(self.path, settings, address, self.model, self.curv, {})
            try:
                with self._engines_with(self.is_there(), 0) as built:
                    self._write(replace(self._settings, engine=built))
            except BaseException:
                self._engines = before
                raise
        if earlier is not None and earlier.remote and earlier.parts:
            tables = ", ".join(part.name for part in earlier.parts.values())
            log.warning("the earlier engine's rows stay in its %s database, as %s", earlier.name, tables)

    def add(self, batches: Iterable[Sequence[Encoded]]) -> list[tuple[str, str]]:
        """Add encoded items; returns the names and faults of those that could not be read.

        All of them are in the index once this returns, and none if it raises.

        Raises:
            ValueError: a name that is there already; an engine that cannot be loaded, or was passed over.
        """
        self._check_engine()
        settings, faults = self._settings, []
        names = set(self.names())
        with ExitStack() as stack:
            files = {
                name: stack.enter_context(open(self.path / name, "r+b"))
                for name in (_POINTS, _DISTANCES, _IMAGES, _ITEMS, _OFFSETS)
            }
            self._seek_to_end(files)
            count = settings.count
            for batch in batches:
                faults += [(one.item.name, one.fault) for one in batch if one.fault is not None]
                good = [one for one in batch if one.fault is None]
                if taken := [one.item.name for one in good if one.item.name in names]:
                    raise ValueError(f"{first_few(taken)}: there already; delete before adding it again")
                names.update(one.item.name for one in good)
                _append(files, good)
                count += len(good)
            files[_POINTS].seek(0)
            files[_POINTS].write(_npy_header(count, self.width))
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        settings = replace(settings, count=count)
        try:
            with self._engines_with(_there(settings), self._settings.count) as engine:
                self._write(replace(settings, engine=engine))
        except BaseException:
            self._restore_header()
            raise
        return faults

    def delete(self, names: Sequence[str]) -> None:
        """Delete items by their names.

        Raises:
            ValueError: a name that is not there; an engine that cannot be loaded, or was passed over.
                Nothing is deleted then. If the engine fails later, the items are deleted all the same.
        """
        self._check_engine()
        places = {name: place for place, name in self._named()}
        if missing := [name for name in names if name not in places]:
            raise ValueError(f"{self.path} has no {first_few(missing)}")
        gone = {places[name] for name in names}
        self._write(replace(self._settings, deleted=tuple(sorted({*self._settings.deleted, *gone}))))
        with self._engines_with(self.is_there(), self._settings.count, sorted(gone)) as engine:
            if engine != self.engine:
                self._write(replace(self._settings, engine=engine))

    def names(self) -> list[str]:
        """The names of the items that are there, in order."""
        return [name for _, name in self._named()]

    @property
    def points_file(self) -> Path:
        """The ``.npy`` file of the points of all items, deleted ones too."""
        return self.path / _POINTS

    def gallery(self) -> Gallery:
        """The points of all items, deleted ones too, without those that another process added since."""
        return open_gallery(self.points_file).first(self._settings.count)

    def distances(self) -> np.ndarray:
        """The distances that items are scored by, ``(N,)`` float32, deleted ones too; mapped."""
        return self._mapped(_DISTANCES, np.float32)

    def is_image(self) -> np.ndarray:
        """Which items are images, ``(N,)`` bool, deleted ones too."""
        return self._images(self._settings.count)

    def is_there(self) -> np.ndarray:
        """Which items are not deleted, ``(N,)`` bool."""
        return _there(self._settings)

    def item(self, place: int) -> Item:
        """The item at a place."""
        offset = int(self._mapped(_OFFSETS, np.int64)[place])
        with open(self.path / _ITEMS, "rb") as file:
            file.seek(offset)
            return _item_of(json.loads(file.readline()))

    def _named(self) -> Iterator[tuple[int, str]]:
        deleted = set(self._settings.deleted)
        with open(self.path / _ITEMS, "rb") as file:
            for place in range(self._settings.count):
                line = file.readline()
                if place not in deleted:
                    yield place, json.loads(line)["name"]

    def _images(self, count: int) -> np.ndarray:
        return self._mapped(_IMAGES, np.uint8, count).astype(bool)

    def _mapped(self, name: str, dtype: Any, count: int | None = None) -> np.ndarray:
        count = self._settings.count if count is None else count
        if not count:
            return np.empty(0, dtype)
        return np.memmap(self.path / name, dtype, mode="r", shape=(count,))

    def _engines_of(self, settings: EngineSettings, address: Address) -> Engines:
        images, there = self.is_image(), self.is_there()
        counts = {"image": int((images & there).sum()), "text": int((~images & there).sum())}
        return Engines(self.path, settings, address, self.model, self.curv, counts)

    def _check_engine(self) -> None:
        """Load the engine before anything is changed."""
        if self._engines is not None:
            self._engines.load()
        elif self.engine is not None:
            raise ValueError(f"{self.path} was opened without its engine, and is not changed without it")

    @contextmanager
    def _engines_with(
        self, there: np.ndarray, start: int, gone: Sequence[int] = ()
    ) -> Iterator[EngineSettings | None]:
        """Change the engine to what the index has when the context is left."""
        if self._engines is None or not len(there):
            yield None if self._engines is None else self._engines.settings
            return
        images = self._images(len(there))
        with self._engines.update(
            self.points_file, images, there, start, np.array(gone, np.int64)
        ) as settings:
            yield settings

    def _sizes(self) -> dict[str, int]:
        count = self._settings.count
        return {
            _POINTS: _HEADER_BYTES + 4 * count * self.width,
            _DISTANCES: 4 * count,
            _IMAGES: count,
            _OFFSETS: 8 * count,
        }

    def _check_sizes(self) -> None:
        for name, size in self._sizes().items():
            path = self.path / name
            there = path.stat().st_size if path.is_file() else 0
            if there < size:
                raise ValueError(f"{path} has {there} bytes, fewer than the {size} of its items")
        with open(self.points_file, "rb") as file:
            if file.read(_HEADER_BYTES) != _npy_header(self._settings.count, self.width):
                self._restore_header()

    def _restore_header(self) -> None:
        """Undo the header of a change that failed before the settings were written."""
        with open(self.points_file, "r+b") as file:
            file.write(_npy_header(self._settings.count, self.width))

    def _seek_to_end(self, files: dict[str, Any]) -> None:
        for name, size in self._sizes().items():
            files[name].truncate(size)
            files[name].seek(0, os.SEEK_END)
        end = 0
        if self._settings.count:
            files[_ITEMS].seek(int(self._mapped(_OFFSETS, np.int64)[-1]))
            files[_ITEMS].readline()
            end = files[_ITEMS].tell()
        files[_ITEMS].truncate(end)
        files[_ITEMS].seek(end)

    def _write(self, settings: _Settings) -> None:
        content = asdict(settings)
        if settings.engine is None:
            del content["engine"]
        write_json(self.path / _SETTINGS, {"format_version": FORMAT_VERSION, **content})
        self._settings = settings


def _there(settings: _Settings) -> np.ndarray:
    there = np.ones(settings.count, bool)
    there[list(settings.deleted)] = False
    return there


def _append(files: dict[str, Any], items: Sequence[Encoded]) -> None:
    for one in items:
        assert one.point is not None
        files[_POINTS].write(one.point.float().numpy().tobytes())
        files[_DISTANCES].write(np.float32(one.distance).tobytes())
        files[_IMAGES].write(bytes([one.item.modality == "image"]))
        files[_OFFSETS].write(np.int64(files[_ITEMS].tell()).tobytes())
        files[_ITEMS].write((json.dumps(_record(one.item)) + "\n").encode())


def _record(item: Item) -> dict[str, Any]:
    record: dict[str, Any] = {"name": item.name, "modality": item.modality}
    content = item.content
    if isinstance(content, ShardMember):
        member = {**asdict(content), "shard": str(content.shard.resolve())}
        return record | {"member": member}
    if isinstance(content, Path):
        return record | {"path": str(content.resolve())}
    return record | {"text": content}


def _item_of(record: dict[str, Any]) -> Item:
    content: ImageFile | str
    if "member" in record:
        content = ShardMember(**{**record["member"], "shard": Path(record["member"]["shard"])})
    else:
        content = Path(record["path"]) if "path" in record else record["text"]
    return Item(record["name"], record["modality"], content)


def _npy_header(count: int, width: int) -> bytes:
    """The first :data:`_HEADER_BYTES` bytes of an ``.npy`` file, version 1.0."""
    described = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({count}, {width}), }}"
    start = b"\x93NUMPY\x01\x00" + (_HEADER_BYTES - 10).to_bytes(2, "little")
    return start + described.encode().ljust(_HEADER_BYTES - len(start) - 1) + b"\n"


def _check_settings(settings: _Settings) -> None:
    for name, value in asdict(settings).items():
        if name == "engine":
            continue  # checked when it was read
        if name in ("model", "model_dir"):
            good = isinstance(value, str)
        elif name == "curv":
            good = isinstance(value, float) and 0 < value < float("inf")
        elif name == "deleted":
            good = all(isinstance(one, int) and 0 <= one < settings.count for one in value)
        else:
            good = isinstance(value, int) and not isinstance(value, bool) and value >= (name == "width")
        if not good:
            raise ValueError(f"{name} cannot be {shown(value)}")
