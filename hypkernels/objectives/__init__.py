"""Whole training objectives of hyperbolic models. No matrix of all pairs is held.

Points are space components, as in :mod:`hypkernels.losses`. Curvatures and scales are positive numbers, not
their logarithms; tensors among them get gradients. Results are float64 for float64 points, else float32.
Gradients are exactly those of the definition in each docstring::

    objective = meru_loss(image, text, curv, logit_scale)
    objective.loss.backward()  # objective.contrastive and objective.entailment can be logged
"""

from hypkernels.objectives.atmg import atmg_loss
from hypkernels.objectives.hycoclip import HyCoCLIPLoss, hycoclip_loss
from hypkernels.objectives.meru import MERULoss, meru_loss
from hypkernels.objectives.phyclip import PHyCLIPLoss, phyclip_loss
from hypkernels.objectives.rooted import rooted_entailment_loss
from hypkernels.objectives.terms import Objective
from hypkernels.objectives.uncha import (
    UNCHALoss,
    part_whole_loss,
    uncertainty,
    uncertainty_calibration,
    uncertainty_entropy,
    uncha_loss,
)

__all__ = [
    "HyCoCLIPLoss",
    "MERULoss",
    "Objective",
    "PHyCLIPLoss",
    "UNCHALoss",
    "atmg_loss",
    "hycoclip_loss",
    "meru_loss",
    "part_whole_loss",
    "phyclip_loss",
    "rooted_entailment_loss",
    "uncertainty",
    "uncertainty_calibration",
    "uncertainty_entropy",
    "uncha_loss",
]
