"""Reading image files, and what becomes of their pixels before any transform."""

from __future__ import annotations

import io
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

# What is opened, by Pillow's names, with the suffixes of their files. Pillow knows many more, of which
# some start other programs (EPS) or are no pictures.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
UNREAD_SUFFIXES = (
    *(".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".ico"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"),
)
"""Suffixes of image formats that are not read, such as those of phones and cameras: each is an error."""

NAMED_SUFFIXES = (*SUFFIXES, *UNREAD_SUFFIXES)
"""Suffixes of what is an image by its name, whether it can be read or not."""

MAX_PIXELS = 64_000_000
"""The most pixels of an image by default; decoded they take 0.2 GB."""

MAX_MEMBER_BYTES = 1 << 28
"""The largest member of a shard that is read into memory."""

BACKGROUNDS = ("none", "white", "black", "checker")
"""Backgrounds of transparent pixels; ``none`` drops the alpha channel, as open_clip does."""

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_CHECKER_SIZE = 8
_CHECKER_GREYS = (255, 204)


@dataclass(frozen=True)
class ShardMember:
    """A file within a tar file: its name, where its ``size`` bytes start, and the tar file."""

    shard: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        if self.size > MAX_MEMBER_BYTES:
            raise ValueError(f"{self} has {self.size} bytes, more than {MAX_MEMBER_BYTES}")
        with open(self.shard, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def __str__(self) -> str:
        return f"{self.shard}:{self.name}"


ImageFile = Path | ShardMember


def load_image(
    path: ImageFile | str, *, max_pixels: int | None = MAX_PIXELS, background: str = "none"
) -> Image.Image:
    """Decode an image file completely and convert it to 8-bit RGB, as :func:`to_rgb` does.

    Args:
        path: a regular file, or a member of a shard: JPEG, PNG, WebP, BMP, GIF or TIFF, whatever its name.
        max_pixels: of the image, by default 64 million; None for no bound but Pillow's own, twice
            ``PIL.Image.MAX_IMAGE_PIXELS``.
        background: see :func:`to_rgb`.

    Raises:
        ValueError: the file is missing, no regular file, truncated, no image of these formats, too large or
            of a mode without a defined range; the message names the path.
    """
    path = Path(path) if isinstance(path, str) else path
    _check_background(background)
    try:
        return _decoded(_regular(path), max_pixels, background)
    except FileNotFoundError:
        raise ValueError(f"image {path} does not exist") from None
    except UnidentifiedImageError:  # whose message has the path once more
        raise ValueError(f"image {path} cannot be read: it is none of {', '.join(FORMATS)}") from None
    except Exception as error:  # decoders raise anything from OSError to SyntaxError and struct.error
        raise ValueError(f"image {path} cannot be read: {_told(error)}") from error


def decode_image(
    content: bytes, *, max_pixels: int | None = MAX_PIXELS, background: str = "none"
) -> Image.Image:
    """:func:`load_image` of the bytes of an image file.

    Raises:
        ValueError: see :func:`load_image`.
    """
    _check_background(background)
    try:
        return _decoded(io.BytesIO(content), max_pixels, background)
    except UnidentifiedImageError:  # its message has the address of the bytes in memory
        raise ValueError(f"the image cannot be read: it is none of {', '.join(FORMATS)}") from None
    except Exception as error:
        raise ValueError(f"the image cannot be read: {_told(error)}") from error


def to_rgb(image: Image.Image, *, background: str = "none") -> Image.Image:
    """A PIL image of any mode as 8-bit RGB, upright: this is what models see.

    The EXIF orientation is applied. Grey, palette, CMYK, YCbCr, LAB and HSV images are converted. 16-bit
    grey images are mapped from 0..65535 to 0..255, rounded to nearest. An animation gives its current
    frame, which is the first unless it was changed. An alpha channel, or a transparent colour, is
    dropped, so that the colours below show, as in open_clip; or it is composited onto a background.

    Args:
        image: any PIL image.
        background: ``"none"``, or ``"white"``, ``"black"``, ``"checker"`` (squares of 8 pixels, white and
            light grey) behind transparent pixels.

    Raises:
        ValueError: modes without a defined range (32-bit integers but of PNG, floats).
    """
    _check_background(background)
    rgb = _flat(_upright(image), image.format, background)
    rgb.info = {}  # an orientation there would turn it once more
    return rgb


def _decoded(source: Path | io.BytesIO, max_pixels: int | None, background: str) -> Image.Image:
    with Image.open(source, formats=tuple(FORMATS)) as image:
        pixels = image.width * image.height
        if max_pixels is not None and pixels > max_pixels:
            raise ValueError(f"{image.width} x {image.height} pixels are more than {max_pixels}")
        return to_rgb(image, background=background)


def _told(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"{error} Pillow refuses it whatever max_pixels is; PIL.Image.MAX_IMAGE_PIXELS is its setting"
    return str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"


class ToRGB:
    """:func:`to_rgb` as the first step of a transform: ``transform(Image.open(path))`` is then the loader's.

    Args:
        background: see :func:`to_rgb`.
    """

    def __init__(self, background: str = "none") -> None:
        _check_background(background)
        self.background = background

    def __call__(self, image: Image.Image) -> Image.Image:
        if not isinstance(image, Image.Image):
            return image  # open_clip's own steps take tensors and arrays, too
        return to_rgb(image, background=self.background)

    def __repr__(self) -> str:
        return f"ToRGB(background={self.background!r})"


def _regular(path: ImageFile) -> Path | io.BytesIO:
    """The file for Pillow to open. A pipe is refused: it would wait for ever for a writer."""
    if isinstance(path, ShardMember):
        return io.BytesIO(path.read())
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise ValueError("it is a folder" if stat.S_ISDIR(mode) else "it is no regular file")
    return path


def _upright(image: Image.Image) -> Image.Image:
    """The image turned by its orientation; Pillow's own function fails where it cannot rewrite EXIF data."""
    image.load()  # this turns a TIFF, and removes its orientation
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # unreadable EXIF data does not make the pixels unreadable
        turn = None
    return image if turn is None else image.transpose(turn)


def _flat(image: Image.Image, file_format: str | None, background: str) -> Image.Image:
    # Some versions of Pillow open a 16-bit PNG in mode I.
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format == "PNG"):
        return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode!r} has no defined range; save the image with 8 or 16 bits")
    if not image.has_transparency_data:
        return image.convert("RGB")
    # Straight to RGB, Pillow warns of a palette's lost transparency and puts colours in its place.
    image = image.convert("RGBA")
    if background == "none":
        return image.convert("RGB")
    return Image.alpha_composite(_backdrop(background, image.size), image).convert("RGB")


def _backdrop(background: str, size: tuple[int, int]) -> Image.Image:
    if background != "checker":
        return Image.new("RGBA", size, background)
    width, height = size
    odd = (np.arange(height)[:, None] // _CHECKER_SIZE + np.arange(width) // _CHECKER_SIZE) % 2
    return Image.fromarray(np.array(_CHECKER_GREYS, np.uint8)[odd]).convert("RGBA")


def _check_background(background: str) -> None:
    if background not in BACKGROUNDS:
        raise ValueError(f"background must be one of {', '.join(BACKGROUNDS)}, got {background!r}")
