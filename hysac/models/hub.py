"""HySAC models on the Hugging Face hub: downloading and uploading model directories."""

from __future__ import annotations

import json
import math
import os
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)

from hysac.json_object import JSONObject
from hysac.models.model_config import read_model_cfg
from hysac.models.pretrained import (
    BOUNDS_FILE,
    EVALUATION_FILE,
    FILES,
    RUN_MODEL,
    RUN_RECORDS,
    RUN_SETTINGS,
    SAFETY_FILE,
    SETTINGS_FILE,
    SUMS_FILE,
    TOWERS_CONFIG,
    check_files,
    model_directory,
    read_curv_init,
    read_curvature,
)
from hysac.models.tokenizer_files import PATTERNS, tokenizer_files
from hysac.safety import Bounds

PREFIX = "hf-hub:"
_READ = (*FILES, BOUNDS_FILE, SAFETY_FILE, SUMS_FILE)
_FILES = (*_READ, EVALUATION_FILE)
_OF_ANY_MODEL = (*_FILES, *PATTERNS)


def fetch(name: str, cache_dir: str | None = None) -> Path | None:
    """The directory of a HySAC model ``hf-hub:org/repo``, from the hub or its cache; None if it is another.

    Of a repository the files of a model directory and of a tokenizer are fetched, nothing else.

    Raises:
        ConnectionError: the hub cannot be reached.
        ValueError: there is no such repository, or none that may be read.
    """
    repo = name.removeprefix(PREFIX)
    try:
        hf_hub_download(repo, SETTINGS_FILE, cache_dir=cache_dir)
    except LocalEntryNotFoundError as error:
        raise ConnectionError(
            f"cannot tell whether {name!r} is a HySAC model: the hub does not answer, and the cache has no "
            f"{SETTINGS_FILE} of it"
        ) from error
    except (EntryNotFoundError, HFValidationError):
        return None
    except HfHubHTTPError as error:
        raise ValueError(f"cannot fetch {name!r}: {error}") from error
    return Path(snapshot_download(repo, allow_patterns=[*_READ, *PATTERNS], cache_dir=cache_dir))


def push_to_hub(
    directory: str | os.PathLike[str],
    repo_id: str,
    *,
    licence: str,
    private: bool | None = None,
    token: str | None = None,
    data: str | None = None,
    commit_message: str = "Upload a HySAC model",
) -> str:
    """Upload a model directory, with a model card, for ``hysac.from_pretrained("hf-hub:REPO")``.

    All files are in one commit. It deletes files of an earlier model that this one lacks, such as
    bounds, an evaluation or a tokenizer; other files of the repository stay.

    Args:
        directory: a model directory of :func:`hysac.save_pretrained`, or a run with one.
        repo_id: ``org/repo``; created if it does not exist.
        licence: of the weights, by the hub's identifier, such as ``"cc-by-nc-4.0"``. The licence of the
            towers binds models made from them.
        private: whether a repository that is created is private; None leaves it to the hub.
        token: of the hub; None takes that of the login.
        data: what the model was trained on, for the card; None takes it from the training run.
        commit_message: of the upload.

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError, ValueError: no model directory, or a damaged one, or bounds or an evaluation of
            another model or of another shape; nothing is uploaded then.
    """
    home = model_directory(Path(directory))
    check_files(home)
    card = model_card(home, repo_id, licence=licence, data=data)
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    names = _of_the_model(home)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, str(home / name)) for name in names
    ]
    operations.append(CommitOperationAdd("README.md", card.encode()))
    operations += [
        CommitOperationDelete(name)
        for name in api.list_repo_files(repo_id)
        if name not in names and "/" not in name and any(fnmatch(name, one) for one in _OF_ANY_MODEL)
    ]
    commit = api.create_commit(repo_id, operations, commit_message=commit_message)
    return str(commit.commit_url)


def _of_the_model(directory: Path) -> list[str]:
    """The files of a model directory that a repository has, too."""
    has_tokenizer = read_model_cfg(directory / TOWERS_CONFIG)["text_cfg"].get("hf_tokenizer_name")
    names = [name for name in _FILES if (directory / name).is_file()]
    return [*names, *(tokenizer_files(directory) if has_tokenizer else ())]


def model_card(directory: Path, name: str, *, licence: str, data: str | None = None) -> str:
    """The card of a model directory in Markdown: what it is for, its data, figures, bounds and licence.

    Args:
        directory: a model directory, with its ``bounds.json`` and ``evaluation.json``; where it is the model
            of a training run, that run's ``config.json`` is read, too.
        name: its title.
        licence: by the hub's identifier.
        data: what it was trained on; None takes it from the run, or says that nothing is known.

    Raises:
        ValueError: names the file: bounds or an evaluation at another curvature than the model's, or a file
            that is not what hysac writes.
    """
    model_cfg = read_model_cfg(directory / TOWERS_CONFIG)
    trained_on = data or _train_data(directory) or "Not recorded."
    parts = [
        _front_matter(licence),
        f"# {name}",
        "A [HySAC](https://arxiv.org/abs/2503.12127) model: CLIP towers whose features are points of "
        "hyperbolic space, with safe content near the origin and unsafe content farther out. It tells "
        "unsafe images and texts by their distance to the origin, retrieves, and redirects an unsafe query "
        "to a safe neighbour.",
        f'```python\nimport hysac\n\nmodel = hysac.from_pretrained("{PREFIX}{name}")\n'
        f'tokenizer = hysac.get_tokenizer("{PREFIX}{name}")\n_, preprocess = hysac.transforms(model)\n```',
        "## What it is for",
        "To rank and filter, with a person who decides. A distance is no proof: figures below are those of "
        "its own test data, and other data needs its own threshold.",
        "## Architecture and data",
        f"Towers: embedding width {model_cfg['embed_dim']}, images of "
        f"{model_cfg['vision_cfg'].get('image_size')} pixels. Centre of the curvature's range: "
        f"{read_curv_init(directory):g}.",
        f"Trained on: {trained_on}",
        "## Measured",
        _measured(directory),
        "## Bounds of redirection",
        _bounds(directory),
        "## Licence",
        f"Of the weights: `{licence}`.",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(licence: str) -> str:
    fields = {"license": licence, "library_name": "hysac", "tags": ["clip", "hyperbolic", "safety"]}
    # JSON is YAML, and nothing in a value can end it.
    return "---\n" + "\n".join(f"{key}: {json.dumps(value)}" for key, value in fields.items()) + "\n---"


def _train_data(directory: Path) -> str | None:
    """The training data that the run of this model records; None if the folder is no run."""
    run = directory.resolve().parent
    if directory.resolve().name != RUN_MODEL or not (run / RUN_RECORDS).is_file():
        return None
    train_data = JSONObject.read(run / RUN_SETTINGS).get("train_data")
    return f"`{train_data}`" if isinstance(train_data, str) and train_data else None


def _measured(directory: Path) -> str:
    path = directory / EVALUATION_FILE
    if not path.is_file():
        return "Nothing is recorded; `hysac evaluate --model-dir` writes `evaluation.json`."
    report = JSONObject.read(path)
    _check_curvature(path, report.positive("curv"), directory)
    lines = [f"On {report.whole('quadruplets')} quadruplets, at curvature {report.positive('curv'):.4g}:"]
    rates = [
        [
            what,
            *(_percent(row, key) for key in ("auc", "accuracy", "fpr", "fnr")),
            f"{row.number('threshold'):.4f}",
        ]
        for what, row in report.object("safety").objects("classification")
    ]
    if rates:
        lines.append(_table(["unsafe by distance, %", "AUC", "accuracy", "FPR", "FNR", "threshold"], rates))
    retrieval = dict(report.objects("retrieval"))
    if retrieval:
        cut_offs = list(next(iter(retrieval.values())).content)
        recalls = [[task, *(_percent(row, k) for k in cut_offs)] for task, row in retrieval.items()]
        lines.append(_table(["retrieval, %", *cut_offs], recalls))
    return "\n\n".join(lines)


def _percent(row: JSONObject, key: str) -> str:
    return f"{100 * row.number(key):.1f}"


def _bounds(directory: Path) -> str:
    path = directory / BOUNDS_FILE
    if not path.is_file():
        return "None are stored; `hysac bounds` fits them."
    bounds = Bounds.load(path)
    if bounds.curv is not None:
        _check_curvature(path, bounds.curv, directory)
    rows = [
        [letter, *(f"{value:.4f}" for value in (row.low_05, row.avg, row.up_95))]
        for letter, row in bounds.classes.items()
    ]
    legend = "S safe text, V safe image, U unsafe text, G unsafe image; distances to the origin."
    return f"{legend}\n\n" + _table(["class", "5th percentile", "mean", "95th percentile"], rows)


def _check_curvature(path: Path, curv: float, directory: Path) -> None:
    own = read_curvature(directory)
    if not math.isclose(curv, own, rel_tol=1e-3):
        raise ValueError(f"{path} is of another model: of curvature {curv:.6g}, where this one has {own:.6g}")


def _table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
