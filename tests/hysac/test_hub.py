"""Models on the hub, which here is a folder: what is fetched, what is uploaded, and what the card says."""

import json
import shutil
from fnmatch import fnmatch
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import CommitOperationDelete
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from scoring import calibrate, make_model

import hysac
from hysac.cli import main
from hysac.data import write_toy
from hysac.models import hub
from hysac.scoring import SafetyScorer


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

        def list_repo_files(self, repo_id):
            files = [path for path in (root / repo_id).rglob("*") if path.is_file()]
            return [path.relative_to(root / repo_id).as_posix() for path in files]

        def create_commit(self, repo_id, operations, commit_message):
            for operation in operations:
                path = root / repo_id / operation.path_in_repo
                if isinstance(operation, CommitOperationDelete):
                    path.unlink()
                elif isinstance(operation.path_or_fileobj, bytes):
                    path.write_bytes(operation.path_or_fileobj)
                else:
                    shutil.copy(operation.path_or_fileobj, path)
            return SimpleNamespace(commit_url=f"https://hub.example/{repo_id}/commit/1")

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


@pytest.mark.slow
def test_nothing_else_is_fetched(repositories, run):
    hysac.push_to_hub(run, "me/toy", licence="mit")
    (repositories / "me/toy/setup.py").write_text("raise SystemExit")
    directory = hub.fetch("hf-hub:me/toy")
    assert not (directory / "setup.py").exists()
    assert (directory / "bounds.json").is_file()


@pytest.mark.slow
def test_a_scorer_of_the_hub_has_the_thresholds(repositories, tmp_path):
    directory = make_model(tmp_path / "model")
    points = calibrate(directory)
    hysac.push_to_hub(directory, "me/toy", licence="mit")
    for loaded in (SafetyScorer.from_pretrained("hf-hub:me/toy"), SafetyScorer.from_pretrained(directory)):
        assert loaded.points == points
        assert loaded(texts=["a dog"])[0].decision is not None
    (repositories / "other/clip").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="hf-hub:other/clip is not a HySAC model"):
        SafetyScorer.from_pretrained("hf-hub:other/clip")


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


def test_what_the_model_before_had_is_deleted(repositories, run, tmp_path):
    """Bounds, evaluation and tokenizer of other weights would be taken for this model's."""
    hysac.push_to_hub(run, "me/toy", licence="mit")
    repository = repositories / "me/toy"
    assert (repository / "bounds.json").is_file()
    for name in ("tokenizer.json", "special_tokens_map.json"):
        (repository / name).write_text("{}")
    others = {"notes.md", "vocabulary/words.txt", "tokenizer-study/bounds.json", "old/spm.model"}
    for name in others:
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text("{}")
    hysac.save_pretrained(hysac.create_model("hysac-toy"), tmp_path / "model")
    hysac.push_to_hub(tmp_path / "model", "me/toy", licence="mit")
    of_the_model = {path.name for path in (tmp_path / "model").iterdir()}
    left = {path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()}
    assert left == of_the_model | {"README.md"} | others


@pytest.mark.parametrize("folder", ["model", "other"])
def test_a_card_reads_the_settings_of_its_own_run_alone(run, tmp_path, folder):
    """A config.json in the folder above may be of anything."""
    shutil.copytree(run / "model", tmp_path / folder)
    shutil.copy(run / "config.json", tmp_path)
    card = hub.model_card(tmp_path / folder, "me/toy", licence="mit")
    assert "Trained on: Not recorded." in card
    (tmp_path / "metrics.jsonl").touch()
    card = hub.model_card(tmp_path / folder, "me/toy", licence="mit")
    assert ("toy/train.jsonl" in card) == (folder == "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([], "its content must be an object"),
        ({"quadruplets": None}, "quadruplets must be an integer of at least 1, got None"),
        ({"quadruplets": True}, "quadruplets must be an integer of at least 1, got True"),
        ({"curv": "1"}, "curv must be a finite number, got '1'"),
        ({"curv": 10**400}, "curv must be a finite number, got 10+"),
        ({"curv": 7.0}, "is of another model: of curvature 7, where this one has"),
        ({"safety": []}, r"safety must be an object, got \[\]"),
        ({"safety": {"classification": 3}}, "safety.classification must be an object, got 3"),
        ({"safety": {"classification": {"text": None}}}, "safety.classification.text must be an object"),
        (
            {"safety": {"classification": {"text": {}}}},
            "safety.classification.text.auc must be .* is missing",
        ),
        ({"retrieval": {"T->I": []}}, r"retrieval.T->I must be an object, got \[\]"),
        ({"retrieval": {"T->I": {"R@1": 0.5}, "I->T": {}}}, "retrieval.I->T.R@1 must be .* and is missing"),
    ],
)
def test_an_evaluation_of_another_shape_is_told(run, tmp_path, change, message):
    shutil.copytree(run / "model", tmp_path / "model")
    path = tmp_path / "model" / "evaluation.json"
    path.write_text(json.dumps(change if change == [] else json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=rf"evaluation\.json:? {message}"):
        hub.model_card(tmp_path / "model", "me/toy", licence="mit")


def test_bounds_of_another_curvature_are_not_uploaded(repositories, run, tmp_path):
    shutil.copytree(run / "model", tmp_path / "model")
    path = tmp_path / "model" / "bounds.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"curv": 7.0}))
    with pytest.raises(ValueError, match=r"bounds\.json is of another model: of curvature 7"):
        hysac.push_to_hub(tmp_path / "model", "me/toy", licence="mit")
    assert not repositories.exists()


def test_a_card_of_a_bare_model_says_what_is_not_known(tmp_path):
    hysac.save_pretrained(hysac.create_model("hysac-toy"), tmp_path / "model")
    card = hub.model_card(tmp_path / "model", "me/toy", licence="mit", data="Harmless\n---\npairs.")
    assert "Nothing is recorded" in card
    assert "None are stored" in card
    assert "Harmless" in card
