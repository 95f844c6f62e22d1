"""``hysac train``."""

from __future__ import annotations

import argparse
import os
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

from hysac.cli.command import Command
from hysac.cli.flags import argument_kind
from hysac.training.config import TrainConfig
from hysac.training.loop import train

_EPILOG = """\
data:
  A manifest has one quadruplet a row: safe_image, unsafe_image, safe_caption, unsafe_caption, and
  optionally tag and id; image paths are relative to the manifest. `hysac toy` writes a small one.
  A shard of webdataset has the members KEY.safe.jpg, KEY.unsafe.jpg, KEY.safe.txt and KEY.unsafe.txt
  (or .jpeg, .png, .webp, .bmp, .gif, .tif), and optionally KEY.json with a tag.

examples:
  the paper's recipe, on one GPU with the paper's batch of 256:
    hysac train --train-data train.jsonl --val-data val.jsonl --name paper \\
        --model ViT-L-14-quickgelu --pretrained openai --lora-r 16 --lora-alpha 1 \\
        --batch-size 64 --accum-freq 4 --epochs 20 --patience 5
  the same on 4 GPUs:
    torchrun --nproc-per-node 4 -m -- hysac.cli train ... --accum-freq 1
  continue it after an interruption:
    hysac train ... --name paper --resume latest
  open_clip's column names:
    hysac train ... --csv-img-key filepath --csv-caption-key title \\
        --csv-unsafe-img-key unsafe_filepath --csv-unsafe-caption-key unsafe_title

a run leaves, in LOGS/NAME:
  config.json       the settings
  metrics.jsonl     one record a line: losses, curvature, recalls, speed
  checkpoints/      to continue the run
  model/            the kept model, for `hysac evaluate` and hysac.from_pretrained

Ctrl-C and SIGTERM save a checkpoint after the step in progress; the exit code is then 130 or 143.
"""


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """A flag for each field of TrainConfig."""
    hints = get_type_hints(TrainConfig)
    groups: dict[str, Any] = {}
    for setting in fields(TrainConfig):
        rules = setting.metadata
        group = groups.setdefault(rules["group"], None) or parser.add_argument_group(rules["group"])
        groups[rules["group"]] = group
        group.add_argument(
            f"--{setting.name.replace('_', '-')}",
            required=setting.default is MISSING,
            default=None if setting.default is MISSING else setting.default,
            help=rules["help"],
            **argument_kind(hints[setting.name], rules),
        )


def _train(args: argparse.Namespace) -> int:
    result = train(TrainConfig.from_dict(vars(args)))
    if os.environ.get("RANK", "0") == "0":
        print(f"{result.status} after {result.step} steps: {result.run_dir}")
        if result.status == "interrupted":
            print(
                f"continue with --logs {result.run_dir.parent} --name {result.run_dir.name} --resume latest"
            )
        elif result.model_dir is not None:
            print(f"model: {result.model_dir}")
    return 0 if result.signal is None else 128 + result.signal


COMMAND = Command("--train-data DATA --model NAME [options]", _EPILOG, _add_settings, _train)
