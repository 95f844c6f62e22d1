"""Signs that training leads nowhere: logged with every record, with one warning when they last."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor

import hypkernels as hk
from hysac.models.loss import ENTAILMENT_CONES, HySACLoss, Points
from hysac.models.model import HySAC

logger = logging.getLogger(__name__)

PATIENCE = 10
"""A sign that lasts for this many records is warned of."""

LARGEST_RADIUS = 20.0
"""Up to about this radius on the unit hyperboloid float32 resolves directions: cosh(20) = 2e8."""

COLLAPSED = 0.99
_AT_BOUND = 1e-3  # of a logarithm


@torch.no_grad()
def geometry(image_features: Tensor, text_features: Tensor, loss: HySACLoss) -> dict[str, Tensor]:
    """What the features of a batch ``(B, 2, D)`` show, 0-d on their device.

    Returns:
        ``largest_radius``; of the three cones ``cones_saturated``, the share of apexes whose half-aperture is
        pi/2, a half-space that holds nearly everything, and ``cones_satisfied``, the share of pairs that cost
        nothing and teach nothing.
    """
    sets = Points.of(text_features, image_features)
    apexes = torch.cat([getattr(sets, apex) for apex, _ in ENTAILMENT_CONES])
    points = torch.cat([getattr(sets, point) for _, point in ENTAILMENT_CONES])
    options = {"min_radius": loss.min_radius}
    outside = hk.entailment_loss(
        apexes, points, aperture_scale=loss.aperture_scale, reduction="none", **options
    )
    return {
        "largest_radius": hk.dist0(torch.cat(sets)).max(),
        "cones_saturated": (hk.half_aperture(apexes, **options) >= math.pi / 2 - 1e-6).float().mean(),
        "cones_satisfied": (outside == 0).float().mean(),
    }


class Health:
    """Counts, over the records of a run, how long each sign has lasted."""

    def __init__(self) -> None:
        self._lasted: dict[str, int] = {}

    def look(self, model: HySAC, numbers: Mapping[str, float]) -> None:
        """Warn once of each sign that has lasted for :data:`PATIENCE` records; of a radius, at once.

        Args:
            model: for its scalars, which are read from their device.
            numbers: what :func:`geometry` returned, as floats.
        """
        for name in ("curv", "logit_scale"):
            low, high = model.scalar_ranges[name]
            value = getattr(model, name).item()
            bound = next((one for one in (low, high) if abs(value - one) < _AT_BOUND), None)
            is_learned = getattr(model, name).requires_grad and low < high
            told = "" if bound is None else f"{name} is at its bound, {math.exp(bound):.4g}"
            self._note(name, is_learned and bound is not None, told)
        for name, what in (
            ("cones_saturated", "of the apexes have a half-space for a cone: they lie too near the origin"),
            ("cones_satisfied", "of the cones' pairs have a gradient of 0"),
        ):
            share = numbers.get(name, 0.0)
            self._note(name, share > COLLAPSED, f"{100 * share:.1f} % {what}")
        radius = numbers.get("largest_radius", 0.0)
        told = f"the largest distance to the origin is {radius:.4g}, where float32 loses directions"
        self._note("largest_radius", radius > LARGEST_RADIUS, told, at_once=True)

    def _note(self, name: str, shows: bool, told: str, *, at_once: bool = False) -> None:
        lasted = self._lasted[name] = self._lasted.get(name, 0) + 1 if shows else 0
        if lasted == (1 if at_once else PATIENCE) and not self._lasted.get(f"{name} told"):
            self._lasted[f"{name} told"] = 1
            logger.warning("%s%s", told, "" if at_once else f", for {PATIENCE} records in a row")
