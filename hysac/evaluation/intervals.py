"""Confidence intervals of shares."""

from __future__ import annotations

import math

_DEVIATIONS = 1.959963984540054
"""95 % of a normal distribution lie within this many standard deviations."""


def wilson_interval(share: float, count: int) -> list[float]:
    """Wilson's 95 % interval of a share that was seen in ``count`` items, ``[low, high]`` within [0, 1].

    At shares of 0 and 1 it has a width, unlike a bootstrap's. If items count in part, as ties for
    nearest do, it is too wide rather than too narrow: values in [0, 1] of a given mean vary most if they
    are 0 or 1.

    Raises:
        ValueError: ``share`` outside of [0, 1], or no items.
    """
    if not (0 <= share <= 1 and count >= 1):
        raise ValueError(f"share must lie in [0, 1] and count be at least 1, got {share} and {count}")
    weight = _DEVIATIONS**2 / count
    middle = (share + weight / 2) / (1 + weight)
    half = math.sqrt(share * (1 - share) * weight + weight**2 / 4) / (1 + weight)
    return [max(0.0, middle - half), min(1.0, middle + half)]
