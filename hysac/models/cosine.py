"""A CLIP whose features are compared by cosine, as a model whose points are compared by distance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from open_clip import CLIP, CustomTextCLIP
from torch import Tensor, nn
from torch.nn import functional as F

from hysac.models.model import HySAC, width_of


class CosineModel(nn.Module):
    """An open_clip model with the interface that :class:`HySAC` is evaluated by.

    Features of length 1 are taken for space components of points at curvature 1. All have the same
    distance to the origin, so that ``cosh d(x, y) = 2 - cos(x, y)``: the order of the distances is that
    of the cosines, and retrieval and classification by distance are those of the CLIP. Distances to the
    origin mean nothing.

    Args:
        clip: an open_clip model. Of a :class:`HySAC` only the towers are used.
    """

    def __init__(self, clip: CLIP | CustomTextCLIP) -> None:
        super().__init__()
        self.clip = clip
        self.embed_dim = width_of(clip)

    @property
    def curvature(self) -> Tensor:
        """1, the curvature of the points."""
        return torch.ones(())

    @property
    def visual(self) -> Any:
        """The image tower, which knows its preprocessing."""
        return self.clip.visual

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Features of preprocessed images ``(..., 3, H, W)``.

        Returns:
            ``(..., D)``; with ``normalize`` float32, of length 1.
        """
        return _features(self.clip.encode_image, image, 3, normalize)

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Features of tokens ``(..., L)``; see :meth:`encode_image`."""
        return _features(self.clip.encode_text, text, 1, normalize)


EvaluatedModel = HySAC | CosineModel
"""What data sets are encoded by, to be compared by the distances of the points."""


def _features(encode: Callable[[Tensor], Tensor], batch: Tensor, item_dims: int, normalize: bool) -> Tensor:
    leading = batch.shape[:-item_dims]
    features = encode(batch.reshape(math.prod(leading), *batch.shape[-item_dims:]))
    features = features.reshape(*leading, features.shape[-1])
    return F.normalize(features.float(), dim=-1) if normalize else features
