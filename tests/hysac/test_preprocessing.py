"""transformers' preprocessing in open_clip's terms, against its definition on pixels."""

import json

import numpy as np
import pytest
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from hysac.models.preprocessing import check_preprocessing, preprocessing_beside

SIZE = (12, 12)
OF_CLIP = {
    "do_resize": True,
    "size": {"shortest_edge": 12},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 12, "width": 12},
    "do_rescale": True,
    "rescale_factor": 0.00392156862745098,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "do_convert_rgb": True,
    "image_processor_type": "CLIPImageProcessor",
}


def read(folder, **changes):
    stored = {key: value for key, value in (OF_CLIP | changes).items() if value != "absent"}
    (folder / "preprocessor_config.json").write_text(json.dumps(stored))
    return preprocessing_beside(folder, SIZE)


def test_that_of_clip_is_open_clips_own(tmp_path):
    own = PreprocessCfg(size=SIZE)
    assert PreprocessCfg(**read(tmp_path)) == own
    assert PreprocessCfg(**read(tmp_path, size=12, crop_size=12)) == own
    assert PreprocessCfg(**preprocessing_beside(tmp_path / "nothing", SIZE)) == own


@pytest.mark.parametrize("normalizes", [True, False])
@pytest.mark.parametrize(
    ("rescale", "factor"),
    [({}, 1 / 255), ({"do_rescale": False}, 1.0), ({"rescale_factor": 1 / 127.5}, 1 / 127.5)],
)
def test_pixels_are_those_of_the_definition(tmp_path, normalizes, rescale, factor):
    cfg = read(
        tmp_path, do_normalize=normalizes, image_mean=[3.0, 1.0, 0.5], image_std=[2.0, 0.5, 0.25], **rescale
    )
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    actual = image_transform_v2(PreprocessCfg(**cfg), is_train=False)(Image.fromarray(pixels))
    expected = pixels * factor
    if normalizes:
        expected = (expected - [3.0, 1.0, 0.5]) / [2.0, 0.5, 0.25]
    np.testing.assert_allclose(actual.permute(1, 2, 0), expected, rtol=1e-5, atol=1e-4)


def test_an_exact_size_is_squashed(tmp_path):
    exact = {"height": 12, "width": 12}
    for changes in ({"size": exact}, {"size": exact, "do_center_crop": False, "crop_size": 7}):
        assert read(tmp_path, **changes)["resize_mode"] == "squash"
    assert read(tmp_path)["resize_mode"] == "shortest"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_resize": False}, "do_resize must be true: open_clip resizes every image, got False"),
        ({"do_center_crop": False}, "do_center_crop must be true where size is not the height and width"),
        ({"do_center_crop": False, "size": "absent"}, "do_center_crop must be true where size is not"),
        ({"do_pad": True}, "do_pad must be false: open_clip's preprocessing has no such step, got True"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order must be false"),
        ({"crop_size": {"height": 12, "width": 16}}, "crop_size must be that of the model's images, 12 x 12"),
        ({"crop_size": 16}, "crop_size must be that of the model's images, 12 x 12, got 16"),
        (
            {"crop_size": {"shortest_edge": 12}},
            "crop_size.height must be an integer of at least 1, and is miss",
        ),
        ({"size": {"shortest_edge": 16}}, "size must be the shorter side of the model's images of 12 x 12"),
        ({"size": {"height": 12, "width": 16}}, "size must be that of the model's images, 12 x 12, got"),
        (
            {"size": {"longest_edge": 12}},
            "size.shortest_edge must be an integer of at least 1, and is missing",
        ),
        ({"size": [12, 12]}, r"size must be an integer of at least 1, got \[12, 12\]"),
        ({"size": True}, "size must be an integer of at least 1, got True"),
        ({"size": {"height": 12, "width": "12"}}, "size.width must be an integer of at least 1, got '12'"),
        ({"resample": 1}, "resample must be one of .*bicubic.*got 1"),
        ({"resample": [3]}, r"resample must be one of .*got \[3\]"),
        ({"do_normalize": "yes"}, "do_normalize must be true or false, got 'yes'"),
        ({"do_rescale": 1}, "do_rescale must be true or false, got 1"),
        ({"rescale_factor": 0}, "rescale_factor must be positive, got 0"),
        ({"rescale_factor": None}, "rescale_factor must be a finite number, got None"),
        ({"image_mean": None}, "mean of the pixels must be three finite numbers, got None"),
        ({"image_mean": {"r": 0.5}}, "mean of the pixels must be three finite numbers"),
        ({"image_mean": [0.5, 0.5, True]}, "mean of the pixels must be three finite numbers"),
        ({"image_std": [10**400, 1, 1]}, r"std of the pixels must be three finite numbers, got \[10+"),
        ({"image_std": [0.2, 0, 0.2]}, r"std of the pixels must be positive, got \[0\.2, 0, 0\.2\]"),
    ],
)
def test_what_open_clip_does_not_have_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"preprocessor_config\.json: {message}"):
        read(tmp_path, **changes)


def test_the_file_of_newer_transformers(tmp_path):
    """It has the image processor within that of the whole model."""
    stored = OF_CLIP | {"image_mean": [0.5, 0.4, 0.3]}
    path = tmp_path / "processor_config.json"
    path.write_text(json.dumps({"image_processor": stored, "processor_class": "CLIPProcessor"}))
    assert preprocessing_beside(tmp_path, SIZE)["mean"] == (0.5, 0.4, 0.3)
    assert read(tmp_path, image_mean=[0.5, 0.4, 0.3])["mean"] == (0.5, 0.4, 0.3)
    with pytest.raises(ValueError, match=r"preprocessor_config\.json and processor_config\.json differ"):
        read(tmp_path)
    path.write_text(json.dumps({"image_processor": stored | {"do_resize": False}}))
    with pytest.raises(ValueError, match=r"/processor_config\.json: image_processor\.do_resize must be true"):
        read(tmp_path)
    path.write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert read(tmp_path) == preprocessing_beside(tmp_path, SIZE)


@pytest.mark.parametrize("content", ["[]", "null", "3", '"text"', "{", "\xff"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    (tmp_path / "preprocessor_config.json").write_bytes(content.encode("latin1"))
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        preprocessing_beside(tmp_path, SIZE)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"mode": "L"}, "mode of the images must be one of RGB, got 'L'"),
        ({"interpolation": ["bicubic"]}, "interpolation of the images must be one of bicubic"),
        ({"resize_mode": None}, "resize_mode of the images must be one of shortest"),
        ({"size": [1, 2, 3]}, "size must be one or two positive integers"),
        ({"size": True}, "size must be one or two positive integers, got True"),
        ({"fill_color": "black"}, "fill_color must be an integer, got 'black'"),
    ],
)
def test_a_configuration_of_open_clip(cfg, message):
    with pytest.raises(ValueError, match=f"a file: {message}"):
        check_preprocessing(cfg, "a file")
