"""``hysac evaluate``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hysac.cli.command import Command
from hysac.cli.flags import add_data, add_model, add_redirection, add_start
from hysac.cli.inputs import encode, load_model, open_data, stored_bounds
from hysac.cli.start import load_start
from hysac.data import Quadruplets
from hysac.evaluation import evaluate_embeddings
from hysac.evaluation.provenance import made_with
from hysac.evaluation.retention import retrieval_retention
from hysac.evaluation.retrieval import PAPERS_RULE, NearestSafe, Rule
from hysac.evaluation.tables import STYLES
from hysac.files import check_writable, write_json
from hysac.models.pretrained import EVALUATION_FILE
from hysac.safety import MODALITIES, Bounds, Traversal, calibrate_thresholds, fit_bounds
from hysac.scoring.identity import weights_digest

log = logging.getLogger(__name__)

_EPILOG = """\
T is safe text, I safe image, T* unsafe text, I* unsafe image. `T*->I u I*` is the retrieval of the safe
image by the unsafe text among all images, safe and unsafe; `(traversed)` means that the query was moved
towards the origin first, to where the safe class ends. Text-only data gives the text's safety metrics.
--start adds what is kept of the recalls of safe captions and images by the CLIP that training started from.

examples:
  hysac evaluate --model-dir runs/paper --val-data test.jsonl --plots plots
  hysac evaluate --model-dir runs/paper --calibration-data val.jsonl --val-data test.jsonl
  hysac evaluate --model-dir runs/paper --val-data test.jsonl --start
  hysac evaluate --checkpoint runs/paper --val-data toy
"""


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    data = add_data(parser)
    data.add_argument(
        "--val-data",
        required=True,
        metavar="DATA",
        help="what to evaluate on: a manifest, shards, or 'toy'",
    )
    data.add_argument(
        "--calibration-data",
        metavar="DATA",
        help="fit the thresholds, and the bounds where there are none, on this manifest instead",
    )
    safety = add_redirection(parser)
    safety.add_argument(
        "--aperture-scale",
        type=float,
        metavar="X",
        default=1.0,
        help="factor of the cones' half-aperture, as in training",
    )
    safety.add_argument(
        "--min-radius",
        type=float,
        metavar="X",
        default=0.1,
        help="K of the cones' half-aperture, as in training",
    )
    add_start(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--ks", type=int, nargs="+", metavar="K", default=[1, 10, 20], help="cut-offs of the recalls"
    )
    output.add_argument(
        "--out", metavar="FILE", help="JSON file; by default evaluation.json beside the model"
    )
    output.add_argument("--format", default="text", choices=tuple(STYLES), help="form of the printed tables")
    output.add_argument("--plots", metavar="DIR", help="directory for pictures (needs images and matplotlib)")


def _evaluate(args: argparse.Namespace) -> int:
    model, tokenizer, home = load_model(args)
    out = home / EVALUATION_FILE if args.out is None else Path(args.out)
    check_writable(out)
    if args.plots is not None:
        check_writable(Path(args.plots) / "a picture")
    start = None if args.start is None else load_start(args, home)
    bounds, thresholds = stored_bounds(args, home), None
    if args.calibration_data is not None:
        calibration = encode(args, model, open_data(args, model, tokenizer, args.calibration_data, "train"))
        bounds = bounds or fit_bounds(calibration)
        thresholds = calibrate_thresholds(calibration)
    dataset = open_data(args, model, tokenizer, args.val_data, "val")
    if start is not None and not dataset.has_images:
        raise ValueError("--start compares recalls, and text-only data has none")
    embeddings = encode(args, model, dataset)
    traversal = None
    if bounds is None:
        log.warning("there are no bounds: nothing is redirected. `hysac bounds` fits them")
    else:
        traversal = Traversal(bounds, args.statistic, args.mode, args.margin, args.alpha)
    report = evaluate_embeddings(
        embeddings,
        ks=args.ks,
        traversal=traversal,
        redirections=_others(args, bounds, thresholds),
        thresholds=thresholds,
        aperture_scale=args.aperture_scale,
        min_radius=args.min_radius,
    )
    retention = {}
    if start is not None:
        data = open_data(args, start.model, start.tokenizer, args.val_data, "val")
        recalls = retrieval_retention(encode(args, start.model, data), embeddings, args.ks)
        retention = {"start": start.told, "recalls": recalls}
    told = _made_with(args, home, dataset, bounds, thresholds)
    report = replace(report, made_with=told, retention=retention)
    # All is written before the first word: who reads the output may have closed it.
    write_json(out, report.to_dict())
    pictures: Sequence[Path] = ()
    if args.plots is not None:
        from hysac.plots import save_plots

        pictures = save_plots(Path(args.plots), dataset, embeddings, traversal, thresholds)
    print(report.format_tables(args.format))
    print(f"\nall numbers: {out}")
    for path in pictures:
        print(f"picture: {path}")
    return 0


def _others(
    args: argparse.Namespace, bounds: Bounds | None, thresholds: Mapping[str, float] | None
) -> dict[str, Rule]:
    """The other ways of redirection that the data allows, for the same table."""
    rules: dict[str, Rule] = {}
    if bounds is not None and args.mode != "paper":
        rules[PAPERS_RULE] = Traversal(bounds, args.statistic, "paper", args.margin, args.alpha)
    if thresholds is not None and set(thresholds) == set(MODALITIES):
        rules["nearest safe"] = NearestSafe(thresholds)
    return rules


def _made_with(
    args: argparse.Namespace,
    home: Path,
    dataset: Quadruplets,
    bounds: Bounds | None,
    thresholds: Mapping[str, float] | None,
) -> dict[str, Any]:
    settings = ("statistic", "mode", "margin", "alpha", "aperture_scale", "min_radius")
    return made_with(
        weights_digest(home) if args.checkpoint is None else str(args.checkpoint),
        Path(args.val_data).name,
        dataset,
        bounds,
        thresholds,
        **{name: getattr(args, name) for name in settings},
    )


COMMAND = Command(
    "(--model-dir DIR | --checkpoint RUN) --val-data DATA [options]", _EPILOG, _add_evaluate, _evaluate
)
