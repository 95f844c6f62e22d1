"""What a provider declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec

import torch

from benchmarks.case import Program, Shape


@dataclass(frozen=True)
class Provider:
    """One row of the tables.

    Args:
        name: identifies it in results and test names.
        label: how tables and plots name it.
        note: what it computes, and what about it differs from the others.
        programs: by case, the differentiable computation.
        dtype: of the points.
        products: which matrix rate is its ceiling, a key of :func:`benchmarks.roofline.matrix_rates`.
        computes: which of a case's references it must match.
        tolerance: of the correctness gate, relative to the norm of what is compared.
        package: the import it needs.
        install: how to get that.
        needs_cuda: whether it runs on a GPU only.
        most_rows: by case, its largest ``B``, where memory or time rule out more.
        headline: whether it runs at the headline shapes of a case, too, see :class:`benchmarks.case.Case`.
        refusal: any further reason not to run on a device.
        ours: whether it is this project's.
    """

    name: str
    label: str
    note: str
    programs: Mapping[str, Program]
    dtype: torch.dtype = torch.float32
    products: str = "float32"
    computes: str = "lorentz"
    tolerance: float = 2e-3
    package: str | None = None
    install: str = "pip install hysac[bench-peers]"
    needs_cuda: bool = False
    most_rows: Mapping[str, int] = field(default_factory=dict)
    headline: bool = False
    refusal: Callable[[torch.device], str | None] = field(default=lambda device: None)
    ours: bool = False

    def obstacle(self, device: torch.device) -> str | None:
        """Why it cannot run on ``device``, or None."""
        if self.needs_cuda and device.type != "cuda":
            return "needs CUDA"
        if self.package is not None and find_spec(self.package) is None:
            return f"not installed ({self.install})"
        return self.refusal(device)

    def supports(self, case: str, shape: Shape) -> bool:
        return case in self.programs and shape["B"] <= self.most_rows.get(case, shape["B"])
