"""Where functions are measured: how far from the origin, how near to each other, in which coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hypkernels import conventions

# Both are exact in every dtype, and so are their reciprocals, which some packages take instead.
CURVATURES = (0.125, 1.0)
DTYPES = {"float32": torch.float32, "float64": torch.float64}
COORDINATES = ("space", "full", "ball")

OF_POINTS = ("exp_map0", "log_map0", "half_aperture")
OF_PAIRS = ("distance", "exterior_angle", "contrastive_loss")
FUNCTIONS = ("distance", "exp_map0", "log_map0", "half_aperture", "exterior_angle", "contrastive_loss")


@dataclass(frozen=True)
class Regime:
    """Lengths in units of the radius of curvature, ``1 / sqrt(c)``.

    Attributes:
        radii: from the origin, even between two.
        apart: how far the second of two points is from the first, as space components; None for another
            direction.
    """

    name: str
    radii: tuple[float, float]
    apart: float | None = None


REGIMES = (
    Regime("typical", (0.3, 1.2)),
    Regime("1e-3 apart", (0.3, 1.2), 1e-3),
    Regime("1e-6 apart", (0.3, 1.2), 1e-6),
    Regime("radius 10", (10.0, 10.0)),
    Regime("radius 1e-6", (1e-6, 1e-6)),
)


def regimes_of(function: str) -> tuple[Regime, ...]:
    return tuple(one for one in REGIMES if function in OF_PAIRS or one.apart is None)


def inputs(function: str, regime: Regime, curv: float, rows: int, width: int) -> list[Tensor]:
    """One set or two of ``(rows, width)`` space components, float64; for exp_map0 of tangents."""
    generator = torch.Generator().manual_seed(0)

    def directions() -> Tensor:
        drawn = torch.randn(rows, width, generator=generator, dtype=torch.float64)
        return torch.nn.functional.normalize(drawn, dim=1) / curv**0.5

    low, high = regime.radii
    radii = low + (high - low) * torch.rand(rows, 1, generator=generator, dtype=torch.float64)
    lengths = radii if function == "exp_map0" else torch.sinh(radii)
    first = lengths * directions()
    if function in OF_POINTS:
        return [first]
    second = lengths.flip(0) * directions() if regime.apart is None else first + regime.apart * directions()
    return [first, second]


def as_given(points: Tensor, function: str, coordinates: str, dtype: torch.dtype, curv: float) -> Tensor:
    """What a package is given: rounded once, in its own coordinates.

    A full vector has the space components, and the time of these rounded ones, rounded too. A tangent at the
    origin of the ball is half of that of the hyperboloid.
    """
    is_tangent = function == "exp_map0"
    if coordinates == "space":
        return points.to(dtype)
    if coordinates == "ball":
        return points.to(dtype) / 2 if is_tangent else conventions.lorentz_to_ball(points, curv).to(dtype)
    rounded = points.to(dtype)
    if is_tangent:
        return torch.cat([torch.zeros_like(rounded[:, :1]), rounded], 1)
    return conventions.space_to_full(rounded.double(), curv).to(dtype)
