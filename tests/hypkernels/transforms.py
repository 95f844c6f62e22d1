"""Which public function works under which PyTorch transform: the list that tests run and README prints.

``python tests/hypkernels/transforms.py`` prints the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

import hypkernels as hk
from hysac.models.loss import HySACLoss

YES, SLOWER, REFUSED = "yes", "slower", "refused"

# A column of the table for each kind of function, in the order of ``Transform.support``.
KINDS = ("row-wise, `entailment_loss`", "pairwise", "contrastive, `HySACLoss`")


@dataclass(frozen=True)
class Transform:
    """A row of the table: what it is called and, for each of ``KINDS``, how it is supported."""

    label: str
    support: tuple[str, str, str]


TRANSFORMS = {
    "reverse": Transform("`backward`; `grad`, `vjp`, `jacrev` of `torch.func`", (YES, YES, YES)),
    "vmap": Transform("`vmap`, `vmap(grad)`", (YES, YES, YES)),
    "forward": Transform("`jvp`, `jacfwd`, `linearize`, dual levels", (SLOWER, SLOWER, REFUSED)),
    "second": Transform("`create_graph`, `hessian`, any order", (SLOWER, SLOWER, REFUSED)),
    "checkpoint": Transform("checkpointing, saved tensor hooks", (YES, YES, YES)),
    "compile": Transform("`compile(fullgraph=True)`, changing floats", (YES, YES, YES)),
    "compiled transform": Transform(
        "`torch.func` derivatives in a compiled function", (SLOWER, SLOWER, REFUSED)
    ),
}


@dataclass(frozen=True)
class Subject:
    """A public function of point sets and positive scalars: a row of what the tests run.

    ``function(*sets, *scalars)`` takes a set of each of ``shapes`` and as many scalars. ``numbers`` are its
    arguments that may be Python numbers, with a value of each.
    """

    kind: int
    function: Callable[..., Tensor]
    shapes: Sequence[tuple[int, ...]]
    scalars: int = 1
    numbers: dict[str, float] = field(default_factory=lambda: {"curv": 0.7})
    seed: int = 0
    public: str = ""

    def arguments(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        sets = [0.7 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in self.shapes]
        return [*sets, *(torch.tensor(0.7 + 0.4 * i, dtype=torch.float64) for i in range(self.scalars))]


def _one(name: str, **numbers: float) -> Subject:
    return Subject(0, getattr(hk, name), [(3, 4)], numbers={"curv": 0.7, **numbers}, public=name)


def _two(name: str, function: Callable[..., Tensor] | None = None, **numbers: float) -> Subject:
    numbers = {"curv": 0.7, **numbers}
    return Subject(0, function or getattr(hk, name), [(3, 4), (3, 4)], numbers=numbers, public=name)


def _all_pairs(name: str) -> Subject:
    return Subject(1, getattr(hk, name), [(3, 4), (5, 4)], public=name)


def _contrastive(public: str, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> Subject:
    numbers = {"curv": 0.7, "logit_scale": 1.3}
    return Subject(2, function, shapes or [(3, 4), (3, 4)], 2, numbers=numbers, public=public)


def _several(x: Tensor, y: Tensor, curv: Tensor | float, logit_scale: Tensor | float) -> Tensor:
    return torch.stack(hk.contrastive_losses([x, y], [(0, 1), (1, 0)], curv, logit_scale))


def _cones(x: Tensor, y: Tensor, curv: Tensor | float, **options: float) -> Tensor:
    options = {"leak": [0.1, 0.2, 0.0], "reduction": "none", **options}
    return torch.stack(hk.entailment_losses([x, y], [(0, 1), (1, 0), (0, 1)], curv, **options), -1)


def _hysac(image: Tensor, text: Tensor, logit_scale: Tensor | float) -> Tensor:
    return HySACLoss(entail_weight=0.5, aperture_scale=1.2)(image, text, logit_scale)


_ENTAILMENT = {"aperture_scale": 0.5, "min_radius": 0.15, "margin": 0.2, "leak": 0.1}

SUBJECTS = {
    "exp_map0": _one("exp_map0"),
    "scaled_exp_map0": Subject(
        0, hk.scaled_exp_map0, [(3, 4)], 2, numbers={"scale": 0.6, "curv": 0.7}, public="scaled_exp_map0"
    ),
    "log_map0": _one("log_map0"),
    "exp_map": _two("exp_map"),
    "log_map": _two("log_map"),
    "elementwise_inner": _two("elementwise_inner"),
    "elementwise_dist": _two("elementwise_dist"),
    "dist0": _one("dist0"),
    "busemann": _two("busemann"),
    "half_aperture": _one("half_aperture", min_radius=0.15),
    "oxy_angle": _two("oxy_angle"),
    "entailment_loss": _two(
        "entailment_loss", partial(hk.entailment_loss, aperture_scale=0.5, leak=0.1), **_ENTAILMENT
    ),
    "entailment_losses": _two("entailment_losses", _cones, **_ENTAILMENT),
    "EntailmentConeLoss": _two("EntailmentConeLoss", hk.EntailmentConeLoss(leak=0.1, reduction="none")),
    "pairwise_inner": _all_pairs("pairwise_inner"),
    "pairwise_dist": _all_pairs("pairwise_dist"),
    "pairwise_oxy_angle": _all_pairs("pairwise_oxy_angle"),
    **{
        f"contrastive_loss, {similarity}": _contrastive(
            "contrastive_loss", partial(hk.contrastive_loss, similarity=similarity)
        )
        for similarity in ("sqdist", "inner", "angle")
    },
    "contrastive_loss": _contrastive("contrastive_loss", hk.contrastive_loss),
    "contrastive_losses": _contrastive("contrastive_losses", _several),
    "LorentzContrastiveLoss": _contrastive("LorentzContrastiveLoss", hk.LorentzContrastiveLoss()),
    "HySACLoss": Subject(2, _hysac, [(3, 2, 4), (3, 2, 4)], numbers={"logit_scale": 1.3}, public="HySACLoss"),
}


def table() -> str:
    rows = [("transform", *KINDS), ("---",) * (1 + len(KINDS))]
    rows += [(one.label, *one.support) for one in TRANSFORMS.values()]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


if __name__ == "__main__":
    print(table())
