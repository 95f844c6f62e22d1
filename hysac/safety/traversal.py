"""The redirection of unsafe queries to where the safe classes lie."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

import hypkernels as hk
from hysac.embeddings import MODALITIES
from hysac.safety.bounds import Bounds

Statistic = Literal["low_05", "avg", "up_95"]
Mode = Literal["geodesic", "paper"]
DEFAULT_STATISTIC: Statistic = "avg"
"""The paper's: the mean distance of the safe class."""


def traverse(
    x: Tensor,
    bound: float | Tensor,
    curv: float | Tensor = 1.0,
    mode: Mode = "geodesic",
    *,
    margin: float = 0.0,
    alpha: float = 0.8,
) -> Tensor:
    """Move points that lie too far out towards the origin, so that a search finds safe neighbours.

    A point farther from the origin than ``tau`` moves along its geodesic to the origin. Nearer points,
    and the origin itself, are returned as they are. The mode says what ``tau`` is, and where a point
    ends:

    * ``geodesic``: ``tau = bound + margin``, and the moved point is at distance ``tau`` exactly: its space
      part has norm ``sinh(sqrt(c) tau) / sqrt(c)``.
    * ``paper``: ``tau = bound + tanh((bound - alpha) / c) + 1 + margin``, and the moved point's space part
      has *norm* ``tau``, hence distance ``asinh(sqrt(c) tau) / sqrt(c)``. The authors' code
      does this. The term ``tanh(...) + 1`` is a small margin only near ``c = 0.1``. At ``c = 1`` it is
      about 1 or more, and leaves every point in place.

    Args:
        x: space components ``(..., D)``, floating; half precision is computed in float32.
        bound: distance from the origin, positive: a float, or a tensor that broadcasts against ``x``'s
            leading dimensions. :func:`fit_bounds` computes it: ``bounds["V"].avg`` for a search of
            images, ``bounds["S"].avg`` for a search of texts.
        curv: positive ``c`` (sectional curvature ``-c``), a float or a tensor of one element.
        mode: ``"geodesic"`` or ``"paper"``.
        margin: a geodesic length that is added to ``tau``; a negative margin is stricter.
        alpha: of ``paper`` mode only; larger is stricter.

    Returns:
        Space components of the shape and dtype of ``x``. Differentiable in ``x``, ``bound`` and ``curv``.

    Raises:
        TypeError, ValueError: an unknown mode, a non-floating ``x``, or a ``tau`` known to be not positive.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x must be a floating tensor (..., D), got {getattr(x, 'dtype', type(x).__name__)}")
    tau = _boundary(bound, curv, mode, margin, alpha)
    wide = x if x.dtype == torch.float64 else x.float()
    outside = hk.dist0(wide, curv) > tau
    # Both branches of a `where` are differentiated: the one not taken gets a norm of 1 and a radius of 0, so
    # that neither a point at the origin nor a huge tau turns into NaN.
    norm = torch.where(outside, torch.linalg.vector_norm(wide, dim=-1), 1.0)
    reached = torch.where(outside, tau, torch.zeros_like(norm))
    radius = torch.sinh(reached * curv**0.5) / curv**0.5 if mode == "geodesic" else reached
    return (wide * torch.where(outside, radius / norm, 1.0).unsqueeze(-1)).to(x.dtype)


@dataclass(frozen=True)
class Traversal:
    """A rule that redirects queries to the safe region of what they search.

    Attributes:
        bounds: the model's :class:`Bounds`.
        statistic: which of the target class's statistics is the bound: ``"avg"``, the mean, is the paper's;
            ``"up_95"`` keeps 95 % of the safe class inside and moves queries less.
        mode, margin, alpha: as in :func:`traverse`.
    """

    bounds: Bounds
    statistic: Statistic = DEFAULT_STATISTIC
    mode: Mode = "geodesic"
    margin: float = 0.0
    alpha: float = 0.8

    def __post_init__(self) -> None:
        if self.statistic not in ("low_05", "avg", "up_95"):
            raise ValueError(f"statistic must be low_05, avg or up_95, got {self.statistic!r}")
        if self.mode not in ("geodesic", "paper"):
            raise ValueError(f"mode must be 'geodesic' or 'paper', got {self.mode!r}")

    def redirect(self, queries: Tensor, search: Literal["image", "text"], curv: float) -> Tensor:
        """:func:`traverse` to the boundary of the safe images or texts.

        Warns when ``tau`` lies beyond every unsafe query seen by :func:`fit_bounds`: such a rule moves
        nothing.

        Args:
            queries: space components ``(..., D)`` of the other modality.
            search: what the queries search.
            curv: positive ``c`` of the model; must be that of the bounds, if they record it.

        Raises:
            ValueError: the bounds lack the class, or belong to another curvature.
        """
        if search not in MODALITIES:
            raise ValueError(f"search must be 'image' or 'text', got {search!r}")
        if self.bounds.curv is not None and not math.isclose(curv, self.bounds.curv, rel_tol=1e-3):
            raise ValueError(
                f"the bounds were fitted at curv={self.bounds.curv} and the points have curv={curv}; "
                "fit them again for this model"
            )
        bound = getattr(self.bounds[MODALITIES[search][0]], self.statistic)
        self._warn_if_idle(search, _boundary(bound, curv, self.mode, self.margin, self.alpha))
        return traverse(queries, bound, curv, self.mode, margin=self.margin, alpha=self.alpha)

    def _warn_if_idle(self, search: str, tau: float | Tensor) -> None:
        observed = self.bounds.classes.get("U" if search == "image" else "G")
        if observed is not None and observed.max is not None and tau > observed.max:
            hint = "" if self.mode == "geodesic" else ', or mode="geodesic"'
            warnings.warn(
                f"the traversal moves nothing: its boundary {float(tau):.4g} lies beyond the farthest unsafe "
                f"query seen, {observed.max:.4g}; choose a smaller margin or statistic{hint}",
                stacklevel=3,
            )


def _boundary(
    bound: float | Tensor, curv: float | Tensor, mode: str, margin: float, alpha: float
) -> float | Tensor:
    """``tau`` of :func:`traverse`."""
    if not isinstance(curv, Tensor) and not 0 < curv < math.inf:
        raise ValueError(f"curv must be positive and finite, got {curv}")
    if not isinstance(bound, Tensor) and not 0 < bound < math.inf:
        raise ValueError(f"bound must be positive and finite, got {bound}")
    if mode == "geodesic":
        tau = bound + margin
    elif mode == "paper":
        tau = bound + _tanh((bound - alpha) / curv) + 1 + margin
    else:
        raise ValueError(f"mode must be 'geodesic' or 'paper', got {mode!r}")
    if isinstance(tau, Tensor):
        return tau.clamp_min(0)
    if tau <= 0:
        raise ValueError(f"bound + margin must be positive, got bound={bound}, margin={margin}")
    return tau


def _tanh(value: float | Tensor) -> float | Tensor:
    return torch.tanh(value) if isinstance(value, Tensor) else math.tanh(value)
