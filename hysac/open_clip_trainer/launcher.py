"""``python -m hysac.open_clip_trainer``: open_clip's program with a hyperbolic model, loss and validation."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_kwargs
from torch.optim.optimizer import register_optimizer_step_post_hook

from hysac.models.clip_loss import ClipLikeLoss
from hysac.models.factory import create_model
from hysac.models.model import MIN_SCALE, HySAC
from hysac.models.pretrained import RUN_MODEL, save_pretrained
from hysac.open_clip_trainer.flags import Options, check_flags, split_flags
from hysac.open_clip_trainer.quadruplets import quadruplet_data
from hysac.open_clip_trainer.replacing import replaced, restored_logging
from hysac.open_clip_trainer.runs import curv_init_of, describe, run_of
from hysac.open_clip_trainer.validation import validation_metrics, zero_shot_metrics


def command(arguments: Sequence[str] | None = None) -> int:
    """:func:`main` for the command line: bad input is told in one line, with exit code 2."""
    try:
        return main(arguments)
    except (ValueError, FileNotFoundError, ImportError) as error:
        print(f"hysac.open_clip_trainer: error: {error}", file=sys.stderr)
        return 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Train or evaluate as ``open_clip_train.main`` does, and save the trained model as a directory.

    open_clip's functions are replaced while it runs, and put back afterwards. So is logging, which
    open_clip's program configures.

    Args:
        arguments: our flags and open_clip's, in any order; None takes those of the process.

    Returns:
        0, or 1 if open_clip's program refuses, which it prints.

    Raises:
        ImportError: what ``open_clip_train`` needs is not installed.
        ValueError: a flag that does not fit, or an initial curvature other than that of the run to resume.
    """
    options, others = split_flags(arguments)
    program = _program()
    args = program.parse_args(others)
    check_flags(options, args)
    run = _Run(replace(options, curv_init=_curv_init(options.curv_init, args)), program)
    with replaced(program, **run.functions()), restored_logging():
        hook = register_optimizer_step_post_hook(run.clamp)
        try:
            code = program.main(others)
        finally:
            hook.remove()
        if code is None:
            run.save()
    return 0 if code is None else 1


class _Run:
    """The functions that replace open_clip's, and the model that they share."""

    def __init__(self, options: Options, program: ModuleType) -> None:
        self.options = options
        self._get_data = program.get_data
        self._model: HySAC | None = None
        self._directory: Path | None = None  # set on the process that writes, once it trains

    def functions(self) -> dict[str, Any]:
        """The functions by their names in ``open_clip_train.main``."""
        functions = {
            "create_model_and_transforms": self.make_model,
            "create_loss": self.make_loss,
            "evaluate": self.evaluate,
        }
        return functions | ({"get_data": self.get_data} if self.options.objective == "hysac" else {})

    @property
    def model(self) -> HySAC:
        assert self._model is not None, "open_clip makes the model before all else"
        return self._model

    def make_model(
        self,
        model_name: str,
        pretrained: str | None = None,
        *,
        image_mean: Any = None,
        image_std: Any = None,
        image_interpolation: str | None = None,
        image_resize_mode: str | None = None,
        aug_cfg: Any = None,
        **options: Any,
    ) -> tuple[HySAC, Any, Any]:
        """``open_clip.create_model_and_transforms`` of a HySAC model."""
        preprocess_cfg = merge_preprocess_kwargs(
            {},
            mean=image_mean,
            std=image_std,
            interpolation=image_interpolation,
            resize_mode=image_resize_mode,
        )
        self._model = create_model(
            model_name,
            pretrained,
            curv_init=self.options.curv_init,
            learn_curv=self.options.learn_curv,
            scale_init=MIN_SCALE if self.options.scale_init is None else self.options.scale_init,
            force_preprocess_cfg=preprocess_cfg,
            **options,
        )
        self._check_scale()
        cfg = PreprocessCfg(**self._model.visual.preprocess_cfg)
        train = image_transform_v2(cfg, is_train=True, aug_cfg=aug_cfg)
        return self._model, train, image_transform_v2(cfg, is_train=False)

    def _check_scale(self) -> None:
        """Refuse a scale for a model of a directory, which has one already."""
        given, scale = self.options.scale_init, self.model.scale.item()
        if given is not None and abs(scale - given) > 1e-4 * given:
            raise ValueError(f"--scale-init must be left out: the model's is {scale:g}, got {given:g}")

    def make_loss(self, args: argparse.Namespace) -> ClipLikeLoss:
        """``open_clip.create_loss``, which open_clip calls once, when it is about to train."""
        if args.save_logs:
            self._directory = Path(args.logs, args.name)
            describe(self._directory, self.model, self.options)
        return self.options.loss(
            local_loss=args.local_loss,
            gather_with_grad=args.gather_with_grad,
            rank=args.rank,
            world_size=args.world_size,
            accum_freq=args.accum_freq,
        )

    def get_data(
        self, args: argparse.Namespace, preprocess_fns: tuple[Any, Any], epoch: int = 0, tokenizer: Any = None
    ) -> dict[str, Any]:
        """``open_clip_train.data.get_data`` of quadruplets; ImageNet is open_clip's."""
        rest = argparse.Namespace(**vars(args) | {"train_data": None, "val_data": None})
        data = quadruplet_data(self.options, args, preprocess_fns, tokenizer)
        return data | self._get_data(rest, preprocess_fns, epoch=epoch, tokenizer=tokenizer)

    def evaluate(
        self,
        model: Any,
        data: dict[str, Any],
        epoch: int,
        args: argparse.Namespace,
        tb_writer: Any = None,
        tokenizer: Any = None,
    ) -> dict[str, float]:
        """``open_clip_train.train.evaluate`` by distance, reported as open_clip reports it."""
        from open_clip_train import train

        def measure(*_: Any, **__: Any) -> dict[str, float]:
            loss = self.options.loss()
            metrics = zero_shot_metrics(self.model, data, epoch, args, tokenizer)
            return metrics | validation_metrics(self.model, loss, data, epoch, args)

        # Its own validation is of dot products; it reports whatever the zero-shot part gives.
        others = {name: split for name, split in data.items() if name != "val"}
        with replaced(train, zero_shot_eval=measure):
            return train.evaluate(model, others, epoch, args, tb_writer=tb_writer, tokenizer=tokenizer)

    def clamp(self, *_: Any) -> None:
        """Bring the scalars back into their ranges after a step."""
        self.model.clamp_parameters_()

    def save(self) -> None:
        """Write the trained model, if this process wrote the run."""
        if self._directory is not None:
            directory = save_pretrained(self.model, self._directory / RUN_MODEL)
            logging.info(f"Model: {directory}")


def _program() -> ModuleType:
    try:
        from open_clip_train import main as program
    except ImportError as error:
        raise ImportError(
            f"open_clip_train cannot be imported ({error}): pip install 'hysac[open-clip-trainer]'"
        ) from error
    return program


def _curv_init(given: float | None, args: argparse.Namespace) -> float | None:
    """The initial curvature: the one given, which must be that of a resumed run, or else the run's."""
    if args.resume is None:
        return given
    latest = Path(args.logs, str(args.name), "checkpoints", "any.pt")
    run = run_of(latest if args.resume == "latest" else args.resume)
    if run is None:
        return given
    stored = curv_init_of(run)
    if given is not None and given != stored:
        raise ValueError(f"--curv-init must be {stored}, that of {run}, or left out; got {given}")
    return stored
