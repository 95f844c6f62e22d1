"""Lorentz geometry and its losses from the published formulas, in plain PyTorch.

This is the baseline to beat, and in float64 it is what every provider is checked against. The formulas are
those of Desai et al. (ICML 2023), Pal et al. (ICLR 2025) and Poppi et al. (CVPR 2025), with their clamps. The
clamps matter at degenerate points only, and the benchmarks' data has none.

Points are space components, ``(B, D)``; ``c > 0`` is a 0-d tensor and the curvature is ``-c``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

EPS = 1e-8
MIN_RADIUS = 0.1
STRIP_ELEMENTS = 2**25


def time_component(x: Tensor, c: Tensor) -> Tensor:
    return torch.sqrt(1 / c + x.square().sum(-1))


def exp_map0(x: Tensor, c: Tensor) -> Tensor:
    norm = c.sqrt() * x.norm(dim=-1, keepdim=True)
    return torch.sinh(norm) / norm.clamp_min(EPS) * x


def log_map0(x: Tensor, c: Tensor) -> Tensor:
    root = c.sqrt()
    norm = root * x.norm(dim=-1, keepdim=True)
    distance = torch.acosh((root * time_component(x, c)).clamp_min(1 + EPS)).unsqueeze(-1)
    return distance / norm.clamp_min(EPS) * x


def elementwise_inner(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return (x * y).sum(-1) - time_component(x, c) * time_component(y, c)


def pairwise_inner(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return x @ y.T - torch.outer(time_component(x, c), time_component(y, c))


def distance_of_inner(inner: Tensor, c: Tensor) -> Tensor:
    return torch.acosh((-c * inner).clamp_min(1 + EPS)) / c.sqrt()


def elementwise_dist(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return distance_of_inner(elementwise_inner(x, y, c), c)


def pairwise_dist(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return distance_of_inner(pairwise_inner(x, y, c), c)


def busemann(x: Tensor, direction: Tensor, c: Tensor) -> Tensor:
    """That of Ghadimi Atigh et al. (NeurIPS 2021), on the hyperboloid; directions of any length."""
    along = (x * F.normalize(direction, dim=-1)).sum(-1)
    return torch.log(c.sqrt() * (time_component(x, c) - along)) / c.sqrt()


def half_aperture(x: Tensor, c: Tensor) -> Tensor:
    return torch.asin((2 * MIN_RADIUS / (c.sqrt() * x.norm(dim=-1)).clamp_min(EPS)).clamp(max=1 - EPS))


def angle_of_inner(inner: Tensor, x_time: Tensor, y_time: Tensor, x_norm: Tensor, c: Tensor) -> Tensor:
    """Exterior angle at ``x`` in the triangle origin, ``x``, ``y``."""
    scaled = c * inner
    cosine = (y_time + x_time * scaled) / (x_norm * (scaled.square() - 1).clamp_min(EPS).sqrt())
    return torch.acos(cosine.clamp(-1 + EPS, 1 - EPS))


def oxy_angle(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    inner = elementwise_inner(x, y, c)
    return angle_of_inner(inner, time_component(x, c), time_component(y, c), x.norm(dim=-1), c)


def cone(x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """What decides whether ``x`` entails ``y``: half-aperture and exterior angle at ``x``."""
    return half_aperture(x, c), oxy_angle(x, y, c)


def pairwise_angles(x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """``(M, N)`` twice: the exterior angle at ``x_i`` towards ``y_j``, and at ``y_j`` towards ``x_i``."""
    inner = pairwise_inner(x, y, c)
    x_time, y_time = time_component(x, c)[:, None], time_component(y, c)[None]
    at_x = angle_of_inner(inner, x_time, y_time, x.norm(dim=-1)[:, None], c)
    at_y = angle_of_inner(inner, y_time, x_time, y.norm(dim=-1)[None], c)
    return at_x, at_y


def pairwise_oxy_angle(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    inner = pairwise_inner(x, y, c)
    x_time, y_time = time_component(x, c)[:, None], time_component(y, c)[None]
    return angle_of_inner(inner, x_time, y_time, x.norm(dim=-1)[:, None], c)


def entailment_loss(apex: Tensor, point: Tensor, c: Tensor, aperture_scale: float = 1.0) -> Tensor:
    residual = oxy_angle(apex, point, c) - aperture_scale * half_aperture(apex, c)
    return residual.clamp_min(0).mean()


# The contrastive losses. A logits function gives the logits of the rows' and of the columns' softmax.
Logits = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def distance_logits(x: Tensor, y: Tensor, c: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    logits = -scale * pairwise_dist(x, y, c)
    return logits, logits


def angle_logits(x: Tensor, y: Tensor, c: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    at_x, at_y = pairwise_angles(x, y, c)
    return -scale * at_x, -scale * at_y


def dot_logits(x: Tensor, y: Tensor, c: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """CLIP's logits: the Euclidean inner product, whatever the curvature."""
    logits = scale * (x @ y.T)
    return logits, logits


def contrastive(
    x: Tensor, y: Tensor, c: Tensor, scale: Tensor, logits: Logits = distance_logits, symmetric: bool = True
) -> Tensor:
    """InfoNCE of matched rows from the whole matrix of logits."""
    targets = torch.arange(len(x), device=x.device)
    of_rows, of_columns = logits(x, y, c, scale)
    rows = F.cross_entropy(of_rows, targets)
    return 0.5 * (rows + F.cross_entropy(of_columns.T, targets)) if symmetric else rows


def contrastive_by_strips(
    x: Tensor, y: Tensor, c: Tensor, scale: Tensor, logits: Logits = distance_logits, symmetric: bool = True
) -> Tensor:
    """:func:`contrastive` without the whole matrix, so that float64 answers fit for any batch."""

    def strip(x_strip: Tensor, y: Tensor, c: Tensor, scale: Tensor, start: int) -> tuple[Tensor, ...]:
        of_rows, of_columns = logits(x_strip, y, c, scale)
        rows = (of_rows.logsumexp(1) - of_rows.diagonal(start)).sum()
        return rows, of_columns.logsumexp(0), of_columns.diagonal(start).sum()

    height = max(1, min(len(x), STRIP_ELEMENTS // len(y)))
    parts = [
        checkpoint(strip, x[start : start + height], y, c, scale, start, use_reentrant=False)
        for start in range(0, len(x), height)
    ]
    rows, column_sums, column_positives = (torch.stack(part) for part in zip(*parts, strict=True))
    if not symmetric:
        return rows.sum() / len(x)
    columns = column_sums.logsumexp(0).sum() - column_positives.sum()
    return 0.5 * (rows.sum() + columns) / len(x)


def contrastives(
    points: Sequence[Tensor],
    pairings: Sequence[tuple[int, int]],
    c: Tensor,
    scale: Tensor,
    symmetric: Sequence[bool] | None = None,
    contrastive: Callable[..., Tensor] = contrastive,
) -> list[Tensor]:
    """The contrastive loss of each pair of point sets, symmetric unless said otherwise."""
    both_ways = symmetric or [True] * len(pairings)
    return [
        contrastive(points[row], points[column], c, scale, symmetric=each)
        for (row, column), each in zip(pairings, both_ways, strict=True)
    ]


def entailments(
    points: Sequence[Tensor],
    pairings: Sequence[tuple[int, int]],
    c: Tensor,
    aperture_scale: Sequence[float] | None = None,
) -> list[Tensor]:
    """The entailment loss of each pair of apexes and points."""
    scales = aperture_scale or [1.0] * len(pairings)
    return [
        entailment_loss(points[apex], points[point], c, scale)
        for (apex, point), scale in zip(pairings, scales, strict=True)
    ]


def hysac_block(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    contrastives: Callable[..., list[Tensor]] = contrastives,
    entailments: Callable[..., list[Tensor]] = entailments,
) -> Tensor:
    """HySAC's seven terms of quadruplets ``(B, 2, D)``, safe then unsafe, on the unit hyperboloid.

    A provider that has its own losses of several pairings passes them.
    """
    c = torch.ones_like(scale)
    points = (*text.unbind(1), *image.unbind(1))  # safe text, unsafe text, safe image, unsafe image
    terms = contrastives(points, ((0, 2), (1, 3), (0, 3), (1, 2)), c, scale)
    return torch.stack([*terms, *entailments(points, ((0, 2), (1, 3), (2, 1)), c)]).sum()


def hycoclip_block(
    image: Tensor,
    text: Tensor,
    box_image: Tensor,
    box_text: Tensor,
    c: Tensor,
    scale: Tensor,
    contrastives: Callable[..., list[Tensor]] = contrastives,
    entailments: Callable[..., list[Tensor]] = entailments,
) -> Tensor:
    """HyCoCLIP's four one-way contrastive terms and four cones, with the weights of its configuration."""
    points = (image, text, box_image, box_text)
    pairs, *boxes = contrastives(points, ((0, 1), (2, 1), (3, 0)), c, scale, symmetric=[True, False, False])
    cones = entailments(points, ((1, 0), (3, 2), (2, 0), (3, 1)), c, aperture_scale=[0.7, 0.7, 1.2, 1.2])
    return 0.5 * pairs + 0.25 * torch.stack(boxes).sum() + 0.2 * 0.5 * torch.stack(cones).sum()
