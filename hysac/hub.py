"""HySAC models of the Hugging Face hub: as directories, there and back."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)

from hysac.files import read_json
from hysac.pretrained import (
    BOUNDS_FILE,
    FILES,
    SETTINGS_FILE,
    SUMS_FILE,
    TOWERS_CONFIG,
    check_files,
    model_directory,
    read_curv_init,
)
from hysac.safety import Bounds

PREFIX = "hf-hub:"
_TOKENIZER = ("tokenizer*", "vocab*", "merges*", "special_tokens_map.json", "*.model")
_EVALUATION = "evaluation.json"


def fetch(name: str, cache_dir: str | None = None) -> Path | None:
    """The directory of a HySAC model ``hf-hub:org/repo``, from the hub or its cache; None if it is another.

    Of a repository the files of a model directory and of a tokenizer are fetched, nothing else.

    Raises:
        ConnectionError: the hub cannot be reached, so that it cannot be told which it is.
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
    files = [*FILES, BOUNDS_FILE, SUMS_FILE, *_TOKENIZER]
    return Path(snapshot_download(repo, allow_patterns=files, cache_dir=cache_dir))


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

    Args:
        directory: a model directory of :func:`hysac.save_pretrained`, or a run with one.
        repo_id: ``org/repo``; created if it is not there.
        licence: of the weights, by the hub's identifier, such as ``"cc-by-nc-4.0"``. The towers' licence
            binds what is made of them.
        private: of a repository that is created; None leaves it to the hub.
        token: of the hub; None takes the one that is logged in.
        data: what the model was trained on, for the card; None leaves the run's own word.
        commit_message: of the upload.

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError, ValueError: no model directory, or a damaged one; nothing is uploaded then.
    """
    home = model_directory(Path(directory))
    check_files(home)
    card = model_card(home, repo_id, licence=licence, data=data)
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    present = [name for name in (*FILES, BOUNDS_FILE, SUMS_FILE, _EVALUATION) if (home / name).is_file()]
    commit = api.upload_folder(
        repo_id=repo_id, folder_path=home, allow_patterns=present, commit_message=commit_message
    )
    api.upload_file(
        path_or_fileobj=card.encode(),
        path_in_repo="README.md",
        repo_id=repo_id,
        commit_message=f"{commit_message}: its card",
    )
    return str(commit.commit_url)


def model_card(directory: Path, name: str, *, licence: str, data: str | None = None) -> str:
    """The card of a model directory in Markdown: what it is for, its data, figures, bounds and licence.

    Args:
        directory: a model directory, with what is beside it: ``bounds.json``, ``evaluation.json``, and
            ``config.json`` of the run that it belongs to.
        name: its title.
        licence: by the hub's identifier.
        data: what it was trained on; None takes the run's word, or says that nothing is known.
    """
    model_cfg = read_json(directory / TOWERS_CONFIG)["model_cfg"]
    run = directory.parent / "config.json"
    settings = read_json(run) if run.is_file() else {}
    trained_on = data or (f"`{settings['train_data']}`" if settings.get("train_data") else "Not recorded.")
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


def _measured(directory: Path) -> str:
    path = directory / _EVALUATION
    if not path.is_file():
        return "Nothing is recorded; `hysac evaluate --model-dir` writes `evaluation.json`."
    report = read_json(path)
    lines = [f"On {report['quadruplets']} quadruplets, at curvature {report['curv']:.4g}:"]
    rates = report["safety"]["classification"]
    if rates:
        rows = [
            [
                what,
                *(f"{100 * row[key]:.1f}" for key in ("auc", "accuracy", "fpr", "fnr")),
                f"{row['threshold']:.4f}",
            ]
            for what, row in rates.items()
        ]
        lines.append(_table(["unsafe by distance, %", "AUC", "accuracy", "FPR", "FNR", "threshold"], rows))
    if report["retrieval"]:
        cut_offs = list(next(iter(report["retrieval"].values())))
        rows = [
            [task, *(f"{100 * row[k]:.1f}" for k in cut_offs)] for task, row in report["retrieval"].items()
        ]
        lines.append(_table(["retrieval, %", *cut_offs], rows))
    return "\n\n".join(lines)


def _bounds(directory: Path) -> str:
    path = directory / BOUNDS_FILE
    if not path.is_file():
        return "None are stored; `hysac bounds` fits them."
    bounds = Bounds.load(path)
    rows = [
        [letter, *(f"{value:.4f}" for value in (row.low_05, row.avg, row.up_95))]
        for letter, row in bounds.classes.items()
    ]
    legend = "S safe text, V safe image, U unsafe text, G unsafe image; distances to the origin."
    return f"{legend}\n\n" + _table(["class", "5th percentile", "mean", "95th percentile"], rows)


def _table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
