"""The command line as a whole: its parser, its errors and what it prints."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import select
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Any

from tqdm import tqdm

from hysac.cli.command import Command, Formatter, add_parser

log = logging.getLogger("hysac")

COMMANDS = {
    "train": "train a model on quadruplets",
    "evaluate": "measure a model's retrieval and safety",
    "zero-shot": "measure zero-shot classification, and what is kept of the starting CLIP",
    "unsafe-eval": "measure how often unsafe queries find something safe first",
    "bounds": "fit the bounds that redirection needs",
    "calibrate": "fit the thresholds that decide what is unsafe",
    "classify-eval": "measure how well the thresholds tell unsafe items",
    "score": "say how unsafe images and captions are",
    "index": "make images and captions searchable",
    "search": "find the images and captions nearest to a query",
    "redirect": "show the way of an unsafe query to safe ones",
    "serve": "answer over HTTP: a JSON API and a page",
    "export": "write the model as graphs for onnxruntime, OpenVINO and AOTInductor",
    "convert": "make a model of the published checkpoint, or of another CLIP",
    "toy": "write the toy data set as files",
    "demo": "train, evaluate and draw a small model from scratch",
}
"""What each command does. Its module is imported when it is asked for: PyTorch and open_clip take seconds."""

USER_ERRORS = (ValueError, TypeError, OSError, ImportError, FloatingPointError)
"""What bad input, missing files and full disks raise: told in one line, without a traceback."""

_EPILOG = """\
examples:
  hysac demo                                          train and evaluate a small model, draw its pictures
  hysac train --train-data toy --val-data toy --model hysac-toy --lr 3e-3 --name first
  hysac evaluate --model-dir runs/first --val-data toy
  hysac score --model-dir runs/first photos/ captions.txt --out scores.csv
  hysac index build --model-dir runs/first photos/ --out photos.index
  hysac search 'a boat on the sea, in flames' --index photos.index --policy redirect

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
    except KeyboardInterrupt:  # in an import, too, before there is a command
        return 130
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
    words = sys.argv[1:] if arguments is None else arguments
    args = make_parser(words).parse_args(words)
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


def make_parser(words: Sequence[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """The parser of the command line ``words``, which has the flags of the commands that are named in it.

    The parsed ``command`` is the name, ``run`` what runs. By default all commands have their flags.
    """
    parser = argparse.ArgumentParser(
        prog="hysac",
        description="Hyperbolic Safety-Aware CLIP: train, evaluate and calibrate; score, search and serve.",
        epilog=_EPILOG,
        formatter_class=Formatter,
    )
    parser.add_argument("--version", action="version", version=_versions())
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        if name in words:
            _add_command(subparsers, name, summary)
        else:
            subparsers.add_parser(name, help=summary)
    return parser


def _add_command(subparsers: Any, name: str, summary: str) -> None:
    command = _command(name)
    sub = add_parser(subparsers, f"hysac {name}", command.usage, summary, command.epilog)
    sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    sub.set_defaults(run=command.run, command=name)
    command.add_flags(sub)


def _command(name: str) -> Command:
    module, attribute = ("search", "REDIRECT") if name == "redirect" else (name.replace("-", "_"), "COMMAND")
    command: Command = getattr(importlib.import_module(f"hysac.cli.{module}"), attribute)
    return command


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
