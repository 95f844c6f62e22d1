"""``hysac classify-eval``."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from hysac.cli.command import Command
from hysac.cli.flags import add_labelled, add_scorer
from hysac.cli.inputs import data_of, labelled_of, load_scorer, score_labelled
from hysac.evaluation.classification import classification_report, format_report
from hysac.files import check_writable, write_json
from hysac.models.pretrained import model_directory
from hysac.scoring.summary import Cosines, warnings_of

log = logging.getLogger(__name__)

_EPILOG = """\
LABELLED is as for `hysac calibrate`, and other data than that. The thresholds are the model's own; * decides.

examples:
  hysac classify-eval --model-dir runs/demo --data test.csv --plots plots
  hysac classify-eval --model-dir runs/demo --data i2p_benchmark.csv --safe coco_captions.txt
"""


def _add_flags(parser: argparse.ArgumentParser) -> None:
    add_labelled(parser)
    parser.add_argument(
        "--out", metavar="FILE", help="JSON file; by default classification.json beside the model"
    )
    parser.add_argument("--plots", metavar="DIR", help="directory for pictures (needs matplotlib)")
    add_scorer(parser, decides=False)


def _classify_eval(args: argparse.Namespace) -> int:
    home = model_directory(Path(args.model_dir))
    out = home / "classification.json" if args.out is None else Path(args.out)
    check_writable(out)
    if args.plots is not None:
        check_writable(Path(args.plots) / "a picture")
    items = labelled_of(args)
    scorer = load_scorer(args)
    points, distances = score_labelled(args, scorer, items)
    report = classification_report(items, distances, scorer.points)
    print(format_report(report))
    seen = [
        {"modality": item.modality, "distance": distance}
        for item, distance in zip(items, distances, strict=True)
    ]
    cosines = Cosines(scorer.points)
    cosines.add([item.modality for item in items], points)
    for told in warnings_of(seen, scorer.points, cosines.all()):
        log.warning("%s", told)
    data = data_of(args, items)
    if scorer.points is not None and scorer.points.data.get("sha256") == data["sha256"]:
        log.warning("this is the data that the thresholds were fitted to: its rates flatter them")
    write_json(out, {"data": data, "modalities": report})
    print(f"all numbers: {out}")
    if args.plots is not None:
        from hysac.plots.classification import save_classification

        place = Path(args.plots)
        for path in save_classification(place, items, distances, scorer.points, scorer.bounds):
            print(f"picture: {path}")
    return 0


COMMAND = Command(
    "--model-dir DIR (--data LABELLED... | --safe ITEMS... --unsafe ITEMS...) [options]",
    _EPILOG,
    _add_flags,
    _classify_eval,
)
