"""Checkpoints of a training run: everything an exact continuation needs, saved atomically, read safely.

For a model to use or to share see :mod:`hysac.models.pretrained`.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hysac.files import replacing

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
TRAINING_DATA = "training data"
"""The setting that is the data's fingerprint."""

SETTINGS_SINCE = {TRAINING_DATA, "background"}
"""Settings added after the format's first version: a checkpoint without them is accepted."""
_NAME = re.compile(r"step-(\d{8,})\.pt")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not belong to this run."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after ``step`` optimizer steps.

    Attributes:
        step: optimizer steps done; with the settings it gives the epoch, the position in it and the
            learning rate.
        settings: what determines the run's course; a continuation must agree (:meth:`check_settings`).
        model, optimizer, scaler: state dicts.
        random_states: :func:`random_state` of each process.
        selection: the best validation so far, and how many followed it.
    """

    step: int
    settings: dict[str, Any]
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    random_states: list[dict[str, Any]]
    selection: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write to ``path``; a crash or a full disk leaves what was there before.

        Raises:
            OSError: the disk is full or not writable.
        """
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        header = {"format_version": FORMAT_VERSION, "sha256": digest(content)}
        try:
            with replacing(path) as file:
                torch.save({**header, **content}, file)
        except RuntimeError as error:  # what torch.save makes of a failed write
            cause = error.__context__
            number = cause.errno if isinstance(cause, OSError) else errno.EIO
            raise OSError(number, os.strerror(number or errno.EIO), str(path)) from error
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error

    @classmethod
    def load(cls, path: Path, *, verify: bool = True) -> Checkpoint:
        """Read a checkpoint on the CPU, without unpickling anything but tensors and plain values.

        Args:
            path: the file.
            verify: whether to compare its content with the SHA-256 in it, 1 to 2 s for each GB. Checkpoints
                of before hysac wrote one are not compared.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: the file is damaged, incomplete, of another version or something else.
        """
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint at {path}")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except MemoryError:
            raise
        except Exception as error:  # torch raises half a dozen types for a damaged file, EINVAL among them
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise
            reason = str(error).split("\n", 1)[0]
            raise CheckpointError(
                f"{path} is damaged, incomplete or not a hysac checkpoint ({reason})"
            ) from error
        names = {field.name for field in fields(cls)}
        if not isinstance(content, dict) or "format_version" not in content:
            raise CheckpointError(f"{path} is not a hysac training checkpoint")
        if content["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: format_version must be {FORMAT_VERSION}, got {content['format_version']!r}"
            )
        if missing := names - content.keys():
            raise CheckpointError(f"{path} lacks {', '.join(sorted(missing))}")
        own = {name: content[name] for name in names}
        if verify and "sha256" in content and content["sha256"] != digest(own):
            raise CheckpointError(f"{path} is damaged: the SHA-256 of its content is not the one in it")
        return cls(**own)

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Refuse to continue a run with other settings than it was started with.

        Raises:
            CheckpointError: names every setting that differs.
        """
        differ = [
            f"{name} was {self.settings.get(name)!r} and is now {settings.get(name)!r}"
            for name in sorted(self.settings.keys() | settings.keys())
            if self.settings.get(name) != settings.get(name)
            and not (name in SETTINGS_SINCE and name not in self.settings)
        ]
        if differ:
            raise CheckpointError(f"the checkpoint belongs to another run: {'; '.join(differ)}")

    def load_model(self, model: nn.Module) -> None:
        """Fill ``model``; nothing is loaded if anything does not fit.

        Raises:
            CheckpointError: names the first tensors that differ.
        """
        own = model.state_dict()
        differ = [f"{name} is missing" for name in own if name not in self.model]
        differ += [f"{name} is unknown to the model" for name in self.model if name not in own]
        differ += [
            f"{name} has shape {tuple(self.model[name].shape)}, the model's has {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in self.model and self.model[name].shape != tensor.shape
        ]
        if differ:
            more = f"; and {len(differ) - 3} more" if len(differ) > 3 else ""
            raise CheckpointError(f"the checkpoint is of another architecture: {'; '.join(differ[:3])}{more}")
        model.load_state_dict(self.model)


def digest(content: Any) -> str:
    """The SHA-256 of nested tensors and plain values, whatever file they lie in."""
    sha256 = hashlib.sha256()
    _digest_into(sha256, content)
    return sha256.hexdigest()


def _digest_into(sha256: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        sha256.update(f"tensor {value.dtype} {tuple(value.shape)}\0".encode())
        if value.numel():
            flat = value.detach().cpu().contiguous().view(-1)
            sha256.update(flat.view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        sha256.update(f"mapping {len(value)}\0".encode())
        for key in sorted(value, key=repr):
            _digest_into(sha256, key)
            _digest_into(sha256, value[key])
    elif isinstance(value, list | tuple):
        sha256.update(f"sequence {len(value)}\0".encode())
        for one in value:
            _digest_into(sha256, one)
    else:
        sha256.update(f"{type(value).__name__} {value!r}\0".encode())


def checkpoint_path(directory: Path, step: int) -> Path:
    return directory / f"step-{step:08d}.pt"


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint."""
    found = _NAME.fullmatch(path.name)
    if found is None:
        raise ValueError(f"{path} has no name of a checkpoint, step-00000001.pt")
    return int(found[1])


def checkpoint_paths(directory: Path) -> list[Path]:
    """The checkpoints in ``directory``, oldest first."""
    found = {path: match for path in directory.glob("*.pt") if (match := _NAME.fullmatch(path.name))}
    return sorted(found, key=lambda path: int(found[path][1]))


def newest_good(directory: Path) -> tuple[Path, Checkpoint] | None:
    """The newest checkpoint that can be read; None if there are none. Newer damaged ones are logged.

    Raises:
        CheckpointError: all are damaged.
    """
    fault: CheckpointError | None = None
    for path in reversed(checkpoint_paths(directory)):
        try:
            return path, Checkpoint.load(path)
        except CheckpointError as error:
            fault = fault or error
            logger.warning("%s; going back to the checkpoint before it", error)
    if fault is not None:
        raise CheckpointError(
            f"every checkpoint in {directory} is damaged; of the newest: {fault}"
        ) from fault
    return None


def keep_last(directory: Path, count: int) -> None:
    """Remove all but the newest ``count`` checkpoints."""
    for path in checkpoint_paths(directory)[:-count]:
        path.unlink()


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every random generator of this process, as tensors and plain values."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Continue where :func:`random_state` was taken."""
    kind, keys, position, has_gauss, gauss = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
