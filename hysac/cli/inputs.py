"""The model and the data that a command names."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from hysac.data import Batches, Quadruplets, open_dataset
from hysac.data.formats import first_few
from hysac.embeddings import Embeddings, encode_dataset
from hysac.index import Index
from hysac.models.cosine import EvaluatedModel
from hysac.models.factory import from_pretrained, get_tokenizer, transforms
from hysac.models.model import HySAC
from hysac.models.pretrained import BOUNDS_FILE, model_directory
from hysac.safety import Bounds
from hysac.scoring.identity import weights_digest
from hysac.scoring.items import Item, find_items
from hysac.scoring.labelled import Labelled, fingerprint, load_labelled
from hysac.scoring.scorer import SafetyScorer
from hysac.scoring.streaming import Encoded, encode_items
from hysac.training.config import columns
from hysac.training.loop import autocast, chosen_workers, model_of_checkpoint
from hysac.training.processes import choose_device

log = logging.getLogger(__name__)


def load_model(args: argparse.Namespace) -> tuple[HySAC, Any, Path]:
    """The model, its tokenizer, and the directory that belongs to it."""
    device = choose_device(args.device)
    if args.checkpoint is not None:
        model, config, run = model_of_checkpoint(Path(args.checkpoint), device)
        return model, get_tokenizer(config.model), run
    directory = model_directory(Path(args.model_dir))
    model = from_pretrained(directory, device=device, verify=args.verify)
    return model, get_tokenizer(f"local-dir:{directory}"), directory


def load_scorer(args: argparse.Namespace, *, calibrated: bool = True) -> SafetyScorer:
    """The scorer of ``--model-dir``; without its thresholds where it is to be calibrated."""
    return SafetyScorer.from_pretrained(
        args.model_dir,
        threshold=getattr(args, "threshold", None),
        calibrated=calibrated,
        device=choose_device(args.device),
        verify=args.verify,
        batch_size=args.batch_size,
        max_pixels=args.max_pixels,
        background=args.background,
    )


def open_index(args: argparse.Namespace) -> Index:
    """The index of ``--index``; its model is that of ``--model-dir``, or the one that it remembers.

    Raises:
        FileNotFoundError, ValueError: none is there, it was made by other weights, or its engine cannot be
            loaded.
        ImportError: its engine is not installed.
    """
    index = Index.open(Path(args.index), url=args.engine_url, exact=getattr(args, "exact", False))
    args.model_dir = args.model_dir or index.model_dir
    index.check_model(weights_digest(model_directory(Path(args.model_dir))))
    if index.engines is not None:
        index.engines.load()
    return index


def score_labelled(
    args: argparse.Namespace, scorer: SafetyScorer, items: Sequence[Labelled]
) -> tuple[torch.Tensor, list[float]]:
    """The points ``(N, D)`` and the distances of labelled items, in their order.

    Raises:
        ValueError: items that cannot be read; names the first ones.
    """
    named = [Item(item.name, item.modality, item.content) for item in items]
    return encode_in_order(args, scorer, named)


def encode_in_order(
    args: argparse.Namespace, scorer: SafetyScorer, items: Sequence[Item]
) -> tuple[torch.Tensor, list[float]]:
    """The points ``(N, D)`` of items and their distances to the origin, in the order of the items.

    Raises:
        ValueError: items that cannot be read; names the first ones.
    """
    encoded: list[Encoded] = []
    with tqdm(desc="encode", total=len(items), unit="item", disable=not sys.stderr.isatty()) as bar:
        for batch in encode_items(scorer, items, workers=chosen_workers(args.workers)):
            encoded += batch
            bar.update(len(batch))
    of = {kind: iter([one for one in encoded if one.item.modality == kind]) for kind in ("image", "text")}
    in_order = [next(of[item.modality]) for item in items]
    if faults := [f"{one.item.name}: {one.fault}" for one in in_order if one.fault is not None]:
        raise ValueError(
            f"{len(faults)} of {len(items)} items cannot be read: {first_few(faults)}. Leave them out"
        )
    points = [one.point for one in in_order if one.point is not None]
    return torch.stack(points), [one.distance for one in in_order if one.distance is not None]


def labelled_of(args: argparse.Namespace) -> list[Labelled]:
    """The items that the flags of :func:`hysac.cli.flags.add_labelled` name.

    Raises:
        ValueError, FileNotFoundError: there are none, an image has both labels, or what :func:`load_labelled`
            raises.
    """
    sources = [
        (path, label)
        for paths, label in ((args.data, None), (args.safe, False), (args.unsafe, True))
        for path in paths
    ]
    if not sources:
        raise ValueError("there are no items: give --data, or --safe and --unsafe")
    found = [load_labelled(path, image_root=args.image_root, label=label) for path, label in sources]
    if len(found) == 1:
        items = found[0]
    else:
        items = [
            replace(item, name=f"{Path(path).name}:{item.name}")
            for (path, _), items in zip(sources, found, strict=True)
            for item in items
        ]
    _check_labels(items)
    return items


def _check_labels(items: Sequence[Labelled]) -> None:
    files = [(os.path.abspath(str(item.content)), item) for item in items if item.modality == "image"]
    safe = {file for file, item in files if not item.is_unsafe}
    if both := sorted({file for file, item in files if item.is_unsafe and file in safe}):
        raise ValueError(f"{len(both)} images are named as safe and as unsafe: {first_few(both)}")


def data_of(args: argparse.Namespace, items: list[Labelled]) -> dict[str, Any]:
    """What a report says of the items that :func:`labelled_of` found."""
    names = [Path(path).name for path in (*args.data, *args.safe, *args.unsafe)]
    return {"name": ", ".join(names), "sha256": fingerprint(items), "items": len(items)}


def inputs_of(args: argparse.Namespace, first_text: int = 1) -> list[Item]:
    """The items that the flags of :func:`hysac.cli.flags.add_inputs` name, ``--text`` from a number on.

    Raises:
        ValueError: there are none.
    """
    if not (args.inputs or args.text or args.texts):
        raise ValueError("nothing to score: give an INPUT, --text or --texts")
    found = find_items(
        args.inputs,
        texts=args.text,
        lines=sys.stdin if "-" in args.inputs else None,
        text_files=args.texts,
        first_text=first_text,
        image_columns=args.image_column,
        text_columns=args.text_column,
        image_root=args.image_root,
    )
    if not found:
        raise ValueError("nothing to score: there is no item in what was given")
    return found


def tell_unread(faults: Sequence[tuple[str, str]], count: int) -> None:
    """Log the names and faults of the first of ``count`` items that could not be read.

    Raises:
        ValueError: there is no other item.
    """
    for name, fault in faults[:20]:
        log.warning("%s: %s", name, fault)
    if len(faults) > 20:
        log.warning("and %d more that could not be read", len(faults) - 20)
    if faults and len(faults) == count:
        raise ValueError(f"none of the {count} items could be read")


def stored_bounds(args: argparse.Namespace, home: Path) -> Bounds | None:
    """Those that are asked for, or those beside the model."""
    if args.bounds is not None:
        return Bounds.load(args.bounds)
    return Bounds.load(home / BOUNDS_FILE) if (home / BOUNDS_FILE).is_file() else None


def open_data(
    args: argparse.Namespace, model: EvaluatedModel, tokenizer: Any, spec: str, split: str
) -> Quadruplets:
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


def encode(args: argparse.Namespace, model: EvaluatedModel, dataset: Quadruplets) -> Embeddings:
    """The embeddings of a data set, read and computed as the flags say."""
    workers = chosen_workers(args.workers)
    loader = Batches(dataset, batch_size=args.batch_size, num_workers=workers)
    device = next(model.parameters()).device
    with torch.no_grad(), autocast(args.precision, device)():
        return encode_dataset(model, loader, progress=sys.stderr.isatty())
