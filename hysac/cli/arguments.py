"""The flags and the help of the ``hysac`` command."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from importlib import metadata
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from hysac.training.config import TRAINING_PRECISIONS, TrainConfig

Command = Callable[[argparse.Namespace], int]


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of examples, and shows defaults."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        default = action.default
        is_told = default is None or default is False or default is argparse.SUPPRESS
        if is_told or action.required or not action.option_strings:
            return text
        shown = " ".join(map(_quoted, default)) if isinstance(default, list | tuple) else default
        return f"{text} (default: {shown})".replace("%", "%%")


def _quoted(word: Any) -> str:
    return f"'{word}'" if " " in str(word) else str(word)


_EPILOG = """\
examples:
  hysac demo                                          train and evaluate a small model, draw its pictures
  hysac train --train-data toy --val-data toy --model hysac-toy --lr 3e-3 --name first
  hysac evaluate --model-dir runs/first --val-data toy

`hysac COMMAND --help` explains a command and gives examples.
"""

_TRAIN_EPILOG = """\
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

_EVALUATE_EPILOG = """\
T is safe text, I safe image, T* unsafe text, I* unsafe image. `T*->I u I*` is the retrieval of the safe
image by the unsafe text among all images, safe and unsafe; `(traversed)` means that the query was moved
towards the origin first, to where the safe class ends. Text-only data gives the text's safety metrics.

examples:
  hysac evaluate --model-dir runs/paper --val-data test.jsonl --plots plots
  hysac evaluate --model-dir runs/paper --calibration-data val.jsonl --val-data test.jsonl
  hysac evaluate --checkpoint runs/paper --val-data toy
"""

_BOUNDS_EPILOG = """\
The bounds are the 5th percentile, the mean and the 95th percentile of each class's distance to the origin.
They say where an unsafe query is moved to. Fit them on data that the model was not evaluated on.

example:
  hysac bounds --model-dir runs/paper/model --data val.jsonl
"""

_CONVERT_EPILOG = """\
example:
  hysac convert hysac_model.pth --bounds hysac_bounds.json --out hysac-vit-l
  hysac convert safeclip-vit-l-14/ --out before-training
  hysac convert clip-vit-b-16/ --scalars-from hycoclip_vit_b.pth --out before-training
  hysac evaluate --model-dir hysac-vit-l --val-data test.jsonl --mode paper
"""

_TOY_EPILOG = """\
example:
  hysac toy --out toy
  hysac train --train-data toy/train.jsonl --val-data toy/val.jsonl --model hysac-toy --lr 3e-3
"""

_DEMO_EPILOG = """\
Needs no download and no GPU: about two minutes on two CPU cores. An earlier demo in the directory is
replaced.
"""


def make_parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """The parser of the whole command line.

    Args:
        commands: what runs each command, by its name. The parsed arguments hold it as ``command``, and the
            name as ``name_of_command``.
    """
    parser = argparse.ArgumentParser(
        prog="hysac",
        description="Hyperbolic Safety-Aware CLIP: train, evaluate and calibrate.",
        epilog=_EPILOG,
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action="version", version=_versions())
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, run in commands.items():
        usage, summary, epilog, add_flags = _COMMANDS[name]
        sub = subparsers.add_parser(
            name,
            usage=f"hysac {name} {usage}",
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=epilog,
            formatter_class=_Formatter,
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(command=run, name_of_command=name)
        add_flags(sub)
    return parser


def _versions() -> str:
    """For a bug report: of hysac and of what computes."""
    names = ("hysac", "open_clip_torch", "torch")
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    data = _add_data(parser)
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


def _add_bounds(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_data(parser).add_argument(
        "--data", required=True, metavar="DATA", help="what to fit on: a manifest, shards, or 'toy'"
    )
    parser.add_argument("--out", metavar="FILE", help="JSON file; by default bounds.json beside the model")
    parser.add_argument(
        "--drop-classes",
        action="store_true",
        help="replace bounds also by those of fewer classes, as text-only data gives",
    )


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="hysac_model.pth, a checkpoint of the authors' or of open_clip's training script, or a file or "
        "directory of a Hugging Face CLIP",
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


def _add_toy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to write to")
    parser.add_argument(
        "--train-size", type=int, metavar="N", help="quadruplets to train on; by default 2048"
    )
    parser.add_argument(
        "--val-size", type=int, metavar="N", help="quadruplets to validate on; by default 256"
    )
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="which scenes")


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="directory to write to")
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="of the weights and the order")


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
            **_argument_kind(hints[setting.name], rules),
        )


def _argument_kind(hint: Any, rules: Any) -> dict[str, Any]:
    options = get_args(hint) if get_origin(hint) not in (None, Literal, tuple) else (hint,)
    kind = next(option for option in options if option is not type(None))
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    if get_origin(kind) is tuple:
        return {"nargs": "+", "choices": rules.get("choices"), "metavar": rules.get("metavar")}
    if "choices" in rules:
        return {"choices": rules["choices"]}
    return {"type": kind, "metavar": rules.get("metavar") or {int: "N", float: "X"}.get(kind)}


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--model-dir", metavar="DIR", help="a model directory, or a run with one")
    source.add_argument(
        "--checkpoint", metavar="RUN", help="a run, for its newest checkpoint, or a checkpoint file"
    )
    group.add_argument(
        "--device", metavar="DEVICE", help="such as cpu or cuda:1; by default a GPU if there is one"
    )
    group.add_argument("--precision", default="fp32", choices=TRAINING_PRECISIONS[:4], help="of the towers")
    group.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare the files of a model directory with their checksums, 1 to 2 s for each GB",
    )


_OF_TRAINING = ("train_data", "val_data", "aug_cfg")


def _add_data(parser: argparse.ArgumentParser) -> Any:
    """The flags of ``hysac train`` that say how to read a manifest."""
    hints = get_type_hints(TrainConfig)
    group = parser.add_argument_group("data")
    for setting in fields(TrainConfig):
        is_reading = setting.metadata["group"] == "data" and setting.name not in _OF_TRAINING
        if is_reading or setting.name == "batch_size":
            group.add_argument(
                f"--{setting.name.replace('_', '-')}",
                default=setting.default,
                help="quadruplets encoded at a time"
                if setting.name == "batch_size"
                else setting.metadata["help"],
                **_argument_kind(hints[setting.name], setting.metadata),
            )
    return group


class _Command(NamedTuple):
    """What the help of a command says, and what adds its flags."""

    usage: str
    summary: str
    epilog: str
    add_flags: Callable[[argparse.ArgumentParser], None]


_COMMANDS = {
    "train": _Command(
        "--train-data DATA --model NAME [options]",
        "train a model on quadruplets",
        _TRAIN_EPILOG,
        _add_settings,
    ),
    "evaluate": _Command(
        "(--model-dir DIR | --checkpoint RUN) --val-data DATA [options]",
        "measure a model's retrieval and safety",
        _EVALUATE_EPILOG,
        _add_evaluate,
    ),
    "bounds": _Command(
        "(--model-dir DIR | --checkpoint RUN) --data DATA [options]",
        "fit the bounds that redirection needs",
        _BOUNDS_EPILOG,
        _add_bounds,
    ),
    "convert": _Command(
        "CHECKPOINT --out DIR [options]",
        "convert the published checkpoint to a model",
        _CONVERT_EPILOG,
        _add_convert,
    ),
    "toy": _Command("--out DIR [options]", "write the toy data set as files", _TOY_EPILOG, _add_toy),
    "demo": _Command(
        "[options]", "train, evaluate and draw a small model from scratch", _DEMO_EPILOG, _add_demo
    ),
}
