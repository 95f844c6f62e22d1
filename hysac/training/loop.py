"""Training: open_clip's towers in mixed precision, geometry and losses in float32, one process or many."""

from __future__ import annotations

import itertools
import logging
import math
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from hysac.data import Batches, QuadrupletDataset, Quadruplets, open_dataset
from hysac.data.formats import first_few
from hysac.data.manifest import fingerprint
from hysac.files import remove_leftovers, write_json
from hysac.json_object import JSONObject
from hysac.models.factory import create_model, get_tokenizer, transforms
from hysac.models.lora import add_lora
from hysac.models.loss import HySACLoss
from hysac.models.model import SCALARS, HySAC
from hysac.models.pretrained import RUN_MODEL, RUN_SETTINGS, save_pretrained
from hysac.training.checkpoint import (
    TRAINING_DATA,
    Checkpoint,
    checkpoint_path,
    checkpoint_paths,
    keep_last,
    newest_good,
    random_state,
    set_random_state,
    step_of,
)
from hysac.training.config import TrainConfig, augmentation, columns
from hysac.training.gradient_cache import MicroBatch, backward
from hysac.training.health import Health, geometry
from hysac.training.optim import learning_rate, make_optimizer, set_learning_rate
from hysac.training.processes import Processes, StopRequest, join_processes, leave_signals_to_main
from hysac.training.run_lock import run_lock
from hysac.training.run_log import RunLog
from hysac.training.sampler import SeededItems, StepSampler
from hysac.training.selection import Selection, Validation, validate
from hysac.training.step_guard import StepGuard, what_is_not_finite

log = logging.getLogger(__name__)

CHECKPOINTS, MODEL, CONFIG = "checkpoints", RUN_MODEL, RUN_SETTINGS
LATER = ".later"
"""Added to the names of later checkpoints and of the model when a run goes on from an earlier step."""
OF_STEP = "training.json"
"""The file that says which step a run's model is of."""

_DIVISION = ("batch_size", "accum_freq", "number of processes")
"""The settings whose product is a step's quadruplets. How these are divided changes only rounding."""

Status = Literal["finished", "stopped early", "interrupted"]
_AUTOCAST = {"amp": torch.float16, "amp_bf16": torch.bfloat16, "amp_bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind.

    Attributes:
        run_dir: ``config.json``, ``metrics.jsonl``, ``checkpoints/``, ``model/`` and, with TensorBoard, its
            event files.
        model_dir: the kept model, for :func:`hysac.from_pretrained`: the best one by the selection metric,
            or without validation data the last one. None if the run stopped before there was one.
        step: optimizer steps done.
        status: how it ended. An ``interrupted`` run continues with ``resume="latest"``.
        signal: the signal that interrupted it.
        selection: the best validation.
        metrics: of the last validation of this call, by name; empty without one.
    """

    run_dir: Path
    model_dir: Path | None
    step: int
    status: Status
    signal: int | None
    selection: Selection
    metrics: dict[str, float]


def train(config: TrainConfig) -> TrainResult:
    """Train a HySAC model.

    Under ``torchrun`` the processes share each step's batch: the gradients are those of one process with all
    of it. SIGTERM and Ctrl-C save a checkpoint after the step in progress and return; a second one acts at
    once. On a CPU a resumed run ends with the same bits as an uninterrupted one.

    Raises:
        ValueError: settings that do not fit each other, the data or the checkpoint; a run of this name that
            another process is writing, or that is to be continued and is not there.
        FileNotFoundError: data or a checkpoint that is not there.
        FloatingPointError: ``max_bad_steps`` in a row had a gradient that is not finite.
        OSError: a checkpoint cannot be written; the ones before it are intact.
        TimeoutError: another process stands still.
        ConnectionError: another process is gone.
    """
    with (
        join_processes(config.device, config.dist_timeout) as processes,
        StopRequest(processes) as stop,
        torch.autograd.set_detect_anomaly(config.detect_anomaly),
        ExitStack() as held,
    ):
        directory = processes.main_decides(lambda: _held_directory(config, held))
        try:
            return _Run(config, processes, directory).run(stop)
        except RuntimeError as error:
            if processes.world_size > 1 and (lost := _of_lost_process(error, config.dist_timeout)):
                raise lost from error
            raise


def build_model(config: TrainConfig, device: torch.device | str = "cpu") -> HySAC:
    """The model that ``config`` describes, before training; its random weights depend on ``config.seed``.

    Raises:
        ValueError: the architecture, its weights or the adapters' targets are unknown.
    """
    _seed(config.seed)
    model = create_model(
        config.model,
        config.pretrained,
        precision=config.precision or default_precision(torch.device(device)),
        device=device,
        curv_init=config.curv_init,
        learn_curv=config.learn_curv,
        scale_init=config.scale_init,
        force_image_size=config.force_image_size,
        force_quick_gelu=config.force_quick_gelu,
        output_dict=True,
    )
    if config.lora_r is not None:
        add_lora(model, config.lora_r, config.lora_alpha, config.lora_targets)
    if config.grad_checkpointing:
        model.set_grad_checkpointing()
    return model.train()


def model_of_checkpoint(path: Path, device: torch.device | str = "cpu") -> tuple[HySAC, TrainConfig, Path]:
    """The model of a training checkpoint, in ``eval`` mode, the settings it was trained with and its run.

    Args:
        path: a checkpoint, or the directory of a run for its newest one.
        device: where the model lives.

    Raises:
        FileNotFoundError: there is no checkpoint.
        CheckpointError: the checkpoint is damaged.
    """
    if path.is_dir():
        found = newest_good(path / CHECKPOINTS)
        if found is None:
            raise FileNotFoundError(f"{path} has no checkpoints")
        path, checkpoint = found
    else:
        checkpoint = Checkpoint.load(path)
    config = TrainConfig.from_dict({"train_data": "", **checkpoint.settings})
    model = build_model(config, device)
    checkpoint.load_model(model)
    return model.eval(), config, path.resolve().parent.parent


def default_precision(device: torch.device) -> str:
    """``amp_bf16`` on a GPU, ``fp32`` elsewhere."""
    return "amp_bf16" if device.type == "cuda" else "fp32"


def autocast(precision: str, device: torch.device) -> Callable[[], AbstractContextManager]:
    """Makes the autocast context of a precision, one that does nothing where it has none."""
    if precision not in _AUTOCAST:
        return nullcontext
    return partial(torch.autocast, device.type, dtype=_AUTOCAST[precision])


def chosen_workers(asked: int | None) -> int:
    """The loader processes asked for, by default this process's share of the CPUs it may use, at most 8."""
    if asked is not None:
        return asked
    processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(8, len(os.sched_getaffinity(0)) // processes_here))


class _Window:
    """Sums of the loss terms since the last record, kept on the device."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.steps, self._sums, self._began = 0, torch.zeros(()), time.perf_counter()
        self._fine = torch.zeros(())

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def add(self, terms: dict[str, Tensor], norm: Tensor, fine: Tensor) -> None:
        """Add a step; it counts only if it was ``fine``."""
        self._names = [*terms, "grad_norm"]
        values = torch.stack([*terms.values(), norm.float()]).where(fine, 0.0)
        self._sums = self._sums + values if self.steps else values
        self._fine = self._fine + fine if self.steps else fine.float()
        self.steps += 1

    def means(self, processes: Processes) -> dict[str, float]:
        """The means over the fine steps and processes, and the total ``"loss"``; waits for the device."""
        values = processes.mean(self._sums / self._fine).tolist()
        means = dict(zip(self._names, values, strict=True))
        return {"loss": sum(values[:-1]), **means}


class _Run:
    """A run in progress: :meth:`run` is the loop, the other methods its parts."""

    def __init__(self, config: TrainConfig, processes: Processes, directory: Path) -> None:
        self.processes, self.device = processes, processes.device
        self.config = config = replace(config, precision=config.precision or default_precision(self.device))
        self.directory = directory
        checkpoint = self._checkpoint_to_continue()
        self.train_set, self.val_set = self._open_data()  # before the model: what is wrong shows at once
        self.sampler = StepSampler(
            len(self.train_set),
            batch_size=config.batch_size,
            accum_freq=config.accum_freq,
            rank=processes.rank,
            world_size=processes.world_size,
            seed=config.seed,
        )
        self.model = build_model(config, self.device)
        self._set_transforms()
        self.total_steps = config.epochs * self.sampler.steps_per_epoch
        if config.max_steps is not None:
            self.total_steps = min(self.total_steps, config.max_steps)
        self.warmup = self.total_steps // 10 if config.warmup is None else config.warmup
        self.optimizer = make_optimizer(
            self.model,
            lr=config.lr,
            weight_decay=config.wd,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
        )
        self.scaler = GradScaler(self.device.type, enabled=config.precision == "amp")
        self.guard = StepGuard(self.optimizer, scaled=self.scaler.is_enabled(), device=self.device)
        self.skipped = 0  # steps since the last record
        self.long_texts, self.long_texts_told = 0, False  # captions beyond the context since the last record
        self.geometry: dict[str, Tensor] = {}
        self.health = Health()
        self.autocast = autocast(config.precision or "", self.device)
        self.step, self.selection = 0, Selection()
        self.metrics: dict[str, float] = {}
        self.settings = {
            **config.settings(),
            "number of processes": processes.world_size,
            "number of training quadruplets": self.sampler.size,
            TRAINING_DATA: processes.main_decides(lambda: fingerprint(self.train_set.records)),
        }
        _seed(config.seed + processes.rank)
        if checkpoint is not None:
            self._restore(checkpoint)
        self.trained = self._parallel()
        self.loss = self._make_loss(processes.rank, processes.world_size)

    def _checkpoint_to_continue(self) -> Checkpoint | None:
        """One choice for all processes: another one may read the directory otherwise."""
        if self.config.resume is None:
            return None
        if self.config.resume != "latest":
            return Checkpoint.load(Path(self.config.resume))
        found: tuple[Path, Checkpoint] | None = None

        def choose() -> Path | None:
            nonlocal found
            found = newest_good(self.directory / CHECKPOINTS)
            return None if found is None else found[0]

        path = self.processes.main_decides(choose)
        if found is not None:
            return found[1]
        return None if path is None else Checkpoint.load(path)

    # The loop

    def run(self, stop: StopRequest) -> TrainResult:
        if not self.processes.main_decides(self._prepare_directory):
            self._forget_best()
        stopping = False
        window = _Window()
        with closing(self._steps()) as steps:
            for micro_batches in steps:
                lr = self._train_step(micro_batches, window)
                stopping = stop.poll()
                saving = self._epoch_ended() or stopping or self._every(self.config.save_every_n_steps)
                if saving or self._every(self.config.log_every_n_steps):
                    self._record(window, lr)
                if self._validation_is_due():
                    self._validate()
                if saving:
                    self._save()
                    window.restart()
                if stopping or self._patience_is_over():
                    break
        return self._finish(stop.signal if stopping else None)

    def _steps(self) -> Generator[list[MicroBatch], None, None]:
        """The micro-batches of each step that is left, on the device."""
        if self._patience_is_over():  # of a run that stopped early and is resumed
            return
        self.sampler.start, self.sampler.stop = self.step, self.total_steps
        loader = Batches(
            SeededItems(self.train_set, self.config.seed),
            batch_sampler=self.sampler,
            num_workers=self._workers(),
            pin_memory=self.device.type == "cuda",
            worker_init_fn=leave_signals_to_main,
        )
        with (
            closing(iter(loader)) as batches,
            tqdm(
                desc="train", total=self.total_steps, initial=self.step, unit="step", disable=self._silent()
            ) as self.bar,
        ):
            while self.step < self.total_steps:
                read = [next(batches) for _ in range(self.config.accum_freq)]
                self.ids = [name for batch in read for name in batch["id"]]
                self.long_texts += sum(int(batch["long"].sum()) for batch in read if "long" in batch)
                yield [self._to_device(batch) for batch in read]
                self.bar.update()

    def _train_step(self, micro_batches: list[MicroBatch], window: _Window) -> float:
        lr = learning_rate(
            self.step,
            peak=self.config.lr,
            warmup=self.warmup,
            total=self.total_steps,
            schedule=self.config.lr_scheduler,
        )
        set_learning_rate(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        is_recorded = (self.step + 1) % self.config.log_every_n_steps == 0
        terms = backward(
            self.trained,
            self.loss,
            micro_batches,
            autocast=self.autocast,
            scaler=self.scaler,
            look=self._look if is_recorded else None,
        )
        self.scaler.unscale_(self.optimizer)
        norm = self._clip()
        fine = self.guard.judge(norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.model.clamp_parameters_()
        self.step += 1
        window.add(terms, norm, fine)
        self.latest = micro_batches
        return lr

    def _look(self, output: dict[str, Tensor]) -> None:
        self.geometry = geometry(output["image_features"], output["text_features"], self.loss)

    def _tell_of_skipped_steps(self) -> None:
        """Say what was not finite in the last step, and give up after too many such steps in a row.

        It waits for the device. All processes have the same verdict; each looks at its own quadruplets.
        """
        skipped, in_a_row, most = self.guard.counts()
        self.skipped += skipped
        if not skipped:
            return
        what = "their gradients were not finite"
        if self.scaler.is_enabled() and most < self.config.max_bad_steps:
            what = "a scaled gradient of float16 overflowed, as it may now and then"
        elif in_a_row:
            what = what_is_not_finite(self.model, self._make_loss(), self.latest, self.ids, self.autocast)
        steps = "steps were" if skipped > 1 else "step was"
        told = (
            f"step {self.step}: {skipped} {steps} skipped, {in_a_row} in a row now: {what}. "
            f"Curvature {self.model.curvature.item():.4g}"
        )
        if most < self.config.max_bad_steps:
            if self.processes.is_main:
                log.warning("%s", told)
            return
        saved = checkpoint_paths(self.directory / CHECKPOINTS)
        raise FloatingPointError(
            f"{told}. That is --max-bad-steps {self.config.max_bad_steps}: lower lr, or set warmup or "
            f"grad_clip_norm. The last good checkpoint is {saved[-1] if saved else 'none'}"
        )

    def _clip(self) -> Tensor:
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        limit = self.config.grad_clip_norm
        if limit is None:
            return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        return nn.utils.clip_grad_norm_(parameters, limit)

    def _record(self, window: _Window, lr: float) -> None:
        """Write the means since the last record: here, and in saving, the loop waits for the device."""
        self._tell_of_skipped_steps()
        means = window.means(self.processes)
        skipped, self.skipped = self.skipped, 0
        long_texts, self.long_texts = self._share_of_long_texts(window.steps), 0
        speed = window.steps * self.sampler.step_size / window.seconds
        window.restart()
        self.processes.main_writes(lambda: self._write_record(means, lr, speed, skipped, long_texts))

    def _write_record(
        self, means: dict[str, float], lr: float, speed: float, skipped: int, long_texts: float
    ) -> None:
        shown = {name: value.item() for name, value in self.geometry.items()}
        self.geometry = {}  # the next record may be of a step that was not looked at
        if shown:
            self.health.look(self.model, shown)
        record = {
            "epoch": self._epoch(),
            "lr": lr,
            **{name: value for name, value in means.items() if math.isfinite(value)},
            **_scalars(self.model),
            "samples_per_second": speed,
            "skipped_steps": skipped,
            "long_texts": long_texts,
            **{name: value for name, value in shown.items() if math.isfinite(value)},
        }
        self.log.write("train", self.step, record)
        summary = f"loss {means['loss']:.4f}, curvature {record['curvature']:.4f}"
        self.bar.set_postfix_str(summary)
        if self.bar.disable:
            log.info("step %d/%d: %s, %.0f quadruplets/s", self.step, self.total_steps, summary, round(speed))

    def _share_of_long_texts(self, steps: int) -> float:
        """The share of captions beyond the context in this process's last steps; warned of once."""
        share = self.long_texts * self.processes.world_size / (2 * steps * self.sampler.step_size)
        if share and not self.long_texts_told and self.processes.is_main:
            self.long_texts_told = True
            log.info(
                "%.1f %% of the captions are beyond the context: each epoch sees one window of such a one",
                100 * share,
            )
        return share

    # Validation, and what it decides

    def _validation_is_due(self) -> bool:
        epochs, rest = divmod(self.step, self.sampler.steps_per_epoch)
        due = rest == 0 and epochs % self.config.val_frequency == 0
        return self.val_set is not None and (due or self.step == self.total_steps)

    def _validate(self) -> None:
        assert self.val_set is not None
        validation = validate(
            self.model,
            self.val_set,
            self._make_loss(),
            self.processes,
            batch_size=self.config.batch_size,
            loss_batch_size=self.sampler.step_size,
            workers=self._workers(),
            autocast=self.autocast,
            progress=not self._silent(),
        )
        self.metrics = validation.metrics
        self.selection, value = self.selection.update(self.metrics, self.config.select_metric, self.step)
        self.processes.main_writes(lambda: self._write_validation(validation, value))

    def _write_validation(self, validation: Validation, value: float) -> None:
        self.log.write("val", self.step, {"epoch": self._epoch(), "selection": value, **self.metrics})
        log.info(
            "step %d/%d: validation loss %.4f, selection metric %.4f (best %.4f, after step %d)",
            *(self.step, self.total_steps, self.metrics["loss"]),
            *(value, self.selection.best, self.selection.best_step),
        )
        if self.selection.improved:
            self._save_model(validation)

    def _forget_best(self) -> None:
        """Forget the best validation of a run whose model is gone, so that a later model is kept."""
        if self.selection.best is not None and self.processes.is_main:
            log.info("the best model so far, of step %d, is not here", self.selection.best_step)
        self.selection = replace(self.selection, best=None, best_step=0)

    def _patience_is_over(self) -> bool:
        return self.config.patience is not None and self.selection.stale >= self.config.patience

    # Files

    def _save(self) -> None:
        random_states = self.processes.gather(random_state(self.device))
        self.processes.main_writes(lambda: self._write_checkpoint(random_states))

    def _write_checkpoint(self, random_states: list[dict[str, Any]]) -> None:
        directory = self.directory / CHECKPOINTS
        Checkpoint(
            step=self.step,
            settings=self.settings,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(),
            random_states=random_states,
            selection=self.selection.to_dict(),
        ).save(checkpoint_path(directory, self.step))
        keep_last(directory, self.config.keep_last)

    def _save_model(self, validation: Validation | None = None) -> None:
        """Write the model directory anew, then put it in the place of the old one."""
        final, new, old = (self.directory / f"{MODEL}{suffix}" for suffix in ("", ".new", ".old"))
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        save_pretrained(self.model, new, bounds=None if validation is None else validation.bounds)
        write_json(new / OF_STEP, {"step": self.step})
        if final.exists():
            final.rename(old)
        new.rename(final)
        shutil.rmtree(old, ignore_errors=True)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self._check_same_course(checkpoint)
        checkpoint.load_model(self.model)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.scaler.load_state_dict(checkpoint.scaler)
        self.step, self.selection = checkpoint.step, Selection(**checkpoint.selection)
        if len(checkpoint.random_states) == self.processes.world_size:
            set_random_state(checkpoint.random_states[self.processes.rank], self.device)
        else:  # of other processes: random layers draw other numbers, everything else is equal to rounding
            _seed(self.config.seed + self.processes.rank + self.step)
        if self.processes.is_main:
            log.info("continuing after step %d", self.step)

    def _check_same_course(self, checkpoint: Checkpoint) -> None:
        """Refuse other settings, but for a longer run of one that is over, and another division of a step.

        Raises:
            CheckpointError: names every setting that differs.
        """
        before, now = dict(checkpoint.settings), dict(self.settings)
        free = set()
        if all(name in before for name in _DIVISION):
            if math.prod(before[name] for name in _DIVISION) == self.sampler.step_size:
                free |= set(_DIVISION)
            of_epochs = before["epochs"] * self.sampler.steps_per_epoch
            total = min(of_epochs, before.get("max_steps") or of_epochs)
            if checkpoint.step == total < self.total_steps:
                free |= {"epochs", "max_steps"}
                if self.processes.is_main:
                    told = (
                        "the run of %d steps is extended to %d: the learning rate goes on as at step %d of %d"
                    )
                    log.info(told, total, self.total_steps, total, self.total_steps)
        kept = {name: value for name, value in before.items() if name not in free}
        replace(checkpoint, settings=kept).check_settings(
            {name: value for name, value in now.items() if name not in free}
        )

    def _prepare_directory(self) -> bool:
        """Write the settings, undo what a killed process left half done; whether a model is there."""
        for directory in (self.directory, self.directory / CHECKPOINTS):
            remove_leftovers(directory)
        final, old = self.directory / MODEL, self.directory / f"{MODEL}.old"
        if old.exists() and not final.exists():  # killed between the two renames of _save_model
            old.rename(final)
        of_step = final / OF_STEP
        if of_step.is_file() and JSONObject.read(of_step).whole("step") > self.step:
            _keep_as_later(final, self.step)
        for path in checkpoint_paths(self.directory / CHECKPOINTS):
            if step_of(path) > self.step:
                _keep_as_later(path, self.step)
        write_json(self.directory / CONFIG, self.config.to_dict())
        self.log = RunLog(self.directory, self.step, tensorboard=self.config.report_to == "tensorboard")
        return final.is_dir()

    def _finish(self, number: int | None) -> TrainResult:
        status: Status = "finished"
        if self.step < self.total_steps:
            status = "stopped early" if self._patience_is_over() else "interrupted"
        model_dir = self.directory / MODEL
        self.processes.main_writes(lambda: self._close(is_kept=self.val_set is None and status == "finished"))
        has_model: bool = self.processes.main_decides(model_dir.is_dir)
        return TrainResult(
            run_dir=self.directory,
            model_dir=model_dir if has_model else None,
            step=self.step,
            status=status,
            signal=number if status == "interrupted" else None,
            selection=self.selection,
            metrics=self.metrics,
        )

    def _close(self, *, is_kept: bool) -> None:
        if is_kept:
            self._save_model()
        self.log.close()

    # Small parts

    def _open_data(self) -> tuple[Quadruplets, Quadruplets | None]:
        train_set = self._open_set(self.config.train_data, "train")
        if self.config.val_data is None:
            return train_set, None
        return train_set, self._open_set(self.config.val_data, "val")

    def _set_transforms(self) -> None:
        train_transform, val_transform = transforms(self.model, aug_cfg=augmentation(self.config))
        self.train_set.preprocess = train_transform
        if self.val_set is not None:
            self.val_set.preprocess = val_transform

    def _open_set(self, spec: str, split: str) -> Quadruplets:
        """The data set of ``--train-data`` or ``--val-data``; its images are verified by one process."""
        config = self.config
        tokenizer = get_tokenizer(config.model)
        reading: dict[str, Any] = {
            "max_pixels": config.max_pixels,
            "background": config.background,
            "long_texts": "one window" if split == "train" else "windows",
        }

        def opened() -> Quadruplets:
            return open_dataset(
                spec,
                split,
                _of_the_model,
                tokenizer,
                columns=columns(config),
                image_root=config.image_root,
                on_error=config.on_bad_image,
                verify=config.verify_images,
                progress=not self._silent(),
                allow_outside_root=config.allow_outside_root,
                **reading,
            )

        def manifest() -> Any:
            dataset = opened()
            if not dataset.has_images:
                raise ValueError(f"{spec} is text-only: the losses relate texts to images")
            return getattr(dataset, "manifest", None)

        verified = self.processes.main_decides(manifest)
        if verified is None:  # drawn, not read
            return opened()
        return QuadrupletDataset(verified, _of_the_model, tokenizer, verify=False, **reading)

    def _make_loss(self, rank: int = 0, world_size: int = 1) -> HySACLoss:
        config = self.config
        return HySACLoss(
            config.local_loss,
            config.gather_with_grad,
            rank=rank,
            world_size=world_size,
            entail_weight=config.entail_weight,
            aperture_scale=config.aperture_scale,
            min_radius=config.min_radius,
        )

    def _parallel(self) -> nn.Module:
        if self.processes.world_size == 1:
            return self.model
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(self.model, device_ids=device_ids, gradient_as_bucket_view=True)

    def _to_device(self, batch: dict[str, Any]) -> MicroBatch:
        image, text = (batch[name].to(self.device, non_blocking=True) for name in ("image", "text"))
        return image, text

    def _workers(self) -> int:
        return chosen_workers(self.config.workers)

    def _silent(self) -> bool:
        return not (self.processes.is_main and sys.stderr.isatty())

    def _epoch(self) -> float:
        return self.step / self.sampler.steps_per_epoch

    def _epoch_ended(self) -> bool:
        return self.step % self.sampler.steps_per_epoch == 0 or self.step == self.total_steps

    def _every(self, steps: int | None) -> bool:
        return steps is not None and self.step % steps == 0


_GONE = ("connection closed", "connection reset", "broken pipe", "connection refused")


def _of_lost_process(error: RuntimeError, seconds: float) -> OSError | None:
    """The error for a lost process, if that is what an error of Gloo or NCCL says."""
    told = str(error).lower()
    if "timed out" in told or "timeout" in told:
        return TimeoutError(f"another process did not answer within --dist-timeout {seconds:g} s: {error}")
    if any(words in told for words in _GONE):
        return ConnectionError(f"another process has ended; what it met is told there: {error}")
    return None


def _free_name(path: Path) -> Path:
    """``path``, or if that is taken with the first number that is not."""
    numbered = (path.with_name(f"{path.name}{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([path], numbered) if not name.exists())


def _of_the_model(image: Any) -> Tensor:
    raise AssertionError("the transform is the model's, which is made after the data is opened")


def _held_directory(config: TrainConfig, held: ExitStack) -> Path:
    """The run's directory, locked until ``held`` is closed."""
    directory = _choose_directory(config)
    held.enter_context(run_lock(directory))
    return directory


def _choose_directory(config: TrainConfig) -> Path:
    """The run's directory; refuses one that holds another run, or a later part of this one."""
    resumed = Path(config.resume) if config.resume not in (None, "latest") else None
    if config.name is not None:
        directory = Path(config.logs) / config.name
    elif resumed is not None:
        directory = resumed.resolve().parent.parent
    else:
        model = config.model.replace("/", "-").replace(":", "-")
        directory = Path(config.logs) / f"{model}-{datetime.now():%Y%m%d-%H%M%S}"
    if config.resume == "latest" and not directory.is_dir():
        runs = sorted(path.name for path in Path(config.logs).glob("*") if path.is_dir())
        raise ValueError(f"{directory} is not there to be continued; {config.logs} has {first_few(runs)}")
    paths = checkpoint_paths(directory / CHECKPOINTS)
    is_own = resumed is not None and resumed.resolve().parent == (directory / CHECKPOINTS).resolve()
    if paths and config.resume != "latest" and not is_own:
        raise ValueError(
            f"{directory} holds a run already, with {paths[-1].name}: choose another name, or resume 'latest'"
        )
    return directory


def _keep_as_later(path: Path, step: int) -> None:
    kept = _free_name(path.with_name(path.name + LATER))
    log.warning("%s is of a later step than %d, where the run goes on: kept as %s", path, step, kept.name)
    path.rename(kept)


@torch.no_grad()
def _scalars(model: HySAC) -> dict[str, float]:
    """The learnable scalars as what they stand for, not as logarithms; one wait for the device."""
    values = torch.stack([getattr(model, name) for name in SCALARS]).exp().tolist()
    return dict(zip(("curvature", *SCALARS[1:]), values, strict=True))


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
