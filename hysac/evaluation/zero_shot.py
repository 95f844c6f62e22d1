"""Zero-shot classification: each image gets the class whose prompts it is nearest to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F

import hypkernels as hk
from hysac.evaluation.retrieval import hit_chance, rank_counts
from hysac.evaluation.tables import Table, percent

DEFAULT_TEMPLATES = ("a photo of a {}.",)

CUT_OFFS = (1, 5)

Template = str | Callable[[str], str]


def load_templates(name: str) -> list[Template]:
    """The templates of prompts: those of a file, one a line with ``{}``, or open_clip's for ImageNet.

    Args:
        name: ``"openai"`` for the 80, ``"simple"`` for the 7 of them that do as well, or a text file.

    Raises:
        ValueError: a line without ``{}``, or with more braces; no line.
        FileNotFoundError: no such file.
    """
    if name in ("openai", "simple"):
        return list(getattr(open_clip, f"{name.upper()}_IMAGENET_TEMPLATES"))
    lines = [line for line in Path(name).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{name} has no templates")
    for line in lines:
        if line.count("{}") != 1 or line.count("{") + line.count("}") != 2:
            raise ValueError(f"{name}: a template has {{}} once for the name of the class, got {line!r}")
    return [*lines]


def prompts_of(names: Sequence[str], templates: Sequence[Template]) -> list[str]:
    """Every name of a class in every template."""
    return [
        template.format(name) if isinstance(template, str) else template(name)
        for name in names
        for template in templates
    ]


def tangent_mean(points: Tensor, curv: float) -> Tensor:
    """The mean of points in the tangent space at the origin, as a point: ``exp_0(mean(log_0(x_i)))``.

    A model's points are ``exp_0(alpha f)``, so that this is the point of the mean of the features ``f``: how
    MERU and its successors average the prompts of a class.

    Args:
        points: space components ``(T, D)``, floating, ``T >= 1``.
        curv: positive ``c`` of the hyperboloid.

    Returns:
        ``(D,)``, in the dtype of ``points``, computed in float64.
    """
    mean = hk.log_map0(points.double(), curv).mean(0)
    return hk.exp_map0(mean, curv).to(points.dtype)


def unit_mean(points: Tensor, curv: float = 1.0) -> Tensor:
    """The mean of vectors of length 1, brought back to that length: a CLIP's average of prompts.

    Args:
        points: ``(T, D)``, floating, ``T >= 1``.
        curv: without effect.

    Returns:
        ``(D,)``, in the dtype of ``points``, computed in float64.

    Raises:
        ValueError: vectors that cancel have no mean direction.
    """
    mean = points.double().mean(0)
    if not bool(mean.norm() > 1e-9):
        raise ValueError("the prompts of a class cancel each other: they have no mean direction")
    return F.normalize(mean, dim=0).to(points.dtype)


def class_prototypes(points: Tensor, sizes: Sequence[int], curv: float, *, cosine: bool = False) -> Tensor:
    """One point for each class, from those of its prompts.

    Args:
        points: of all prompts, ``(sum(sizes), D)``, class by class.
        sizes: prompts of each class, at least one.
        curv: positive ``c`` of the hyperboloid.
        cosine: whether the points are those of a :class:`hysac.models.cosine.CosineModel`: then the mean is
            :func:`unit_mean`, since points that are not equally far from the origin have no order of cosines;
            else :func:`tangent_mean`.

    Returns:
        ``(len(sizes), D)``.
    """
    if sum(sizes) != len(points) or min(sizes, default=0) < 1:
        raise ValueError(f"sizes must be positive and sum to the {len(points)} points, got {list(sizes)}")
    mean = unit_mean if cosine else tangent_mean
    return torch.stack([mean(part, curv) for part in points.split(list(sizes))])


def hits(images: Tensor, prototypes: Tensor, labels: Tensor, curv: float) -> dict[int, Tensor]:
    """For each image whether its class is among the nearest 1 and 5, by geodesic distance.

    Args:
        images: space components ``(N, D)``.
        prototypes: ``(C, D)``.
        labels: ``(N,)`` int64.
        curv: positive ``c`` of the hyperboloid.

    Returns:
        By ``k``, those of 1 and 5 that are less than ``C``: ``(N,)`` float64, between 0 and 1 where classes
        tie.
    """
    nearer, tied = rank_counts(images, prototypes, labels, curv)
    return {k: hit_chance(nearer, tied, k) for k in CUT_OFFS if k < len(prototypes)}


def zero_shot_report(classes: Sequence[str], labels: Tensor, found: dict[int, Tensor]) -> dict[str, Any]:
    """The accuracies of one model.

    Args:
        classes: the names of all.
        labels: of the images.
        found: :func:`hits` of the images.

    Returns:
        ``images`` and ``classes``, how many; ``top1`` and ``top5``, shares of the images; ``mean_per_class``,
        the mean of ``top1`` over the classes that have images; and ``per_class``, by name ``images``,
        ``top1`` and ``top5``.
    """
    per_class = {}
    for number, name in enumerate(classes):
        mine = labels == number
        if mine.any():
            accuracies = {f"top{k}": float(hit[mine].mean()) for k, hit in found.items()}
            per_class[name] = {"images": int(mine.sum()), **accuracies}
    return {
        "images": len(labels),
        "classes": len(classes),
        **{f"top{k}": float(hit.mean()) for k, hit in found.items()},
        "mean_per_class": sum(row["top1"] for row in per_class.values()) / len(per_class),
        "per_class": per_class,
    }


def zero_shot_tables(report: dict[str, Any], start: dict[str, Any] | None = None) -> list[Table]:
    """A report as tables, beside that of the model it started from."""
    of = [("", report)] if start is None else [("start ", start), ("", report)]
    measured = [name for name in ("top1", "top5") if name in report]
    header = [f"{prefix}{name}" for name in measured for prefix, _ in of]
    rows = [
        [name, str(row["images"])]
        + [percent(one["per_class"][name][key]) for key in measured for _, one in of]
        for name, row in report["per_class"].items()
    ]
    total = ["all", str(report["images"]), *(percent(one[key]) for key in measured for _, one in of)]
    means = [percent(one["mean_per_class"]) if key == "top1" else "" for key in measured for _, one in of]
    rows += [total, ["mean of classes", "", *means]]
    return [Table("Zero-shot accuracy, %", ["class", "images", *header], rows)]
