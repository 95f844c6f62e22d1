"""The cases of one HySAC training step: towers, lift, loss, backward pass and AdamW's update."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import formulas
from benchmarks.case import Case, Inputs, Outputs, Shape

GATE_PARAMETERS = ("curv", "visual_alpha", "textual_alpha", "logit_scale", "text_projection", "visual.proj")
LEARNING_RATE = 1e-6


@cache
def _model_and_optimizer(name: str, device: torch.device) -> tuple[Any, torch.optim.Optimizer]:
    """One model for all providers, with random towers; a step of any of them changes it equally little."""
    import hysac

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hysac.create_model(name, device=device, output_dict=False)
    return model, torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)


def _draw(name: str, shape: Shape, generator: torch.Generator) -> Inputs:
    device = generator.device
    model, optimizer = _model_and_optimizer(name, device)
    rows = shape["B"]
    height, width = model.visual.image_size
    image = torch.randn(rows, 2, 3, height, width, generator=generator, device=device)
    last = model.vocab_size - 1  # the largest token ends a text
    tokens = torch.randint(1, last, (rows, 2, model.context_length), generator=generator, device=device)
    tokens[..., -1] = last
    return {"image": image, "tokens": tokens, "model": model, "optimizer": optimizer}


def formula_step(inputs: Inputs) -> Outputs:
    """The step's loss with lift and loss block from the published formulas."""
    model = inputs["model"]
    curv = model.curv.exp()

    def lift(features: Tensor, alpha: Tensor) -> Tensor:
        return curv.sqrt() * formulas.exp_map0(features * alpha.exp(), curv)

    image = lift(model.encode_image(inputs["image"]), model.visual_alpha)
    text = lift(model.encode_text(inputs["tokens"]), model.textual_alpha)
    return (formulas.hysac_block(image, text, model.logit_scale.exp() / curv.sqrt()),)


@dataclass(frozen=True)
class TrainingStep(Case):
    """A case whose gradients go to a model's parameters, and which ends with the optimizer's update."""

    model: str = ""

    def obstacle(self) -> str | None:
        return None if find_spec("open_clip") else "open_clip is not installed"

    def prepare(self, drawn: Inputs, dtype: torch.dtype) -> Inputs:
        """Images in ``dtype``; float64 gets a model of its own, for the correctness gate."""
        inputs = drawn | {"image": drawn["image"].to(dtype)}
        if dtype == torch.float64:
            inputs |= {"model": deepcopy(drawn["model"]).double(), "optimizer": None}
        inputs["model"].zero_grad()
        return inputs

    def leaves(self, inputs: Inputs) -> dict[str, Tensor]:
        parameters = dict(inputs["model"].named_parameters())
        return {name: parameters[name] for name in GATE_PARAMETERS}

    def gradient_bytes(self, inputs: Inputs) -> int:
        return sum(parameter.nbytes for parameter in inputs["model"].parameters())

    def compulsory_bytes(self, inputs: Inputs, outputs: Outputs) -> dict[str, int]:
        """The parameters once in each pass, their gradients, and what AdamW reads and writes."""
        parameters = self.gradient_bytes(inputs)
        data = inputs["image"].nbytes + inputs["tokens"].nbytes
        update = 7 * parameters  # reads parameter, gradient, two moments; writes parameter and moments
        forward, backward = data + parameters, data + 2 * parameters + update
        return {"forward": forward, "backward": backward, "both": forward + backward}

    def operations(self, shape: Shape, inputs: Inputs) -> dict[str, float]:
        """Of the matrix products of both towers."""
        model = inputs["model"]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.encode_image(inputs["image"][:1])
            model.encode_text(inputs["tokens"][:1])
        forward = float(shape["B"] * counter.get_total_flops())
        return {"forward": forward, "backward": 2 * forward, "both": 3 * forward}

    def finish(self, inputs: Inputs) -> None:
        if inputs["optimizer"] is not None:
            inputs["optimizer"].step()
            inputs["model"].clamp_parameters_()


def _step(name: str, title: str, model: str, **rows: tuple[int, ...]) -> TrainingStep:
    return TrainingStep(
        name=name,
        title=title,
        shapes={size: tuple({"B": count} for count in counts) for size, counts in rows.items()},
        draw=lambda shape, generator: _draw(model, shape, generator),
        points=(),
        scalars=(),
        references={"lorentz": formula_step},
        products=lambda shape: (0.0, 0.0),
        model=model,
    )


def training_steps() -> tuple[TrainingStep, ...]:
    return (
        _step(
            "step_toy",
            "HySAC training step, toy towers",
            "hysac-toy",
            small=(16,),
            medium=(64,),
            large=(256,),
        ),
        _step(
            "step_vit_b_32", "HySAC training step, ViT-B-32", "ViT-B-32", small=(), medium=(4,), large=(128,)
        ),
    )
