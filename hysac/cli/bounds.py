"""``hysac bounds``."""

from __future__ import annotations

import argparse
from pathlib import Path

from hysac.cli.command import Command
from hysac.cli.flags import add_data, add_model
from hysac.cli.inputs import encode, load_model, open_data
from hysac.embeddings import CLASSES
from hysac.files import check_writable
from hysac.models.pretrained import BOUNDS_FILE
from hysac.safety import MODALITIES, check_replaces, fit_bounds

_EPILOG = """\
The bounds are the 5th percentile, the mean and the 95th percentile of each class's distance to the origin.
They say where an unsafe query is moved to. Fit them on data that the model was not evaluated on.

example:
  hysac bounds --model-dir runs/paper/model --data val.jsonl
"""


def _add_bounds(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_data(parser).add_argument(
        "--data", required=True, metavar="DATA", help="what to fit on: a manifest, shards, or 'toy'"
    )
    parser.add_argument("--out", metavar="FILE", help="JSON file; by default bounds.json beside the model")
    parser.add_argument(
        "--drop-classes",
        action="store_true",
        help="replace bounds also by those of fewer classes, as text-only data gives",
    )


def _bounds(args: argparse.Namespace) -> int:
    model, tokenizer, home = load_model(args)
    out = home / BOUNDS_FILE if args.out is None else Path(args.out)
    check_writable(out)
    dataset = open_data(args, model, tokenizer, args.data, "train")
    if not args.drop_classes:  # before the work
        check_replaces(out, CLASSES if dataset.has_images else MODALITIES["text"])
    bounds = fit_bounds(encode(args, model, dataset))
    bounds.save(out, drop_classes=args.drop_classes)
    print("distance to the origin   5th pct.     mean  95th pct.      max")
    for letter, name in CLASSES.items():
        if letter in bounds.classes:
            row = bounds[letter]
            numbers = f"{row.low_05:11.4f}{row.avg:9.4f}{row.up_95:11.4f}{row.max:9.4f}"
            print(f"{letter}  {name.replace('_', ' '):20}{numbers}")
    print(f"written to {out}")
    return 0


COMMAND = Command("(--model-dir DIR | --checkpoint RUN) --data DATA [options]", _EPILOG, _add_bounds, _bounds)
