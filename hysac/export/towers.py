"""The two halves of a model as modules that exporters can take: input to points and distances."""

from __future__ import annotations

import copy
from typing import Any

import torch
from open_clip.utils import to_2tuple
from torch import Tensor, nn

from hypkernels import portable
from hysac.models.model import HySAC

INPUTS = {"image": "pixels", "text": "tokens"}
OUTPUTS = ("points", "distances")


class Tower(nn.Module):
    """One encoder with its lift: ``pixels (N, 3, H, W)`` or ``tokens (N, L)`` to ``points (N, D)``, ``(N,)``.

    Args:
        model: float32, in evaluation mode.
        modality: ``"image"`` or ``"text"``.
    """

    factor: Tensor
    curvature: Tensor

    def __init__(self, model: HySAC, modality: str) -> None:
        super().__init__()
        self.encoder = model.visual if modality == "image" else _TextEncoder(model)
        self.register_buffer("factor", model.factor(modality).detach().clone())
        self.register_buffer("curvature", model.curvature.detach().clone())

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        return portable.lift(self.encoder(batch), self.factor, self.curvature)


class _TextEncoder(nn.Module):
    """A model without its image tower, whose weights an exported program would keep."""

    def __init__(self, model: HySAC) -> None:
        super().__init__()
        self.model = copy.copy(model)
        self.model._modules = {name: part for name, part in model._modules.items() if name != "visual"}

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.encode_text(tokens)


def program_of(tower: Tower, batch: Tensor) -> torch.export.ExportedProgram:
    """The program of a tower, for batches of any size, without the paths of the machine that it was made on.

    Args:
        tower: in evaluation mode.
        batch: input of at least two items, which fixes all other dimensions.
    """
    with torch.no_grad():
        program = torch.export.export(tower, (batch,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def example(model: HySAC, tokenizer: Any, modality: str, count: int) -> Tensor:
    """Random input of a tower: normal pixels, or tokens of the vocabulary; the same ones for every call."""
    generator = torch.Generator().manual_seed(count)
    if modality == "image":
        return torch.randn(count, 3, *to_2tuple(model.visual.image_size), generator=generator)
    return torch.randint(1, model.vocab_size, (count, tokenizer.context_length), generator=generator)
