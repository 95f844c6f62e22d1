"""The toy data set: drawn scenes and captions, no files, no download."""

from __future__ import annotations

import math
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from hysac.data.items import Preprocess, Quadruplets, Tokenizer
from hysac.data.manifest import Manifest, Quadruplet, save_manifest
from hysac.data.scenes import ATTRIBUTES, HAZARD_PHRASES, HAZARDS, Scene

SPLITS = ("train", "val")
DEFAULT_SIZES = {"train": 2048, "val": 256}
SHAPE = tuple(len(values) for values in ATTRIBUTES.values())
SCENES = math.prod(SHAPE)
"""How many scenes there are to choose from: every combination of the attributes."""

MAX_SIZES = {"train": SCENES - SCENES // 5, "val": SCENES // 5}


class ToyQuadruplets(Quadruplets):
    """Drawn scenes such as "a small red car on the left in the desert under a kite", 32 x 32 pixels.

    The unsafe twin is the same picture with a hazard mark drawn into it, and the same caption with a hazard
    added ("..., on fire"); its kind is the tag. Every scene combines a size, colour, thing, position, place
    and something in the sky; no scene occurs twice in a split or in both splits, so every caption has exactly
    one right image. The pictures and captions depend on ``seed``, ``split`` and the index alone: a larger
    set begins with the smaller one.

    Args:
        split: ``"train"`` or ``"val"``.
        size: how many quadruplets: by default 2048 (train) and 256 (val), at most 8064 and 2016.
        seed: which scenes, in which order, with which hazards; 0 to 2^32 - 1.
        preprocess: from a PIL image to ``(3, H, W)``.
        tokenizer: from a list of ``n`` captions to ``(n, L)`` int64. Captions fit in 24 tokens of CLIP.

    Attributes:
        scenes: the scenes drawn, with their attributes.
        pixels: all pictures, ``(size, 2, 32, 32, 3)`` uint8, safe then unsafe; read-only.

    Raises:
        ValueError, TypeError: an argument out of range or of the wrong type.
    """

    def __init__(
        self,
        split: str = "train",
        size: int | None = None,
        seed: int = 0,
        *,
        preprocess: Preprocess | None,
        tokenizer: Tokenizer,
    ) -> None:
        self.scenes = make_scenes(split, size, seed)
        super().__init__(_records(self.scenes, split), preprocess, tokenizer)
        self.pixels = _render(split, len(self.scenes), seed)
        captions = [c for record in self.records for c in (record.safe_caption, record.unsafe_caption)]
        self._tokens = tokenizer(captions).unflatten(0, (-1, 2))

    def images(self, index: int) -> tuple[Image.Image, Image.Image]:
        safe, unsafe = map(Image.fromarray, self.pixels[index])
        return safe, unsafe

    def tokens(self, index: int) -> Tensor:
        return self._tokens[index]


def write_toy(
    root: str | os.PathLike[str],
    *,
    train_size: int | None = None,
    val_size: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Path]:
    """Write the toy data set as PNG files with the manifests ``train.jsonl`` and ``val.jsonl``.

    Args:
        root: the folder to write to; made if it is missing.
        train_size, val_size, seed: see :class:`ToyQuadruplets`.
        progress: show a progress bar.

    Returns:
        The manifest of each split.

    Raises:
        FileExistsError: one of the manifests is there already.
        ValueError, TypeError: a size or seed that :class:`ToyQuadruplets` refuses.
    """
    root = Path(root)
    scenes = {
        split: make_scenes(split, size, seed)
        for split, size in zip(SPLITS, (train_size, val_size), strict=True)
    }
    manifests = {split: root / f"{split}.jsonl" for split in SPLITS}
    if existing := [str(path) for path in manifests.values() if path.exists()]:
        raise FileExistsError(f"{' and '.join(existing)} already written; choose another folder")
    for split, path in manifests.items():
        records = _records(scenes[split], split, root)
        pixels = _render(split, len(records), seed)
        for side in ("safe", "unsafe"):
            (root / split / side).mkdir(parents=True, exist_ok=True)
        for record, pair in zip(
            tqdm(records, desc=f"write {split}", disable=not progress), pixels, strict=True
        ):
            for image, array in zip(record.images, pair, strict=True):
                Image.fromarray(array).save(str(image))
        save_manifest(Manifest(records), path)
    return manifests


@lru_cache(maxsize=8)
def make_scenes(split: str, size: int | None, seed: int) -> tuple[Scene, ...]:
    """The first ``size`` scenes of a split; see :class:`ToyQuadruplets`."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    size = DEFAULT_SIZES[split] if size is None else size
    if not 1 <= size <= MAX_SIZES[split]:
        raise ValueError(f"size must be in 1..{MAX_SIZES[split]} for split {split!r}, got {size}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be in 0..2^32 - 1, got {seed}")
    # RandomState and not default_rng: NumPy keeps its streams the same in every version.
    order = np.random.RandomState(seed).permutation(SCENES)
    order = order[: MAX_SIZES["train"]] if split == "train" else order[MAX_SIZES["train"] :]
    return tuple(_make_scene(int(number), index, split, seed) for index, number in enumerate(order[:size]))


def _make_scene(number: int, index: int, split: str, seed: int) -> Scene:
    choices = np.unravel_index(number, SHAPE)
    attributes = {
        name: values[choice] for (name, values), choice in zip(ATTRIBUTES.items(), choices, strict=True)
    }
    hazard = tuple(HAZARDS)[index % len(HAZARDS)]
    random = np.random.RandomState([seed, SPLITS.index(split), index])
    return Scene(
        **attributes,
        hazard=hazard,
        phrase=random.randint(len(HAZARD_PHRASES[hazard])),
        jitter=tuple(random.uniform(-1, 1, 7).tolist()),
    )


def _records(scenes: tuple[Scene, ...], split: str, root: Path | None = None) -> tuple[Quadruplet, ...]:
    """The scenes as quadruplets, with the image files they have below ``root``."""
    return tuple(
        Quadruplet(
            id=f"{split}-{index:05d}",
            safe_image=None if root is None else root / split / "safe" / f"{index:05d}.png",
            unsafe_image=None if root is None else root / split / "unsafe" / f"{index:05d}.png",
            safe_caption=scene.safe_caption,
            unsafe_caption=scene.unsafe_caption,
            tag=scene.hazard,
        )
        for index, scene in enumerate(scenes)
    )


@lru_cache(maxsize=4)
def _render(split: str, size: int, seed: int) -> np.ndarray:
    pixels = np.stack([scene.render() for scene in make_scenes(split, size, seed)])
    pixels.setflags(write=False)
    return pixels
