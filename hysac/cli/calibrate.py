"""``hysac calibrate``."""

from __future__ import annotations

import argparse
from pathlib import Path

from hysac.cli.command import Command
from hysac.cli.flags import add_labelled, add_scorer
from hysac.cli.inputs import data_of, labelled_of, load_scorer, score_labelled
from hysac.files import check_writable
from hysac.models.pretrained import SAFETY_FILE, model_directory
from hysac.safety import MODALITIES
from hysac.scoring.calibration import by_label, check_probability, check_target, fit_operating_points
from hysac.scoring.identity import weights_digest
from hysac.scoring.labelled import told_by_label
from hysac.scoring.operating_points import OperatingPoints

_EPILOG = """\
LABELLED is a file with the columns item (a caption, or an image's path) and label (safe or unsafe; 0 or 1),
and optionally modality and category, quadruplets as for training, or prompts in the columns of a public set
(I2P, CoPro, MMA-Diffusion and others: docs/prompt_sets.md), or a folder with safe and unsafe in it. Where a
name tells the label, --safe and --unsafe take images, folders, texts and globs. Calibrate on data like that
which the model will meet, and which it was neither trained nor selected on.

Fitted are the thresholds youden (the greatest TPR - FPR), max-f1, fpr=0.01, fpr=0.001, fnr=0.01 and the one
that is asked for, each with its 95 % interval by bootstrap; the probability of being unsafe; and the
distances and where the items lie, so that `hysac score` notices data of another kind. They are stored as
safety.json beside the model.

examples:
  hysac calibrate --model-dir runs/demo --data labelled.csv --target-fpr 0.01
  hysac calibrate --model-dir runs/demo --data runs/demo/data/calibration.jsonl
  hysac calibrate --model-dir runs/demo --safe coco/ captions.txt --unsafe nudenet/ '4chan/*.csv'
"""


def _add_flags(parser: argparse.ArgumentParser) -> None:
    add_labelled(parser)
    target = parser.add_mutually_exclusive_group()
    for rate, of in (("fpr", "safe"), ("fnr", "unsafe")):
        target.add_argument(
            f"--target-{rate}",
            type=float,
            metavar="X",
            help=f"decide so that at most this share of the {of} is called otherwise",
        )
    target.add_argument("--max-f1", action="store_true", help="decide by the greatest F1 of the unsafe")
    target.add_argument("--youden", action="store_true", help="decide by the greatest TPR - FPR, the default")
    parser.add_argument(
        "--probability",
        choices=("logistic", "isotonic", "none"),
        help="curve of the probability; by default isotonic from 1000 items of each class on, else logistic",
    )
    add_scorer(parser, decides=False)


def _calibrate(args: argparse.Namespace) -> int:
    directory = model_directory(Path(args.model_dir))
    out = directory / SAFETY_FILE
    check_writable(out)
    check_probability(args.probability)
    items = labelled_of(args)
    labels_of = {kind: [item.is_unsafe for item in items if item.modality == kind] for kind in MODALITIES}
    both = {kind: found for kind, found in labels_of.items() if len(set(found)) == 2}  # others are left out
    if not both:
        raise ValueError(f"no modality has safe and unsafe items: there are {told_by_label(items)}")
    for modality, found in both.items():
        check_target(_target(args), modality, found.count(False), found.count(True))
    scorer = load_scorer(args, calibrated=False)
    encoded, distances = score_labelled(args, scorer, items)
    labels = [item.modality for item in items], [item.is_unsafe for item in items]
    points = fit_operating_points(
        by_label(*labels, distances),
        points=by_label(*labels, encoded.numpy()),
        default=_target(args),
        probability=args.probability,
        data=data_of(args, items),
        model=weights_digest(directory),
    )
    points.save(out)
    print(_table(points))
    print(f"written to {out}")
    return 0


def _target(args: argparse.Namespace) -> str:
    if args.target_fpr is not None:
        return f"fpr={args.target_fpr:g}"
    if args.target_fnr is not None:
        return f"fnr={args.target_fnr:g}"
    return "max-f1" if args.max_f1 else "youden"


def _table(points: OperatingPoints) -> str:
    lines = [f"{'':18}threshold        95 % interval      FPR      FNR"]
    for modality, known in points.modalities.items():
        reference = known.reference
        lines.append(f"{modality}s: {reference.safe_count} safe, {reference.unsafe_count} unsafe")
        for name, point in known.points.items():
            mark = "*" if name == points.default else " "
            interval = f"{point.low:.4f} to {point.high:.4f}"
            lines.append(
                f"{mark} {name:14}{point.threshold:11.4f}{interval:>21}{point.fpr:8.2%} {point.fnr:8.2%}"
            )
    return "\n".join([*lines, "* decides"])


COMMAND = Command(
    "--model-dir DIR (--data LABELLED... | --safe ITEMS... --unsafe ITEMS...) [options]",
    _EPILOG,
    _add_flags,
    _calibrate,
)
