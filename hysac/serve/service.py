"""The answers of the routes, from the model, the index and its map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata

import torch
from torch import Tensor

from hysac.index import Hit, Index, Step
from hysac.index.path import path_from
from hysac.index.search import Policy, Redirection, check_scorer, search_from, searched_kind
from hysac.scoring.operating_points import OperatingPoints
from hysac.scoring.scorer import SafetyScorer, Score
from hysac.serve import schemas
from hysac.serve.disk import Disk, sample_places
from hysac.serve.engine import Engine, Query
from hysac.serve.limits import Limits
from hysac.serve.metrics import Metrics
from hysac.serve.pictures import thumbnail

_MAP_TEXT = 100
"""Characters of a text on the map."""


class UnavailableError(Exception):
    """This server's model or index cannot answer the request."""


class MissingError(Exception):
    """No such item."""


class Service:
    """Answers as the API's schemas; they contain no path of the server.

    Args:
        scorer: the model.
        index: made by it, or None.
        limits: see :class:`Limits`.

    Raises:
        ValueError: an index of other weights.
    """

    def __init__(self, scorer: SafetyScorer, index: Index | None, limits: Limits) -> None:
        if index is not None:
            check_scorer(index, scorer)
        self.scorer, self._index = scorer, index
        self.metrics = Metrics()
        self.engine = Engine(scorer, limits, self.metrics.on_batch)
        self.metrics.watch(self.engine.batcher.__len__)
        self.limits = limits
        self._disk: Disk | None = None
        self._map: schemas.Map | None = None
        if index is not None and len(index):
            places = sample_places(torch.from_numpy(index.is_there()))
            points = index.gallery().take(places)
            self._disk = Disk(points, index.curv)
            self._map = self._map_of(index, places.tolist(), points)

    def check_index(self) -> Index:
        """The index, if there is one with items.

        Raises:
            UnavailableError: there is none.
        """
        if self._index is None or self._disk is None:
            raise UnavailableError("the server has no index, or an empty one: start it with --index")
        return self._index

    async def encode(self, items: Sequence[schemas.Item]) -> list[Query]:
        queries = await self.engine.encode(items)
        for query in queries:
            self.metrics.on_score(query.score)
        return queries

    def find(self, query: Query, asked: schemas.TextSearch | schemas.ImageSearch) -> schemas.Found:
        """The answer to a search; slow, for a thread."""
        index = self.check_index()
        with _without_paths(index):
            answer = search_from(
                index,
                self.scorer,
                *query,
                k=asked.k,
                modality=asked.modality,
                policy=asked.policy,
                redirection=_redirection(asked.redirection),
            )
        return schemas.Found(
            query=score_out(query.score),
            place=self._places(query.point[None])[0],
            blocked=answer.is_blocked,
            moved=answer.moved,
            hits=self._hits(answer.hits),
        )

    def way(self, query: Query, asked: schemas.TextRedirect | schemas.ImageRedirect) -> schemas.Way:
        """The geodesic of a redirection; slow, for a thread."""
        index = self.check_index()
        with _without_paths(index):
            steps = path_from(
                index,
                self.scorer,
                *query,
                modality=searched_kind(index, query.score.modality, asked.modality),
                redirection=_redirection(asked.redirection),
                steps=asked.steps,
            )
        places = self._places(torch.stack([step.point for step in steps]))
        return schemas.Way(query=score_out(query.score), steps=list(map(self._step, steps, places)))

    def picture(self, place: int, reveal: bool) -> bytes:
        """The thumbnail of an image, blurred unless it is called safe; slow, for a thread.

        Raises:
            MissingError: there is no such image, or it cannot be read any more.
        """
        index, scorer = self.check_index(), self.scorer
        there = index.is_there()
        if not (place < len(there) and there[place] and index.is_image()[place]):
            raise MissingError(f"the index has no image {place}")
        score = scorer.judge("image", float(index.distances()[place]))
        try:
            return thumbnail(
                index.item(place).content,  # type: ignore[arg-type]  # of an image
                blurred=is_hidden(score) and not reveal,
                max_pixels=scorer.max_pixels,
                background=scorer.background,
            )
        except ValueError:  # it would name the file
            raise MissingError(f"image {place} cannot be read any more") from None

    def map(self) -> schemas.Map:
        self.check_index()
        assert self._map is not None, "there is one where there is an index"
        return self._map

    def about(self) -> schemas.About:
        index, points = self._index, self.scorer.points
        images = 0 if index is None else int((index.is_image() & index.is_there()).sum())
        return schemas.About(
            version=metadata.version("hysac"),
            curvature=float(self.scorer.model.curvature.detach()),
            thresholds={} if points is None else _thresholds(points, self.scorer.threshold),
            policies=self._policies(),
            images=images,
            texts=0 if index is None else len(index) - images,
            max_body=self.limits.body,
        )

    def _policies(self) -> list[Policy]:
        """The policies that the model and the index allow."""
        if self._disk is None:
            return []
        policies: list[Policy] = ["as-asked"]
        if self.scorer.bounds is not None:
            policies.append("redirect")
        if self.scorer.points is not None:
            policies.append("block")
        return policies

    def _places(self, points: Tensor) -> list[schemas.Place]:
        assert self._disk is not None, "there is one where there is an index"
        return [schemas.Place(x=x, y=y) for x, y in self._disk.place(points)]

    def _hits(self, hits: Sequence[Hit]) -> list[schemas.Hit]:
        if not hits:
            return []
        points = self.check_index().gallery().take(torch.tensor([hit.place for hit in hits]))
        return list(map(_hit, hits, self._places(points)))

    def _step(self, step: Step, place: schemas.Place) -> schemas.StepOut:
        text, image = (
            next(iter(self._hits([hit])), None) if hit is not None else None
            for hit in (step.text, step.image)
        )
        return schemas.StepOut(share=step.share, distance=step.distance, place=place, text=text, image=image)

    def _map_of(self, index: Index, numbers: list[int], points: Tensor) -> schemas.Map:
        distances = index.distances()
        items = []
        for number, place in zip(numbers, self._places(points), strict=True):
            item = index.item(number)
            score = self.scorer.judge(item.modality, float(distances[number]))
            items.append(
                schemas.MapItem(
                    id=number,
                    modality=score.modality,  # type: ignore[arg-type]
                    distance=score.distance,
                    decision=score.decision,  # type: ignore[arg-type]
                    place=place,
                    text=item.content[:_MAP_TEXT] if isinstance(item.content, str) else None,
                )
            )
        return schemas.Map(curvature=index.curv, total=len(index), items=items)


def score_out(score: Score) -> schemas.ScoreOut:
    return schemas.ScoreOut(**asdict(score))


def is_hidden(score: Score) -> bool:
    """Whether an image is blurred until asked for: unless it is called safe."""
    return score.decision != "safe"


def _hit(hit: Hit, place: schemas.Place) -> schemas.Hit:
    is_image = hit.item.modality == "image"
    return schemas.Hit(
        id=hit.place,
        distance=hit.distance,
        score=score_out(hit.score),
        place=place,
        text=None if is_image else str(hit.item.content),
        picture=f"/pictures/{hit.place}" if is_image else None,
        hidden=is_image and is_hidden(hit.score),
    )


def _redirection(asked: schemas.HowRedirected) -> Redirection:
    return Redirection(**asked.model_dump())


def _thresholds(points: OperatingPoints, name: str | None) -> dict[schemas.Modality, float]:
    return {modality: points.point(modality, name).threshold for modality in points.modalities}  # type: ignore[misc]


@contextmanager
def _without_paths(index: Index) -> Iterator[None]:
    """Turn errors of a search into :class:`UnavailableError`: the index's own errors name its folder."""
    try:
        yield
    except ValueError as error:
        raise UnavailableError(str(error).replace(str(index.path), "the index")) from error
