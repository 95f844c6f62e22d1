"""How a quantity grows with the batch: the exponent of a power law, fitted to at least five sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

LEAST_SIZES = 5


class Growth(NamedTuple):
    """``quantity ~ rows ** exponent``; ``error`` is the exponent's standard error."""

    exponent: float
    error: float


def fit(quantities: Mapping[int, float]) -> Growth | None:
    """Least squares on both logarithms; None with fewer than five sizes or a quantity of 0.

    Args:
        quantities: positive measurements by number of rows.
    """
    if len(quantities) < LEAST_SIZES or min(quantities.values()) <= 0:
        return None
    rows, values = (
        np.log(np.array(list(part), dtype=float)) for part in zip(*quantities.items(), strict=True)
    )
    centred = rows - rows.mean()
    exponent = float(centred @ values / (centred @ centred))
    residuals = values - values.mean() - exponent * centred
    variance = float(residuals @ residuals) / (len(rows) - 2)
    return Growth(exponent, float(np.sqrt(variance / (centred @ centred))))
