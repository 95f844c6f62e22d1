"""``hysac convert``."""

from __future__ import annotations

import argparse

from hysac.cli.command import Command
from hysac.models.convert import from_reference
from hysac.models.model import HySAC
from hysac.models.pretrained import save_pretrained
from hysac.open_clip_trainer.runs import load_checkpoint, run_of
from hysac.safety import Bounds

_EPILOG = """\
example:
  hysac convert hysac_model.pth --bounds hysac_bounds.json --out hysac-vit-l
  hysac convert safeclip-vit-l-14/ --out before-training
  hysac convert logs/lorentz/checkpoints/epoch_3.pt --out lorentz-3
  hysac convert clip-vit-b-16/ --scalars-from hycoclip_vit_b.pth --out before-training
  hysac evaluate --model-dir hysac-vit-l --val-data test.jsonl --mode paper
"""


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="hysac_model.pth, a checkpoint of the authors' or of open_clip's training script, also under "
        "hysac.open_clip_trainer, or a file or directory of a Hugging Face CLIP",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="model directory to write")
    parser.add_argument("--bounds", metavar="FILE", help="hysac_bounds.json")
    parser.add_argument(
        "--lora-alpha",
        type=float,
        metavar="X",
        help="of the adapters in the checkpoint; by default that of adapter_config.json beside it, which "
        "also tells of rsLoRA and patterns of alpha, or 1",
    )
    parser.add_argument("--adapter", metavar="NAME", help="the adapter to merge, where there are several")
    parser.add_argument(
        "--quick-gelu",
        action=argparse.BooleanOptionalAction,
        help="whether the activation is QuickGELU; by default what config.json beside it says, or QuickGELU",
    )
    for tower in ("vision", "text"):
        parser.add_argument(
            f"--{tower}-heads",
            type=int,
            metavar="N",
            help="attention heads; by default what config.json beside it says, or as many as are 64 wide",
        )
    parser.add_argument(
        "--scalars-from",
        metavar="FILE",
        help="a checkpoint of MERU or HyCoCLIP: take its curvature, factors, temperature, and mean and "
        "deviation of the pixels, for a CHECKPOINT without",
    )


def _convert(args: argparse.Namespace) -> int:
    bounds = None if args.bounds is None else Bounds.load(args.bounds)
    model = _of_run(args) or from_reference(
        args.checkpoint,
        lora_alpha=args.lora_alpha,
        adapter=args.adapter,
        quick_gelu=args.quick_gelu,
        vision_heads=args.vision_heads,
        text_heads=args.text_heads,
        scalars_from=args.scalars_from,
    )
    print(f"model: {save_pretrained(model, args.out, bounds=bounds)}")
    return 0


def _of_run(args: argparse.Namespace) -> HySAC | None:
    """The model of a checkpoint whose run says what it is."""
    run = run_of(args.checkpoint)
    if run is None:
        return None
    names = ("lora_alpha", "adapter", "quick_gelu", "vision_heads", "text_heads", "scalars_from")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None]
    if given:
        raise ValueError(f"{', '.join(given)} is not for a checkpoint of {run}, which tells it")
    return load_checkpoint(args.checkpoint)


COMMAND = Command("CHECKPOINT --out DIR [options]", _EPILOG, _add_convert, _convert)
