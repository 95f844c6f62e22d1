"""Which words of a text, and which parts of an image, make its score: by exact gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn
from torch.nn.functional import interpolate

import hypkernels as hk
from hysac.embeddings import evaluating
from hysac.models.cosine import EvaluatedModel
from hysac.scoring.scorer import Picture, SafetyScorer


def explain_text(scorer: SafetyScorer, text: str) -> list[tuple[str, float]]:
    """How much each word adds to a text's distance to the origin.

    A word's share is the sum over its tokens of ``gradient . embedding``: the first-order change of the
    distance if the token's embedding grows from 0 to what it is. Of a long text the farthest window is
    explained.

    Args:
        scorer: whose tokenizer is open_clip's own BPE.
        text: any.

    Returns:
        The words of that window in their order, as the tokenizer spells them, with their shares, in units of
        the distance.

    Raises:
        ValueError: another tokenizer, whose tokens cannot be joined to words here.
    """
    tokenizer = scorer.tokenizer
    if not isinstance(tokenizer, SimpleTokenizer):
        raise ValueError("words can be told apart for open_clip's own tokenizer alone")
    windows = scorer.tokens(text)
    distances = scorer.distances_of_prepared("text", [row[None] for row in windows])
    window = windows[max(range(len(windows)), key=distances.__getitem__)][None]
    shares = _shares(scorer.model, window)
    tokens = window[0].tolist()
    return _words(tokenizer, tokens, shares[0].sum(-1).tolist())


def explain_image(scorer: SafetyScorer, image: Picture) -> tuple[Tensor, Tensor]:
    """How much each part of an image adds to its distance to the origin.

    A patch's share is ``gradient . (pixels - mean pixel)``: the first-order change of the distance if
    the patch goes from the mean of the training data to what it is.

    Returns:
        The preprocessed image ``(3, H, W)`` with values in [0, 1], and its shares ``(H, W)`` in units of the
        distance, the sum of a patch on each of its pixels; float32, on the CPU.
    """
    model = scorer.model
    pixels = scorer.pixels(image)[None].to(next(model.parameters()).device)
    with _differentiable_by_inputs(model):
        pixels.requires_grad_()
        distance = hk.dist0(model.encode_image(pixels, normalize=True), model.curvature)
        (gradient,) = torch.autograd.grad(distance.sum(), pixels)
    of_pixels = (gradient * pixels.detach()).sum(1, keepdim=True)
    patch = _patch_size(model, pixels)
    summed = nn.functional.avg_pool2d(of_pixels, patch, ceil_mode=True) * patch * patch
    shares = interpolate(summed, size=pixels.shape[-2:], mode="nearest")[0, 0]
    return _visible(model, pixels.detach()[0]), shares.float().cpu()


def _visible(model: EvaluatedModel, pixels: Tensor) -> Tensor:
    cfg = model.visual.preprocess_cfg
    mean, std = (torch.tensor(cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    return (pixels.float().cpu() * std + mean).clamp(0, 1)


def _shares(model: EvaluatedModel, rows: Tensor) -> Tensor:
    """``gradient * embedding`` of each token, for the distance of the texts ``rows`` to the origin."""
    tower: Any = getattr(model, "text", model)
    layer = tower.token_embedding
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[-1]

    handle = layer.register_forward_hook(keep)
    try:
        with _differentiable_by_inputs(model):
            points = model.encode_text(rows.to(next(model.parameters()).device), normalize=True)
            (gradient,) = torch.autograd.grad(hk.dist0(points, model.curvature).sum(), outputs[0])
    finally:
        handle.remove()
    return (gradient * outputs[0]).detach()


def _words(tokenizer: SimpleTokenizer, tokens: list[int], shares: list[float]) -> list[tuple[str, float]]:
    """Tokens joined to words; those that start and end a text are left out."""
    words: list[tuple[str, float]] = []
    spelling, share = "", 0.0
    for token, of_token in zip(tokens, shares, strict=True):
        if token == tokenizer.eot_token_id:
            break
        if token == tokenizer.sot_token_id:
            continue
        part = tokenizer.decoder[token]
        spelling, share = spelling + part.removesuffix("</w>"), share + of_token
        if part.endswith("</w>"):
            words.append((_readable(tokenizer, spelling), share))
            spelling, share = "", 0.0
    return [*words, (_readable(tokenizer, spelling), share)] if spelling else words


def _readable(tokenizer: SimpleTokenizer, spelling: str) -> str:
    return bytes(tokenizer.byte_decoder[letter] for letter in spelling).decode("utf-8", errors="replace")


def _patch_size(model: nn.Module, pixels: Tensor) -> int:
    """The patch size of a ViT; for other towers a fourteenth of the image."""
    patch = getattr(model.visual, "patch_size", None)
    patch = patch[0] if isinstance(patch, tuple) else patch
    return patch if isinstance(patch, int) else max(1, pixels.shape[-1] // 14)


@contextmanager
def _differentiable_by_inputs(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with gradients, but none by the parameters."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        with evaluating(model), torch.enable_grad():
            yield
    finally:
        for parameter in learned:
            parameter.requires_grad_()
