"""Making HySAC models and their transforms by open_clip's architecture names."""

from __future__ import annotations

import inspect
import os
from copy import deepcopy
from pathlib import Path
from textwrap import shorten
from typing import Any

import open_clip
import torch
from open_clip.factory import LOCAL_DIR_PREFIX, parse_model_name
from open_clip.model import get_model_preprocess_cfg
from open_clip.transform import AugmentationCfg, PreprocessCfg, image_transform_v2
from torchvision.transforms import Compose

from hysac.data.images import ToRGB
from hysac.data.text import as_plain_text
from hysac.models.cosine import EvaluatedModel
from hysac.models.hub import PREFIX as HUB_PREFIX
from hysac.models.hub import fetch
from hysac.models.model import MIN_SCALE, HySAC
from hysac.models.model_config import read_model_cfg
from hysac.models.pretrained import (
    TOWERS_CONFIG,
    check_files,
    is_model_directory,
    load_scalars,
    model_directory,
    read_curv_init,
)
from hysac.models.tokenizer_files import auto_tokenizer, check_tokenizer

MODEL_CONFIGS = Path(__file__).parent / "configs"
PRECISIONS = ("fp32", "amp", "amp_bf16", "amp_bfloat16", "bf16", "fp16", "pure_bf16", "pure_fp16")


def create_model(
    model_name: str,
    pretrained: str | None = None,
    *,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    curv_init: float | None = None,
    learn_curv: bool = True,
    scale_init: float | None = MIN_SCALE,
    verify: bool = True,
    **open_clip_options: Any,
) -> HySAC:
    """An open_clip architecture, with random or pretrained towers, as a HySAC model in training mode.

    Args:
        model_name: a name of ``open_clip.list_models()``, ``hysac-toy`` (32 x 32 pixels, small enough to
            train on a CPU), ``hf-hub:org/repo`` or ``local-dir:DIRECTORY``. A directory that
            :func:`hysac.save_pretrained` wrote brings its scalars along.
        pretrained: open_clip's tag or a file with the towers' weights; None starts from random weights.
        precision: as in open_clip: ``fp32`` or ``amp*`` (float32 weights), ``bf16`` or ``fp16`` (narrow
            matrices, float32 norms), ``pure_bf16`` or ``pure_fp16``. The four scalars are always float32.
        device: where the model lives.
        curv_init: initial curvature, 1.0 unless the directory says otherwise; see :meth:`HySAC.from_clip`.
        learn_curv: whether the curvature is trained.
        scale_init: initial inverse temperature; see :meth:`HySAC.from_clip`.
        verify: whether to compare the files of such a directory with their checksums, at the time of reading
            them once: 1 to 2 s for each GB.
        open_clip_options: further arguments of ``open_clip.create_model``: ``output_dict``, ``cache_dir``,
            ``force_image_size``, ``force_quick_gelu`` and so on.

    Raises:
        ValueError: an unknown name, weight or precision, weights of another architecture, a damaged
            directory, or a ``curv_init`` that contradicts it.
        FileNotFoundError: a directory that lacks a file.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if open_clip_options.pop("jit", False):
        raise ValueError("jit=True is not supported: use torch.compile")
    directory = hysac_directory(model_name, open_clip_options.get("cache_dir"))
    if directory is not None:
        model_name = f"{LOCAL_DIR_PREFIX}{directory}"
        check_files(directory, verify=verify)
        curv_init = _agreed_curv_init(curv_init, read_curv_init(directory), directory)
    model_cfg = _final_model_cfg(_model_cfg(model_name), open_clip_options)

    wrong = RuntimeError if directory is None else _OF_WRONG_SETTINGS
    clip = _create_clip(
        model_name, pretrained, wrong, precision=precision, device=device, **open_clip_options
    )
    model = HySAC.from_clip(
        clip,
        curv_init=1.0 if curv_init is None else curv_init,
        learn_curv=learn_curv,
        scale_init=scale_init,
        model_cfg=model_cfg,
    )
    schema, identifier = parse_model_name(model_name)
    model.tokenizer_source = os.path.abspath(identifier) if schema == "local-dir" else None
    if directory is not None:
        load_scalars(model, directory)
    return model


def create_model_and_transforms(
    model_name: str,
    pretrained: str | None = None,
    *,
    aug_cfg: dict[str, Any] | AugmentationCfg | None = None,
    background: str = "none",
    **options: Any,
) -> tuple[HySAC, Compose, Compose]:
    """:func:`create_model`, and the transforms from a PIL image to its input.

    Args:
        model_name: see :func:`create_model`.
        pretrained: see :func:`create_model`.
        aug_cfg: open_clip's augmentation for training; None crops lightly at random.
        background: see :func:`transforms`.
        options: further arguments of :func:`create_model`.

    Returns:
        ``(model, preprocess_train, preprocess_val)``.
    """
    model = create_model(model_name, pretrained, **options)
    return model, *transforms(model, aug_cfg=aug_cfg, background=background)


def from_pretrained(
    directory: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    verify: bool = True,
    **open_clip_options: Any,
) -> HySAC:
    """Load a model directory of :func:`hysac.save_pretrained`, ready for inference (in ``eval`` mode).

    Args:
        directory: the model directory, or a run with one; or ``hf-hub:org/repo`` for one of the hub.
        precision: see :func:`create_model`; the file's precision does not matter.
        device: where the model lives.
        verify, open_clip_options: see :func:`create_model`.

    Raises:
        FileNotFoundError: ``directory`` is not a HySAC model directory.
        ValueError: a file of another format version, damaged, changed, or with other tensors.
    """
    name = os.fspath(directory)
    if not name.startswith(HUB_PREFIX):
        name = f"{LOCAL_DIR_PREFIX}{model_directory(Path(directory))}"
    elif fetch(name, open_clip_options.get("cache_dir")) is None:
        raise FileNotFoundError(f"{name} is not a HySAC model: it has no hysac_config.json")
    return create_model(name, precision=precision, device=device, verify=verify, **open_clip_options).eval()


def get_tokenizer(model_name: str, **options: Any) -> Any:
    """open_clip's tokenizer of an architecture: ``tokenizer(texts) -> (len(texts), L)`` int64.

    Texts are ordinary text: what spells a special token, as ``<end_of_text>``, is encoded as its characters.
    Of a text beyond the context the beginning is encoded; :func:`hysac.data.text.text_windows` has all of it.

    A directory that :func:`hysac.save_pretrained` wrote comes with its tokenizer: nothing is fetched for it.
    open_clip's own BPE comes with open_clip, and needs no file. One of Hugging Face needs transformers, the
    extra ``hf``, and is read from the directory alone.

    Args:
        model_name: see :func:`create_model`.
        options: further arguments of ``open_clip.get_tokenizer``, such as ``context_length``.

    Raises:
        ValueError: an unknown name, a directory without the tokenizer that it names or with a damaged one,
            or ``trust_remote_code``.
        ImportError: the tokenizer is one of Hugging Face, and transformers is not installed.
    """
    if "trust_remote_code" in options:
        raise ValueError("trust_remote_code is not supported: no code of a model's files is run")
    directory = hysac_directory(model_name, options.get("cache_dir"))
    if directory is not None:
        model_name = f"{LOCAL_DIR_PREFIX}{directory}"
        cfg = read_model_cfg(directory / TOWERS_CONFIG)
    else:
        cfg = _model_cfg(model_name)
    name = cfg["text_cfg"].get("hf_tokenizer_name")
    if name:
        auto_tokenizer()
    if directory is None:
        return as_plain_text(open_clip.get_tokenizer(model_name, **options))
    if name:
        check_tokenizer(directory, name)
        options["local_files_only"] = True
    try:
        return as_plain_text(open_clip.get_tokenizer(model_name, **options))
    except ImportError:
        raise
    except Exception as error:  # a damaged file raises half a dozen types
        reason = shorten(str(error), 400, placeholder=" ...")
        raise ValueError(f"cannot make the tokenizer of {directory}: {reason}") from error


def transforms(
    model: EvaluatedModel,
    *,
    aug_cfg: dict[str, Any] | AugmentationCfg | None = None,
    background: str = "none",
) -> tuple[Compose, Compose]:
    """The transforms of ``model`` for training and for inference, from a PIL image to ``(3, H, W)``.

    They are open_clip's after :class:`hysac.data.ToRGB`: ``transform(Image.open(path))`` of an image of any
    mode is what the data sets yield.

    Args:
        model: a HySAC model.
        aug_cfg: open_clip's augmentation for training; None crops lightly at random.
        background: what is put behind transparent pixels: ``"none"``, ``"white"``, ``"black"`` or
            ``"checker"``.
    """
    cfg = PreprocessCfg(**get_model_preprocess_cfg(model))
    train = image_transform_v2(cfg, is_train=True, aug_cfg=aug_cfg)
    val = image_transform_v2(cfg, is_train=False)
    first = ToRGB(background)
    return Compose([first, *train.transforms]), Compose([first, *val.transforms])


# What open_clip raises for settings of the right kinds that make no model.
_OF_WRONG_SETTINGS = (
    RuntimeError,
    AssertionError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)


def _create_clip(
    model_name: str,
    pretrained: str | None,
    wrong: type[Exception] | tuple[type[Exception], ...],
    **options: Any,
) -> open_clip.CLIP:
    try:
        return open_clip.create_model(model_name, pretrained, **options)
    except torch.OutOfMemoryError:
        raise
    except wrong as error:  # also for tags and files it does not know, and tensors that do not fit
        reason = shorten(str(error), 400, placeholder=" ...")  # it may list every tensor
        raise ValueError(f"cannot make model {model_name!r}: {reason}") from error


def _model_cfg(model_name: str) -> dict[str, Any]:
    """open_clip's configuration of a name; hysac's own are registered when one is first asked for."""
    if (MODEL_CONFIGS / f"{model_name}.json").is_file() and model_name not in open_clip.list_models():
        open_clip.add_model_config(MODEL_CONFIGS)
    schema, identifier = parse_model_name(model_name)
    cfg = open_clip.get_model_config(model_name if schema else identifier.replace("/", "-"))
    if cfg is None:
        raise ValueError(
            f"model_name {model_name!r} is unknown; it must be hysac-toy, a name of open_clip.list_models(), "
            "hf-hub:org/repo or local-dir:DIRECTORY"
        )
    return cfg


def _final_model_cfg(cfg: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The configuration after ``open_clip.create_model``'s ``force_*`` options and constructor arguments."""
    cfg = deepcopy(cfg)
    for option, (part, key) in {
        "force_image_size": ("vision_cfg", "image_size"),
        "force_patch_dropout": ("vision_cfg", "patch_dropout"),
        "force_context_length": ("text_cfg", "context_length"),
    }.items():
        if options.get(option) is not None:
            cfg[part][key] = options[option]
    if options.get("force_quick_gelu"):
        cfg["quick_gelu"] = True
    if options.get("force_custom_text"):
        cfg["custom_text"] = True
    known = inspect.signature(open_clip.create_model).parameters
    return cfg | {name: value for name, value in options.items() if name not in known}


def hysac_directory(model_name: str, cache_dir: str | None = None) -> Path | None:
    """The directory of a name that stands for one of HySAC's, here or on the hub; None for other names."""
    schema, identifier = parse_model_name(model_name)
    if schema == "hf-hub":
        return fetch(identifier, cache_dir)
    directory = Path(identifier)
    return directory if schema == "local-dir" and is_model_directory(directory) else None


def _agreed_curv_init(given: float | None, stored: float, directory: Path) -> float:
    if given is not None and given != stored:
        raise ValueError(f"curv_init must be {stored}, the value of {directory}, or None; got {given}")
    return stored
