"""The ``hysac`` command."""

from __future__ import annotations

import argparse
import logging
import os
import select
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from hysac.cli.arguments import make_parser
from hysac.data import Batches, Quadruplets, open_dataset, write_toy
from hysac.embeddings import CLASSES, Embeddings, encode_dataset
from hysac.evaluation import evaluate_embeddings
from hysac.files import check_writable, write_json
from hysac.models.convert import from_reference
from hysac.models.factory import from_pretrained, get_tokenizer, transforms
from hysac.models.model import HySAC
from hysac.models.pretrained import BOUNDS_FILE, EVALUATION_FILE, model_directory, save_pretrained
from hysac.safety import MODALITIES, Bounds, Traversal, calibrate_thresholds, check_replaces, fit_bounds
from hysac.training.config import TrainConfig, columns
from hysac.training.loop import autocast, default_workers, model_of_checkpoint, train
from hysac.training.processes import choose_device

log = logging.getLogger("hysac")

USER_ERRORS = (ValueError, TypeError, OSError, ImportError, FloatingPointError)
"""What bad input, missing files and full disks raise: told in one line, without a traceback."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    0: done. 2: bad input, told in one line. 128 + n: stopped by signal n (130 for Ctrl-C, 143 for SIGTERM),
    after saving a checkpoint. A reader of the output that closes it, as ``head`` does, is no error.
    """
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _is_output_closed():
            raise
        # What Python flushes when it exits has to go somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _is_output_closed() -> bool:
    """Whether nobody reads what is printed any more."""
    try:
        descriptor = sys.stdout.fileno()
    except OSError:  # as in a notebook
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _run(arguments: Sequence[str] | None) -> int:
    args = make_parser(COMMANDS).parse_args(arguments)
    _speak()
    try:
        with _one_line_warnings():
            return args.command(args)
    except USER_ERRORS as error:
        if args.debug or (isinstance(error, BrokenPipeError) and _is_output_closed()):
            raise
        rank = os.environ.get("RANK", "0")
        place = "" if rank == "0" else f" (process {rank})"  # it may be the only one that met the error
        print(f"hysac {args.name_of_command}{place}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


# The commands


def _train(args: argparse.Namespace) -> int:
    result = train(TrainConfig.from_dict(vars(args)))
    if os.environ.get("RANK", "0") == "0":
        print(f"{result.status} after {result.step} steps: {result.run_dir}")
        if result.status == "interrupted":
            print(
                f"continue with --logs {result.run_dir.parent} --name {result.run_dir.name} --resume latest"
            )
        elif result.model_dir is not None:
            print(f"model: {result.model_dir}")
    return 0 if result.signal is None else 128 + result.signal


def _evaluate(args: argparse.Namespace) -> int:
    model, tokenizer, home = _load_model(args)
    out = home / EVALUATION_FILE if args.out is None else Path(args.out)
    check_writable(out)
    if args.plots is not None:
        check_writable(Path(args.plots) / "a picture")
    bounds, thresholds = _stored_bounds(args, home), None
    if args.calibration_data is not None:
        calibration = _encode(args, model, _open(args, model, tokenizer, args.calibration_data, "train"))
        bounds = bounds or fit_bounds(calibration)
        thresholds = calibrate_thresholds(calibration)
    dataset = _open(args, model, tokenizer, args.val_data, "val")
    embeddings = _encode(args, model, dataset)
    traversal = None
    if bounds is None:
        log.warning("there are no bounds: nothing is redirected. `hysac bounds` fits them")
    else:
        traversal = Traversal(bounds, args.statistic, args.mode, args.margin, args.alpha)
    report = evaluate_embeddings(
        embeddings,
        ks=args.ks,
        traversal=traversal,
        thresholds=thresholds,
        aperture_scale=args.aperture_scale,
        min_radius=args.min_radius,
    )
    # All is written before the first word: who reads the output may have closed it.
    write_json(out, report.to_dict())
    pictures: Sequence[Path] = ()
    if args.plots is not None:
        from hysac.plots import save_plots

        pictures = save_plots(Path(args.plots), dataset, embeddings, traversal)
    print(report.format_tables())
    print(f"\nall numbers: {out}")
    for path in pictures:
        print(f"picture: {path}")
    return 0


def _bounds(args: argparse.Namespace) -> int:
    model, tokenizer, home = _load_model(args)
    out = home / BOUNDS_FILE if args.out is None else Path(args.out)
    check_writable(out)
    dataset = _open(args, model, tokenizer, args.data, "train")
    if not args.drop_classes:  # before the work
        check_replaces(out, CLASSES if dataset.has_images else MODALITIES["text"])
    bounds = fit_bounds(_encode(args, model, dataset))
    bounds.save(out, drop_classes=args.drop_classes)
    print("distance to the origin   5th pct.     mean  95th pct.      max")
    for letter, name in CLASSES.items():
        if letter in bounds.classes:
            row = bounds[letter]
            numbers = f"{row.low_05:11.4f}{row.avg:9.4f}{row.up_95:11.4f}{row.max:9.4f}"
            print(f"{letter}  {name.replace('_', ' '):20}{numbers}")
    print(f"written to {out}")
    return 0


def _convert(args: argparse.Namespace) -> int:
    bounds = None if args.bounds is None else Bounds.load(args.bounds)
    model = from_reference(
        args.checkpoint,
        lora_alpha=args.lora_alpha,
        adapter=args.adapter,
        quick_gelu=args.quick_gelu,
        vision_heads=args.vision_heads,
        text_heads=args.text_heads,
        scalars_from=args.scalars_from,
    )
    print(f"model: {save_pretrained(model, args.out, bounds=bounds)}")
    return 0


def _toy(args: argparse.Namespace) -> int:
    manifests = write_toy(
        args.out,
        train_size=args.train_size,
        val_size=args.val_size,
        seed=args.seed,
        progress=sys.stderr.isatty(),
    )
    for split, path in manifests.items():
        print(f"{split}: {path}")
    return 0


def _demo(args: argparse.Namespace) -> int:
    from hysac.cli.demo import demo

    print(demo(Path(args.out), seed=args.seed))
    return 0


# Their parts


def _load_model(args: argparse.Namespace) -> tuple[HySAC, Any, Path]:
    """The model, its tokenizer, and the directory that belongs to it."""
    device = choose_device(args.device)
    if args.checkpoint is not None:
        model, config, run = model_of_checkpoint(Path(args.checkpoint), device)
        return model, get_tokenizer(config.model), run
    directory = model_directory(Path(args.model_dir))
    model = from_pretrained(directory, device=device, verify=args.verify)
    return model, get_tokenizer(f"local-dir:{directory}"), directory


def _stored_bounds(args: argparse.Namespace, home: Path) -> Bounds | None:
    if args.bounds is not None:
        return Bounds.load(args.bounds)
    return Bounds.load(home / BOUNDS_FILE) if (home / BOUNDS_FILE).is_file() else None


def _open(args: argparse.Namespace, model: HySAC, tokenizer: Any, spec: str, split: str) -> Quadruplets:
    return open_dataset(
        spec,
        split,
        transforms(model)[1],
        tokenizer,
        columns=columns(args),
        image_root=args.image_root,
        on_error=args.on_bad_image,
        verify=args.verify_images,
        progress=sys.stderr.isatty(),
        allow_outside_root=args.allow_outside_root,
        max_pixels=args.max_pixels,
        background=args.background,
        long_texts="windows",
    )


def _encode(args: argparse.Namespace, model: HySAC, dataset: Quadruplets) -> Embeddings:
    workers = default_workers() if args.workers is None else args.workers
    loader = Batches(dataset, batch_size=args.batch_size, num_workers=workers)
    device = next(model.parameters()).device
    with torch.no_grad(), autocast(args.precision, device)():
        return encode_dataset(model, loader, progress=sys.stderr.isatty())


# What the user sees


class _Console(logging.Handler):
    """Prints records above the progress bars, on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        tqdm.write(prefix + record.getMessage(), file=sys.stderr)


def _speak() -> None:
    root = logging.getLogger()
    if not any(isinstance(handler, _Console) for handler in root.handlers):
        root.addHandler(_Console())
    log.setLevel(logging.INFO)


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: log.warning("%s", message)  # type: ignore[assignment]
        yield


COMMANDS = {
    "train": _train,
    "evaluate": _evaluate,
    "bounds": _bounds,
    "convert": _convert,
    "toy": _toy,
    "demo": _demo,
}
