"""``hysac evaluate``."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from hysac.cli.command import Command
from hysac.cli.flags import add_data, add_model
from hysac.cli.inputs import encode, load_model, open_data, stored_bounds
from hysac.evaluation import evaluate_embeddings
from hysac.files import check_writable, write_json
from hysac.models.pretrained import EVALUATION_FILE
from hysac.safety import Traversal, calibrate_thresholds, fit_bounds

log = logging.getLogger(__name__)

_EPILOG = """\
T is safe text, I safe image, T* unsafe text, I* unsafe image. `T*->I u I*` is the retrieval of the safe
image by the unsafe text among all images, safe and unsafe; `(traversed)` means that the query was moved
towards the origin first, to where the safe class ends. Text-only data gives the text's safety metrics.

examples:
  hysac evaluate --model-dir runs/paper --val-data test.jsonl --plots plots
  hysac evaluate --model-dir runs/paper --calibration-data val.jsonl --val-data test.jsonl
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
    safety = parser.add_argument_group("safety")
    safety.add_argument("--bounds", metavar="FILE", help="bounds.json to use; by default the model's")
    safety.add_argument(
        "--statistic", default="up_95", choices=("low_05", "avg", "up_95"), help="the bound of redirection"
    )
    safety.add_argument(
        "--margin", type=float, metavar="X", default=0.0, help="added to the bound; negative is stricter"
    )
    safety.add_argument("--mode", default="geodesic", choices=("geodesic", "paper"), help="of redirection")
    safety.add_argument("--alpha", type=float, metavar="X", default=0.8, help="of mode paper")
    safety.add_argument(
        "--aperture-scale", type=float, metavar="X", default=1.0, help="of the cones, as in training"
    )
    safety.add_argument(
        "--min-radius", type=float, metavar="X", default=0.1, help="of the cones, as in training"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--ks", type=int, nargs="+", metavar="K", default=[1, 10, 20], help="cut-offs of the recalls"
    )
    output.add_argument(
        "--out", metavar="FILE", help="JSON file; by default evaluation.json beside the model"
    )
    output.add_argument("--plots", metavar="DIR", help="directory for pictures (needs images and matplotlib)")


def _evaluate(args: argparse.Namespace) -> int:
    model, tokenizer, home = load_model(args)
    out = home / EVALUATION_FILE if args.out is None else Path(args.out)
    check_writable(out)
    if args.plots is not None:
        check_writable(Path(args.plots) / "a picture")
    bounds, thresholds = stored_bounds(args, home), None
    if args.calibration_data is not None:
        calibration = encode(args, model, open_data(args, model, tokenizer, args.calibration_data, "train"))
        bounds = bounds or fit_bounds(calibration)
        thresholds = calibrate_thresholds(calibration)
    dataset = open_data(args, model, tokenizer, args.val_data, "val")
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
        thresholds=thresholds,
        aperture_scale=args.aperture_scale,
        min_radius=args.min_radius,
    )
    # All is written before the first word: who reads the output may have closed it.
    write_json(out, report.to_dict())
    pictures: Sequence[Path] = ()
    if args.plots is not None:
        from hysac.plots import save_plots

        pictures = save_plots(Path(args.plots), dataset, embeddings, traversal)
    print(report.format_tables())
    print(f"\nall numbers: {out}")
    for path in pictures:
        print(f"picture: {path}")
    return 0


COMMAND = Command(
    "evaluate",
    "(--model-dir DIR | --checkpoint RUN) --val-data DATA [options]",
    "measure a model's retrieval and safety",
    _EPILOG,
    _add_evaluate,
    _evaluate,
)
