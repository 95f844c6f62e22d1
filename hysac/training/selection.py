"""Validation during training, and which model is kept."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from hysac.data import Batches, Quadruplets
from hysac.embeddings import CLASSES, Embeddings, encode_dataset
from hysac.evaluation import COLUMNS, evaluate_embeddings
from hysac.evaluation.report import EvaluationReport
from hysac.models.loss import HySACLoss
from hysac.models.model import HySAC
from hysac.safety import MODALITIES, Bounds, fit_bounds
from hysac.training.processes import Processes, leave_signals_to_main

CUT_OFFS = (1, 10, 20)
TASKS = tuple(
    name
    for column in COLUMNS
    for name in ([column.name, f"{column.name} (traversed)"] if column.redirected else [column.name])
)
METRICS = (
    *(f"{task} R@{k}" for task in TASKS for k in CUT_OFFS),
    *(f"{modality} AUC" for modality in MODALITIES),
)
"""What validation measures and a model can be selected by, besides the loss; greater is better."""

DEFAULT_SELECT_METRIC = (
    "T->I R@1",
    "I->T R@1",
    "T*->I u I* (traversed) R@1",
    "I*->T u T* (traversed) R@1",
)
"""The paper's Table 1: retrieval of safe items, by safe queries and by redirected unsafe ones."""


def check_select_metric(names: Sequence[str]) -> None:
    """Refuse names that validation does not measure, and the loss in a mean with recalls."""
    if tuple(names) == ("loss",):
        return
    for name in names:
        if name not in METRICS:
            tasks = ", ".join(repr(f"{task} R@1") for task in TASKS)
            cut_offs = ", ".join(f"R@{k}" for k in CUT_OFFS)
            raise ValueError(
                f"select_metric must be 'loss' alone, or some of {tasks} (or another of {cut_offs}), "
                f"'text AUC', 'image AUC'; got {name!r}"
            )


@dataclass(frozen=True)
class Validation:
    """One evaluation of the validation set.

    Attributes:
        report: all metrics; the bounds of its traversal were fitted on this very set.
        bounds: those bounds.
        losses: mean of every term, and their sum ``"loss"``.
    """

    report: EvaluationReport
    bounds: Bounds
    losses: dict[str, float]

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers of :data:`METRICS` and the losses, by name."""
        recalls = {
            f"{task} {cut_off}": recall
            for task, row in self.report.retrieval.items()
            for cut_off, recall in row.items()
        }
        classification = self.report.safety["classification"]
        aucs = {f"{modality} AUC": rates["auc"] for modality, rates in classification.items()}
        summaries = self.report.safety["distance"].items()
        distances = {f"distance {letter}": summary["mean"] for letter, summary in summaries}
        return self.losses | recalls | aucs | distances


def validate(
    model: HySAC,
    dataset: Quadruplets,
    loss: HySACLoss,
    processes: Processes,
    *,
    batch_size: int,
    loss_batch_size: int,
    workers: int,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    progress: bool = False,
) -> Validation:
    """Evaluate ``model``; each process encodes its share, and all get the result.

    Args:
        model: not wrapped.
        dataset: quadruplets with images.
        loss: built for one process.
        processes: those of the run; every one calls this function.
        batch_size: of the encoding.
        loss_batch_size: of the loss, whose value depends on it.
        workers: loader processes.
        autocast: makes the context of the towers.
        progress: show a progress bar.
    """
    rows = _share(len(dataset), processes)
    loader = Batches(
        Subset(dataset, rows),
        batch_size=batch_size,
        num_workers=workers,
        worker_init_fn=leave_signals_to_main,
    )
    with autocast():
        embeddings = encode_dataset(model, loader, processes.device, progress)
    embeddings = _gather(embeddings, len(dataset), processes)
    result = None
    if processes.is_main:
        bounds = fit_bounds(embeddings)
        with warnings.catch_warnings():
            # Early in training the classes are not in order yet, and redirecting moves nothing.
            warnings.filterwarnings("ignore", message="the traversal moves nothing")
            report = evaluate_embeddings(
                embeddings,
                ks=CUT_OFFS,
                traversal=bounds,
                aperture_scale=loss.aperture_scale,
                min_radius=loss.min_radius,
            )
        result = Validation(report, bounds, embeddings_loss(embeddings, loss, model.scale, loss_batch_size))
    return processes.broadcast(result)


@torch.no_grad()
def embeddings_loss(
    embeddings: Embeddings, loss: HySACLoss, scale: Tensor, batch_size: int
) -> dict[str, float]:
    """The loss of embeddings in their order: each batch's terms, weighted by its number of quadruplets."""
    root = math.sqrt(embeddings.curv)
    image = root * torch.stack([embeddings["V"], embeddings["G"]], 1)
    text = root * torch.stack([embeddings["S"], embeddings["U"]], 1)
    totals: dict[str, float] = {}
    for part in torch.arange(len(embeddings)).split(batch_size):
        rows = slice(int(part[0]), int(part[-1]) + 1)
        terms = loss(image[rows], text[rows], scale / root, output_dict=True)
        for name, term in terms.items():
            totals[name] = totals.get(name, 0.0) + len(part) * term.item()
    means = {name: total / len(embeddings) for name, total in totals.items()}
    return {"loss": sum(means.values()), **means}


@dataclass(frozen=True)
class Selection:
    """The best validation so far.

    Attributes:
        best: its value; None before the first.
        best_step: after how many steps.
        stale: validations since.
    """

    best: float | None = None
    best_step: int = 0
    stale: int = 0

    def update(self, metrics: dict[str, float], names: Sequence[str], step: int) -> tuple[Selection, float]:
        """The selection after one more validation, and that one's value; equal is not better."""
        value = sum(metrics[name] for name in names) / len(names)
        least_is_best = tuple(names) == ("loss",)
        if self.best is None or (value < self.best if least_is_best else value > self.best):
            return Selection(value, step), value
        return replace(self, stale=self.stale + 1), value

    @property
    def improved(self) -> bool:
        """Whether the newest validation is the best."""
        return self.best is not None and not self.stale

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _share(size: int, processes: Processes) -> list[int]:
    """Equal contiguous shares; the last rows are repeated where the size does not divide."""
    share = math.ceil(size / processes.world_size)
    return [min(row, size - 1) for row in range(processes.rank * share, (processes.rank + 1) * share)]


def _gather(embeddings: Embeddings, size: int, processes: Processes) -> Embeddings:
    if processes.world_size == 1:
        return embeddings
    points: dict[str, Tensor | None] = {
        name: torch.cat(processes.gather(embeddings[letter].cpu()))[:size].to(processes.device)
        if embeddings.has(letter)
        else None
        for letter, name in CLASSES.items()
    }
    strings = (embeddings.tags, embeddings.ids)
    tags, ids = (_chain(processes.gather(list(values)))[:size] for values in strings)
    of_texts = torch.stack([embeddings.scores(letter).cpu() for letter in "SU"], dim=1)
    scores = torch.cat(processes.gather(of_texts))[:size].to(processes.device)
    return Embeddings(**points, curv=embeddings.curv, tags=tags, ids=ids, text_scores=scores)


def _chain(lists: Iterable[list[str]]) -> list[str]:
    return [value for values in lists for value in values]
