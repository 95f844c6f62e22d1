"""``hysac serve``."""

from __future__ import annotations

import argparse
import logging
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from hysac.cli.command import Command
from hysac.cli.flags import add_engine_use, add_scorer
from hysac.cli.inputs import load_scorer, open_index
from hysac.index import Index

if TYPE_CHECKING:
    from hysac.serve.limits import Limits

log = logging.getLogger(__name__)

TOKEN_VARIABLE = "HYSAC_TOKEN"
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

_EPILOG = f"""\
A page at / searches, scores and shows the index; /api describes the JSON API: /score, /search, /redirect,
/map, /pictures, /about, /healthz, and /metrics for Prometheus. Requests that come together go through the
model together. Without --index there is /score alone.

Only this machine can reach the server unless --host says otherwise; then give it a token (--token-file, or
the variable {TOKEN_VARIABLE}), and something in front of it that speaks TLS.

examples:
  hysac serve --model-dir runs/demo --index photos.index
  curl -s localhost:8000/score --json '{{"items": [{{"text": "a dog on a meadow"}}]}}'
"""


def _add_flags(parser: argparse.ArgumentParser) -> None:
    add_scorer(parser, workers=False)
    parser.add_argument("--index", metavar="INDEX", help="what `hysac index build` made with this model")
    add_engine_use(parser)
    network = parser.add_argument_group("network")
    network.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="the address to listen at")
    network.add_argument("--port", type=int, default=8000, metavar="N", help="0 for any that is free")
    network.add_argument(
        "--allow-host",
        action="append",
        metavar="NAME",
        help="a host name that requests may name; by default, at a loopback address, its own, else any",
    )
    network.add_argument("--token-file", metavar="FILE", help="a file with the token that requests must bear")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-body", type=float, default=16, metavar="MIB", help="largest request, in MiB")
    limits.add_argument("--timeout", type=float, default=30, metavar="S", help="longest request, in seconds")
    limits.add_argument(
        "--threads", type=int, default=4, metavar="N", help="threads that read images and search"
    )
    limits.add_argument(
        "--queue", type=int, default=4096, metavar="N", help="images and texts that may wait for the model"
    )


def _serve(args: argparse.Namespace) -> int:
    from hysac.serve.app import create_app
    from hysac.serve.server import run

    limits, token = _limits(args), _token(args)
    index = _index(args)
    with _listen(args.host, args.port) as listener:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        is_local = shown.startswith("127.") or shown in _LOOPBACK
        if token is None and not is_local:
            log.warning("%s can be reached from elsewhere, and no token is asked for", shown)
        names = args.allow_host or ([*_LOOPBACK, shown, args.host] if is_local else None)
        app = create_app(load_scorer(args), index, token=token, limits=limits, hosts=names)
        run(app, listener, limits, lambda: print(f"serving at http://{shown}:{port}", flush=True))
    return 0


def _limits(args: argparse.Namespace) -> Limits:
    from hysac.serve.limits import Limits

    body = int(args.max_body * 2**20)
    return Limits(
        body=body,
        bodies=16 * body,
        timeout=args.timeout,
        threads=args.threads,
        queue=args.queue,
        rows=min(args.queue, Limits.rows),
    )


def _token(args: argparse.Namespace) -> str | None:
    """That of the file, else of the environment."""
    token = os.environ.get(TOKEN_VARIABLE)
    if args.token_file is not None:
        token = Path(args.token_file).read_text().strip()
    if token is not None and not (token.isascii() and token.isprintable() and token and " " not in token):
        where = args.token_file or TOKEN_VARIABLE
        raise ValueError(f"{where} must hold a token of printable ASCII characters without spaces")
    return token


def _index(args: argparse.Namespace) -> Index | None:
    return None if args.index is None else open_index(args)


def _listen(host: str, port: int) -> socket.socket:
    """A socket before the model is loaded, so that a port that is taken is told at once.

    Raises:
        OSError: the port is in use, or the address is not this machine's.
        ValueError: no such port.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port must be 0 to 65535, got {port}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family, backlog=1024)
    except OSError as error:
        raise OSError(f"cannot listen at {host}, port {port}: {error.strerror or error}") from error


COMMAND = Command("--model-dir DIR [--index INDEX] [options]", _EPILOG, _add_flags, _serve)
