"""Reading image files."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


@dataclass(frozen=True)
class ShardMember:
    """A file within a tar file: its name, where its ``size`` bytes start, and the tar file."""

    shard: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        with open(self.shard, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def __str__(self) -> str:
        return f"{self.shard}:{self.name}"


ImageFile = Path | ShardMember


def load_image(path: ImageFile) -> Image.Image:
    """Decode an image file completely and convert it to 8-bit RGB.

    The EXIF orientation is applied. Grey, palette, CMYK and YCbCr images are converted; of 16-bit grey images
    the full range is mapped to 0..255; an alpha channel is dropped, not composited, as open_clip does; of an
    animation the first frame counts.

    Raises:
        ValueError: the file is missing, truncated, no image, too large (Pillow's decompression bomb limit)
            or of a mode without a defined range (32-bit integers, floats); the message names the path.
    """
    try:
        with Image.open(path if isinstance(path, Path) else io.BytesIO(path.read())) as image:
            return _to_rgb(ImageOps.exif_transpose(image), image.format)
    except FileNotFoundError:
        raise ValueError(f"image {path} does not exist") from None
    except Exception as error:  # decoders raise anything from OSError to SyntaxError and struct.error
        raise ValueError(f"image {path} cannot be read: {type(error).__name__}: {error}") from error


def _to_rgb(image: Image.Image, file_format: str | None) -> Image.Image:
    # Some versions of Pillow open a 16-bit PNG in mode I.
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format == "PNG"):
        return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode!r} has no defined range; save the image with 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns about the lost transparency
    return image.convert("RGB")
