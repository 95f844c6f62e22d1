"""Thumbnails of an index's images."""

from __future__ import annotations

import io

from PIL import Image

from hysac.data.images import ImageFile, load_image

SIZE = 320
_BLURRED_SIZE = 10


def thumbnail(image: ImageFile, *, blurred: bool, max_pixels: int | None, background: str) -> bytes:
    """A JPEG of at most :data:`SIZE` pixels a side, without metadata.

    A blurred one is enlarged from :data:`_BLURRED_SIZE` pixels a side: no more detail leaves the server.

    Raises:
        ValueError: the image cannot be read.
    """
    picture = load_image(image, max_pixels=max_pixels, background=background)
    picture.thumbnail((SIZE, SIZE))
    if blurred:
        small = picture.resize((_BLURRED_SIZE, _BLURRED_SIZE), Image.Resampling.BOX)
        picture = small.resize(picture.size, Image.Resampling.BICUBIC)
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=85)
    return written.getvalue()
