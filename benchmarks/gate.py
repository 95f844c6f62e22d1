"""The correctness gate: nothing is timed that does not compute what it claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.case import Case, Inputs, Outputs, Program
from benchmarks.providers.provider import Provider


@dataclass(frozen=True)
class Answer:
    """Outputs and gradients by name, in float64; a gradient is None where nothing depends on the leaf."""

    outputs: tuple[Tensor, ...]
    gradients: Mapping[str, Tensor | None]


def upstream(outputs: Outputs, seed: int = 0) -> tuple[Tensor, ...]:
    """The gradients that flow into the outputs: 1 for a loss, random for anything else."""
    generator = torch.Generator(outputs[0].device).manual_seed(seed)
    return tuple(
        torch.ones_like(output)
        if output.dim() == 0
        else torch.randn(output.shape, generator=generator, device=output.device).to(output.dtype)
        for output in outputs
    )


def answer(case: Case, program: Program, inputs: Inputs, *, points_dtype: torch.dtype) -> Answer:
    """Outputs of ``program`` and its gradients, the ones from above being exact in ``points_dtype``."""
    outputs = program(inputs)
    above = tuple(
        gradient.to(points_dtype).to(output.dtype)
        for gradient, output in zip(upstream(outputs), outputs, strict=True)
    )
    torch.autograd.backward(outputs, above)
    gradients = {
        name: None if leaf.grad is None else leaf.grad.double() for name, leaf in case.leaves(inputs).items()
    }
    return Answer(tuple(output.detach().double() for output in outputs), gradients)


def expected(case: Case, computes: str, drawn: Inputs, dtype: torch.dtype) -> Answer:
    """The float64 answer for points that were rounded to ``dtype``."""
    rounded = dict(drawn)
    for name in case.points:
        rounded[name] = drawn[name].to(dtype)
    return answer(case, case.references[computes], case.prepare(rounded, torch.float64), points_dtype=dtype)


def verdict(provider: Provider, got: Answer, want: Answer) -> tuple[float, str | None]:
    """The largest relative error, and what is wrong, if anything is."""
    errors: dict[str, float] = {}
    for index, (output, reference) in enumerate(zip(got.outputs, want.outputs, strict=True)):
        errors[f"output {index}"] = _relative_error(output, reference)
    for name, gradient in want.gradients.items():
        if gradient is not None:
            errors[f"gradient of {name}"] = _relative_error(got.gradients[name], gradient)
    worst = max(errors, key=lambda name: errors[name])
    if errors[worst] <= provider.tolerance:
        return errors[worst], None
    return errors[
        worst
    ], f"{worst} is off by {errors[worst]:.1g} of its norm ({provider.tolerance:g} allowed)"


def _relative_error(value: Tensor | None, reference: Tensor) -> float:
    if value is None or value.shape != reference.shape:
        return float("inf")
    error = float(torch.linalg.vector_norm(value - reference) / torch.linalg.vector_norm(reference))
    return error if error == error else float("inf")
