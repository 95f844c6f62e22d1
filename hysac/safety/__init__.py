"""Safety by the distance to the origin: a score, bounds of each class, and the redirection of unsafe queries.

Safe items lie near the origin of a HySAC space and unsafe ones far from it. Classes have the paper's
letters: S safe text, V safe image, U unsafe text, G unsafe image.
"""

from hysac.embeddings import MODALITIES
from hysac.safety.bounds import Bounds, ClassBounds, check_replaces, fit_bounds
from hysac.safety.scores import (
    calibrate_threshold,
    calibrate_thresholds,
    classification_rates,
    modality_scores,
    roc_auc,
    unsafe_score,
)
from hysac.safety.traversal import DEFAULT_STATISTIC, Mode, Statistic, Traversal, traverse

__all__ = [
    "DEFAULT_STATISTIC",
    "MODALITIES",
    "Bounds",
    "ClassBounds",
    "Mode",
    "Statistic",
    "Traversal",
    "calibrate_threshold",
    "calibrate_thresholds",
    "check_replaces",
    "classification_rates",
    "fit_bounds",
    "modality_scores",
    "roc_auc",
    "traverse",
    "unsafe_score",
]
