"""Quadruplets from files, and the one entry point to all data sets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from hysac.data.formats import READERS
from hysac.data.images import MAX_PIXELS, load_image
from hysac.data.items import LongTexts, Preprocess, Quadruplets, Tokenizer
from hysac.data.manifest import Manifest, OnError, load_manifest, verify_images
from hysac.data.shards import is_shards, load_shards
from hysac.data.toy import ToyQuadruplets


class QuadrupletDataset(Quadruplets):
    """The quadruplets of a manifest; see :class:`Quadruplets` for the items.

    Args:
        manifest: what :func:`load_manifest` returned.
        preprocess: from a PIL image to ``(3, H, W)``; not used, and may be None, for text-only data.
        tokenizer: from a list of ``n`` captions to ``(n, L)`` int64.
        on_error: ``"raise"`` or ``"skip"`` for missing and broken images, found by :func:`verify_images` when
            the data set is made, so that its length never changes afterwards.
        verify: False trusts the images: nothing is read now, a broken one raises when its turn comes.
        progress: show the progress of the verification.
        max_pixels, background: of :func:`load_image`.
        long_texts: of captions beyond the context: ``"cut"``, ``"one window"`` for training, or
            ``"windows"`` for :func:`encode_dataset`.

    Attributes:
        manifest: the quadruplets left after the verification.

    Raises:
        ValueError: images are missing or broken (here or on access), named by row and path; or
            ``on_error="skip"`` without ``verify``.
        TypeError: ``tokenizer``, or ``preprocess`` where there are images, is not callable.
    """

    def __init__(
        self,
        manifest: Manifest,
        preprocess: Preprocess | None,
        tokenizer: Tokenizer,
        on_error: OnError = "raise",
        *,
        verify: bool = True,
        progress: bool = True,
        max_pixels: int | None = MAX_PIXELS,
        background: str = "none",
        long_texts: LongTexts = "cut",
    ) -> None:
        if verify:
            manifest = verify_images(manifest, on_error=on_error, progress=progress, max_pixels=max_pixels)
        elif on_error != "raise":
            raise ValueError(
                'on_error="skip" needs verify=True: what is skipped must be known before the first item'
            )
        self.manifest = manifest
        self._load = partial(load_image, max_pixels=max_pixels, background=background)
        super().__init__(manifest.records, preprocess, tokenizer, manifest.has_images, long_texts)

    def images(self, index: int) -> tuple[Image.Image, Image.Image]:
        record = self.records[index]
        if not record.images:
            raise ValueError("text-only data has no images")
        try:
            safe, unsafe = map(self._load, record.images)
        except ValueError as error:
            raise ValueError(f"row with id {record.id!r}: {error}") from error
        return safe, unsafe


def open_dataset(
    spec: str | os.PathLike[str],
    split: str,
    preprocess: Preprocess | None,
    tokenizer: Tokenizer,
    *,
    columns: Mapping[str, str] | None = None,
    image_root: str | os.PathLike[str] | None = None,
    on_error: OnError = "raise",
    verify: bool = True,
    progress: bool = True,
    allow_outside_root: bool = False,
    max_pixels: int | None = MAX_PIXELS,
    background: str = "none",
    long_texts: LongTexts = "cut",
) -> Quadruplets:
    """Open a data set by its name or path.

    Args:
        spec: ``"toy"`` for :class:`ToyQuadruplets`; a manifest file, which is taken whole whatever ``split``
            is; a folder with a manifest named after the split, such as ``train.jsonl``; or shards, see
            :func:`load_shards`.
        split: ``"train"`` or ``"val"`` for the toy data, a manifest's name without suffix for a folder.
        preprocess, tokenizer: see :class:`QuadrupletDataset`.
        columns, image_root: see :func:`load_manifest`; for manifests only.
        on_error: ``"raise"`` or ``"skip"``, both for unusable rows and for broken images.
        verify, progress, max_pixels, background, long_texts: see :class:`QuadrupletDataset`.
        allow_outside_root: see :func:`load_manifest`.

    Raises:
        ValueError, TypeError, FileNotFoundError: as :func:`load_manifest`, :class:`QuadrupletDataset` and
            :class:`ToyQuadruplets`; and a folder with no manifest, or more than one, for the split.
    """
    if spec == "toy":
        if columns is not None or image_root is not None:
            raise ValueError('columns and image_root are for manifests, not for the data set "toy"')
        return ToyQuadruplets(split, preprocess=preprocess, tokenizer=tokenizer)
    reading: dict[str, Any] = {
        "verify": verify,
        "progress": progress,
        "max_pixels": max_pixels,
        "background": background,
        "long_texts": long_texts,
    }
    if is_shards(os.fspath(spec)):
        if columns is not None or image_root is not None:
            raise ValueError("columns and image_root are for manifests, not for shards")
        manifest = load_shards(os.fspath(spec), on_error=on_error, progress=progress)
        return QuadrupletDataset(manifest, preprocess, tokenizer, on_error, **reading)
    path = Path(spec)
    if path.is_dir():
        path = _manifest_of(path, split)
    manifest = load_manifest(
        path,
        columns=columns,
        image_root=image_root,
        on_error=on_error,
        allow_outside_root=allow_outside_root,
    )
    return QuadrupletDataset(manifest, preprocess, tokenizer, on_error, **reading)


def _manifest_of(folder: Path, split: str) -> Path:
    names = [f"{split}{suffix}" for suffix in READERS]
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) == 1:
        return found[0]
    if not found:
        raise FileNotFoundError(f"{folder} has no manifest of split {split!r}: none of {', '.join(names)}")
    raise ValueError(f"{folder} has several manifests of split {split!r}: {', '.join(p.name for p in found)}")
