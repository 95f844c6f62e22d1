"""Flags that several commands have."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from hysac.data.images import BACKGROUNDS, MAX_PIXELS
from hysac.index.engine import KEY_VARIABLE, URL_VARIABLE
from hysac.safety import DEFAULT_STATISTIC
from hysac.training.config import TRAINING_PRECISIONS, TrainConfig

VERIFY = "compare the files of a model directory with their checksums, 1 to 2 s for each GB"


def add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--model-dir", metavar="DIR", help="a model directory, or a run with one")
    source.add_argument(
        "--checkpoint", metavar="RUN", help="a checkpoint file, or a run, which means its newest one"
    )
    group.add_argument(
        "--device", metavar="DEVICE", help="such as cpu or cuda:1; by default a GPU if there is one"
    )
    group.add_argument(
        "--precision", default="fp32", choices=TRAINING_PRECISIONS[:4], help="what the towers compute in"
    )
    group.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help=VERIFY,
    )


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """The flags that name items."""
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="what to score, see below")
    parser.add_argument("--text", action="append", default=[], metavar="TEXT", help="a caption")
    parser.add_argument(
        "--texts",
        action="append",
        default=[],
        metavar="FILE",
        help="a file with one caption a line",
    )
    for kind in ("image", "text"):
        parser.add_argument(
            f"--{kind}-column", action="append", metavar="NAME", help=f"a column of {kind}s; may be repeated"
        )
    parser.add_argument(
        "--image-root",
        metavar="DIR",
        help="what image paths of a manifest are relative to; by default its folder",
    )


def add_scorer(
    parser: argparse.ArgumentParser, *, decides: bool = True, required: bool = True, workers: bool = True
) -> None:
    """The flags of a scorer; those of its decision where it ``decides``, and of the processes that read.

    Where it is not ``required``, an index knows the model.
    """
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model-dir",
        required=required,
        metavar="DIR",
        help="a model directory, or a run" if required else "where the index's model is now",
    )
    if decides:
        group.add_argument(
            "--threshold",
            metavar="NAME",
            help="the operating point that decides; by default the one chosen by `hysac calibrate`",
        )
    group.add_argument(
        "--device", metavar="DEVICE", help="such as cpu or cuda:1; by default a GPU if there is one"
    )
    group.add_argument("--verify", action=argparse.BooleanOptionalAction, default=True, help=VERIFY)
    reading = parser.add_argument_group("reading")
    reading.add_argument("--batch-size", type=int, metavar="N", default=64, help="items encoded at a time")
    if workers:
        reading.add_argument(
            "--workers", type=int, metavar="N", help="processes that read; by default one a CPU"
        )
    reading.add_argument("--max-pixels", type=int, metavar="N", default=MAX_PIXELS, help="largest image read")
    reading.add_argument(
        "--background", default="none", choices=BACKGROUNDS, help="colour behind transparent pixels"
    )


def add_database(group: Any) -> None:
    """The flag that says where an index's engine has its rows."""
    group.add_argument(
        "--engine-url",
        metavar="URL",
        help=f"the engine's database, if it has one; better from {URL_VARIABLE} in the environment, and a "
        f"server's key from {KEY_VARIABLE}. Neither is ever written",
    )


def add_engine_use(parser: argparse.ArgumentParser) -> None:
    """The flags of a command that searches an index."""
    group = parser.add_argument_group("engine")
    add_database(group)
    group.add_argument("--exact", action="store_true", help="compare every point, without the index's engine")


def add_labelled(parser: argparse.ArgumentParser, of: str = "data") -> None:
    """The flags of :func:`hysac.cli.inputs.labelled_of`, in a group of this name."""
    group = parser.add_argument_group(of)
    group.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="LABELLED",
        help="labelled items, quadruplets, prompt sets, or a folder with safe and unsafe in it",
    )
    for label in ("safe", "unsafe"):
        group.add_argument(
            f"--{label}",
            nargs="+",
            default=[],
            metavar="ITEMS",
            help=f"items that are {label}: images, folders, texts, globs; of labelled data the {label} ones",
        )
    group.add_argument("--image-root", metavar="DIR", help="what image paths of tables are relative to")


def add_redirection(parser: argparse.ArgumentParser) -> Any:
    """The flags of :class:`hysac.safety.Traversal`, in a group to which others may be added."""
    group = parser.add_argument_group("safety")
    group.add_argument("--bounds", metavar="FILE", help="bounds.json to use; by default the model's")
    group.add_argument(
        "--statistic",
        default=DEFAULT_STATISTIC,
        choices=("low_05", "avg", "up_95"),
        help="the safe class's distance to the origin that unsafe queries are moved to",
    )
    group.add_argument(
        "--margin", type=float, metavar="X", default=0.0, help="added to the bound; negative is stricter"
    )
    group.add_argument(
        "--mode", default="geodesic", choices=("geodesic", "paper"), help="rule of redirection"
    )
    group.add_argument(
        "--alpha", type=float, metavar="X", default=0.8, help="parameter of --mode paper; larger is stricter"
    )
    return group


START_OF_RUN = ""
"""What ``--start`` without a name stands for: no model and no folder is called so."""


def add_start(parser: argparse.ArgumentParser) -> None:
    """The flags of :func:`hysac.cli.start.load_start`."""
    group = parser.add_argument_group("comparison")
    group.add_argument(
        "--start",
        nargs="?",
        const=START_OF_RUN,
        metavar="MODEL",
        help="compare with this CLIP: a name of open_clip, hf-hub:..., local-dir:..., or a directory of "
        "hysac's; without MODEL the one that the run started from",
    )
    group.add_argument(
        "--start-pretrained", metavar="TAG", help="open_clip's tag, or a file, with the weights of MODEL"
    )


_OF_TRAINING = ("train_data", "val_data", "aug_cfg")


def add_data(parser: argparse.ArgumentParser) -> Any:
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
                **argument_kind(hints[setting.name], setting.metadata),
            )
    return group


def argument_kind(hint: Any, rules: Any) -> dict[str, Any]:
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
