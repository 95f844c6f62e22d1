"""Pictures of a model and of its training; needs matplotlib (``pip install 'hysac[plot]'``)."""

from hysac.plots.figures import (
    COLOURS,
    DASHES,
    GREEN,
    HATCHES,
    MARKERS,
    NAMES,
    bin_edges,
    distance_histogram,
    heat_map,
    polar_view,
    retrieved_images,
    retrieved_texts,
    save,
    save_plots,
    training_curves,
)
from hysac.plots.found import found_sheet, redirection_strip

__all__ = [
    "COLOURS",
    "DASHES",
    "GREEN",
    "HATCHES",
    "MARKERS",
    "NAMES",
    "bin_edges",
    "distance_histogram",
    "found_sheet",
    "heat_map",
    "polar_view",
    "redirection_strip",
    "retrieved_images",
    "retrieved_texts",
    "save",
    "save_plots",
    "training_curves",
]
