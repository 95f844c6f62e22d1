"""Computes the points and scores of the items of a request."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from torch import Tensor

from hysac.data.images import decode_image
from hysac.scoring.scorer import SafetyScorer, Score, check_finite
from hysac.serve.batching import Batcher
from hysac.serve.limits import Limits
from hysac.serve.schemas import ImageItem, TextItem

T = TypeVar("T")

_SHORT_TEXT = 500
"""Texts up to this many characters are tokenized at once: handing them to a thread takes longer."""

_LONGEST_WORD = 200
_LONG_WORD = re.compile(rf"[^\W\d_]{{{_LONGEST_WORD + 1},}}")
"""The time that open_clip's tokenizer takes grows with the square of a word's length: 25 s for 10,000."""

_KNOWN_WORDS = 100_000
"""Words that the tokenizer remembers at most; without a limit it would keep every word that it saw."""


class Query(NamedTuple):
    """An item's point ``(D,)`` and its score."""

    point: Tensor
    score: Score


class FaultyItemsError(Exception):
    """Items that cannot be scored, by their places in the request, and why."""

    def __init__(self, faults: dict[int, str]) -> None:
        super().__init__(f"{len(faults)} of the items cannot be scored")
        self.faults = faults


class TooMuchError(Exception):
    """More windows of texts than a request may have."""


class Engine:
    """Reads items in a pool of threads and runs the model in its own, see :class:`Batcher`.

    Args:
        scorer: the model.
        limits: of rows and threads.
        on_batch: see :class:`Batcher`.
    """

    def __init__(self, scorer: SafetyScorer, limits: Limits, on_batch: Callable[[str, int], None]) -> None:
        self.scorer, self.limits = scorer, limits
        self.batcher = Batcher(
            scorer.encode_rows,
            batch_size=scorer.batch_size,
            capacity=limits.queue,
            linger=limits.linger,
            on_batch=on_batch,
        )
        self._tokenizing = threading.Lock()

    def start(self) -> None:
        self._pool = ThreadPoolExecutor(self.limits.threads, "hysac-reader")
        self.batcher.start()

    async def stop(self) -> None:
        await self.batcher.stop()
        self._pool.shutdown(cancel_futures=True)

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """``function`` in one of the threads that read."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def encode(self, items: Sequence[TextItem | ImageItem]) -> list[Query]:
        """The points and scores of items, in their order.

        Raises:
            FaultyItemsError: some cannot be read.
            TooMuchError: they have too many windows.
            OverloadedError, EncodingError: see :class:`Batcher`.
            FloatingPointError: a distance that is not finite.
        """
        with self.batcher.expecting():
            rows = await self._read_all(items)
        if (number := sum(map(len, rows))) > self.limits.rows:
            raise TooMuchError(f"the texts have {number} windows, more than {self.limits.rows}")
        modalities = ["image" if isinstance(item, ImageItem) else "text" for item in items]
        encoded = await asyncio.gather(*map(self.batcher.encode, modalities, rows))
        return [
            self._query(place, modality, of_item)
            for place, (modality, of_item) in enumerate(zip(modalities, encoded, strict=True))
        ]

    def _query(self, place: int, modality: str, rows: list[tuple[Tensor, float]]) -> Query:
        for _, distance in rows:
            check_finite(f"item {place}", distance)
        return Query(rows[0][0], self.scorer.judge(modality, max(distance for _, distance in rows)))

    async def _read_all(self, items: Sequence[TextItem | ImageItem]) -> list[Sequence[Tensor]]:
        read = await asyncio.gather(*map(self._read, items), return_exceptions=True)
        faults, rows = {}, []
        for place, one in enumerate(read):
            if isinstance(one, ValueError):
                faults[place] = str(one)
            elif isinstance(one, BaseException):
                raise one
            else:
                rows.append(one)
        if faults:
            raise FaultyItemsError(faults)
        return rows

    async def _read(self, item: TextItem | ImageItem) -> Sequence[Tensor]:
        """The rows that an item brings to the model."""
        if isinstance(item, ImageItem):
            return [await self.run(self._pixels, item.image)]
        if len(item.text) <= _SHORT_TEXT and self._tokenizing.acquire(blocking=False):
            try:
                return self._tokens(item.text)
            finally:
                self._tokenizing.release()
        return await self.run(self._tokens_in_turn, item.text)

    def _pixels(self, image: str) -> Tensor:
        try:
            content = base64.b64decode(image, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"the image is not in base64: {error}") from None
        scorer = self.scorer
        return scorer.pixels(
            decode_image(content, max_pixels=scorer.max_pixels, background=scorer.background)
        )

    def _tokens_in_turn(self, text: str) -> Sequence[Tensor]:
        """Tokenizers of Hugging Face refuse two threads at a time."""
        with self._tokenizing:
            return self._tokens(text)

    def _tokens(self, text: str) -> Sequence[Tensor]:
        if _LONG_WORD.search(text):
            raise ValueError(f"the text has a word of more than {_LONGEST_WORD} letters")
        words = getattr(self.scorer.tokenizer, "cache", None)
        if isinstance(words, dict) and len(words) > _KNOWN_WORDS:
            words.clear()
        return self.scorer.tokens(text).unbind()
