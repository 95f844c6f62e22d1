"""Pictures of a model and of its training; needs matplotlib (``pip install 'hysac[plot]'``)."""

from hysac.plots.figures import (
    COLOURS,
    GREEN,
    NAMES,
    distance_histogram,
    polar_view,
    retrieved_images,
    retrieved_texts,
    save,
    save_plots,
    training_curves,
)

__all__ = [
    "COLOURS",
    "GREEN",
    "NAMES",
    "distance_histogram",
    "polar_view",
    "retrieved_images",
    "retrieved_texts",
    "save",
    "save_plots",
    "training_curves",
]
