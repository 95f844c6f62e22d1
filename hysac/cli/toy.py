"""``hysac toy``."""

from __future__ import annotations

import argparse
import sys

from hysac.cli.command import Command
from hysac.data import write_toy

_EPILOG = """\
example:
  hysac toy --out toy
  hysac train --train-data toy/train.jsonl --val-data toy/val.jsonl --model hysac-toy --lr 3e-3
"""


def _add_toy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to write to")
    parser.add_argument(
        "--train-size", type=int, metavar="N", help="quadruplets to train on; by default 2048"
    )
    parser.add_argument(
        "--val-size", type=int, metavar="N", help="quadruplets to validate on; by default 256"
    )
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="seed of the scenes")


def _toy(args: argparse.Namespace) -> int:
    manifests = write_toy(
        args.out,
        train_size=args.train_size,
        val_size=args.val_size,
        seed=args.seed,
        progress=sys.stderr.isatty(),
    )
    for split, path in manifests.items():
        print(f"{split}: {path}")
    return 0


COMMAND = Command("--out DIR [options]", _EPILOG, _add_toy, _toy)
