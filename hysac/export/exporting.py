"""Exports a model directory to a directory of graphs, each compared with the model before it is kept."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hysac.export.description import (
    DESCRIPTION_FILE,
    FORMAT_VERSION,
    describe_images,
    write_tokenizer,
)
from hysac.export.formats import FORMATS, Run, check_compiler, check_installed, load_onnx, versions
from hysac.export.quantized import quantization_report, quantize
from hysac.export.towers import INPUTS, OUTPUTS, Tower, example, program_of
from hysac.files import new_directory, sums, write_json
from hysac.models.model import HySAC
from hysac.models.pretrained import SUMS_FILE, model_directory
from hysac.scoring.identity import weights_digest
from hysac.scoring.labelled import fingerprint, load_labelled
from hysac.scoring.scorer import SafetyScorer

log = logging.getLogger(__name__)

TOLERANCE = 1e-5
"""The largest difference of points, relative to their norms, and of distances; else nothing is written."""

_BATCHES = (1, 3)


def export_model(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    formats: Sequence[str] = ("onnx",),
    int8: str | None = None,
    verify: bool = True,
) -> Path:
    """Write the two towers of a model as graphs from their input to points and distances.

    ::

        image.onnx, text.onnx             pixels (N, 3, H, W) or tokens (N, L), int64, to points (N, D) and
                                          distances (N,) to the origin, float32, for any N of at least 1
        image.pt2, text.pt2               the same for torch.export.load
        image.aoti.pt2, text.aoti.pt2     compiled for this machine's CPU, for aoti_load_package
        image.int8.onnx, text.int8.onnx   with int8
        export.json                       preprocessing, tokens, curvature, thresholds, checksum, versions
        tokenizer.json                    for the package tokenizers
        SHA256SUMS                        of all these

    Each graph is run on batches of 1 and 3 in its runtime (onnxruntime, PyTorch), and agrees with the
    model to 1e-5. The directory appears whole, or not at all.

    Args:
        model: a model directory, or a run with one.
        out: a directory that does not exist yet, or is empty.
        formats: some of :data:`FORMATS`.
        int8: labelled items, see :func:`hysac.scoring.labelled.load_labelled`: also write graphs with 8-bit
            weights, and their AUC on these items into ``export.json``. The bound of 1e-5 is not for
            them.
        verify: compare the model's files with their checksums.

    Returns:
        ``out``.

    Raises:
        ValueError: an unknown format, ``int8`` without "onnx", a model or labelled items that cannot be read,
            or a graph that differs from the model; names it and how much.
        ImportError: a format's packages are missing; names the extra.
        FileNotFoundError: no such model, or no compiler for "aoti".
        OSError: ``out`` is there already, or cannot be written.
    """
    _check_formats(formats, int8)
    items = None if int8 is None else load_labelled(int8)
    directory, out = model_directory(Path(model)), Path(out)
    with new_directory(out) as place:
        scorer = SafetyScorer.from_pretrained(directory, verify=verify)
        content = {**_description(scorer, directory, place, formats), "graphs": {}}
        for modality in INPUTS:
            content["graphs"] |= _write_graphs(scorer, modality, place, formats)
        if int8 is not None and items is not None:
            runs = {modality: _quantized(place, modality) for modality in INPUTS}
            data = {"name": Path(int8).name, "sha256": fingerprint(items)}
            content["int8"] = {"data": data, **quantization_report(scorer, runs, items)}
        write_json(place / DESCRIPTION_FILE, content)
        files = {path.name: path for path in sorted(place.iterdir())}
        (place / SUMS_FILE).write_bytes(sums(files))
    return out


def _check_formats(formats: Sequence[str], int8: str | None) -> None:
    if isinstance(formats, str) or not formats or not set(formats) <= set(FORMATS):
        raise ValueError(f"formats must be some of {', '.join(FORMATS)}, got {formats!r}")
    if int8 is not None and "onnx" not in formats:
        raise ValueError("int8 needs the format onnx")
    for name in formats:
        check_installed(name)
    if "aoti" in formats:
        check_compiler()


def _description(
    scorer: SafetyScorer, directory: Path, place: Path, formats: Sequence[str]
) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "model": weights_digest(directory),
        "curvature": _model(scorer).curvature.item(),
        "width": _model(scorer).embed_dim,
        "image": describe_images(_model(scorer)),
        "text": write_tokenizer(scorer, directory, place),
        "thresholds": None if scorer.points is None else asdict(scorer.points),
        "bounds": None if scorer.bounds is None else scorer.bounds.to_dict(),
        "versions": versions(formats),
    }


def _model(scorer: SafetyScorer) -> HySAC:
    assert isinstance(scorer.model, HySAC)  # from_pretrained loads no other
    return scorer.model


def _write_graphs(
    scorer: SafetyScorer, modality: str, place: Path, formats: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The graphs that were written, by name, each with its greatest relative error."""
    tower = Tower(_model(scorer), modality).eval()
    program = program_of(tower, example(_model(scorer), scorer.tokenizer, modality, 2))
    written = {}
    for name in dict.fromkeys(formats):
        path = place / f"{modality}{FORMATS[name].suffix}"
        log.info("writing %s", path.name)
        FORMATS[name].write(program, modality, path)
        error = _error(scorer, modality, FORMATS[name].load(path))
        if not error <= TOLERANCE:
            raise ValueError(
                f"{path.name} differs from the model by {error:.2g}, relative, more than {TOLERANCE:g}: "
                "nothing was written"
            )
        written[path.name] = {
            "input": INPUTS[modality],
            "outputs": OUTPUTS,
            "worst_relative_error": error,
        }
    return written


def _error(scorer: SafetyScorer, modality: str, run: Run) -> float:
    """The greatest difference of a graph from the model: of points, relative to norms, and distances."""
    worst = 0.0
    for count in _BATCHES:
        batch = example(_model(scorer), scorer.tokenizer, modality, count)
        points, distances = scorer.encode_rows(modality, batch)
        with torch.no_grad():
            of_points, of_distances = run(batch)
        errors = (
            _norm(of_points - points) / _norm(points),
            (of_distances.double() - distances.double()).abs() / distances.double(),
        )
        worst = max(worst, *(one.max().nan_to_num(nan=torch.inf).item() for one in errors))
    return worst


def _norm(points: Tensor) -> Tensor:
    return torch.linalg.vector_norm(points.double(), dim=-1)


def _quantized(place: Path, modality: str) -> Run:
    path = place / f"{modality}.int8.onnx"
    log.info("writing %s", path.name)
    quantize(place / f"{modality}.onnx", path)
    return load_onnx(path)
