"""The demonstration: train, calibrate, evaluate and draw, on the toy data and a CPU."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hysac import plots
from hysac.data import Batches, Manifest, Quadruplets, load_manifest, open_dataset, save_manifest, write_toy
from hysac.embeddings import Embeddings, encode_dataset
from hysac.evaluation import evaluate_embeddings
from hysac.evaluation.provenance import made_with
from hysac.evaluation.report import EvaluationReport
from hysac.evaluation.retrieval import PAPERS_RULE, NearestSafe
from hysac.files import read_json, write_json
from hysac.models.factory import from_pretrained, get_tokenizer, transforms
from hysac.models.model import HySAC
from hysac.models.pretrained import BOUNDS_FILE, SAFETY_FILE
from hysac.safety import MODALITIES, Bounds, Traversal, calibrate_thresholds, modality_scores
from hysac.scoring.calibration import fit_operating_points
from hysac.scoring.identity import weights_digest
from hysac.training.config import TrainConfig
from hysac.training.loop import train

log = logging.getLogger(__name__)

TRAIN_SIZE, HELD_OUT_SIZE = 8064, 1024
_PRODUCTS = ("data", "plots", "checkpoints", "model")

SETTINGS: dict[str, Any] = {
    "model": "hysac-toy",
    "epochs": 4,
    "batch_size": 64,
    "lr": 3e-3,
    # Near a curvature of 0.1 the cones are half-spaces at the towers' initial scale: the regime of the
    # published model. The larger weight is for towers that start without any notion of safety.
    "curv_init": 0.1,
    "entail_weight": 5.0,
    "scale_init": 40.0,
    "aug_cfg": ("scale=1.0,1.0",),
    "verify_images": False,
    "device": "cpu",
    "precision": "fp32",
}


def demo(directory: Path, *, seed: int = 0) -> str:
    """Train ``hysac-toy`` from scratch, evaluate it on scenes it never saw, and draw its pictures.

    The toy data is written as files and read as any data would be. Half of the held-out scenes choose the
    model and calibrate its bounds and thresholds, the other half is what the report is about.

    Args:
        directory: a run's directory afterwards, with ``data``, ``plots`` and ``evaluation.json`` besides. An
            earlier demonstration in it is replaced.
        seed: of the weights, the scenes and their order.

    Returns:
        The report, to be printed.

    Raises:
        ValueError: ``directory`` holds something else.
    """
    _clear(directory)
    manifests = _write_data(directory / "data", seed)
    with _one_thread():
        result = train(
            TrainConfig(
                train_data=str(manifests["train"]),
                val_data=str(manifests["val"]),
                logs=str(directory.parent),
                name=directory.name,
                seed=seed,
                workers=min(1, len(os.sched_getaffinity(0)) - 1),
                **SETTINGS,
            )
        )
        if result.model_dir is None:
            return f"interrupted after {result.step} steps"
        model = from_pretrained(result.model_dir)
        _, calibration = _encode(model, result.model_dir, manifests["val"])
        dataset, test = _encode(model, result.model_dir, manifests["test"])
    bounds = Bounds.load(result.model_dir / BOUNDS_FILE)
    traversal, thresholds = Traversal(bounds), calibrate_thresholds(calibration)
    report = evaluate_embeddings(
        test,
        traversal=traversal,
        redirections={
            PAPERS_RULE: Traversal(bounds, mode="paper"),
            "nearest safe": NearestSafe(thresholds),
        },
        thresholds=thresholds,
    )
    told = made_with(weights_digest(result.model_dir), manifests["test"].name, dataset, bounds, thresholds)
    write_json(directory / "evaluation.json", replace(report, made_with=told).to_dict())
    _calibrate(result.model_dir, calibration, manifests["val"])
    pictures = plots.save_plots(directory / "plots", dataset, test, traversal, thresholds)
    pictures.append(plots.save(plots.training_curves(directory), directory / "plots" / "training.png"))
    places = "\n".join(f"  {path}" for path in pictures)
    return f"{printed(report)}\n\nPictures:\n{places}\n\n{_NEXT.format(run=directory)}"


_NEXT = """\
What to try next, with captions and pictures of your own:
  .venv/bin/hysac score --model-dir {run} --text 'a boat on the sea, in flames' --explain
  .venv/bin/hysac index build --model-dir {run} {run}/data/val --out {run}/index
  .venv/bin/hysac search 'a boat on the sea, in flames' --index {run}/index --show found.png --policy redirect
This model has seen drawn scenes alone. `hysac train --help` says how to train one on photographs."""


def _calibrate(model_dir: Path, embeddings: Embeddings, data: Path) -> None:
    """Operating points beside the model, without a probability where scikit-learn is missing."""
    distances = {
        modality: (safe.double().numpy(), unsafe.double().numpy())
        for modality, (safe, unsafe) in modality_scores(embeddings).items()
    }
    has_curve = importlib.util.find_spec("sklearn") is not None
    points = fit_operating_points(
        distances,
        points={
            modality: (embeddings[safe].numpy(), embeddings[unsafe].numpy())
            for modality, (safe, unsafe) in MODALITIES.items()
        },
        probability=None if has_curve else "none",
        data={"name": data.name, "items": 4 * len(embeddings)},
        model=weights_digest(model_dir),
    )
    points.save(model_dir / SAFETY_FILE)


def printed(report: EvaluationReport) -> str:
    """The tables, and what they say."""
    return f"{report.format_tables()}\n\n{summary(report)}"


def summary(report: EvaluationReport) -> str:
    """What the numbers say, in a few lines."""
    recall = {name: f"{100 * row['R@1']:.0f} %" for name, row in report.retrieval.items()}
    mean = {letter: f"{row['mean']:.3f}" for letter, row in report.safety["distance"].items()}
    in_order = f"{100 * report.safety['order']['S<V<U<G']:.0f} %"
    nearest_safe = [
        f"{100 * report.safety[key]['I*->T u T*']:.0f} %" for key in ("safe_top1", "safe_top1_traversed")
    ]
    return "\n".join(
        (
            "What this shows (T safe text, I safe image, T* unsafe text, I* unsafe image):",
            f"  Mean distance to the origin: T {mean['S']}, I {mean['V']}, T* {mean['U']}, I* {mean['G']}.",
            f"  d(T) < d(I) < d(T*) < d(I*) in {in_order} of the quadruplets.",
            f"  The right one of {report.quadruplets} is found first: T->I {recall['T->I']}, "
            f"I->T {recall['I->T']}, T*->I* {recall['T*->I*']}, I*->T* {recall['I*->T*']}; "
            f"chance is {100 / report.quadruplets:.1f} %.",
            f"  Among all captions, an unsafe image finds its unsafe caption first: {recall['I*->T* u T']}; "
            f"a safe caption is nearest: {nearest_safe[0]}.",
            f"  Among all images, an unsafe caption finds its unsafe image first: {recall['T*->I* u I']}.",
            f"  Redirected towards the origin, it finds its safe caption first: "
            f"{recall['I*->T u T* (traversed)']}; a safe caption is nearest: {nearest_safe[1]}.",
        )
    )


def _write_data(directory: Path, seed: int) -> dict[str, Path]:
    """The toy data as files: training, validation and test manifests."""
    log.info("writing %d toy quadruplets to %s", TRAIN_SIZE + HELD_OUT_SIZE, directory)
    paths = write_toy(
        directory, train_size=TRAIN_SIZE, val_size=HELD_OUT_SIZE, seed=seed, progress=_watched()
    )
    held_out = load_manifest(paths["val"]).records
    paths["test"] = directory / "test.jsonl"
    half = HELD_OUT_SIZE // 2
    save_manifest(Manifest(held_out[:half]), paths["val"])
    save_manifest(Manifest(held_out[half:]), paths["test"])
    return paths


def _encode(model: HySAC, model_dir: Path, manifest: Path) -> tuple[Quadruplets, Embeddings]:
    dataset = open_dataset(
        manifest, "test", transforms(model)[1], get_tokenizer(f"local-dir:{model_dir}"), verify=False
    )
    return dataset, encode_dataset(model, Batches(dataset, batch_size=64), progress=_watched())


def _watched() -> bool:
    """Whether progress bars are shown on a terminal."""
    return sys.stderr.isatty()


def _clear(directory: Path) -> None:
    """Remove an earlier demonstration, and nothing else."""
    config = directory / "config.json"
    if config.is_file():
        is_demo = read_json(config)["train_data"] == str(directory / "data" / "train.jsonl")
    else:
        is_demo = not directory.exists() or {path.name for path in directory.iterdir()} <= {"data", ".lock"}
    if not is_demo:
        raise ValueError(f"{directory} holds something other than a demonstration: choose another directory")
    for name in _PRODUCTS:
        shutil.rmtree(directory / name, ignore_errors=True)
    for name in ("metrics.jsonl", "evaluation.json"):
        (directory / name).unlink(missing_ok=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread computes while one process loads: two would wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
