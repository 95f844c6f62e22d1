"""Captions as tokens: no spelling ends one, and none is too long to be read."""

import logging

import open_clip
import pytest
import torch

import hysac
from hysac.data import Batches, Manifest, Quadruplet, QuadrupletDataset
from hysac.data.text import text_windows
from hysac.safety import modality_scores
from hysac.training.sampler import SeededItems


@pytest.fixture(scope="module")
def tokenizer():
    return hysac.get_tokenizer("ViT-B-32")


@pytest.fixture(scope="module")
def stock():
    return open_clip.get_tokenizer("ViT-B-32")


ORDINARY = [
    "a dog on a meadow",
    "It's 5 o'clock!",
    "caf\u00e9 \u2013 na\u00efve",
    "\U0001f600 <b>bold</b>",
    "<start> of text",
    "",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_texts_have_open_clips_tokens(tokenizer, stock, text):
    assert torch.equal(tokenizer([text]), stock([text]))


@pytest.mark.parametrize("spelling", ["<end_of_text>", "<start_of_text>", "<END_OF_TEXT>", "a<end_of_text>b"])
def test_a_special_tokens_spelling_is_characters(tokenizer, stock, spelling):
    text = f"a cat {spelling} a dog"
    tokens = tokenizer([text])[0].tolist()
    ends = [place for place, token in enumerate(tokens) if token in stock.all_special_ids]
    assert [tokens[place] for place in ends] == stock.all_special_ids, "one start and one end"
    assert stock.decode(tokens[1 : ends[1]]).replace(" ", "") == text.lower().replace(" ", "")
    assert tokens[ends[1] - 1] == stock.encode("dog")[0]
    assert stock([text])[0].tolist() != tokens


@pytest.mark.parametrize("words", [1, 74, 75, 76, 100, 112, 113, 400])
def test_windows_have_the_whole_text(tokenizer, words):
    text = " ".join(["cat", "dog", "bird"][i % 3] for i in range(words))
    rows = text_windows(tokenizer, text)
    assert torch.equal(rows[:1], tokenizer([text]))
    tokens, room = tokenizer.encode(text), 75
    assert len(tokens) == words
    covered = torch.zeros(words, dtype=torch.long)
    for index, row in enumerate(rows):
        start = min(index * 37, max(words - room, 0))
        inside = row[1 : 1 + min(room, words)].tolist()
        assert inside == tokens[start : start + room]
        assert row[0] == tokenizer.sot_token_id
        assert row[1 + len(inside)] == tokenizer.eot_token_id
        covered[start : start + room] += 1
    assert covered.min() >= 1
    assert len(rows) == 1 if words <= room else len(rows) >= 2


def test_the_worst_window_of_a_long_text_counts(tokenizer, caplog):
    caplog.set_level(logging.INFO, logger="hysac")
    torch.manual_seed(0)
    model = hysac.create_model("hysac-toy")
    tokenizer = hysac.get_tokenizer("hysac-toy")
    room = tokenizer.context_length - 2
    long = " ".join(["a small red house by the sea"] * room + ["and a green tree"])
    captions = [("a cat", "a dog"), (long, "a bird"), ("a mouse", long + " again"), ("a cow", "a pig")]
    records = tuple(Quadruplet(str(i), None, None, *both) for i, both in enumerate(captions))

    def encoded(**options):
        dataset = QuadrupletDataset(Manifest(records), None, tokenizer, **options)
        return hysac.encode_dataset(model, Batches(dataset, batch_size=3), progress=False)

    cut, whole = encoded(), encoded(long_texts="windows")
    assert cut.text_scores is None
    for letter, side in (("S", 0), ("U", 1)):
        for row, record in enumerate(captions):
            windows = text_windows(tokenizer, record[side])
            with torch.no_grad():
                points = model.eval().encode_text(windows, normalize=True)
            worst = hysac.unsafe_score(points, whole.curv).max()
            torch.testing.assert_close(whole.scores(letter)[row], worst)
            for embeddings in (whole, cut):
                torch.testing.assert_close(embeddings[letter][row], points[0])
            assert (len(windows) > 1) == (
                record[side] not in ("a cat", "a dog", "a bird", "a mouse", "a cow", "a pig")
            )
    assert "2 of 8 captions are beyond the context" in caplog.text
    assert whole.scores("S")[1] > cut.scores("S")[1]
    assert torch.equal(whole.subset([1, 0]).scores("S"), whole.scores("S")[[1, 0]])
    safe, unsafe = modality_scores(whole)["text"]
    assert torch.equal(safe, whole.scores("S"))
    assert torch.equal(unsafe, whole.scores("U"))


def test_training_draws_a_window_of_a_long_text(tokenizer):
    long = " ".join(f"word{number}" for number in range(60))
    manifest = Manifest((Quadruplet("0", None, None, "a cat", long),))
    dataset = QuadrupletDataset(manifest, None, tokenizer, long_texts="one window")
    windows = text_windows(tokenizer, long)
    seeded = SeededItems(dataset, seed=0)
    seen = set()
    for epoch in range(80):
        item = seeded[epoch, 0]
        assert item["long"] == 1
        assert torch.equal(item["text"][0], tokenizer(["a cat"])[0])
        assert torch.equal(item["text"], seeded[epoch, 0]["text"]), "the same in a resumed run"
        (place,) = (windows == item["text"][1]).all(1).nonzero().flatten().tolist()
        seen.add(place)
    assert seen == set(range(len(windows)))


def test_short_texts_draw_nothing(tokenizer):
    manifest = Manifest((Quadruplet("0", None, None, "a cat", "a dog"),))
    state = torch.get_rng_state()
    item = QuadrupletDataset(manifest, None, tokenizer, long_texts="one window")[0]
    assert torch.equal(torch.get_rng_state(), state)
    assert item["long"] == 0
    with pytest.raises(ValueError, match="long_texts must be one of cut, windows, one window, got 'whole'"):
        QuadrupletDataset(manifest, None, tokenizer, long_texts="whole")
