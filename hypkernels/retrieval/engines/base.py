"""What all engines share: the protocol, checks, exact re-ranking, measured recall and the header on disk."""

from __future__ import annotations

import json
import math
import os
import uuid
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hypkernels.checks import SUPPORTED_DTYPES, check_choice, check_positive, scalar_tensor
from hypkernels.lorentz import dist0
from hypkernels.retrieval.engines.checks import as_ids, check_count, check_finite, check_points_of
from hypkernels.retrieval.engines.packages import version_of
from hypkernels.retrieval.engines.transforms import TRANSFORMS, Transform, radius_of, time_at
from hypkernels.retrieval.gallery import Gallery, Source, open_gallery
from hypkernels.retrieval.search import Neighbours, rerank, topk

HEADER = "index.json"
FORMAT = 1
RECALL_SAMPLE = 100
LEAST_RECALL = 0.95
HEADROOM = 1.05  # ``max_radius`` over the farthest point's distance to the origin
CANDIDATE_BYTES = 64 << 20
PIECE_BYTES = 16 << 20
LARGEST = {"float32": 3.4e38, "bfloat16": 3.38e38, "float16": 65504.0}


class RecallWarning(UserWarning):
    """An index finds a smaller share of the nearest points than :data:`LEAST_RECALL`."""


class FarPointError(ValueError):
    """A point is farther from the origin than those that the index was built for."""


class Candidates(NamedTuple):
    """An engine's proposals: ``points (n, D)``, their ``ids``, and the ``rows (Q, m)`` of each query."""

    points: Tensor
    ids: Tensor
    rows: Tensor


def connection(default: Any = None) -> Any:
    """A field that is neither shown nor saved, such as a database's URL, which may have a password."""
    return field(default=default, repr=False, metadata={"saved": False})


@dataclass(kw_only=True)
class Engine(ABC):
    """An index of points by integer ids. Its proposals are re-ranked exactly.

    Args:
        curv: positive ``c`` of the points' hyperboloid.
        transform: which vectors the engine gets, a name of :mod:`hypkernels.retrieval.engines.transforms`.
        candidates: how many of the engine's nearest are re-ranked; at least ``k``.
        dtype: of the engine's vectors. The points that re-ranking reads keep their own dtype.
        max_radius: the largest distance to the origin of a point that may be added later. 1.05 times that of
            the farthest point of :meth:`build` by default.
        model: names the model that the points come from, such as a checksum: see :meth:`search`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or range, by name.
        ImportError: the engine's package is missing; it names the extra.
    """

    curv: float = 1.0
    transform: str = "centred"
    candidates: int = 200
    dtype: str = "float32"
    max_radius: float | None = None
    model: str | None = None

    name: ClassVar[str]
    package: ClassVar[str]  # the distribution whose version is recorded
    metrics: ClassVar[tuple[str, ...]] = ("l2",)
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)

    def __post_init__(self) -> None:
        self.curv = _curvature(self.curv)
        check_choice(
            "transform", self.transform, [n for n, t in TRANSFORMS.items() if t.metric in self.metrics]
        )
        check_choice("dtype", self.dtype, self.dtypes)
        for one in fields(self):
            if one.type == "int":
                check_count(one.name, getattr(self, one.name))
        if self.max_radius is not None:
            check_positive("max_radius", self.max_radius)
        self.recall: float | None = None
        self._form: Transform | None = None
        self._width = 0
        self._points_dtype = torch.float32
        self._build = ""

    # The protocol.

    def build(self, points: Source, ids: Any = None, *, sample: Tensor | None = None, k: int = 10) -> Engine:
        """Index ``points`` in place of what was there, and measure the recall at ``k``.

        Args:
            points: ``N`` points, see :func:`~hypkernels.retrieval.open_gallery`; read in pieces.
            ids: ``(N,)`` distinct integers from 0, the rows' numbers by default.
            sample: queries ``(S, D)`` like those to come, on which the recall is measured. By default 100 of
                the points; the nearest neighbour of each is the point itself.
            k: the recall is the share of the ``k`` nearest that are found, of all ``N`` if ``k`` is larger.

        Returns:
            The engine itself, with ``recall`` set.

        Raises:
            TypeError, ValueError: an argument of the wrong type, shape or range; rows that are not finite, by
                number; points that ``dtype`` does not hold. Before any work.

        Warns:
            RecallWarning: the recall is below 0.95.
        """
        gallery = open_gallery(points)
        ids = as_ids(np.arange(len(gallery)) if ids is None else ids, len(gallery))
        if sample is not None:
            sample = check_points_of("sample", sample, gallery.width)
        k = min(check_count("k", k), len(gallery))
        self._prepare(gallery)
        try:
            self._fill(gallery, ids)
        except BaseException:
            self._form = None
            raise
        if sample is None:
            sample = gallery.points[:: -(-len(gallery) // RECALL_SAMPLE)].cpu()
        self._measure(sample, gallery, k)
        return self

    def add(self, points: Tensor, ids: Any) -> None:
        """Add points under new ids.

        Args:
            points: ``(n, D)``, rounded to the dtype of those that the index was built of.
            ids: ``(n,)`` distinct integers from 0 that the index does not have.

        Raises:
            TypeError, ValueError: as :meth:`build`; an id that is there. Nothing is added then.
            FarPointError: a point farther from the origin than ``max_radius``. Nothing is added then.
        """
        self._check_built()
        rows = check_points_of("points", points, self._width).to(self._points_dtype)
        ids = as_ids(ids, len(rows))
        if not len(rows):
            return
        far = _time(rows, self.curv) > self._transform.longest
        if far.any():
            row = int(far.nonzero()[0])
            distance = dist0(rows[row].double(), self.curv).item()
            most = radius_of(self._transform.longest, self.curv)
            raise FarPointError(
                f"points row {row} is {distance:.6g} from the origin, and the index was built for {most:.6g} "
                "at most: build it anew, or with max_radius"
            )
        there = self._present(ids)
        if len(there):
            raise ValueError(f"ids must be new, {there[0]} is in the index: delete it first")
        self._insert(ids, rows)

    def delete(self, ids: Any) -> None:
        """Delete points; their ids may be added anew.

        Raises:
            TypeError, ValueError: ids that are not in the index, or are there twice. Nothing is deleted then.
        """
        self._check_built()
        ids = as_ids(ids)
        missing = np.setdiff1d(ids, self._present(ids))
        if len(missing):
            raise ValueError(f"ids must be in the index, {missing[0]} is not")
        if len(ids):
            self._remove(ids)

    def present(self, ids: Any) -> np.ndarray:
        """The ids, out of ``ids``, that the index has: ``(n,)`` int64.

        Raises:
            TypeError, ValueError: not distinct integers from 0.
            RuntimeError: nothing was built or loaded.
        """
        self._check_built()
        ids = as_ids(ids)
        return self._present(ids) if len(ids) else ids

    def search(
        self, queries: Tensor, k: int, curv: float | Tensor = 1.0, *, model: str | None = None
    ) -> Neighbours:
        """The ``k`` nearest points of each query, out of those that the engine proposes.

        Args:
            queries: space components ``(Q, D)``, float64, float32, bfloat16 or float16; ``Q`` may be 0.
            k: how many, from 1 to the number of points.
            curv: of the queries' hyperboloid; it must be that of the index, to a millionth.
            model: the model of the queries. Refused if the index has another; not compared if one is None.

        Returns:
            ``(distances, ids)``, each ``(Q, k)``, the nearest first, with exact distances: float64 if
            queries or points are, else float32; ids are int64. If the engine proposes fewer than ``k``,
            the rest is infinity and -1. Both are detached, on the queries' device.

        Raises:
            TypeError, ValueError: an argument of the wrong type, dtype, shape or range, or of another
                hyperboloid or model; rows that are not finite, by number; an empty index.
            RuntimeError: nothing was built or loaded.
        """
        self._check_built()
        rows = check_points_of("queries", queries, self._width)
        self._check_origin(_curvature(curv), model)
        count = len(self)
        if not count:
            raise ValueError("the index is empty: add points first")
        if check_count("k", k) > count:
            raise ValueError(f"k must be at most the number of points, {count}, got {k}")
        found = [self._search(piece, k, count) for piece in rows.split(self._queries_at_once())]
        return Neighbours(*(torch.cat(parts).to(queries.device) for parts in zip(*found, strict=True)))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the index to a folder, the header last; for a database only the header: its rows stay
        there.

        Raises:
            RuntimeError: nothing was built or loaded.
            ValueError: the index lives in memory only.
        """
        self._check_built()
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / HEADER).unlink(missing_ok=True)
        self._write(path)
        (path / HEADER).write_text(json.dumps(self._header() | {"recall": self.recall}, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike[str], **where: Any) -> Engine:
        """The index of a folder that :meth:`save` wrote.

        Args:
            where: for a database, the arguments for its place, such as ``url``; they are not saved.

        Raises:
            FileNotFoundError: the folder has no header.
            ValueError: another engine's index, another format, or a table that was built anew since.
        """
        header = read_header(folder)
        if header["engine"] != cls.name:
            raise ValueError(f"{os.fspath(folder)} is an index of {header['engine']}, not of {cls.name}")
        engine = cls(**{name: header["arguments"][name] for name in cls._saved()}, **where)
        engine._width, engine._build = header["width"], header["build"]
        engine._points_dtype = {str(dtype): dtype for dtype in SUPPORTED_DTYPES}[header["points"]]
        engine._form = TRANSFORMS[engine.transform](engine.curv, engine._width, header["longest"])
        engine.recall = header["recall"]
        engine._read(Path(folder))
        return engine

    def version(self) -> str:
        """The version of the engine."""
        return version_of(self.package)

    @abstractmethod
    def close(self) -> None:
        """Close a database's connection; its rows stay."""

    @abstractmethod
    def drop(self) -> None:
        """Drop a database's table, with its rows. An index in memory vanishes with the object."""

    @abstractmethod
    def __len__(self) -> int: ...

    # Every adapter implements these. Arguments are checked before; vectors are those of
    # ``self._transform``.

    @abstractmethod
    def _create(self, gallery: Gallery) -> None:
        """An empty index for these points, in place of what was there."""

    @abstractmethod
    def _insert(self, ids: np.ndarray, points: Tensor) -> None: ...

    @abstractmethod
    def _remove(self, ids: np.ndarray) -> None: ...

    @abstractmethod
    def _present(self, ids: np.ndarray) -> np.ndarray:
        """The ids that the index has."""

    @abstractmethod
    def _candidates(self, vectors: np.ndarray, count: int) -> Candidates:
        """About ``count`` candidates for each query."""

    @abstractmethod
    def _write(self, folder: Path) -> None: ...

    @abstractmethod
    def _read(self, folder: Path) -> None: ...

    @abstractmethod
    def _finish(self) -> None:
        """Called after the last piece of :meth:`build`."""

    # An adapter may override these.

    @property
    def _transform(self) -> Transform:
        assert self._form is not None
        return self._form

    def _prepare(self, gallery: Gallery) -> None:
        """Read all points once: are they finite, how far do they go, and do their vectors fit ``dtype``?"""
        farthest = 0.0
        for start, rows in gallery.pieces(PIECE_BYTES):
            check_finite("points", rows, start)
            farthest = max(farthest, dist0(rows.double(), self.curv).max().item())
        radius = HEADROOM * farthest if self.max_radius is None else self.max_radius
        if radius < farthest:
            raise ValueError(
                f"max_radius must be at least that of the points, {farthest:.6g}, got {radius:.6g}"
            )
        form = TRANSFORMS[self.transform](self.curv, gallery.width, time_at(radius, self.curv))
        self._check_range(form, radius)
        self._form, self._width, self._points_dtype = form, gallery.width, gallery.dtype
        self._build, self.recall = uuid.uuid4().hex, None

    def _check_range(self, form: Transform, radius: float) -> None:
        """Refuse vectors beyond the range of the engine's dtype."""
        if form.largest > LARGEST[self.dtype]:
            raise ValueError(
                f"points up to {radius:.6g} from the origin have a time coordinate of {form.longest:.6g}, "
                f"and {self.dtype} ends at {LARGEST[self.dtype]:.6g}: choose another dtype or transform"
            )

    def _fill(self, gallery: Gallery, ids: np.ndarray) -> None:
        self._create(gallery)
        for start, rows in gallery.pieces(PIECE_BYTES):
            self._insert(ids[start : start + len(rows)], rows.cpu())
        self._finish()

    def _search(self, queries: Tensor, k: int, count: int) -> Neighbours:
        if not len(queries):
            return self._nothing(queries, k)
        proposed = min(max(self.candidates, k), count)
        points, ids, rows = self._candidates(self._transform.queries(queries), proposed)
        if not len(points):
            return self._nothing(queries, k)
        if rows.shape[1] < k:
            rows = torch.nn.functional.pad(rows, (0, k - rows.shape[1]), value=-1)
        distances, rows = rerank(queries, points, rows, k, self.curv)
        return Neighbours(distances, torch.where(rows >= 0, ids[rows], -1))

    def _nothing(self, queries: Tensor, k: int) -> Neighbours:
        double = torch.float64 in (queries.dtype, self._points_dtype)
        distances = torch.full((len(queries), k), torch.inf, dtype=torch.float64 if double else torch.float32)
        return Neighbours(distances, torch.full((len(queries), k), -1))

    def _queries_at_once(self) -> int:
        return max(1, CANDIDATE_BYTES // (8 * self.candidates * self._width))

    def _measure(self, sample: Tensor, gallery: Gallery, k: int) -> None:
        self.recall = recall_of(self, sample, gallery, k)
        if self.recall < LEAST_RECALL:
            warnings.warn(
                f"{self!r} finds {self.recall:.3f} of the {k} nearest, measured on {len(sample)} queries: "
                "more candidates, a larger search effort or another transform may find more",
                RecallWarning,
                stacklevel=3,
            )

    def _check_built(self) -> None:
        if self._form is None:
            raise RuntimeError("the index is neither built nor loaded: call build first")

    def _check_origin(self, curv: float, model: str | None) -> None:
        if not math.isclose(curv, self.curv, rel_tol=1e-6):
            raise ValueError(f"the index is of points of curv {self.curv:.9g}, the queries are of {curv:.9g}")
        if None not in (model, self.model) and model != self.model:
            raise ValueError(
                f"the index is of points of the model {self.model!r}, the queries are of {model!r}"
            )

    @classmethod
    def _saved(cls) -> list[str]:
        return [one.name for one in fields(cls) if one.metadata.get("saved", True)]

    def _header(self) -> dict[str, Any]:
        """The description of an index, without its recall."""
        return {
            "format": FORMAT,
            "engine": self.name,
            "version": self.version(),
            "build": self._build,
            "arguments": {name: getattr(self, name) for name in self._saved()},
            "width": self._width,
            "points": str(self._points_dtype),
            "longest": self._transform.longest,
        }


def recall_of(
    engine: Engine, queries: Tensor, gallery: Source, k: int, found: Neighbours | None = None
) -> float:
    """The share of the ``k`` nearest that a search finds; any point as near as the ``k``-th counts.

    Args:
        gallery: the points that the engine has.
        found: the result of the engine's search, if there is one already.
    """
    if not len(queries):
        return 1.0
    found = engine.search(queries, k, engine.curv) if found is None else found
    gallery = open_gallery(gallery)
    exact = topk(queries.to(gallery.device), gallery, k, engine.curv)
    farthest = exact.distances[:, -1:].to(queries.device)
    return (found.distances <= farthest).double().mean().item()


def read_header(folder: str | os.PathLike[str]) -> dict[str, Any]:
    header = json.loads((Path(folder) / HEADER).read_text())
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{os.fspath(folder)} has format {header.get('format')!r}, this library reads {FORMAT}"
        )
    return header


def _curvature(curv: float | Tensor) -> float:
    if not isinstance(curv, Tensor):
        return check_positive("curv", curv, "a float or a tensor of one element")
    return check_positive("curv", scalar_tensor("curv", curv, curv).item())


def _time(points: Tensor, curv: float) -> Tensor:
    return (1 / curv + points.double().square().sum(1)).sqrt()
