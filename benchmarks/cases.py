"""The registry of what is measured."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import formulas
from benchmarks.case import BINARY, CONTRASTIVE, HYCOCLIP, HYSAC, UNARY, Case, Inputs, Program, Shape, program
from benchmarks.training_step import training_steps


def _tangents(rows: int, width: int, generator: torch.Generator) -> Tensor:
    """Directions at random with lengths of 0.5 to 1.5, as a projection head gives them."""
    device = generator.device
    directions = F.normalize(torch.randn(rows, width, generator=generator, device=device), dim=-1)
    return directions * (0.5 + torch.rand(rows, 1, generator=generator, device=device))


def _matched(x: Tensor, generator: torch.Generator) -> Tensor:
    """Tangents related to ``x`` as a caption is to its image: near, and rather more general or specific."""
    return 0.6 * x + 0.8 * _tangents(x.shape[0], x.shape[1], generator)


def _scalar(value: float, spread: float, generator: torch.Generator) -> Tensor:
    return value + spread * torch.rand((), generator=generator, device=generator.device)


def _curv(generator: torch.Generator) -> Tensor:
    return _scalar(0.5, 0.5, generator)


def _points(names: tuple[str, ...], shape: Shape, generator: torch.Generator) -> Inputs:
    """Matched points of the hyperboloid of a random curvature, and the curvature."""
    curv = _curv(generator)
    tangents = _tangents(shape["B"], shape["D"], generator)
    drawn: Inputs = {"curv": curv}
    for name in names:
        drawn[name] = formulas.exp_map0(tangents, curv)
        tangents = _matched(tangents, generator)
    return drawn


def _draw_tangents(shape: Shape, generator: torch.Generator) -> Inputs:
    return {"x": _tangents(shape["B"], shape["D"], generator), "curv": _curv(generator)}


def _draw_point(shape: Shape, generator: torch.Generator) -> Inputs:
    return _points(("x",), shape, generator)


def _draw_pair(shape: Shape, generator: torch.Generator) -> Inputs:
    return _points(("x", "y"), shape, generator)


def _draw_contrastive(shape: Shape, generator: torch.Generator) -> Inputs:
    return _draw_pair(shape, generator) | {"logit_scale": _scalar(10.0, 10.0, generator)}


def _draw_boxes(shape: Shape, generator: torch.Generator) -> Inputs:
    names = ("box_text", "box_image", "text", "image")
    return _points(names, shape, generator) | {"logit_scale": _scalar(10.0, 10.0, generator)}


def _draw_quadruplets(shape: Shape, generator: torch.Generator) -> Inputs:
    drawn = _points(("safe_text", "safe_image", "unsafe_text", "unsafe_image"), shape, generator)
    root = drawn["curv"].sqrt()
    return {
        "image": root * torch.stack([drawn["safe_image"], drawn["unsafe_image"]], dim=1),
        "text": root * torch.stack([drawn["safe_text"], drawn["unsafe_text"]], dim=1),
        "logit_scale": _scalar(10.0, 10.0, generator),
    }


def _contrastive(logits: formulas.Logits) -> Program:
    return program(partial(formulas.contrastive_by_strips, logits=logits), CONTRASTIVE)


def _block(block: Callable[..., Tensor], names: tuple[str, ...]) -> Program:
    by_strips = partial(formulas.contrastives, contrastive=formulas.contrastive_by_strips)
    return program(partial(block, contrastives=by_strips), names)


def _per_element(forward: float, backward: float) -> Callable[[Shape], tuple[float, float]]:
    return lambda shape: (forward * shape["B"] * shape["D"], backward * shape["B"] * shape["D"])


def _per_matrix(matrices: int) -> Callable[[Shape], tuple[float, float]]:
    """One product ``(B, D) x (D, B)`` forward and two of that size backward, for each matrix of logits."""

    def count(shape: Shape) -> tuple[float, float]:
        product = 2.0 * matrices * shape["B"] ** 2 * shape["D"]
        return product, 2 * product

    return count


def _shapes(width: int, **rows: tuple[int, ...]) -> dict[str, tuple[Shape, ...]]:
    return {size: tuple({"B": count, "D": width} for count in counts) for size, counts in rows.items()}


_ROWS = _shapes(512, small=(4096,), medium=(65536,), large=(262144,))
_BLOCK = {"small": (256,), "medium": (1024,), "large": (8192, 32768)}

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case(
            "exp_map0",
            "Exponential map at the origin",
            _ROWS,
            _draw_tangents,
            ("x",),
            {"lorentz": program(formulas.exp_map0, UNARY)},
            _per_element(3, 6),
        ),
        Case(
            "log_map0",
            "Logarithmic map at the origin",
            _ROWS,
            _draw_point,
            ("x",),
            {"lorentz": program(formulas.log_map0, UNARY)},
            _per_element(3, 6),
        ),
        Case(
            "elementwise_dist",
            "Distances of corresponding points",
            _ROWS,
            _draw_pair,
            ("x", "y"),
            {"lorentz": program(formulas.elementwise_dist, BINARY)},
            _per_element(6, 6),
        ),
        Case(
            "busemann",
            "Busemann function of corresponding directions",
            _ROWS,
            _draw_pair,
            ("x", "y"),
            {"lorentz": program(formulas.busemann, BINARY)},
            _per_element(6, 6),
        ),
        Case(
            "pairwise_dist",
            "Distances of all pairs",
            _shapes(512, small=(512,), medium=(2048,), large=(16384,)),
            _draw_pair,
            ("x", "y"),
            {"lorentz": program(formulas.pairwise_dist, BINARY)},
            _per_matrix(1),
        ),
        Case(
            "pairwise_oxy_angle",
            "Exterior angles of all pairs",
            _shapes(512, small=(512,), medium=(2048,), large=(16384,)),
            _draw_pair,
            ("x", "y"),
            {"lorentz": program(formulas.pairwise_oxy_angle, BINARY)},
            _per_matrix(1),
        ),
        Case(
            "cone",
            "Half-aperture and exterior angle",
            _ROWS,
            _draw_pair,
            ("x", "y"),
            {"lorentz": program(formulas.cone, BINARY)},
            _per_element(6, 8),
        ),
        Case(
            "entailment_loss",
            "Entailment loss",
            _ROWS,
            _draw_pair,
            ("x", "y"),
            {"lorentz": program(formulas.entailment_loss, BINARY)},
            _per_element(6, 8),
        ),
        Case(
            "contrastive_dist",
            "Contrastive loss on distances",
            _shapes(
                512,
                small=(64, 128, 256, 512, 1024),
                medium=(256, 512, 1024, 2048, 4096),
                large=(4096, 8192, 16384, 32768, 65536, 131072),
            ),
            _draw_contrastive,
            ("x", "y"),
            {
                "lorentz": _contrastive(formulas.distance_logits),
                "euclidean": _contrastive(formulas.dot_logits),
                "products": program(lambda x, y: x @ y.T, ("x", "y")),
            },
            _per_matrix(1),
            scalars=("curv", "logit_scale"),
            headline=_shapes(512, small=(2048,), medium=(8192,)),
        ),
        Case(
            "contrastive_angle",
            "Contrastive loss on exterior angles",
            _shapes(512, small=(256,), medium=(256, 512, 1024, 2048, 4096), large=(8192, 32768)),
            _draw_contrastive,
            ("x", "y"),
            {"lorentz": _contrastive(formulas.angle_logits)},
            _per_matrix(1),
            scalars=("curv", "logit_scale"),
        ),
        Case(
            "hysac_block",
            "HySAC's loss: four pairings, three cones",
            _shapes(768, **_BLOCK),
            _draw_quadruplets,
            ("image", "text"),
            {"lorentz": _block(formulas.hysac_block, HYSAC)},
            _per_matrix(4),
            scalars=("logit_scale",),
        ),
        Case(
            "hycoclip_block",
            "HyCoCLIP's loss: four one-way pairings, four cones",
            _shapes(512, **_BLOCK),
            _draw_boxes,
            ("image", "text", "box_image", "box_text"),
            {"lorentz": _block(formulas.hycoclip_block, HYCOCLIP)},
            _per_matrix(3),
            scalars=("curv", "logit_scale"),
        ),
        *training_steps(),
    )
}
