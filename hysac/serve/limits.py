"""Limits of requests, access control and headers of all answers, around the whole application."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """The bounds of a server.

    Attributes:
        body: bytes of a request's body.
        bodies: bytes of all bodies that are held at a time.
        timeout: seconds from a request's head to the start of its answer.
        rows: images and windows of texts that a request may bring to the model.
        queue: rows that may wait for the model.
        linger: seconds that a batch waits for requests that are being read.
        threads: number of threads that decode images and search.
        connections: that may be open at a time.
    """

    body: int = 16 << 20
    bodies: int = 256 << 20
    timeout: float = 30.0
    rows: int = 1024
    queue: int = 4096
    linger: float = 0.002
    threads: int = 4
    connections: int = 512

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0 or (value == 0 and name != "linger"):
                raise ValueError(f"{name} must be positive, got {value}")
        if self.bodies < self.body:
            raise ValueError(f"bodies must be at least body, got {self.bodies} and {self.body}")
        if self.queue < self.rows:
            raise ValueError(f"queue must be at least rows, got {self.queue} and {self.rows}")


_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
_HEADERS = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

_DRAINED = 4
"""Up to this many times the largest body is read of one that is too large: most clients read no answer
before they have sent everything."""


class _RefusedError(Exception):
    """A request that is answered before the application sees it."""

    def __init__(self, status: int, error: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(error)
        self.status, self.error, self.headers = status, error, headers


class _Held:
    """The parts of a body that are kept."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0


class Guard:
    """Refuses requests that are too large, take too long or lack access; it answers ``{"error": ...}``.

    Host names are checked, because a page of another site can point its own name at a server on this machine.

    Args:
        app: the application.
        limits: of bodies and time.
        token: required as ``Authorization: Bearer``, or None.
        open_paths: those that need no token.
        hosts: the names that the server goes by; None for any.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        token: str | None,
        open_paths: Iterable[str],
        hosts: Iterable[str] | None,
    ) -> None:
        self.app, self.limits = app, limits
        self.token = None if token is None else token.encode()
        self.open_paths = frozenset(open_paths)
        self.hosts = None if hosts is None else frozenset(hosts)
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(send)
        try:
            self._check(scope)
            await asyncio.wait_for(self._answer(scope, receive, answer), self.limits.timeout)
        except _RefusedError as refused:
            await answer.refuse(refused)
        except asyncio.TimeoutError:
            await answer.refuse(_RefusedError(504, f"no answer within {self.limits.timeout:g} s"))
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            await answer.refuse(_RefusedError(500, "the server failed; its log says more"))

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        if self.hosts is not None and _host(headers.get(b"host", b"")) not in self.hosts:
            raise _RefusedError(400, "the server does not go by this host name")
        if self.token is not None and scope["path"] not in self.open_paths:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self.token):
                raise _RefusedError(401, "the token is missing or wrong", [(b"www-authenticate", b"Bearer")])
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > _DRAINED * self.limits.body:
            raise self._too_large()

    async def _answer(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        held = _Held()
        try:
            if await self._read(receive, held):
                await self.app(scope, _replay(b"".join(held.parts), receive), answer.send)
        finally:
            self._held -= held.size

    async def _read(self, receive: Receive, held: _Held) -> bool:
        """Read the body; False if the client is gone. A body that is too large is read and not kept."""
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return False
            part = message.get("body", b"")
            size += len(part)
            if size <= self.limits.body:
                held.parts.append(part)
                held.size += len(part)
                self._held += len(part)
            if self._held > self.limits.bodies:
                raise _RefusedError(
                    503, "too many bodies are held; try again later", [(b"retry-after", b"1")]
                )
            is_read = not message.get("more_body")
            if size > self.limits.body and (is_read or size > _DRAINED * self.limits.body):
                raise self._too_large()
            if is_read:
                return True

    def _too_large(self) -> _RefusedError:
        return _RefusedError(
            413, f"the body has more than {self.limits.body} bytes", [(b"connection", b"close")]
        )


class _Answer:
    """Sends an answer with the headers of every answer; a refusal only if nothing was sent yet."""

    def __init__(self, send: Send) -> None:
        self._send, self._is_started = send, False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._is_started = True
            message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
        await self._send(message)

    async def refuse(self, refused: _RefusedError) -> None:
        if self._is_started:
            return
        body = json.dumps({"error": refused.error}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *refused.headers,
        ]
        await self.send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


def _host(value: bytes) -> str:
    """The name of a ``Host`` header, without its port."""
    name = value.decode("latin-1").lower()
    if name.startswith("["):
        return name.partition("]")[0] + "]"
    return name.partition(":")[0]


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body at once, then the client's later messages."""
    is_read = False

    async def replayed() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
