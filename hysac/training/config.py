"""The settings of a training run; each is a flag of ``hysac train``: ``batch_size`` is ``--batch-size``."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from open_clip.transform import AugmentationCfg

from hysac.data.images import BACKGROUNDS, MAX_PIXELS
from hysac.models.lora import DEFAULT_TARGETS, TARGETS
from hysac.models.model import MIN_SCALE
from hysac.training.selection import DEFAULT_SELECT_METRIC, check_select_metric

TRAINING_PRECISIONS = ("fp32", "amp", "amp_bf16", "amp_bfloat16", "bf16", "pure_bf16")
_NARROW = ("bf16", "pure_bf16")

_MAY_CHANGE = {
    *("train_data", "val_data", "image_root", "on_bad_image", "verify_images", "workers"),
    *("allow_outside_root", "max_pixels", "max_bad_steps", "dist_timeout"),
    *("csv_img_key", "csv_caption_key", "csv_unsafe_img_key", "csv_unsafe_caption_key"),
    *("val_frequency", "patience", "logs", "name", "resume", "device", "log_every_n_steps"),
    *("save_every_n_steps", "keep_last", "report_to", "detect_anomaly"),
}
"""Settings that a continued run may have otherwise: paths, and what does not change the weights."""


def _option(group: str, help: str, default: Any = None, **checks: Any) -> Any:
    """A field with its help; ``choices``, ``above``, ``at_least`` and ``below`` say what it may be."""
    return field(default=default, metadata={"group": group, "help": help, **checks})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of :func:`hysac.training.loop.train`; ``hysac train --help`` explains each field.

    Fields carry open_clip's names where open_clip has the setting. Everything is checked here, before any
    work is done.

    Raises:
        TypeError, ValueError: names the setting, what came and what was expected.
    """

    train_data: str = field(
        metadata={
            "group": "data",
            "metavar": "DATA",
            "help": "what to train on: a manifest (.jsonl, .json, .csv, .tsv, .parquet) of quadruplets, "
            "shards such as 'train-{0000..0012}.tar', or 'toy'",
        }
    )
    val_data: str | None = _option(
        "data",
        "what to validate on, likewise; without it nothing is selected, and no bounds are fitted",
        metavar="DATA",
    )
    csv_img_key: str | None = _option("data", "the manifest's name for safe_image", metavar="COLUMN")
    csv_caption_key: str | None = _option("data", "the manifest's name for safe_caption", metavar="COLUMN")
    csv_unsafe_img_key: str | None = _option("data", "the manifest's name for unsafe_image", metavar="COLUMN")
    csv_unsafe_caption_key: str | None = _option(
        "data", "the manifest's name for unsafe_caption", metavar="COLUMN"
    )
    image_root: str | None = _option(
        "data",
        "folder that image paths start from, the manifest's own by default; for ViSU that of COCO",
        metavar="DIR",
    )
    on_bad_image: Literal["raise", "skip"] = _option(
        "data", "what to do with rows and images that cannot be used", "raise"
    )
    verify_images: bool = _option("data", "decode every image once before the work starts", True)
    allow_outside_root: bool = _option(
        "data", "read images that a manifest names outside of its image root, too", False
    )
    max_pixels: int = _option("data", "of an image; larger ones cannot be used", MAX_PIXELS, above=0)
    background: str = _option(
        "data", "behind transparent pixels; none shows the colours below them", "none", choices=BACKGROUNDS
    )
    aug_cfg: tuple[str, ...] | None = _option(
        "data",
        "open_clip's augmentation for training, as 'scale=0.9,1.0'; that is the default",
        metavar="NAME=VALUE",
    )
    workers: int | None = _option(
        "data",
        "loader processes of each process; by default its share of the CPUs, at most 8",
        at_least=0,
    )

    model: str = field(
        metadata={
            "group": "model",
            "metavar": "NAME",
            "help": "any open_clip architecture (ViT-B-32, hf-hub:..., local-dir:...) or 'hysac-toy'",
        }
    )
    pretrained: str | None = _option(
        "model", "open_clip's tag or a file of weights; random weights without", metavar="TAG"
    )
    precision: str | None = _option(
        "model",
        "of the towers; geometry and losses are always float32. By default amp_bf16 on a GPU, fp32 on a CPU",
        choices=TRAINING_PRECISIONS,
    )
    force_image_size: int | None = _option("model", "override the architecture's image size", above=0)
    force_quick_gelu: bool = _option("model", "use QuickGELU, as OpenAI's weights need", False)
    grad_checkpointing: bool = _option("model", "recompute activations in the backward pass", False)
    lora_r: int | None = _option(
        "model", "train low-rank adapters of this rank instead of all weights; 16 in the paper", above=0
    )
    lora_alpha: float = _option("model", "the adapters are scaled by lora_alpha / lora_r", 1.0, above=0)
    lora_targets: tuple[str, ...] = _option("model", "what gets adapters", DEFAULT_TARGETS, choices=TARGETS)
    curv_init: float | None = _option(
        "model", "initial curvature, the centre of its range; by default 1, or the directory's", above=0
    )
    learn_curv: bool = _option("model", "train the curvature", True)
    scale_init: float = _option("model", "initial inverse temperature, 14.3 to 100", MIN_SCALE)

    entail_weight: float = _option("loss", "weight of the entailment terms", 1.0, at_least=0)
    aperture_scale: float = _option("loss", "factor of the cones' half-aperture", 1.0, above=0)
    min_radius: float = _option("loss", "K of the half-aperture asin(2K / |x|)", 0.1, above=0)
    local_loss: bool = _option(
        "loss", "with several processes: each computes its own rows; the same gradients, less work", True
    )
    gather_with_grad: bool = _option(
        "loss", "with several processes: exchange gradients; needed by local_loss", True
    )
    dist_timeout: float = _option(
        "loss",
        "with several processes: seconds after which one that waits for the others in a step gives up",
        600.0,
        above=0,
        below=31 * 24 * 3600,
    )

    epochs: int = _option("optimisation", "passes over the training data", 20, above=0)
    max_steps: int | None = _option("optimisation", "stop after this many steps instead, if earlier", above=0)
    batch_size: int = _option("optimisation", "quadruplets of a micro-batch, on each process", 64, above=0)
    accum_freq: int = _option(
        "optimisation",
        "micro-batches of a step: one loss over all of them, exactly that of the big batch, at the memory of "
        "one and twice the forwards",
        1,
        above=0,
    )
    lr: float = _option("optimisation", "peak learning rate", 1e-4, above=0)
    beta1: float = _option("optimisation", "of AdamW", 0.9, at_least=0, below=1)
    beta2: float = _option("optimisation", "of AdamW", 0.98, at_least=0, below=1)
    eps: float = _option("optimisation", "of AdamW", 1e-8, above=0)
    wd: float = _option(
        "optimisation", "weight decay of matrices; vectors and scalars have none", 0.2, at_least=0
    )
    warmup: int | None = _option(
        "optimisation", "steps of linear warm-up; by default a tenth of all", at_least=0
    )
    lr_scheduler: Literal["cosine", "const"] = _option("optimisation", "after the warm-up", "cosine")
    grad_clip_norm: float | None = _option("optimisation", "greatest norm of the gradient", above=0)
    max_bad_steps: int = _option(
        "optimisation",
        "give up after this many steps in a row whose gradient is not finite; such steps are skipped",
        10,
        above=0,
    )

    val_frequency: int = _option("selection", "epochs between validations", 1, above=0)
    select_metric: tuple[str, ...] = _option(
        "selection",
        "keep the model with the greatest mean of these, such as 'T->I R@1' or 'text AUC'; 'loss' alone: the "
        "least",
        DEFAULT_SELECT_METRIC,
        metavar="METRIC",
    )
    patience: int | None = _option(
        "selection", "stop after this many validations without a better one; never without", above=0
    )

    logs: str = _option("run", "directory of all runs", "runs", metavar="DIR")
    name: str | None = _option(
        "run", "this run's directory in it; by default the model and the time", metavar="NAME"
    )
    resume: str | None = _option(
        "run",
        "'latest': continue the named run where it stopped, if it exists; or a checkpoint file",
        metavar="latest|FILE",
    )
    device: str | None = _option(
        "run", "such as cpu or cuda:1; by default a GPU if there is one", metavar="DEVICE"
    )
    seed: int = _option("run", "of weights, order and augmentation", 0, at_least=0)
    log_every_n_steps: int = _option("run", "steps between lines of metrics.jsonl", 20, above=0)
    save_every_n_steps: int | None = _option(
        "run", "steps between checkpoints; there is always one after each epoch", above=0
    )
    keep_last: int = _option("run", "checkpoints to keep", 2, above=0)
    report_to: Literal["none", "tensorboard"] = _option("run", "also write TensorBoard's event files", "none")
    detect_anomaly: bool = _option("run", "find the operation that makes a NaN gradient; slow", False)

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for setting in fields(self):
            _check(setting.name, getattr(self, setting.name), hints[setting.name], setting.metadata)
        if self.precision in _NARROW and self.lora_r is None:
            raise ValueError(
                f"precision {self.precision!r} keeps weights in bfloat16, too coarse for training steps: use "
                "amp_bf16, or adapters (lora_r)"
            )
        if self.local_loss and not self.gather_with_grad:
            raise ValueError("local_loss needs gather_with_grad, or part of the gradient is lost")
        if self.resume == "latest" and self.name is None:
            raise ValueError("resume 'latest' needs the name of the run")
        _check_run_name(self.name)
        if self.warmup is not None and self.max_steps is not None and self.warmup >= self.max_steps:
            raise ValueError(
                f"warmup must be less than max_steps, got {self.warmup} and {self.max_steps}: the learning "
                "rate would never be reached"
            )
        if self.on_bad_image == "skip" and not self.verify_images:
            raise ValueError("on_bad_image 'skip' needs verify_images: what is skipped must be known first")
        check_select_metric(self.select_metric)
        augmentation(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The inverse of :meth:`to_dict`; keys that are no settings are ignored, lists become tuples."""
        names = {setting.name for setting in fields(cls)}
        known: dict[str, Any] = {name: value for name, value in values.items() if name in names}
        known.update({name: tuple(value) for name, value in known.items() if isinstance(value, list)})
        return cls(**known)

    def settings(self) -> dict[str, Any]:
        """What determines the course of the run: a continuation must agree on it."""
        return {name: value for name, value in self.to_dict().items() if name not in _MAY_CHANGE}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }


def _check_run_name(name: str | None) -> None:
    if name is None:
        return
    if not name.strip():
        raise ValueError("name must not be blank")
    if Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).parts:
        raise ValueError(f"name must lie within logs, without '..', got {name!r}")


def columns(settings: Any) -> dict[str, str] | None:
    """The manifest's names of the fields that have other names, from the ``csv_*`` settings."""
    keys = {
        "safe_image": settings.csv_img_key,
        "safe_caption": settings.csv_caption_key,
        "unsafe_image": settings.csv_unsafe_img_key,
        "unsafe_caption": settings.csv_unsafe_caption_key,
    }
    return {name: key for name, key in keys.items() if key is not None} or None


def augmentation(settings: TrainConfig) -> dict[str, Any]:
    """``aug_cfg`` as open_clip takes it."""
    known = [field.name for field in fields(AugmentationCfg)]
    parsed = {}
    for entry in settings.aug_cfg or ():
        name, _, value = entry.partition("=")
        if name not in known:
            raise ValueError(f"aug_cfg must be NAME=VALUE with a name of {', '.join(known)}, got {entry!r}")
        try:
            parsed[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise ValueError(f"aug_cfg: the value of {entry!r} is no number, tuple or boolean") from None
    return parsed


def _check(name: str, value: Any, hint: Any, rules: Any) -> None:
    kinds = get_args(hint) if get_origin(hint) not in (None, Literal, tuple) else (hint,)
    if value is None and type(None) in kinds:
        return
    kind = next(kind for kind in kinds if kind is not type(None))
    if get_origin(kind) is Literal:
        _check_choice(name, value, get_args(kind))
    elif get_origin(kind) is tuple:
        if not isinstance(value, tuple) or not value or not all(isinstance(item, str) for item in value):
            raise TypeError(f"{name} must be a tuple of strings, not empty, got {value!r}")
        for item in value if "choices" in rules else ():
            _check_choice(name, item, rules["choices"])
    else:
        _check_type(name, value, kind)
        if "choices" in rules:
            _check_choice(name, value, rules["choices"])
        _check_range(name, value, rules)


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_type(name: str, value: Any, kind: Any) -> None:
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{name} must be of type {kind.__name__}, got {value!r}")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")


def _check_range(name: str, value: Any, rules: Any) -> None:
    if "above" in rules and not value > rules["above"]:
        raise ValueError(f"{name} must be greater than {rules['above']}, got {value}")
    if "at_least" in rules and not value >= rules["at_least"]:
        raise ValueError(f"{name} must be at least {rules['at_least']}, got {value}")
    if "below" in rules and not value < rules["below"]:
        raise ValueError(f"{name} must be less than {rules['below']}, got {value}")
