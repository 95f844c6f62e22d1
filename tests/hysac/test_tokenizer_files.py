"""The tokenizer comes with the model: from its directory alone, with no network and no code of its files."""

import json
import socket
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import open_clip
import pytest
import torch
from test_hub import repositories  # noqa: F401

import hysac
from hysac.cli import main
from hysac.data import write_toy
from hysac.models.model import HySAC
from hysac.models.tokenizer_files import tokenizer_files

NAME = "somebody/words"
TEXTS = ["a red circle", "a knife", "a knife a knife a knife a knife a knife a knife"]
FILES = {"tokenizer.json", "tokenizer_config.json"}


def make_model(name=NAME, **text_cfg):
    cfg = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {
            "context_length": 8,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 1,
            **text_cfg,
        },
    }
    if name is not None:
        cfg["text_cfg"]["hf_tokenizer_name"] = name
    torch.manual_seed(0)
    return HySAC.from_clip(open_clip.CLIP(**cfg), model_cfg=cfg)


CONFIG = {"pad_token": "[PAD]", "special_tokens_map_file": "/home/somebody/map.json", "vocab_file": None}


class Words:
    """What transformers' tokenizers do, with a vocabulary of words."""

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary

    def __call__(self, texts, *, max_length, **_):
        rows = [[self.vocabulary.get(word, 1) for word in text.split()][:max_length] for text in texts]
        return SimpleNamespace(input_ids=torch.tensor([row + [0] * (max_length - len(row)) for row in rows]))

    def save_pretrained(self, folder):
        (Path(folder) / "tokenizer.json").write_text(json.dumps(self.vocabulary))
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(CONFIG))
        (Path(folder) / "run_me.py").write_text("raise SystemExit")


@pytest.fixture
def transformers(monkeypatch):
    """transformers, with one tokenizer on the hub; tells what was asked for."""
    asked = []

    def from_pretrained(source, cache_dir=None, **options):
        asked.append((str(source), options))
        if str(source) == NAME:
            return Words({word: 2 + i for i, word in enumerate(["a", "red", "circle", "knife"])})
        for name in ("tokenizer.json", "vocab.json"):
            if (Path(source) / name).is_file():
                return Words(json.loads((Path(source) / name).read_text()))
        raise OSError(f"no tokenizer in {source}")

    module = ModuleType("transformers")
    module.AutoTokenizer = SimpleNamespace(from_pretrained=from_pretrained)
    monkeypatch.setitem(sys.modules, "transformers", module)
    return asked


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_open_clips_own_needs_no_file_and_no_network(tmp_path, no_network, monkeypatch):
    """Also without transformers; its settings are in the model's configuration."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    model = make_model(None, tokenizer_kwargs={"clean": "canonicalize"})
    hysac.save_pretrained(model, tmp_path)
    assert not any(path.name.startswith("tokenizer") for path in tmp_path.iterdir())
    tokenizer = hysac.get_tokenizer(f"local-dir:{tmp_path}")
    expected = open_clip.SimpleTokenizer(context_length=8, clean="canonicalize")
    assert torch.equal(tokenizer(["A red,circle!"]), expected(["A red,circle!"]))
    assert not torch.equal(
        tokenizer(["A red,circle!"]), hysac.get_tokenizer("ViT-B-32", context_length=8)(["A red,circle!"])
    )


def test_one_of_the_hub_is_saved_with_the_model(tmp_path, transformers, no_network):
    hysac.save_pretrained(make_model(), tmp_path / "a")
    assert transformers == [(NAME, {})]
    expected = torch.tensor([[2, 3, 4, 0, 0, 0, 0, 0], [2, 5, 0, 0, 0, 0, 0, 0], [2, 5] * 4])
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names >= FILES
    assert "run_me.py" not in names
    assert all(name in (tmp_path / "a" / "SHA256SUMS").read_text() for name in FILES)
    tokenizer = hysac.get_tokenizer(f"local-dir:{tmp_path / 'a'}")
    assert torch.equal(tokenizer(TEXTS), expected)
    assert transformers[1] == (str(tmp_path / "a"), {"local_files_only": True})

    model, _, _ = hysac.create_model_and_transforms(f"local-dir:{tmp_path / 'a'}")
    for again, loaded in (("b", model), ("c", hysac.from_pretrained(tmp_path / "a"))):
        hysac.save_pretrained(loaded, tmp_path / again)  # from its own directory, not from the hub
        assert torch.equal(hysac.get_tokenizer(f"local-dir:{tmp_path / again}")(TEXTS), expected)
    assert [source for source, _ in transformers].count(NAME) == 1


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json"])
def test_one_of_another_programs_directory_is_saved(tmp_path, transformers, no_network, name):
    """Whose settings name a file elsewhere, or which has no tokenizer.json."""
    source = tmp_path / "source"
    source.mkdir()
    (source / name).write_text('{"knife": 7}')
    (source / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    model = make_model()
    model.tokenizer_source = str(source)
    hysac.save_pretrained(model, tmp_path / "a")
    assert hysac.get_tokenizer(f"local-dir:{tmp_path / 'a'}")(["knife"])[0, 0] == 7
    assert json.loads((tmp_path / "a" / "tokenizer_config.json").read_text()) == {
        "pad_token": "[PAD]",
        "vocab_file": None,
    }
    hysac.from_pretrained(tmp_path / "a")


def test_a_directory_has_one_tokenizer(tmp_path, transformers, monkeypatch):
    """transformers would read the other one's files, too; what hysac did not write stays."""
    written = Words.save_pretrained

    def with_more(self, folder):
        written(self, folder)
        (Path(folder) / "special_tokens_map.json").write_text("{}")

    with monkeypatch.context() as of_before:
        of_before.setattr(Words, "save_pretrained", with_more)
        hysac.save_pretrained(make_model(), tmp_path)
    assert (tmp_path / "special_tokens_map.json").is_file()
    (tmp_path / "vocabulary.md").touch()
    for name, left in ((NAME, FILES), (None, set())):
        hysac.save_pretrained(make_model(name), tmp_path)
        assert set(tokenizer_files(tmp_path)) == left | {"vocabulary.md"}
        hysac.from_pretrained(tmp_path)


def test_a_relative_directory_is_found_from_elsewhere(tmp_path, transformers, monkeypatch):
    hysac.save_pretrained(make_model(), tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    model = hysac.from_pretrained("a")
    monkeypatch.chdir("/")
    hysac.save_pretrained(model, tmp_path / "b")
    assert [source for source, _ in transformers] == [NAME]


def test_it_goes_to_the_hub_and_back(tmp_path, transformers, repositories):  # noqa: F811
    hysac.save_pretrained(make_model(), tmp_path / "model")
    hysac.push_to_hub(tmp_path / "model", "me/words", licence="mit")
    assert {path.name for path in (repositories / "me/words").iterdir()} >= FILES
    tokenizer = hysac.get_tokenizer("hf-hub:me/words")
    assert tokenizer(["a knife"])[0, :2].tolist() == [2, 5]
    assert transformers[-1][1] == {"local_files_only": True}
    hysac.from_pretrained("hf-hub:me/words")


def test_stock_open_clip_reads_it(tmp_path, transformers):
    hysac.save_pretrained(make_model(), tmp_path)
    stock = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    assert torch.equal(stock(TEXTS), hysac.get_tokenizer(f"local-dir:{tmp_path}")(TEXTS))


def test_the_command_line_encodes_with_it(tmp_path, transformers):
    hysac.save_pretrained(make_model(), tmp_path / "model")
    toy = write_toy(tmp_path / "toy", train_size=4, val_size=4, progress=False)
    arguments = [
        "bounds",
        "--model-dir",
        tmp_path / "model",
        "--data",
        toy["val"],
        "--device",
        "cpu",
        "--workers",
        "0",
    ]
    assert main(list(map(str, arguments))) == 0
    assert transformers[-1] == (str(tmp_path / "model"), {"local_files_only": True})


@pytest.mark.parametrize("name", sorted(FILES))
def test_an_absent_file_is_not_fetched(tmp_path, transformers, name):
    hysac.save_pretrained(make_model(), tmp_path)
    (tmp_path / name).unlink()
    message = (
        rf"has no {name}, and its open_clip_config\.json names the tokenizer '{NAME}', which would be fetched"
    )
    with pytest.raises(ValueError, match=message):
        hysac.get_tokenizer(f"local-dir:{tmp_path}")
    with pytest.raises(ValueError, match=message):
        hysac.from_pretrained(tmp_path, verify=False)
    assert len(transformers) == 1


def test_a_changed_tokenizer_is_found(tmp_path, transformers):
    hysac.save_pretrained(make_model(), tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"knife": 2}')
    with pytest.raises(ValueError, match=r"tokenizer\.json is not what was saved"):
        hysac.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "tokenizer_config.json",
            {"auto_map": {"AutoTokenizer": ["code.T", None]}},
            "has auto_map, which names code",
        ),
        ("config.json", {"auto_map": {"AutoConfig": "code.C"}}, "has auto_map, which names code"),
        (
            "tokenizer_config.json",
            {"tokenizer_file": "/etc/passwd"},
            "has tokenizer_file, which names code or files",
        ),
        ("tokenizer_config.json", [], "its content must be an object"),
        ("tokenizer.json", 3, "its content must be an object"),
    ],
)
def test_a_tokenizer_cannot_choose_what_runs(tmp_path, transformers, file, content, message):
    hysac.save_pretrained(make_model(), tmp_path)
    (tmp_path / file).write_text(json.dumps(content))
    for load in (
        lambda: hysac.get_tokenizer(f"local-dir:{tmp_path}"),
        lambda: hysac.from_pretrained(tmp_path, verify=False),
    ):
        with pytest.raises(ValueError, match=rf"/{file}:? {message}"):
            load()
    assert len(transformers) == 1


def test_trust_is_not_passed_on(transformers):
    with pytest.raises(ValueError, match="trust_remote_code is not supported"):
        hysac.get_tokenizer("ViT-B-16-SigLIP", trust_remote_code=True)
    assert transformers == []


def test_without_transformers_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for needs in (
        lambda: hysac.save_pretrained(make_model(), tmp_path / "a"),
        lambda: hysac.get_tokenizer("ViT-B-16-SigLIP"),
    ):
        with pytest.raises(ImportError, match=r"needs transformers: pip install 'hysac\[hf\]'"):
            needs()
    assert not any((tmp_path / "a").glob("*"))


def test_a_damaged_tokenizer_is_a_value_error(tmp_path, transformers):
    hysac.save_pretrained(make_model(tokenizer_kwargs={"clean": "nonsense"}), tmp_path)
    with pytest.raises(ValueError, match="cannot make the tokenizer of"):
        hysac.get_tokenizer(f"local-dir:{tmp_path}")


def test_with_transformers_itself(tmp_path, no_network):
    """A tokenizer that was trained here, through the library that reads it."""
    real = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "knife": 3}, unk_token="[UNK]")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = real.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(tmp_path / "source")
    hysac.save_pretrained(make_model(str(tmp_path / "source")), tmp_path / "a")
    hysac.save_pretrained(hysac.from_pretrained(tmp_path / "a"), tmp_path / "b")
    for folder in ("a", "b"):
        tokens = hysac.get_tokenizer(f"local-dir:{tmp_path / folder}")(["a knife a", "a [PAD] spoon"])
        assert tokens[0].tolist() == [2, 3, 2, 0, 0, 0, 0, 0]
        assert 0 not in tokens[1, :2].tolist()  # what spells a special token is text
