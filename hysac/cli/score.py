"""``hysac score``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from hysac.cli.command import Command
from hysac.cli.flags import add_inputs, add_scorer
from hysac.cli.inputs import inputs_of, load_scorer, tell_unread
from hysac.files import check_writable, sha256_of
from hysac.models.pretrained import BOUNDS_FILE, SAFETY_FILE, model_directory
from hysac.scoring.identity import weights_digest
from hysac.scoring.items import Item
from hysac.scoring.output import Table, rows_of
from hysac.scoring.scorer import SafetyScorer
from hysac.scoring.streaming import encode_items, judged
from hysac.scoring.summary import Cosines, summary, warnings_of
from hysac.training.loop import chosen_workers

log = logging.getLogger(__name__)

_EPILOG = """\
INPUT is an image, a folder (its images and those below), a glob in quotes, a text file (one caption a line),
a manifest (JSON lines, JSON, CSV, TSV, Parquet; the columns image, path, caption, text, prompt and the like,
or those that --image-column and --text-column name), a webdataset shard (.tar) or - for captions on standard
input. An item that cannot be read is counted, named and in the output with its error; it is never scored.
Where none can be read, the exit code is 2. Images come before texts.

The distance to the origin is the score: the farther out, the less safe. Probability and decision need
thresholds, which `hysac calibrate` fits.

examples:
  hysac score --model-dir runs/demo photos/ --out scores.csv
  hysac score --model-dir runs/demo --text 'a dog on a meadow' --explain
  cat prompts.txt | hysac score --model-dir runs/demo -
"""


def _add_flags(parser: argparse.ArgumentParser) -> None:
    add_inputs(parser)
    add_scorer(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", metavar="FILE", help=".csv, .jsonl or .parquet; without it lines are printed"
    )
    output.add_argument(
        "--resume", action="store_true", help="go on with FILE.part of an interrupted run of this model"
    )
    output.add_argument(
        "--explain",
        action="store_true",
        help="print what each word of a text, and draw what each part of an image, adds to its distance",
    )
    output.add_argument("--explain-dir", default="explained", metavar="DIR", help="where images are drawn")


def _score(args: argparse.Namespace) -> int:
    items = inputs_of(args)
    table = None
    if args.out is not None:
        check_writable(Path(args.out))
        table = Table(Path(args.out), resume=args.resume)
    elif args.resume:
        raise ValueError("--resume needs --out")
    scorer = load_scorer(args)
    if table is not None:
        table.begin(_made_with(args))
    rows = [] if table is None else [table.done[item.name] for item in items if item.name in table.done]
    left = [item for item in items if table is None or item.name not in table.done]
    workers, cosines = chosen_workers(args.workers), Cosines(scorer.points)
    with tqdm(desc="score", total=len(left), unit="item", disable=not sys.stderr.isatty()) as bar:
        for batch in encode_items(scorer, left, workers=workers):
            there = [one for one in batch if one.point is not None]
            if there:
                points = torch.stack([one.point for one in there if one.point is not None])
                cosines.add([one.item.modality for one in there], points)
            new = rows_of(judged(scorer, batch))
            if table is None:
                _print(new)
            else:
                table.write(new)
            rows += new
            bar.update(len(new))
    if table is not None:
        table.close()
    _tell(rows, scorer, cosines)
    if args.explain:
        faulty = {row["item"] for row in rows if row["error"] is not None}
        _explain(args, scorer, [item for item in items if item.name not in faulty])
    return 0


def _made_with(args: argparse.Namespace) -> dict[str, Any]:
    """What scores depend on, so that a run goes on with the same."""
    home = model_directory(Path(args.model_dir))
    files = [home / name for name in (SAFETY_FILE, BOUNDS_FILE)]
    return {
        "model": weights_digest(home),
        **{path.name: sha256_of(path) if path.is_file() else None for path in files},
        "threshold": args.threshold,
        "background": args.background,
        "image_root": None if args.image_root is None else os.path.abspath(args.image_root),
    }


def _print(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row["error"] is not None:
            told = f"error: {row['error']}"
        else:
            told = f"{row['distance']:.4f}"
            told += "" if row["probability"] is None else f"  {row['probability']:.3f}"
            told += "" if row["decision"] is None else f"  {row['decision']}"
        tqdm.write(f"{row['item']}\t{told}", file=sys.stdout)


def _tell(rows: list[dict[str, Any]], scorer: SafetyScorer, cosines: Cosines) -> None:
    print(summary(rows, scorer.points, scorer.threshold), file=sys.stderr)
    tell_unread([(row["item"], row["error"]) for row in rows if row["error"] is not None], len(rows))
    for told in warnings_of(rows, scorer.points, cosines.all()):
        log.warning("%s", told)


def _explain(args: argparse.Namespace, scorer: SafetyScorer, items: list[Item]) -> None:
    from hysac.scoring.attribution import explain_image, explain_text

    for number, item in enumerate(items):
        if isinstance(item.content, str):
            shares = explain_text(scorer, item.content)
            print(f"{item.name}: " + " ".join(f"{word} {share:+.3f}" for word, share in shares))
        elif item.content is not None:
            from hysac import plots

            explained = explain_image(scorer, item.content)
            path = Path(args.explain_dir) / f"{number:04d}-{Path(str(item.content)).stem}.png"
            print(f"{item.name}: {plots.save(plots.heat_map(*explained), path)}")


COMMAND = Command("--model-dir DIR INPUT... [options]", _EPILOG, _add_flags, _score)
