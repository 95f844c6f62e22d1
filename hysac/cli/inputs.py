"""The model and the data that a command names."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from hysac.data import Batches, Quadruplets, open_dataset
from hysac.embeddings import Embeddings, encode_dataset
from hysac.models.factory import from_pretrained, get_tokenizer, transforms
from hysac.models.model import HySAC
from hysac.models.pretrained import BOUNDS_FILE, model_directory
from hysac.safety import Bounds
from hysac.training.config import columns
from hysac.training.loop import autocast, default_workers, model_of_checkpoint
from hysac.training.processes import choose_device


def load_model(args: argparse.Namespace) -> tuple[HySAC, Any, Path]:
    """The model, its tokenizer, and the directory that belongs to it."""
    device = choose_device(args.device)
    if args.checkpoint is not None:
        model, config, run = model_of_checkpoint(Path(args.checkpoint), device)
        return model, get_tokenizer(config.model), run
    directory = model_directory(Path(args.model_dir))
    model = from_pretrained(directory, device=device, verify=args.verify)
    return model, get_tokenizer(f"local-dir:{directory}"), directory


def stored_bounds(args: argparse.Namespace, home: Path) -> Bounds | None:
    """Those that are asked for, or those beside the model."""
    if args.bounds is not None:
        return Bounds.load(args.bounds)
    return Bounds.load(home / BOUNDS_FILE) if (home / BOUNDS_FILE).is_file() else None


def open_data(args: argparse.Namespace, model: HySAC, tokenizer: Any, spec: str, split: str) -> Quadruplets:
    """The data set ``spec``, read as the flags say."""
    return open_dataset(
        spec,
        split,
        transforms(model)[1],
        tokenizer,
        columns=columns(args),
        image_root=args.image_root,
        on_error=args.on_bad_image,
        verify=args.verify_images,
        progress=sys.stderr.isatty(),
        allow_outside_root=args.allow_outside_root,
        max_pixels=args.max_pixels,
        background=args.background,
        long_texts="windows",
    )


def encode(args: argparse.Namespace, model: HySAC, dataset: Quadruplets) -> Embeddings:
    """The embeddings of a data set, read and computed as the flags say."""
    workers = default_workers() if args.workers is None else args.workers
    loader = Batches(dataset, batch_size=args.batch_size, num_workers=workers)
    device = next(model.parameters()).device
    with torch.no_grad(), autocast(args.precision, device)():
        return encode_dataset(model, loader, progress=sys.stderr.isatty())
