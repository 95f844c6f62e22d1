"""Graphs with 8-bit weights, and what they cost: the loss in AUC on labelled items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hysac.export.formats import Run
from hysac.safety.scores import roc_auc
from hysac.scoring.labelled import Labelled, told_by_label
from hysac.scoring.scorer import SafetyScorer


def quantize(path: Path, out: Path) -> None:
    """The weights of an ONNX file's matrix products as unsigned 8-bit integers, a scale for each column.

    Unsigned, because signed ones overflow the 16-bit sums of CPUs that have AVX2 or AVX-512 but not VNNI. The
    embeddings of tokens and patches, the norms, the lift and the distance stay float32.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_infer_metadata

    graph = onnx.load(path)
    add_infer_metadata(graph)  # all shapes are known; without this mark the quantiser warns
    quantize_dynamic(
        graph,
        out,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=QuantType.QUInt8,
    )


class GraphScorer(SafetyScorer):
    """A scorer whose towers are graphs.

    Args:
        scorer: gives everything but the towers.
        runs: the graphs, by modality.
    """

    def __init__(self, scorer: SafetyScorer, runs: Mapping[str, Run]) -> None:
        vars(self).update(vars(scorer))
        self._runs = runs

    def encode_rows(self, modality: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self._runs[modality](rows)


def quantization_report(
    scorer: SafetyScorer, runs: Mapping[str, Run], items: Sequence[Labelled]
) -> dict[str, dict[str, Any]]:
    """What quantised graphs do to labelled items, by modality.

    Returns:
        ``auc`` of the model and ``auc_int8`` of the graphs, the greatest relative ``distance_error``, and the
        share of ``decisions_changed``, None for a model that was not calibrated.

    Raises:
        ValueError: no modality has safe and unsafe items, or one of them cannot be read.
    """
    report = {}
    quantized = GraphScorer(scorer, runs)
    for modality in runs:
        chosen = [item for item in items if item.modality == modality]
        unsafe = torch.tensor([item.is_unsafe for item in chosen])
        if len(unsafe.unique()) < 2:
            continue
        contents = [item.content for item in chosen]
        before, after = (torch.tensor(one.distances(modality, contents)) for one in (scorer, quantized))
        report[modality] = {
            "items": len(chosen),
            "auc": roc_auc(before[~unsafe], before[unsafe]),
            "auc_int8": roc_auc(after[~unsafe], after[unsafe]),
            "distance_error": (after / before - 1).abs().max().item(),
            "decisions_changed": _changed(scorer, modality, before, after),
        }
    if not report:
        raise ValueError(
            f"no modality has safe and unsafe items, so there is no AUC: there are {told_by_label(items)}"
        )
    return report


def _changed(scorer: SafetyScorer, modality: str, before: Tensor, after: Tensor) -> float | None:
    if scorer.points is None or modality not in scorer.points.modalities:
        return None
    threshold = scorer.points.point(modality, scorer.threshold).threshold
    return ((before > threshold) != (after > threshold)).double().mean().item()
