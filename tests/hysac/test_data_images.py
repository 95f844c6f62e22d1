"""Image files of every mode against what NumPy says their pixels are."""

import io
import os
import struct
import warnings

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from hysac import create_model, transforms
from hysac.data import ToRGB, load_image, to_rgb
from hysac.data.images import BACKGROUNDS

TOY = create_model("hysac-toy")
PHOTO = skimage.data.chelsea()[60:156, 100:220]  # (96, 120, 3) uint8: a cat's face
GREY = PHOTO[..., 1]


def pixels(path):
    image = load_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def save(image, path, **options):
    image.save(path, **options)
    return path


def test_an_rgb_png_comes_back_unchanged(tmp_path):
    assert np.array_equal(pixels(save(Image.fromarray(PHOTO), tmp_path / "a.png")), PHOTO)


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket"])
def test_a_jpeg_photograph_is_close_to_its_original(tmp_path, name):
    photo = getattr(skimage.data, name)()
    loaded = pixels(save(Image.fromarray(photo), tmp_path / "a.jpg", quality=92))
    assert loaded.shape == photo.shape
    assert np.abs(loaded.astype(int) - photo).mean() < 4


def test_grey_is_repeated_in_the_three_channels(tmp_path):
    assert np.array_equal(pixels(save(Image.fromarray(GREY), tmp_path / "a.png")), np.stack([GREY] * 3, -1))


def test_black_and_white_becomes_0_and_255(tmp_path):
    bits = GREY > 128
    loaded = pixels(save(Image.fromarray(bits), tmp_path / "a.png"))
    assert np.array_equal(loaded, np.stack([255 * bits] * 3, -1))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_keeps_its_range(tmp_path, suffix):
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    loaded = pixels(save(Image.fromarray(deep), tmp_path / f"a.{suffix}"))
    assert np.abs(loaded.astype(float) - (deep / 65535 * 255)[..., None]).max() <= 0.5 + 1e-9
    assert loaded.min() == 0
    assert loaded.max() == 255


def test_alpha_is_dropped_and_not_composited(tmp_path):
    alpha = np.linspace(0, 255, GREY.size).astype(np.uint8).reshape(GREY.shape)
    rgba = Image.fromarray(np.dstack([PHOTO, alpha]))
    assert np.array_equal(pixels(save(rgba, tmp_path / "a.png")), PHOTO)
    la = Image.fromarray(np.dstack([GREY, alpha]))
    assert la.mode == "LA"
    assert np.array_equal(pixels(save(la, tmp_path / "b.png")), np.stack([GREY] * 3, -1))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(255, -1, -1))])
def test_a_palette_is_looked_up_without_a_warning(tmp_path, transparency):
    indexed = Image.fromarray(PHOTO).quantize(256)
    palette = np.asarray(indexed.getpalette(), dtype=np.uint8).reshape(-1, 3)
    options = {} if transparency is None else {"transparency": transparency}
    path = save(indexed, tmp_path / "a.png", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = pixels(path)
    assert np.array_equal(loaded, palette[np.asarray(indexed)])


def test_cmyk_is_converted(tmp_path):
    inks = 255 - np.dstack([PHOTO, np.full(GREY.shape, 255, np.uint8)])  # no black ink: C = 255 - R
    cmyk = Image.frombytes("CMYK", GREY.shape[::-1], inks.tobytes())
    tiff = pixels(save(cmyk, tmp_path / "a.tif"))
    assert np.abs(tiff.astype(int) - PHOTO).max() <= 1
    jpeg = pixels(save(cmyk, tmp_path / "a.jpg", quality=95))
    assert np.abs(jpeg.astype(int) - PHOTO).mean() < 6


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).swapaxes(0, 1)),
        (8, np.rot90),
    ],
)
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_the_exif_orientation_is_applied(tmp_path, orientation, upright, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(Image.fromarray(PHOTO), tmp_path / f"a.{suffix}", exif=exif, **options)
    assert np.array_equal(pixels(path), upright(PHOTO))


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = save(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.array_equal(pixels(path), np.asarray(frames[0]))


def encoded(suffix):
    buffer = io.BytesIO()
    Image.fromarray(PHOTO).save(buffer, format=suffix)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", ["png", "jpeg", "webp", "bmp", "tiff"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.9])
def test_a_truncated_file_is_refused_by_name(tmp_path, suffix, kept):
    path = tmp_path / f"broken.{suffix}"
    whole = encoded(suffix)
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match=rf"image .*broken\.{suffix} cannot be read"):
        load_image(path)


def test_what_is_not_an_image_is_refused_by_name(tmp_path):
    page = tmp_path / "page.jpg"
    page.write_text("<html>404 Not Found</html>")
    with pytest.raises(ValueError, match=r"page\.jpg cannot be read: it is none of JPEG, PNG, WEBP"):
        load_image(page)
    with pytest.raises(ValueError, match=r"none\.png does not exist"):
        load_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match="cannot be read: it is a folder"):
        load_image(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png cannot be read: it is no regular file"):
        load_image(tmp_path / "pipe.png")


@pytest.mark.parametrize("file_format", ["EPS", "PPM", "ICO", "TGA", "PCX"])
def test_other_formats_are_not_opened_whatever_their_name(tmp_path, file_format):
    path = tmp_path / "a.png"
    Image.fromarray(PHOTO[:32, :32]).save(path, format=file_format)
    with pytest.raises(ValueError, match=r"a\.png cannot be read: it is none of JPEG, PNG, WEBP"):
        load_image(path)


def test_a_path_may_be_a_string(tmp_path):
    path = save(Image.fromarray(PHOTO), tmp_path / "a.png")
    assert np.array_equal(np.asarray(load_image(str(path))), PHOTO)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_a_mode_without_a_range_is_refused(tmp_path, dtype):
    path = save(Image.fromarray(GREY.astype(dtype)), tmp_path / "a.tif")
    with pytest.raises(ValueError, match="no defined range"):
        load_image(path)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    path = save(Image.fromarray(PHOTO), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", GREY.size // 3)
    told = r"a\.png cannot be read: .* whatever max_pixels is; PIL\.Image\.MAX_IMAGE_PIXELS is its setting"
    with pytest.raises(ValueError, match=told):
        load_image(path, max_pixels=None)


@pytest.mark.slow
def test_the_number_of_pixels_is_bounded_before_they_are_decoded(tmp_path):
    path = save(Image.new("1", (9000, 8000)), tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png cannot be read: 9000 x 8000 pixels are more than 64000000"):
        load_image(path)
    assert load_image(path, max_pixels=72_000_000).size == (9000, 8000)
    small = save(Image.fromarray(PHOTO), tmp_path / "b.png")
    with pytest.raises(ValueError, match="120 x 96 pixels are more than 11519"):
        load_image(small, max_pixels=11_519)


@pytest.mark.parametrize("resolution", [b"300", (300, 0)])
def test_the_orientation_needs_no_other_exif_entry(tmp_path, resolution):
    """Cameras store entries of the wrong type, which Pillow reads and cannot write again."""
    exif = Image.Exif()
    exif[0x0112] = 6
    written = exif.tobytes()
    # An entry 0x011A (resolution) of type ASCII, beside the orientation: count 2, then 12 bytes each.
    head, entry, rest = written[:8], written[16:28], written[28:]
    assert head.endswith(b"II") or b"MM" in head
    order = "<" if b"II" in head else ">"
    text = struct.pack(f"{order}HHI4s", 0x011A, 2, 4, b"300\0")
    count = struct.pack(f"{order}H", 2)
    changed = written[:14] + count + entry + text + rest
    path = save(Image.fromarray(PHOTO), tmp_path / "a.jpg", exif=changed, quality=95)
    with Image.open(path) as image:
        assert image.getexif()[0x0112] == 6
        assert image.getexif()[0x011A] == "300"
    assert load_image(path).size == PHOTO.shape[:2]


# --- one way in ---------------------------------------------------------------------------------------


def alpha_ramp():
    return np.linspace(0, 255, GREY.size).astype(np.uint8).reshape(GREY.shape)


def oriented():
    exif = Image.Exif()
    exif[0x0112] = 8
    return exif


KINDS = {
    "rgb.png": lambda: (Image.fromarray(PHOTO), {}),
    "photo.jpg": lambda: (Image.fromarray(PHOTO), {"quality": 90}),
    "turned.jpg": lambda: (Image.fromarray(PHOTO), {"exif": oriented()}),
    "turned.png": lambda: (Image.fromarray(PHOTO), {"exif": oriented()}),
    "deep.png": lambda: (Image.fromarray(GREY.astype(np.uint16) * 257), {}),
    "deep.tif": lambda: (Image.fromarray(GREY.astype(np.uint16) * 200), {}),
    "grey.bmp": lambda: (Image.fromarray(GREY), {}),
    "bits.png": lambda: (Image.fromarray(GREY > 128), {}),
    "palette.gif": lambda: (Image.fromarray(PHOTO).quantize(64), {}),
    "see-through.png": lambda: (Image.fromarray(PHOTO).quantize(64), {"transparency": 3}),
    "rgba.png": lambda: (Image.fromarray(np.dstack([PHOTO, alpha_ramp()])), {}),
    "rgba.webp": lambda: (Image.fromarray(np.dstack([PHOTO, alpha_ramp()])), {"lossless": True}),
    "la.png": lambda: (Image.fromarray(np.dstack([GREY, alpha_ramp()])), {}),
    "cmyk.jpg": lambda: (Image.fromarray(PHOTO).convert("CMYK"), {}),
    "key.png": lambda: (Image.fromarray(PHOTO), {"transparency": tuple(map(int, PHOTO[0, 0]))}),
}


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("name", KINDS)
def test_a_transform_of_an_opened_file_is_that_of_the_loader(tmp_path, name, background):
    image, options = KINDS[name]()
    path = save(image, tmp_path / name, **options)
    _, transform = transforms(TOY, background=background)
    loaded = load_image(path, background=background)
    with Image.open(path) as opened:
        assert torch.equal(transform(opened), transform(loaded))
    again = to_rgb(loaded, background=background)
    assert np.array_equal(np.asarray(again), np.asarray(loaded)), "nothing is turned or flattened twice"


@pytest.mark.parametrize(("background", "below"), [("white", 255), ("black", 0), ("checker", None)])
def test_backgrounds_show_where_an_image_is_transparent(tmp_path, background, below):
    alpha = np.zeros_like(GREY)
    alpha[:, :60] = 255
    path = save(Image.fromarray(np.dstack([PHOTO, alpha])), tmp_path / "a.png")
    loaded = np.asarray(load_image(path, background=background))
    assert np.array_equal(loaded[:, :60], PHOTO[:, :60])
    if below is not None:
        assert (loaded[:, 60:] == below).all()
    else:
        assert set(loaded[:, 60:].ravel().tolist()) == {204, 255}
        assert (loaded[0, 64] == 255).all()
        assert (loaded[8, 64] == 204).all()


def test_an_unknown_background_is_refused(tmp_path):
    path = save(Image.fromarray(PHOTO), tmp_path / "a.png")
    for call in (load_image, ToRGB):
        with pytest.raises(
            ValueError, match="background must be one of none, white, black, checker, got 'red'"
        ):
            call(path, background="red") if call is load_image else call("red")
