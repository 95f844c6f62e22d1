"""Flags that several commands have."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from hysac.training.config import TRAINING_PRECISIONS, TrainConfig


def add_model(parser: argparse.ArgumentParser) -> None:
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
