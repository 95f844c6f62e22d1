"""The ``hysac`` command."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from tqdm import tqdm

from hysac.config import TRAINING_PRECISIONS, TrainConfig, columns
from hysac.convert import from_reference
from hysac.data import Batches, Quadruplets, open_dataset, write_toy
from hysac.embeddings import CLASSES, Embeddings, encode_dataset
from hysac.evaluation import evaluate_embeddings
from hysac.factory import from_pretrained, get_tokenizer, transforms
from hysac.files import write_json
from hysac.model import HySAC
from hysac.pretrained import BOUNDS_FILE, is_model_directory, save_pretrained
from hysac.processes import choose_device
from hysac.safety import Bounds, Traversal, calibrate_thresholds, fit_bounds
from hysac.train import MODEL, autocast, default_workers, model_of_checkpoint, train

log = logging.getLogger("hysac")

USER_ERRORS = (ValueError, TypeError, OSError, ImportError, FloatingPointError)
"""What bad input, missing files and full disks raise: told in one line, without a traceback."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    0: done. 2: bad input, told in one line. 128 + n: stopped by signal n (130 for Ctrl-C, 143 for SIGTERM),
    after saving a checkpoint.
    """
    args = _parser().parse_args(arguments)
    _speak()
    try:
        with _one_line_warnings():
            return args.command(args)
    except USER_ERRORS as error:
        if args.debug:
            raise
        if os.environ.get("RANK", "0") == "0":
            print(f"hysac {args.name_of_command}: error: {error}", file=sys.stderr)
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
    bounds, thresholds = _stored_bounds(args, home), None
    if args.calibration_data is not None:
        _, calibration = _encode(args, model, tokenizer, args.calibration_data, "train")
        bounds = bounds or fit_bounds(calibration)
        thresholds = calibrate_thresholds(calibration)
    dataset, embeddings = _encode(args, model, tokenizer, args.val_data, "val")
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
    print(report.format_tables())
    out = home / "evaluation.json" if args.out is None else Path(args.out)
    write_json(out, report.to_dict())
    print(f"\nall numbers: {out}")
    if args.plots is not None:
        from hysac.plots import save_plots

        for path in save_plots(Path(args.plots), dataset, embeddings, traversal):
            print(f"picture: {path}")
    return 0


def _bounds(args: argparse.Namespace) -> int:
    model, tokenizer, home = _load_model(args)
    _, embeddings = _encode(args, model, tokenizer, args.data, "train")
    bounds = fit_bounds(embeddings)
    print("distance to the origin   5th pct.     mean  95th pct.      max")
    for letter, name in CLASSES.items():
        if letter in bounds.classes:
            row = bounds[letter]
            numbers = f"{row.low_05:11.4f}{row.avg:9.4f}{row.up_95:11.4f}{row.max:9.4f}"
            print(f"{letter}  {name.replace('_', ' '):20}{numbers}")
    out = home / BOUNDS_FILE if args.out is None else Path(args.out)
    bounds.save(out)
    print(f"written to {out}")
    return 0


def _convert(args: argparse.Namespace) -> int:
    bounds = None if args.bounds is None else Bounds.load(args.bounds)
    model = from_reference(args.checkpoint, lora_alpha=args.lora_alpha)
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
    from hysac.demo import demo

    print(demo(Path(args.out), seed=args.seed))
    return 0


# Their parts


def _load_model(args: argparse.Namespace) -> tuple[HySAC, Any, Path]:
    """The model, its tokenizer, and the directory that belongs to it."""
    device = choose_device(args.device)
    if args.checkpoint is not None:
        model, config, run = model_of_checkpoint(Path(args.checkpoint), device)
        return model, get_tokenizer(config.model), run
    directory = Path(args.model_dir)
    if not is_model_directory(directory) and is_model_directory(directory / MODEL):
        directory /= MODEL  # a run was named
    return from_pretrained(directory, device=device), get_tokenizer(f"local-dir:{directory}"), directory


def _stored_bounds(args: argparse.Namespace, home: Path) -> Bounds | None:
    if args.bounds is not None:
        return Bounds.load(args.bounds)
    return Bounds.load(home / BOUNDS_FILE) if (home / BOUNDS_FILE).is_file() else None


def _encode(
    args: argparse.Namespace, model: HySAC, tokenizer: Any, spec: str, split: str
) -> tuple[Quadruplets, Embeddings]:
    dataset = open_dataset(
        spec,
        split,
        transforms(model)[1],
        tokenizer,
        columns=columns(args),
        image_root=args.image_root,
        on_error=args.on_bad_image,
        verify=args.verify_images,
        progress=sys.stderr.isatty(),
    )
    workers = default_workers() if args.workers is None else args.workers
    loader = Batches(dataset, batch_size=args.batch_size, num_workers=workers)
    device = next(model.parameters()).device
    with torch.no_grad(), autocast(args.precision, device)():
        return dataset, encode_dataset(model, loader, progress=sys.stderr.isatty())


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


# The parser


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of examples, and shows defaults."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        default = action.default
        is_told = default is None or default is False or default is argparse.SUPPRESS
        if is_told or action.required or not action.option_strings:
            return text
        shown = " ".join(map(_quoted, default)) if isinstance(default, list | tuple) else default
        return f"{text} (default: {shown})".replace("%", "%%")


def _quoted(word: Any) -> str:
    return f"'{word}'" if " " in str(word) else str(word)


_EPILOG = """\
examples:
  hysac demo                                          train and evaluate a small model, draw its pictures
  hysac train --train-data toy --val-data toy --model hysac-toy --lr 3e-3 --name first
  hysac evaluate --model-dir runs/first --val-data toy

`hysac COMMAND --help` explains a command and gives examples.
"""

_TRAIN_EPILOG = """\
data:
  A manifest has one quadruplet a row: safe_image, unsafe_image, safe_caption, unsafe_caption, and
  optionally tag and id; image paths are relative to the manifest. `hysac toy` writes a small one.
  A shard of webdataset has the members KEY.safe.jpg, KEY.unsafe.jpg, KEY.safe.txt and KEY.unsafe.txt
  (or .jpeg, .png, .webp), and optionally KEY.json with a tag.

examples:
  the paper's recipe, on one GPU with the paper's batch of 256:
    hysac train --train-data train.jsonl --val-data val.jsonl --name paper \\
        --model ViT-L-14-quickgelu --pretrained openai --lora-r 16 --lora-alpha 1 \\
        --batch-size 64 --accum-freq 4 --epochs 20 --patience 5
  the same on 4 GPUs:
    torchrun --nproc-per-node 4 -m -- hysac.cli train ... --accum-freq 1
  continue it after an interruption:
    hysac train ... --name paper --resume latest
  open_clip's column names:
    hysac train ... --csv-img-key filepath --csv-caption-key title \\
        --csv-unsafe-img-key unsafe_filepath --csv-unsafe-caption-key unsafe_title

a run leaves, in LOGS/NAME:
  config.json       the settings
  metrics.jsonl     one record a line: losses, curvature, recalls, speed
  checkpoints/      to continue the run
  model/            the kept model, for `hysac evaluate` and hysac.from_pretrained

Ctrl-C and SIGTERM save a checkpoint after the step in progress; the exit code is then 130 or 143.
"""

_EVALUATE_EPILOG = """\
T is safe text, I safe image, T* unsafe text, I* unsafe image. `T*->I u I*` is the retrieval of the safe
image by the unsafe text among all images, safe and unsafe; `(traversed)` means that the query was moved
towards the origin first, to where the safe class ends. Text-only data gives the text's safety metrics.

examples:
  hysac evaluate --model-dir runs/paper --val-data test.jsonl --plots plots
  hysac evaluate --model-dir runs/paper --calibration-data val.jsonl --val-data test.jsonl
  hysac evaluate --checkpoint runs/paper --val-data toy
"""

_BOUNDS_EPILOG = """\
The bounds are the 5th percentile, the mean and the 95th percentile of each class's distance to the origin.
They say where an unsafe query is moved to. Fit them on data that the model was not evaluated on.

example:
  hysac bounds --model-dir runs/paper/model --data val.jsonl
"""

_CONVERT_EPILOG = """\
example:
  hysac convert hysac_model.pth --bounds hysac_bounds.json --out hysac-vit-l
  hysac evaluate --model-dir hysac-vit-l --val-data test.jsonl --mode paper
"""

_TOY_EPILOG = """\
example:
  hysac toy --out toy
  hysac train --train-data toy/train.jsonl --val-data toy/val.jsonl --model hysac-toy --lr 3e-3
"""

_DEMO_EPILOG = """\
Needs no download and no GPU: about two minutes on two CPU cores. An earlier demo in the directory is
replaced.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hysac",
        description="Hyperbolic Safety-Aware CLIP: train, evaluate and calibrate.",
        epilog=_EPILOG,
        formatter_class=_Formatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], int], usage: str, summary: str, epilog: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            usage=f"hysac {name} {usage}".rstrip(),
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=epilog,
            formatter_class=_Formatter,
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(command=run, name_of_command=name)
        return sub

    _add_settings(
        command(
            "train",
            _train,
            "--train-data DATA --model NAME [options]",
            "train a model on quadruplets",
            _TRAIN_EPILOG,
        )
    )

    sub = command(
        "evaluate",
        _evaluate,
        "(--model-dir DIR | --checkpoint RUN) --val-data DATA [options]",
        "measure a model's retrieval and safety",
        _EVALUATE_EPILOG,
    )
    _add_model(sub)
    data = _add_data(sub)
    data.add_argument(
        "--val-data", required=True, metavar="DATA", help="what to evaluate on: a manifest, shards, or 'toy'"
    )
    data.add_argument(
        "--calibration-data",
        metavar="DATA",
        help="fit the thresholds, and the bounds where there are none, on this manifest instead",
    )
    safety = sub.add_argument_group("safety")
    safety.add_argument("--bounds", metavar="FILE", help="bounds.json to use; by default the model's")
    safety.add_argument(
        "--statistic", default="up_95", choices=("low_05", "avg", "up_95"), help="the bound of redirection"
    )
    safety.add_argument(
        "--margin", type=float, metavar="X", default=0.0, help="added to the bound; negative is stricter"
    )
    safety.add_argument("--mode", default="geodesic", choices=("geodesic", "paper"), help="of redirection")
    safety.add_argument("--alpha", type=float, metavar="X", default=0.8, help="of mode paper")
    safety.add_argument(
        "--aperture-scale", type=float, metavar="X", default=1.0, help="of the cones, as in training"
    )
    safety.add_argument(
        "--min-radius", type=float, metavar="X", default=0.1, help="of the cones, as in training"
    )
    output = sub.add_argument_group("output")
    output.add_argument(
        "--ks", type=int, nargs="+", metavar="K", default=[1, 10, 20], help="cut-offs of the recalls"
    )
    output.add_argument(
        "--out", metavar="FILE", help="JSON file; by default evaluation.json beside the model"
    )
    output.add_argument("--plots", metavar="DIR", help="directory for pictures (needs images and matplotlib)")

    sub = command(
        "bounds",
        _bounds,
        "(--model-dir DIR | --checkpoint RUN) --data DATA [options]",
        "fit the bounds that redirection needs",
        _BOUNDS_EPILOG,
    )
    _add_model(sub)
    _add_data(sub).add_argument(
        "--data", required=True, metavar="DATA", help="what to fit on: a manifest, shards, or 'toy'"
    )
    sub.add_argument("--out", metavar="FILE", help="JSON file; by default bounds.json beside the model")

    sub = command(
        "convert",
        _convert,
        "CHECKPOINT --out DIR [options]",
        "convert the published checkpoint to a model",
        _CONVERT_EPILOG,
    )
    sub.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="hysac_model.pth, or a checkpoint of the authors' training script",
    )
    sub.add_argument("--out", required=True, metavar="DIR", help="model directory to write")
    sub.add_argument("--bounds", metavar="FILE", help="hysac_bounds.json")
    sub.add_argument(
        "--lora-alpha", type=float, metavar="X", default=1.0, help="of the adapters in the checkpoint"
    )

    sub = command("toy", _toy, "--out DIR [options]", "write the toy data set as files", _TOY_EPILOG)
    sub.add_argument("--out", required=True, metavar="DIR", help="directory to write to")
    sub.add_argument("--train-size", type=int, metavar="N", help="quadruplets to train on; by default 2048")
    sub.add_argument("--val-size", type=int, metavar="N", help="quadruplets to validate on; by default 256")
    sub.add_argument("--seed", type=int, metavar="N", default=0, help="which scenes")

    sub = command(
        "demo", _demo, "[options]", "train, evaluate and draw a small model from scratch", _DEMO_EPILOG
    )
    sub.add_argument("--out", default="runs/demo", metavar="DIR", help="directory to write to")
    sub.add_argument("--seed", type=int, metavar="N", default=0, help="of the weights and the order")
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """A flag for each field of TrainConfig."""
    hints = get_type_hints(TrainConfig)
    groups: dict[str, Any] = {}
    for setting in fields(TrainConfig):
        rules = setting.metadata
        group = groups.setdefault(rules["group"], None) or parser.add_argument_group(rules["group"])
        groups[rules["group"]] = group
        group.add_argument(
            f"--{setting.name.replace('_', '-')}",
            required=setting.default is MISSING,
            default=None if setting.default is MISSING else setting.default,
            help=rules["help"],
            **_argument_kind(hints[setting.name], rules),
        )


def _argument_kind(hint: Any, rules: Any) -> dict[str, Any]:
    options = get_args(hint) if get_origin(hint) not in (None, Literal, tuple) else (hint,)
    kind = next(option for option in options if option is not type(None))
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    if get_origin(kind) is tuple:
        return {"nargs": "+", "choices": rules.get("choices"), "metavar": rules.get("metavar")}
    if "choices" in rules:
        return {"choices": rules["choices"]}
    return {"type": kind, "metavar": rules.get("metavar") or {int: "N", float: "X"}.get(kind)}


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--model-dir", metavar="DIR", help="a model directory, or a run with one")
    source.add_argument(
        "--checkpoint", metavar="RUN", help="a run, for its newest checkpoint, or a checkpoint file"
    )
    group.add_argument(
        "--device", metavar="DEVICE", help="such as cpu or cuda:1; by default a GPU if there is one"
    )
    group.add_argument("--precision", default="fp32", choices=TRAINING_PRECISIONS[:4], help="of the towers")


_OF_TRAINING = ("train_data", "val_data", "aug_cfg")


def _add_data(parser: argparse.ArgumentParser) -> Any:
    """The flags of ``hysac train`` that say how to read a manifest."""
    hints = get_type_hints(TrainConfig)
    group = parser.add_argument_group("data")
    for setting in fields(TrainConfig):
        is_reading = setting.metadata["group"] == "data" and setting.name not in _OF_TRAINING
        if is_reading or setting.name == "batch_size":
            group.add_argument(
                f"--{setting.name.replace('_', '-')}",
                default=setting.default,
                help="quadruplets encoded at a time"
                if setting.name == "batch_size"
                else setting.metadata["help"],
                **_argument_kind(hints[setting.name], setting.metadata),
            )
    return group


if __name__ == "__main__":
    sys.exit(main())
