"""The flags of a hyperbolic model beside those of ``open_clip_train``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hysac.models.clip_loss import ClipLikeLoss
from hysac.models.loss import HySACLoss
from hysac.models.pair_loss import LorentzClipLoss

_DESCRIPTION = """\
Train a hyperbolic model in open_clip's own training program. All other flags are those of
open_clip_train: see `python -m open_clip_train.main --help`.
"""

_EPILOG = """\
examples:
  image-text pairs, MERU's objective:
    python -m hysac.open_clip_trainer --lorentz --train-data "cc3m/{0000..0331}.tar" \\
        --train-num-samples 2900000 --val-data val.csv --model ViT-B-32 --batch-size 512 --name lorentz
  on 4 GPUs:
    torchrun --nproc-per-node 4 -m hysac.open_clip_trainer --lorentz --local-loss --gather-with-grad ...
  quadruplets, HySAC's objective, of what `hysac train` reads as --train-data:
    python -m hysac.open_clip_trainer --hysac --train-data train.jsonl --val-data val.jsonl ...

a run leaves, in LOGS/NAME, what open_clip's leaves, and the model as a directory, model/, for
hysac.from_pretrained; `hysac convert LOGS/NAME/checkpoints/epoch_N.pt --out DIR` makes one of any checkpoint.
"""

_REFUSED = {
    "siglip": "SigLIP's loss is of dot products",
    "distill_model": "distillation is of dot products",
    "distill_pretrained": "distillation is of dot products",
    "horovod": "use torchrun",
    "torchscript": "use --torchcompile",
    "trace": "use --torchcompile",
}
"""Flags of open_clip's that do not fit, and why."""


@dataclass(frozen=True)
class Options:
    """Our flags; None is left to the objective or to the model."""

    objective: str
    entail_weight: float | None
    aperture_scale: float
    min_radius: float
    curv_init: float | None
    learn_curv: bool
    scale_init: float | None
    csv_unsafe_img_key: str | None
    csv_unsafe_caption_key: str | None

    def loss(self, **processes: Any) -> ClipLikeLoss:
        """The loss; ``processes`` are its arguments for several of them and for accumulation."""
        kind = LorentzClipLoss if self.objective == "lorentz" else HySACLoss
        weight: dict[str, Any] = {}
        if self.entail_weight is not None:
            weight["entail_weight"] = self.entail_weight
        return kind(aperture_scale=self.aperture_scale, min_radius=self.min_radius, **weight, **processes)


def split_flags(arguments: Sequence[str] | None) -> tuple[Options, list[str]]:
    """Our flags, and those left for open_clip, in their order."""
    options, others = _parser().parse_known_args(arguments)
    return Options(**vars(options)), others


def check_flags(options: Options, args: argparse.Namespace) -> None:
    """Refuse flags that would train something else, before any work.

    Args:
        options: our flags.
        args: what open_clip's parser made of the others.

    Raises:
        ValueError: names the flag.
    """
    for name, why in _REFUSED.items():
        if getattr(args, name):
            raise ValueError(f"--{name.replace('_', '-')} does not go with --{options.objective}: {why}")
    options.loss(
        local_loss=args.local_loss, gather_with_grad=args.gather_with_grad, accum_freq=args.accum_freq
    )
    quadruplets = options.objective == "hysac"
    if quadruplets and args.dataset_type not in ("auto", "csv"):
        raise ValueError(
            f"--dataset-type {args.dataset_type} does not go with --hysac, which reads quadruplets as "
            "`hysac train` does: manifests, shards or toy"
        )
    for name in ("csv_unsafe_img_key", "csv_unsafe_caption_key"):
        if getattr(options, name) is not None and not quadruplets:
            raise ValueError(f"--{name.replace('_', '-')} is for --hysac, whose data has unsafe columns")


def _parser() -> argparse.ArgumentParser:
    # Without abbreviations: one of our flags' could be meant for a flag of open_clip's.
    parser = argparse.ArgumentParser(
        "python -m hysac.open_clip_trainer",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    group = parser.add_argument_group("objective").add_mutually_exclusive_group(required=True)
    group.add_argument(
        "--lorentz",
        dest="objective",
        action="store_const",
        const="lorentz",
        help="MERU's, of image-text pairs: hysac.LorentzClipLoss",
    )
    group.add_argument(
        "--hysac",
        dest="objective",
        action="store_const",
        const="hysac",
        help="HySAC's, of quadruplets: hysac.HySACLoss",
    )
    loss = parser.add_argument_group("loss")
    loss.add_argument(
        "--entail-weight", type=float, metavar="X", help="by default 0.2 with --lorentz, 1 with --hysac"
    )
    loss.add_argument("--aperture-scale", type=float, metavar="X", default=1.0, help="of the cones")
    loss.add_argument("--min-radius", type=float, metavar="X", default=0.1, help="of the cones")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--curv-init",
        type=float,
        metavar="X",
        help="initial curvature, the centre of its range;"
        " by default that of the run to resume, of the model, or 1",
    )
    model.add_argument(
        "--learn-curv", action=argparse.BooleanOptionalAction, default=True, help="train the curvature"
    )
    model.add_argument(
        "--scale-init",
        type=float,
        metavar="X",
        help="initial inverse temperature; by default that of the model, or 1/0.07",
    )
    data = parser.add_argument_group("data of --hysac")
    data.add_argument("--csv-unsafe-img-key", metavar="COLUMN", help="the manifest's name for unsafe_image")
    data.add_argument(
        "--csv-unsafe-caption-key", metavar="COLUMN", help="the manifest's name for unsafe_caption"
    )
    return parser
