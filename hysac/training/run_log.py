"""The record of a run: one JSON object per line in ``metrics.jsonl``, and TensorBoard where asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hysac.files import replacing


class RunLog:
    """Appends records of a run to ``directory/metrics.jsonl``.

    A record is ``{"kind": "train" | "val", "step": int, "epoch": float, ...}``. Records beyond the step that
    a run resumes at are removed: it will write them again.

    Args:
        directory: of the run; created.
        step: at which the run starts or resumes.
        tensorboard: also write event files to ``directory/tensorboard``.

    Raises:
        ImportError: ``tensorboard`` without that package.
    """

    def __init__(self, directory: Path, step: int = 0, *, tensorboard: bool = False) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "metrics.jsonl"
        kept = [record for record in read_log(path) if record["step"] <= step]
        with replacing(path) as file:
            file.write("".join(map(_line, kept)).encode())
        self._writer = _summary_writer(directory / "tensorboard", step) if tensorboard else None
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open for the whole run

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        self._file.write(_line({"kind": kind, "step": step, **values}))
        self._file.flush()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        if self._writer is not None:
            self._writer.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``; a last line that a killed process did not finish is left out.

    Raises:
        ValueError: a line that is not JSON before the last one.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    records = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
    return records


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _summary_writer(directory: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("report_to 'tensorboard' needs tensorboard: pip install 'hysac[train]'") from error
    return SummaryWriter(directory, purge_step=step + 1)
