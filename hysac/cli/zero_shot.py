"""``hysac zero-shot``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from hysac.cli.command import Command
from hysac.cli.flags import add_scorer, add_start
from hysac.cli.inputs import encode_in_order
from hysac.cli.start import Start, load_start
from hysac.data.classes import ClassImages, load_class_images, read_names
from hysac.evaluation.provenance import versions
from hysac.evaluation.retention import compared
from hysac.evaluation.tables import STYLES, format_tables, retention_table
from hysac.evaluation.zero_shot import (
    DEFAULT_TEMPLATES,
    Template,
    class_prototypes,
    hits,
    load_templates,
    prompts_of,
    zero_shot_report,
    zero_shot_tables,
)
from hysac.files import check_writable, write_json
from hysac.models.factory import from_pretrained, get_tokenizer, transforms
from hysac.models.pretrained import model_directory
from hysac.scoring.identity import weights_digest
from hysac.scoring.items import Item
from hysac.scoring.scorer import SafetyScorer
from hysac.training.processes import choose_device

_EPILOG = """\
DATA is a folder with a folder of images for each class, or a manifest with the columns image and class. An
image gets the class whose point is nearest. That point is the mean of the class's prompts in the tangent
space at the origin; for a CLIP, which is compared by cosine, it is the mean of the unit vectors, brought back
to length 1.

--start measures another model on the same images, and how much of its accuracy is kept: the 95 % intervals
are from bootstrap samples of the images, the same for both.

examples:
  hysac zero-shot --model-dir runs/paper --data caltech-101 --names names.json --templates openai --start
  hysac zero-shot --model-dir runs/paper --data test.csv --start ViT-L-14 --start-pretrained openai
"""


def _add_flags(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data")
    data.add_argument("--data", required=True, metavar="DATA", help="images of known classes")
    data.add_argument(
        "--names", metavar="FILE", help='JSON: what prompts call the classes, {"n01440764": "tench"}'
    )
    data.add_argument(
        "--templates",
        metavar="NAME",
        help=f"openai (80), simple (7), or a file with one a line; by default '{DEFAULT_TEMPLATES[0]}'",
    )
    data.add_argument("--image-column", default="image", metavar="COLUMN", help="a manifest's images")
    data.add_argument("--class-column", default="class", metavar="COLUMN", help="a manifest's classes")
    data.add_argument("--image-root", metavar="DIR", help="what its image paths are relative to")
    add_scorer(parser, decides=False)
    add_start(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--out", metavar="FILE", help="JSON file; by default zero_shot.json beside the model")
    output.add_argument("--format", default="text", choices=tuple(STYLES), help="form of the printed tables")


def _zero_shot(args: argparse.Namespace) -> int:
    home = model_directory(Path(args.model_dir))
    out = home / "zero_shot.json" if args.out is None else Path(args.out)
    check_writable(out)
    data = load_class_images(
        args.data,
        names=None if args.names is None else read_names(Path(args.names)),
        image_column=args.image_column,
        class_column=args.class_column,
        image_root=args.image_root,
    )
    templates: list[Template] = (
        [*DEFAULT_TEMPLATES] if args.templates is None else load_templates(args.templates)
    )
    start = None if args.start is None else load_start(args, home)
    model = from_pretrained(home, device=choose_device(args.device), verify=args.verify)
    labels = torch.tensor(data.labels)
    now = _hits(args, Start(model, get_tokenizer(f"local-dir:{home}"), {}), data, templates)
    report: dict[str, Any] = zero_shot_report(data.classes, labels, now)
    tables = zero_shot_tables(report)
    if start is not None:
        before = _hits(args, start, data, templates)
        report["start"] = zero_shot_report(data.classes, labels, before)
        report["retention"] = {f"top{k}": compared(before[k], now[k]) for k in now}
        tables = [*zero_shot_tables(report, report["start"]), retention_table(report["retention"])]
    report["made_with"] = {
        "model": weights_digest(home),
        "start": None if start is None else start.told,
        "data": Path(args.data).name,
        "templates": len(templates) if args.templates is None else Path(args.templates).name,
        "versions": versions(),
    }
    write_json(out, report)
    print(format_tables(tables, args.format))
    print(f"\nall numbers: {out}")
    return 0


def _hits(
    args: argparse.Namespace, of: Start, data: ClassImages, templates: list[Template]
) -> dict[int, torch.Tensor]:
    """Which images a model classifies as they are labelled."""
    encoder = SafetyScorer(
        of.model,
        transforms(of.model)[1],
        of.tokenizer,
        batch_size=args.batch_size,
        max_pixels=args.max_pixels,
        background=args.background,
    )
    prompts = [prompts_of(names, templates) for names in data.names]
    texts = [Item(text, "text", text) for of_class in prompts for text in of_class]
    curv = float(of.model.curvature.detach())
    points, _ = encode_in_order(args, encoder, texts)
    prototypes = class_prototypes(points, list(map(len, prompts)), curv, cosine=of.is_cosine)
    images, _ = encode_in_order(args, encoder, [Item(str(path), "image", path) for path in data.images])
    return hits(images, prototypes, torch.tensor(data.labels), curv)


COMMAND = Command("--model-dir DIR --data DATA [options]", _EPILOG, _add_flags, _zero_shot)
