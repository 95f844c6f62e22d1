"""``hysac export``."""

from __future__ import annotations

import argparse
from pathlib import Path

from hysac.cli.command import Command
from hysac.cli.flags import VERIFY
from hysac.export import FORMATS, export_model
from hysac.export.description import DESCRIPTION_FILE
from hysac.files import read_json

_EPILOG = """\
Each tower becomes one graph: pixels or tokens to points on the hyperboloid and their distances to the origin,
for batches of any size. Each is run and compared with the model; where one differs by more than 1e-5, nothing
is written. export.json has the preprocessing of images and texts, the curvature, the thresholds and the
checksum of the model. docs/serve_without_pytorch.md shows how to use them.

examples:
  hysac export --model-dir runs/demo --out exported
  hysac export --model-dir runs/demo --out exported --int8 runs/demo/data/calibration.jsonl
  hysac export --model-dir runs/demo --out exported --format pt2 aoti
"""


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model-dir", required=True, metavar="DIR", help="a model directory, or a run")
    parser.add_argument("--out", required=True, metavar="DIR", help="a new or empty directory")
    parser.add_argument(
        "--format",
        nargs="+",
        choices=FORMATS,
        default=["onnx"],
        help="onnx; pt2, a program of torch.export; aoti, that compiled for this CPU, which takes minutes",
    )
    parser.add_argument(
        "--int8",
        metavar="LABELLED",
        help="also write ONNX graphs with 8-bit weights, and tell their loss in AUC on these items, as "
        "`hysac calibrate` takes them",
    )
    parser.add_argument("--verify", action=argparse.BooleanOptionalAction, default=True, help=VERIFY)


def _export(args: argparse.Namespace) -> int:
    out = export_model(args.model_dir, args.out, formats=args.format, int8=args.int8, verify=args.verify)
    print(_told(out))
    return 0


def _told(out: Path) -> str:
    content = read_json(out / DESCRIPTION_FILE)
    lines = [
        f"{name}: differs from the model by {graph['worst_relative_error']:.1e} at most"
        for name, graph in content["graphs"].items()
    ]
    for modality in ("image", "text"):
        if found := content.get("int8", {}).get(modality):
            changed = found["decisions_changed"]
            lines.append(
                f"{modality}.int8.onnx: AUC {found['auc_int8']:.4f}, of the model {found['auc']:.4f}, on "
                f"{found['items']} items"
                + ("" if changed is None else f"; {changed:.2%} of the decisions differ")
            )
    return "\n".join([*lines, f"written to {out}"])


COMMAND = Command("--model-dir DIR --out DIR [options]", _EPILOG, _add_flags, _export)
