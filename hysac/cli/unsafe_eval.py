"""``hysac unsafe-eval``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from hysac.cli.command import Command
from hysac.cli.flags import add_labelled, add_redirection, add_scorer
from hysac.cli.inputs import data_of, encode_in_order, labelled_of, load_scorer, stored_bounds
from hysac.evaluation.provenance import versions
from hysac.evaluation.retrieval import PAPERS_RULE, TRAVERSED
from hysac.evaluation.tables import STYLES, format_tables
from hysac.evaluation.unsafe_queries import PointSet, unsafe_query_report, unsafe_query_tables
from hysac.files import check_writable, write_json
from hysac.models.pretrained import model_directory
from hysac.safety import Traversal
from hysac.scoring.identity import weights_digest
from hysac.scoring.items import Item
from hysac.scoring.labelled import Labelled, fingerprint, load_labelled
from hysac.scoring.scorer import SafetyScorer

log = logging.getLogger(__name__)

_EPILOG = """\
The queries are unsafe: of labelled data the items that are, of images, folders and text files all. The
gallery is labelled data, or items that --safe and --unsafe name. Unsafe texts search the gallery's images,
unsafe images its texts. Reported is the share of the queries whose nearest item is safe, as they are and
redirected, with its 95 % interval by Wilson: for all, for the queries of each category, and for a gallery
with the unsafe items of one category alone. The category is that of the data, and of items without labels
the name of their file or folder. A text beyond the model's context searches, and is found, by its first
window.

examples:
  hysac unsafe-eval --model-dir runs/paper --queries visu_test.json --safe laion/ --unsafe nudenet/ smid/
  hysac unsafe-eval --model-dir runs/paper --queries nudenet/ smid/ --data visu_test.json
"""


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--queries", nargs="+", required=True, metavar="ITEMS", help="unsafe items")
    add_labelled(parser, of="the gallery")
    add_redirection(parser)
    add_scorer(parser, decides=False)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", metavar="FILE", help="JSON file; by default unsafe_queries.json beside the model"
    )
    output.add_argument("--format", default="text", choices=tuple(STYLES), help="form of the printed tables")


def _unsafe_eval(args: argparse.Namespace) -> int:
    home = model_directory(Path(args.model_dir))
    out = home / "unsafe_queries.json" if args.out is None else Path(args.out)
    check_writable(out)
    queries = [
        item for path in args.queries for item in load_labelled(path, image_root=args.image_root, label=True)
    ]
    gallery = labelled_of(args)
    bounds = stored_bounds(args, home)
    rules = {}
    if bounds is None:
        log.warning("there are no bounds: nothing is redirected. `hysac bounds` fits them")
    else:
        rules[TRAVERSED] = Traversal(bounds, args.statistic, args.mode, args.margin, args.alpha)
        if args.mode != "paper":
            rules[PAPERS_RULE] = Traversal(bounds, args.statistic, "paper", args.margin, args.alpha)
    scorer = load_scorer(args, calibrated=False)
    report = unsafe_query_report(
        _encoded(args, scorer, queries),
        _encoded(args, scorer, gallery),
        float(scorer.model.curvature.detach()),
        rules,
    )
    settings = ("statistic", "mode", "margin", "alpha")
    made_with = {
        "model": weights_digest(home),
        "queries": {
            "name": ", ".join(Path(path).name for path in args.queries),
            "sha256": fingerprint(queries),
            "items": len(queries),
        },
        "gallery": data_of(args, gallery),
        "bounds": None if bounds is None else bounds.to_dict(),
        **{name: getattr(args, name) for name in settings},
        "versions": versions(),
    }
    write_json(out, {"directions": report, "made_with": made_with})
    print(format_tables(unsafe_query_tables(report), args.format))
    print(f"\nall numbers: {out}")
    return 0


def _encoded(args: argparse.Namespace, scorer: SafetyScorer, items: Sequence[Labelled]) -> PointSet:
    named = [Item(item.name, item.modality, item.content) for item in items]
    return PointSet(
        encode_in_order(args, scorer, named)[0],
        [item.modality for item in items],
        [item.category for item in items],
        torch.tensor([item.is_unsafe for item in items]),
    )


COMMAND = Command(
    "--model-dir DIR --queries ITEMS... --safe ITEMS... --unsafe ITEMS... [options]",
    _EPILOG,
    _add_flags,
    _unsafe_eval,
)
