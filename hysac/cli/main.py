"""The command line as a whole: its parser, its errors and what it prints."""

from __future__ import annotations

import argparse
import logging
import os
import select
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata

from tqdm import tqdm

from hysac.cli import (
    bounds,
    calibrate,
    classify_eval,
    convert,
    demo,
    evaluate,
    export,
    index,
    score,
    search,
    serve,
    toy,
    train,
    unsafe_eval,
    zero_shot,
)
from hysac.cli.command import Formatter

log = logging.getLogger("hysac")

COMMANDS = (
    *(module.COMMAND for module in (train, evaluate, zero_shot, unsafe_eval, bounds, calibrate)),
    *(module.COMMAND for module in (classify_eval, score, index)),
    search.SEARCH,
    search.REDIRECT,
    *(module.COMMAND for module in (serve, export, convert, toy, demo)),
)

USER_ERRORS = (ValueError, TypeError, OSError, ImportError, FloatingPointError)
"""What bad input, missing files and full disks raise: told in one line, without a traceback."""

_EPILOG = """\
examples:
  hysac demo                                          train and evaluate a small model, draw its pictures
  hysac train --train-data toy --val-data toy --model hysac-toy --lr 3e-3 --name first
  hysac evaluate --model-dir runs/first --val-data toy

`hysac COMMAND --help` explains a command and gives examples.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    0: done. 2: bad input, told in one line. 128 + n: stopped by signal n (130 for Ctrl-C, 143 for SIGTERM),
    after saving a checkpoint. A reader of the output that closes it, as ``head`` does, is no error.
    """
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _is_output_closed():
            raise
        # What Python flushes when it exits has to go somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _is_output_closed() -> bool:
    """Whether nobody reads what is printed any more."""
    try:
        descriptor = sys.stdout.fileno()
    except OSError:  # as in a notebook
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _run(arguments: Sequence[str] | None) -> int:
    args = make_parser().parse_args(arguments)
    _speak()
    try:
        with _one_line_warnings():
            exit_code: int = args.run(args)
            return exit_code
    except USER_ERRORS as error:
        if args.debug or (isinstance(error, BrokenPipeError) and _is_output_closed()):
            raise
        rank = os.environ.get("RANK", "0")
        place = "" if rank == "0" else f" (process {rank})"  # it may be the only one that met the error
        print(f"hysac {args.command}{place}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; the parsed ``command`` is the name, ``run`` what runs."""
    parser = argparse.ArgumentParser(
        prog="hysac",
        description="Hyperbolic Safety-Aware CLIP: train, evaluate and calibrate.",
        epilog=_EPILOG,
        formatter_class=Formatter,
    )
    parser.add_argument("--version", action="version", version=_versions())
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = subparsers.add_parser(
            command.name,
            usage=f"hysac {command.name} {command.usage}",
            help=command.summary,
            description=command.summary[0].upper() + command.summary[1:] + ".",
            epilog=command.epilog,
            formatter_class=Formatter,
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run=command.run, command=command.name)
        command.add_flags(sub)
    return parser


def _versions() -> str:
    """For a bug report: of hysac and of what computes."""
    names = ("hysac", "open_clip_torch", "torch")
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


class _Console(logging.Handler):
    """Prints records above the progress bars, on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        tqdm.write(prefix + record.getMessage(), file=sys.stderr)


def _speak() -> None:
    root = logging.getLogger()
    if not any(isinstance(handler, _Console) for handler in root.handlers):
        root.addHandler(_Console())
    # milvus-lite's server, in this process: it logs a traceback for what its client does without.
    logging.getLogger("grpc._server").setLevel(logging.CRITICAL)
    log.setLevel(logging.INFO)


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: log.warning("%s", message)  # type: ignore[assignment]
        yield
