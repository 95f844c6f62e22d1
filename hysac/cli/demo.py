"""``hysac demo``."""

from __future__ import annotations

import argparse
from pathlib import Path

from hysac.cli.command import Command

_EPILOG = """\
Needs no download and no GPU: about two minutes on two CPU cores. An earlier demo in the directory is
replaced.
"""


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="directory to write to")
    parser.add_argument(
        "--seed", type=int, metavar="N", default=0, help="seed of the weights and of the data's order"
    )


def _demo(args: argparse.Namespace) -> int:
    from hysac.demonstration import demo

    print(demo(Path(args.out), seed=args.seed))
    return 0


COMMAND = Command("[options]", _EPILOG, _add_demo, _demo)
