"""Models on the hub, which here is a folder: what is fetched, what is uploaded, and what the card says."""

import json
import shutil
from fnmatch import fnmatch
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

import hysac
from hysac import hub
from hysac.cli import main
from hysac.data import write_toy


@pytest.fixture
def repositories(tmp_path, monkeypatch):
    """Repositories as folders; a download is a copy."""
    root, cache = tmp_path / "hub", tmp_path / "cache"

    def hf_hub_download(repo, name, cache_dir=None):
        if not (root / repo / name).is_file():
            raise EntryNotFoundError(f"404: {repo} has no {name}")
        return str(root / repo / name)

    def snapshot_download(repo, allow_patterns, cache_dir=None):
        for path in (root / repo).iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                (cache / repo).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, cache / repo)
        return str(cache / repo)

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, private=None, exist_ok=False):
            (root / repo_id).mkdir(parents=True, exist_ok=exist_ok)

        def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
            for path in folder_path.iterdir():
                if path.name in allow_patterns:
                    shutil.copy(path, root / repo_id)
            return SimpleNamespace(commit_url=f"https://hub.example/{repo_id}/commit/1")

        def upload_file(self, path_or_fileobj, path_in_repo, repo_id, commit_message):
            (root / repo_id / path_in_repo).write_bytes(path_or_fileobj)

    for name, fake in (
        ("hf_hub_download", hf_hub_download),
        ("snapshot_download", snapshot_download),
        ("HfApi", Api),
    ):
        monkeypatch.setattr(hub, name, fake)
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    toy = write_toy(folder / "toy", train_size=8, val_size=8, progress=False)
    common = ["--device", "cpu", "--workers", "0", "--batch-size", "4"]
    train = [
        "train",
        "--train-data",
        str(toy["train"]),
        "--val-data",
        str(toy["val"]),
        "--model",
        "hysac-toy",
    ]
    assert main([*train, "--max-steps", "1", "--logs", str(folder), "--name", "run", *common]) == 0
    assert main(["evaluate", "--model-dir", str(folder / "run"), "--val-data", str(toy["val"]), *common]) == 0
    return folder / "run"


def outputs(model):
    text = hysac.get_tokenizer("hysac-toy")(["a cat", "a dog"])
    with torch.no_grad():
        return model.eval().encode_text(text, normalize=True)


@pytest.mark.parametrize("load", [hysac.from_pretrained, hysac.create_model])
def test_a_model_comes_back_with_its_scalars(repositories, tmp_path, load):
    torch.manual_seed(0)
    model = hysac.create_model("hysac-toy", curv_init=0.6)
    with torch.no_grad():
        model.curv.fill_(-0.7)
        model.visual_alpha.fill_(-1.3)
    hysac.save_pretrained(model, tmp_path / "model")
    address = hysac.push_to_hub(tmp_path / "model", "me/toy", licence="mit")
    assert address == "https://hub.example/me/toy/commit/1"
    loaded = load("hf-hub:me/toy")
    assert loaded.curv_init == 0.6
    assert loaded.curv.item() == pytest.approx(-0.7)
    assert loaded.visual_alpha.item() == pytest.approx(-1.3)
    assert torch.equal(outputs(loaded), outputs(model))


def test_nothing_else_is_fetched(repositories, run):
    hysac.push_to_hub(run, "me/toy", licence="mit")
    (repositories / "me/toy/setup.py").write_text("raise SystemExit")
    directory = hub.fetch("hf-hub:me/toy")
    assert not (directory / "setup.py").exists()
    assert (directory / "bounds.json").is_file()


def test_another_repository_is_no_hysac_model(repositories):
    (repositories / "other/clip").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="hf-hub:other/clip is not a HySAC model: "):
        hysac.from_pretrained("hf-hub:other/clip")


def test_a_hub_that_does_not_answer_is_no_answer(monkeypatch):
    def unreachable(*_, **__):
        raise LocalEntryNotFoundError("cannot find the file in the cache")

    monkeypatch.setattr(hub, "hf_hub_download", unreachable)
    for load in (hysac.create_model, hysac.from_pretrained):
        with pytest.raises(ConnectionError, match=r"cannot tell whether '(hf-hub:)?me/toy' is"):
            load("hf-hub:me/toy")


def test_a_damaged_directory_is_not_uploaded(repositories, tmp_path):
    hysac.save_pretrained(hysac.create_model("hysac-toy"), tmp_path / "model")
    path = tmp_path / "model" / "hysac.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="is not what was saved"):
        hysac.push_to_hub(tmp_path / "model", "me/toy", licence="mit")
    assert not repositories.exists()


def test_the_card_has_the_measured_figures(repositories, run):
    hysac.push_to_hub(run, "me/toy", licence="cc-by-nc-4.0")
    card = (repositories / "me/toy/README.md").read_text()
    report = json.loads((run / "model" / "evaluation.json").read_text())
    bounds = hysac.Bounds.load(run / "model" / "bounds.json")
    assert card.startswith('---\nlicense: "cc-by-nc-4.0"\n')
    assert 'hysac.from_pretrained("hf-hub:me/toy")' in card
    assert "toy/train.jsonl" in card
    text = report["safety"]["classification"]["text"]
    assert f"| text | {100 * text['auc']:.1f} | {100 * text['accuracy']:.1f} |" in card
    assert f"{text['threshold']:.4f}" in card
    assert f"| T->I | {100 * report['retrieval']['T->I']['R@1']:.1f} |" in card
    assert f"| V | {bounds['V'].low_05:.4f} | {bounds['V'].avg:.4f} | {bounds['V'].up_95:.4f} |" in card


def test_a_card_of_a_bare_model_says_what_is_not_known(tmp_path):
    hysac.save_pretrained(hysac.create_model("hysac-toy"), tmp_path / "model")
    card = hub.model_card(tmp_path / "model", "me/toy", licence="mit", data="Harmless\n---\npairs.")
    assert "Nothing is recorded" in card
    assert "None are stored" in card
    assert "Harmless" in card
