"""The counters of a server, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hysac.scoring.scorer import Score

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "hysac_requests", "Requests answered.", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "hysac_request_seconds",
            "From a request's head to the end of its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.open = Gauge("hysac_open_requests", "Requests being answered.", registry=self.registry)
        self.batches = Histogram(
            "hysac_batch_rows",
            "Images or windows of texts that went through the model at a time.",
            ["modality"],
            buckets=_SIZES,
            registry=self.registry,
        )
        self.items = Counter(
            "hysac_items", "Items and queries scored.", ["modality", "decision"], registry=self.registry
        )
        self.waiting = Gauge("hysac_waiting_rows", "Rows that wait for the model.", registry=self.registry)

    def on_batch(self, modality: str, size: int) -> None:
        self.batches.labels(modality).observe(size)

    def on_score(self, score: Score) -> None:
        self.items.labels(score.modality, score.decision or "undecided").inc()

    def watch(self, waiting: Callable[[], int]) -> None:
        """Call ``waiting`` for the number of waiting rows whenever it is read."""
        self.waiting.set_function(waiting)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Measured:
    """Counts and times the requests of an application."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = "none"  # stays for a client that left

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        start = time.perf_counter()
        with self.metrics.open.track_inprogress():
            try:
                await self.app(scope, receive, watched)
            finally:
                path = getattr(scope.get("route"), "path", "other")  # clients must not invent labels
                self.metrics.requests.labels(path, status).inc()
                self.metrics.seconds.labels(path).observe(time.perf_counter() - start)
