"""Settings of a hyperbolic model that open_clip's checkpoints lack, kept beside them in the run's
folder.

::

    LOGS/NAME/open_clip_config.json   the architecture and the preprocessing, as open_clip writes them
    LOGS/NAME/hysac_run.json          the objective and the initial curvature, which no tensor tells
    LOGS/NAME/checkpoints/*.pt        open_clip's
    LOGS/NAME/model/                  the trained model
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
from open_clip.factory import LOCAL_DIR_PREFIX
from open_clip.model import get_model_preprocess_cfg
from open_clip.transform import PreprocessCfg

from hysac.files import write_json
from hysac.json_object import JSONObject
from hysac.models.factory import create_model
from hysac.models.model import HySAC
from hysac.models.pretrained import TOWERS_CONFIG
from hysac.models.weights import check_tensors, read_weights
from hysac.open_clip_trainer.flags import Options

RUN_FILE = "hysac_run.json"
FORMAT_VERSION = 1


def describe(run: Path, model: HySAC, options: Options) -> None:
    """Write the settings that the checkpoints of a run lack."""
    preprocess_cfg = asdict(PreprocessCfg(**get_model_preprocess_cfg(model)))
    write_json(run / TOWERS_CONFIG, {"model_cfg": model.model_cfg, "preprocess_cfg": preprocess_cfg})
    settings: dict[str, Any] = {"format_version": FORMAT_VERSION, "open_clip": open_clip.__version__}
    settings |= asdict(options) | {
        "curv_init": model.curv_init,
        "tokenizer_source": model.tokenizer_source,
    }
    write_json(run / RUN_FILE, settings)


def run_of(checkpoint: str | os.PathLike[str]) -> Path | None:
    """The folder of the run that a checkpoint is of, if this trainer wrote it."""
    run = Path(checkpoint).absolute().parent.parent
    return run if (run / RUN_FILE).is_file() else None


def curv_init_of(run: Path) -> float:
    """The centre of the curvature's range in a run.

    Raises:
        ValueError: the run is of another format version, or no such number is there.
    """
    return _settings(run).positive("curv_init")


def load_checkpoint(checkpoint: str | os.PathLike[str]) -> HySAC:
    """The model of a checkpoint of this trainer, float32 and in ``eval`` mode; no code in it is run.

    Pass it to :func:`hysac.save_pretrained` for a directory.

    Args:
        checkpoint: ``LOGS/NAME/checkpoints/epoch_N.pt``, in the folder of its run.

    Raises:
        FileNotFoundError: there is no such file, or it is not in the folder of a run of this trainer.
        ValueError: it is damaged, or of another architecture than the run's.
    """
    run = run_of(checkpoint)
    if run is None:
        raise FileNotFoundError(f"{checkpoint} is not in the folder of a run: no {RUN_FILE} two levels up")
    weights = {
        name.removeprefix("module."): tensor for name, tensor in read_weights(Path(checkpoint)).items()
    }
    check_tensors({n: one for n, one in weights.items() if one.is_floating_point()}, str(checkpoint))
    # The architecture alone: also of towers that come pretrained from a hub.
    model = create_model(
        f"{LOCAL_DIR_PREFIX}{run}", curv_init=curv_init_of(run), load_weights=False, pretrained_text=False
    )
    model.tokenizer_source = _settings(run).get("tokenizer_source")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{checkpoint} is not of the model in {run / TOWERS_CONFIG}: {error}") from error
    model.clamp_parameters_()
    return model.eval()


def _settings(run: Path) -> JSONObject:
    settings = JSONObject.read(run / RUN_FILE)
    if settings.get("format_version") != FORMAT_VERSION:
        settings.refuse("format_version", str(FORMAT_VERSION))
    return settings
