"""A small model directory with thresholds and bounds, and things to score, for the tests of scores."""

import math

import numpy as np
import torch
from PIL import Image

import hysac
from hysac.models.pretrained import SAFETY_FILE, model_directory
from hysac.safety import Bounds, ClassBounds
from hysac.scoring.calibration import fit_operating_points
from hysac.scoring.identity import weights_digest

CAPTIONS = ["a dog on a meadow", "a small red house", "two birds", "a storm over the sea"]


def make_model(directory, seed=0):
    """``hysac-toy`` with random weights, spread so that distances differ."""
    torch.manual_seed(seed)
    model = hysac.create_model("hysac-toy")
    with torch.no_grad():
        model.visual_alpha.fill_(math.log(0.5))
        model.textual_alpha.fill_(math.log(0.5))
    middles = dict(zip("SVUG", (0.2, 0.4, 2.0, 4.0), strict=True))
    classes = {letter: ClassBounds(0.1, middle, 9.0) for letter, middle in middles.items()}
    bounds = Bounds(classes, float(model.curvature.detach()))
    hysac.save_pretrained(model, directory, bounds=bounds)
    return directory


def calibrate(directory, text=0.5, image=0.5, spread=0.05, count=120, **options):
    """Thresholds about ``text`` and ``image``."""
    generator = np.random.default_rng(0)
    distances = {}
    for modality, middle in (("text", text), ("image", image)):
        safe, unsafe = (generator.normal(middle + shift, spread, count) for shift in (-spread, spread))
        distances[modality] = (safe, unsafe)
    directory = model_directory(directory)
    points = fit_operating_points(distances, data={}, model=weights_digest(directory), **options)
    points.save(directory / SAFETY_FILE)
    return points


def pictures(directory, count=3):
    directory.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(1)
    paths = []
    for number in range(count):
        pixels = generator.integers(0, 256, (40, 36, 3), dtype=np.uint8)
        paths.append(directory / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths
