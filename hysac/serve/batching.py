"""Dynamic batching: rows of concurrent requests go through the model together."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Encode = Callable[[str, Tensor], tuple[Tensor, Tensor]]
"""From a modality and rows ``(N, ...)`` to points ``(N, D)`` and distances ``(N,)``."""


class OverloadedError(Exception):
    """More rows wait than the server accepts."""


class EncodingError(Exception):
    """The model failed."""


@dataclass
class _Row:
    number: int
    content: Tensor
    done: asyncio.Future[tuple[Tensor, float]]


class Batcher:
    """One thread that runs the model, and the rows that wait for it: images, or windows of texts.

    While a batch runs the next one gathers, up to ``batch_size`` rows of one modality, the one whose oldest
    row has waited longest. A batch that is not full waits ``linger`` seconds, but only while other requests
    are being read. Rows whose request was given up are left out. :meth:`start` it within an event loop.

    Args:
        encode: the model.
        batch_size: rows at a time.
        capacity: rows that may wait.
        linger: see above.
        on_batch: told the modality and size of every batch.
    """

    def __init__(
        self,
        encode: Encode,
        *,
        batch_size: int,
        capacity: int,
        linger: float,
        on_batch: Callable[[str, int], None] = lambda modality, size: None,
    ) -> None:
        self._encode, self._on_batch = encode, on_batch
        self.batch_size, self.capacity, self.linger = batch_size, capacity, linger
        self._waiting: dict[str, deque[_Row]] = {"image": deque(), "text": deque()}
        self._number = 0
        self._expected = 0

    def __len__(self) -> int:
        """The rows that wait."""
        return sum(map(len, self._waiting.values()))

    def start(self) -> None:
        self._arrived, self._ready = asyncio.Event(), asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "hysac-model")
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Finish the batch that runs, and drop the rows that wait."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for rows in self._waiting.values():
            for row in rows:
                row.done.cancel()
            rows.clear()
        self._thread.shutdown()

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """Enter this while a request is read: its rows may still come into the next batch."""
        self._expected += 1
        try:
            yield
        finally:
            self._expected -= 1
            if not self._expected and hasattr(self, "_ready"):
                self._ready.set()

    async def encode(self, modality: str, rows: Sequence[Tensor]) -> list[tuple[Tensor, float]]:
        """The point and the distance of each row; not checked.

        Raises:
            OverloadedError: the queue has no room for them.
            EncodingError: the model failed on their batch.
        """
        if len(self) + len(rows) > self.capacity:
            raise OverloadedError(f"{len(self)} rows are waiting for the model; try again later")
        loop = asyncio.get_running_loop()
        added = [_Row(self._number + place, row, loop.create_future()) for place, row in enumerate(rows)]
        self._number += len(added)
        self._waiting[modality].extend(added)
        self._arrived.set()
        if len(self) >= self.batch_size:
            self._ready.set()
        return await asyncio.gather(*(row.done for row in added))

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            await self._gather()
            modality, rows = self._take()
            if rows:
                await self._run_batch(modality, rows)
            if not len(self):
                self._arrived.clear()

    async def _gather(self) -> None:
        """Wait for requests that are being read, if there is room for theirs."""
        if not self._expected or len(self) >= self.batch_size:
            return
        self._ready.clear()
        try:
            await asyncio.wait_for(self._ready.wait(), self.linger)
        except asyncio.TimeoutError:
            return

    def _take(self) -> tuple[str, list[_Row]]:
        """The rows of the next batch, and their modality."""
        for rows in self._waiting.values():
            while rows and rows[0].done.done():
                rows.popleft()
        modality, waiting = min(
            self._waiting.items(), key=lambda one: one[1][0].number if one[1] else self._number
        )
        taken: list[_Row] = []
        while waiting and len(taken) < self.batch_size:
            row = waiting.popleft()
            if not row.done.done():
                taken.append(row)
        return modality, taken

    async def _run_batch(self, modality: str, rows: list[_Row]) -> None:
        self._on_batch(modality, len(rows))
        contents = [row.content for row in rows]
        try:
            points, distances = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._encode_all, modality, contents
            )
        except Exception:
            log.exception("the model failed on %d rows", len(rows))
            for row in rows:
                if not row.done.done():
                    row.done.set_exception(EncodingError("the model failed; the server's log says more"))
            return
        for row, point, distance in zip(rows, points, distances, strict=True):
            if not row.done.done():
                row.done.set_result((point, distance))

    def _encode_all(self, modality: str, contents: list[Tensor]) -> tuple[tuple[Tensor, ...], list[float]]:
        points, distances = self._encode(modality, torch.stack(contents))
        return points.unbind(), distances.tolist()
