"""The model that a trained one started from, for comparison."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hysac.cli.flags import START_OF_RUN
from hysac.files import read_json
from hysac.models.cosine import CosineModel, EvaluatedModel
from hysac.models.factory import create_model, from_pretrained, get_tokenizer, hysac_directory
from hysac.models.model import HySAC
from hysac.models.pretrained import RUN_SETTINGS, model_directory
from hysac.training.config import TrainConfig
from hysac.training.loop import build_model
from hysac.training.processes import choose_device

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """A starting model.

    Attributes:
        model: a CLIP, compared by cosine, or a model of hysac's own, compared by distance.
        tokenizer: its own.
        told: what a report says of it.
    """

    model: EvaluatedModel
    tokenizer: Any
    told: dict[str, Any]

    @property
    def is_cosine(self) -> bool:
        return isinstance(self.model, CosineModel)


def load_start(args: argparse.Namespace, home: Path) -> Start:
    """The model that the flags of :func:`hysac.cli.flags.add_start` name.

    Args:
        args: with ``--start``.
        home: the directory of the trained model, or its run.

    Raises:
        ValueError, FileNotFoundError: there is none of that name, or ``home`` does not say what it started
            from.
    """
    device = choose_device(args.device)
    if args.start == START_OF_RUN:
        if args.start_pretrained is not None:
            raise ValueError("--start-pretrained is for a MODEL that --start names")
        return _of_run(home, device)
    name = _name_of(Path(args.start)) if Path(args.start).is_dir() else args.start
    if hysac_directory(name) is not None:
        if args.start_pretrained is not None:
            raise ValueError(f"{args.start} has weights: --start-pretrained is for names of open_clip")
        directory = name.removeprefix("local-dir:")
        model = from_pretrained(directory, device=device, verify=args.verify)
        return Start(model, get_tokenizer(name), {"model": args.start, "compared_by": "distance"})
    if args.start_pretrained is None and ":" not in name:
        log.warning("%s has random weights without --start-pretrained", name)
    model = create_model(name, args.start_pretrained, device=device).eval()
    return _of_clip(model, name, args.start_pretrained)


def _name_of(directory: Path) -> str:
    try:
        return f"local-dir:{model_directory(directory)}"
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; one of open_clip's is --start local-dir:{directory}") from None


def _of_run(home: Path, device: torch.device) -> Start:
    """What the settings of a run make before its first step: random weights depend on its seed alone."""
    settings = next((place / RUN_SETTINGS for place in (home, home.parent) if _is_run(place)), None)
    if settings is None:
        raise ValueError(
            f"{home} is in no run, whose {RUN_SETTINGS} would say what it started from: name it with --start"
        )
    config = TrainConfig.from_dict({"train_data": "", **read_json(settings)})
    towers = replace(config, precision="fp32", lora_r=None, grad_checkpointing=False)
    model = build_model(towers, device).eval()
    if hysac_directory(config.model) is not None:
        tokenizer = get_tokenizer(config.model)
        return Start(model, tokenizer, {"model": config.model, "compared_by": "distance"})
    return _of_clip(model, config.model, config.pretrained)


def _is_run(place: Path) -> bool:
    if not (place / RUN_SETTINGS).is_file():
        return False
    settings = read_json(place / RUN_SETTINGS)
    return isinstance(settings, dict) and "model" in settings


def _of_clip(model: HySAC, name: str, pretrained: str | None) -> Start:
    told = {"model": name, "pretrained": pretrained, "compared_by": "cosine"}
    return Start(CosineModel(model), get_tokenizer(name), told)
