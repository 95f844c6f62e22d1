"""Running the application with uvicorn."""

from __future__ import annotations

import gc
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from hysac.serve.limits import Limits


class _Server(uvicorn.Server):
    """Tells when requests are answered."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # objects made until now stay: each garbage collection of them takes 0.1 s or more
        self._on_start()


def run(app: FastAPI, listener: socket.socket, limits: Limits, on_start: Callable[[], None]) -> None:
    """Answer until a signal comes; answers in progress then have ``limits.timeout`` seconds."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        ws="none",
        limit_concurrency=limits.connections,
        timeout_graceful_shutdown=max(1, round(limits.timeout)),
    )
    _Server(config, on_start).run(sockets=[listener])
