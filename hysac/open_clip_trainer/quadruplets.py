"""Quadruplets as open_clip's program reads data: batches of images and texts ``(B, 2, ...)``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from hysac.data import Batches, open_dataset
from hysac.open_clip_trainer.flags import Options


class QuadrupletLoader:
    """Tuples of images ``(B, 2, 3, H, W)`` and texts ``(B, 2, L)``, with what open_clip asks of a loader."""

    def __init__(self, batches: Batches, num_samples: int) -> None:
        self._batches = batches
        self.num_batches, self.num_samples = len(batches), num_samples

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self._batches:
            if "image" not in batch:
                raise ValueError("--hysac needs quadruplets with images, and these are of texts alone")
            yield batch["image"], batch["text"]


def quadruplet_data(
    options: Options, args: argparse.Namespace, preprocess: tuple[Any, Any], tokenizer: Any
) -> dict[str, Any]:
    """``{"train": ..., "val": ...}``, as far as ``--train-data`` and ``--val-data`` are given.

    Training data is drawn in an order of its own for each epoch, the same after ``--resume``, and divided
    among the processes; validation data comes whole and in order.
    """
    from open_clip_train.data import DataInfo

    data = {}
    for split, spec, transform in zip(
        ("train", "val"), (args.train_data, args.val_data), preprocess, strict=True
    ):
        if not spec:
            continue
        dataset = open_dataset(
            spec, split, transform, tokenizer, columns=_columns(options, args), progress=False
        )
        train = split == "train"
        sampler: DistributedSampler | None = None
        if train:
            sampler = DistributedSampler(dataset, args.world_size, args.rank, seed=args.seed)
        batches = Batches(
            dataset,
            batch_size=args.batch_size,
            num_workers=args.workers,
            sampler=sampler,
            drop_last=train,
            pin_memory=args.device.startswith("cuda"),
        )
        data[split] = DataInfo(QuadrupletLoader(batches, len(dataset)), sampler)
    return data


def _columns(options: Options, args: argparse.Namespace) -> dict[str, str] | None:
    """The columns by open_clip's flags for safe and ours for unsafe items; else a manifest's own."""
    unsafe = (options.csv_unsafe_img_key, options.csv_unsafe_caption_key)
    if unsafe == (None, None):
        return None
    if None in unsafe:
        raise ValueError(
            "--csv-unsafe-img-key and --csv-unsafe-caption-key go together, got "
            f"{unsafe[0]!r} and {unsafe[1]!r}"
        )
    return {
        "safe_image": args.csv_img_key,
        "safe_caption": args.csv_caption_key,
        "unsafe_image": str(unsafe[0]),
        "unsafe_caption": str(unsafe[1]),
    }
