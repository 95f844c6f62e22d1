"""A HySAC model in clip_benchmark, which compares unit vectors by cosines only.

::

    python -m hysac.evaluation.clip_benchmark eval --model_type hysac --model DIR --pretrained "" \\
        --dataset wds/mscoco_captions --task zeroshot_retrieval ...

Points become vectors whose cosines are the Lorentz inner products, which order pairs as distances do; see
:class:`AsCosines`. Classification wants ``--model_type hysac_classes``, where the prompts of a class are one
point. ``clip_benchmark`` is changed only while it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from open_clip.factory import LOCAL_DIR_PREFIX
from torch import Tensor, nn

from hysac.evaluation.zero_shot import tangent_mean
from hysac.models.factory import create_model, get_tokenizer, transforms
from hysac.models.model import HySAC
from hysac.models.pretrained import model_directory

RADIUS = 2.0**20
"""The norm of all vectors before they are divided by it; a power of two, so that nothing rounds."""


class AsCosines(nn.Module):
    """A model whose ``encode_*`` give vectors of one norm, with cosines ``<x, y> / RADIUS**2``.

    With ``x`` and ``y`` on the unit hyperboloid, ``x_t`` and ``y_t`` their time components and ``<x, y>``
    their Lorentz inner product, minus the hyperbolic cosine of the distance::

        image: [x,  x_t, sqrt(RADIUS**2 - |x|**2 - x_t**2), 0]
        text:  [y, -y_t, 0, sqrt(RADIUS**2 - |y|**2 - y_t**2)]

    Both are float64, which autocast leaves alone, and ``D + 3`` wide. Cosines are exact to rounding, and
    fall as distances grow; all are small numbers, and no probabilities. Products of two images or of two
    texts mean nothing: probes on features should take ``encode_image`` of the model itself.

    Args:
        model: a HySAC model.
        classes: whether the texts of a call are the prompts of one class, which all get its vector: the
            mean in the tangent space, as :func:`hysac.build_zero_shot_classifier` has it.
    """

    def __init__(self, model: HySAC, *, classes: bool = False) -> None:
        super().__init__()
        self.model, self.classes = model, classes

    def encode_image(self, image: Tensor) -> Tensor:
        """``(B, 3, H, W)`` to ``(B, D + 3)``, float64."""
        x, time, pad = self._parts(self.model.encode_image(image, normalize=True))
        return torch.cat([x, time, pad, torch.zeros_like(pad)], dim=-1)

    def encode_text(self, text: Tensor) -> Tensor:
        """``(B, L)`` to ``(B, D + 3)``, float64."""
        points = self.model.encode_text(text, normalize=True)
        if self.classes:
            points = tangent_mean(points, self.model.curvature.item()).expand_as(points)
        y, time, pad = self._parts(points)
        return torch.cat([y, -time, torch.zeros_like(pad), pad], dim=-1)

    def _parts(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = points.double() * self.model.curvature.detach().double().sqrt()
        square = x.square().sum(dim=-1, keepdim=True)
        if not bool((square < RADIUS).all()):
            norm = square.max().item() ** 0.5
            raise ValueError(f"points must be finite, with sqrt(c)|x| below {RADIUS**0.5:g}, got {norm:g}")
        return x, (1 + square).sqrt(), (RADIUS**2 - 1 - 2 * square).sqrt()


def load_hysac(
    model_name: str,
    pretrained: str | None = None,
    cache_dir: str | None = None,
    device: str | torch.device = "cpu",
    *,
    classes: bool = False,
) -> tuple[AsCosines, Callable[[Any], Tensor], Any]:
    """``(model, transform, tokenizer)``, as clip_benchmark loads a type of models.

    Args:
        model_name: a model directory or a run with one, or a name of :func:`hysac.create_model`.
        pretrained: for names, weights as in :func:`hysac.create_model`.
        cache_dir: where open_clip downloads to.
        device: where the model goes.
        classes: see :class:`AsCosines`.
    """
    if Path(model_name).is_dir():
        model_name = f"{LOCAL_DIR_PREFIX}{model_directory(Path(model_name))}"
    model = create_model(model_name, pretrained or None, device=device, cache_dir=cache_dir).eval()
    adapter = AsCosines(model, classes=classes).eval()
    return adapter, transforms(model)[1], get_tokenizer(model_name, cache_dir=cache_dir)


@contextmanager
def registered() -> Iterator[None]:
    """clip_benchmark with the types ``hysac``, for retrieval, and ``hysac_classes``, for classification.

    Raises:
        ImportError: clip_benchmark is not installed.
    """
    try:
        from clip_benchmark import models
    except ImportError as error:
        raise ImportError(
            f"clip_benchmark cannot be imported ({error}): pip install 'hysac[clip-benchmark]'"
        ) from error
    types = {"hysac": load_hysac, "hysac_classes": partial(load_hysac, classes=True)}
    for name, load in types.items():
        models.TYPE2FUNC[name] = load
        models.MODEL_TYPES.append(name)
    try:
        yield
    finally:
        for name in types:
            del models.TYPE2FUNC[name]
            models.MODEL_TYPES.remove(name)


def main() -> int:
    """clip_benchmark's program, with both types."""
    with registered():
        from clip_benchmark.cli import main as program

        return program() or 0


if __name__ == "__main__":
    sys.exit(main())
