"""Optimizer steps whose gradient is not finite: skipped on the device, counted, and explained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

import hypkernels as hk
from hysac.training.gradient_cache import MicroBatch


class StepGuard:
    """Skips a step if the norm of its gradient is not finite.

    The fused optimizer reads the verdict on its device, so that the loop does not wait for it. The norm
    is the same on all processes, and so is the verdict. A gradient scaler skips such steps itself: then
    they are only counted.

    Args:
        optimizer: a fused one.
        scaled: whether a gradient scaler decides.
        device: of the parameters.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, scaled: bool, device: torch.device) -> None:
        self._optimizer, self._scaled = optimizer, scaled
        self._counts = torch.zeros(3, device=device)  # skipped; in a row now; most in a row

    def judge(self, norm: Tensor) -> Tensor:
        """Whether the gradient of this ``norm`` is finite, 0-d bool on the device; the optimizer is told."""
        fine = torch.isfinite(norm)
        bad = (~fine).float()
        skipped, row, most = self._counts
        row = (row + 1) * bad
        self._counts = torch.stack([skipped + bad, row, torch.maximum(most, row)])
        if not self._scaled:
            self._optimizer.found_inf = bad  # type: ignore[attr-defined]
        return fine

    def counts(self) -> tuple[int, int, int]:
        """Steps skipped since the last call, how many in a row now, and the most; waits for the device."""
        skipped, row, most = (int(count) for count in self._counts.tolist())
        self._counts = torch.stack([torch.zeros_like(self._counts[0]), self._counts[1], self._counts[1]])
        return skipped, row, most


@torch.no_grad()
def what_is_not_finite(
    model: nn.Module,
    loss: nn.Module,
    micro_batches: Sequence[MicroBatch],
    ids: Sequence[str],
    autocast: Callable[[], AbstractContextManager],
) -> str:
    """Features, items or terms of a step that are not finite, with the scalars and the largest radius.

    Random layers draw other numbers than they did in the step.
    """
    outputs = []
    for batch in micro_batches:
        with autocast():
            outputs.append(model(*batch))
    features = {
        kind: torch.cat([output[f"{kind}_features"] for output in outputs]).float()
        for kind in ("image", "text")
    }
    scale = outputs[0]["logit_scale"]
    parts = []
    for kind, points in features.items():
        rows = (~points.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()  # safe or unsafe
        if rows:
            named = ", ".join(repr(ids[row]) for row in rows[:5])
            parts.append(f"{kind} features of {len(rows)} of {len(points)} quadruplets ({named})")
    if not parts:
        output = {f"{kind}_features": points for kind, points in features.items()} | {"logit_scale": scale}
        terms = loss(**output, output_dict=True)
        bad = [name for name, term in terms.items() if not bool(term.isfinite())]
        parts.append(", ".join(bad) if bad else "only the gradient")
    finite = (points[points.isfinite().all(-1)].double() for points in features.values())
    radius = max((float(hk.dist0(points).max()) for points in finite if len(points)), default=0.0)
    return f"not finite: {'; '.join(parts)}. Scale {float(scale):.4g}, largest radius {radius:.4g}"
