"""What a command line names becomes items, each once, and each scored or with its fault."""

import io
import tarfile
from pathlib import PurePath

import pytest
from PIL import Image
from scoring import CAPTIONS, calibrate, make_model, pictures

from hysac.data.images import ShardMember
from hysac.scoring import SafetyScorer
from hysac.scoring.items import find_items
from hysac.scoring.streaming import score_items


@pytest.fixture
def folder(tmp_path):
    pictures(tmp_path / "photos")
    pictures(tmp_path / "photos" / "more", 1)
    (tmp_path / "photos" / "notes.md").write_text("no picture")
    (tmp_path / "photos" / "._0.png").write_text("of a Mac")
    return tmp_path


def names(items):
    return [item.name.rpartition("/")[2] for item in items]


def test_a_folder_has_its_images_and_those_below(folder):
    items = find_items([str(folder / "photos")])
    assert names(items) == ["0.png", "1.png", "2.png", "0.png"]
    assert {item.modality for item in items} == {"image"}
    assert items[3].name.endswith("more/0.png")


def test_what_a_folder_has_beside_images_is_told(folder, caplog):
    """Of other formats, too: a photograph that cannot be read is no photograph that was safe."""
    (folder / "photos" / "phone.HEIC").write_bytes(b"junk")
    (folder / "photos" / "more" / "clip.mp4").write_bytes(b"junk")
    with caplog.at_level("INFO", logger="hysac"):
        items = find_items([str(folder / "photos")])
    assert names(items) == ["0.png", "1.png", "2.png", "phone.HEIC", "0.png"]
    (told,) = caplog.messages
    assert told == f"{folder / 'photos'}: what is no image by its name is left out: 1 .md, 1 .mp4"


def test_a_file_of_a_folder_is_not_compared_with_all_others(tmp_path, monkeypatch):
    for number in range(100):
        (tmp_path / f"{number}.png").touch()
    hashed = []
    real = PurePath.__hash__
    monkeypatch.setattr(PurePath, "__hash__", lambda path: hashed.append(path) or real(path))
    assert len(find_items([str(tmp_path)])) == 100
    assert len(hashed) < 1000


def test_a_glob(folder):
    assert names(find_items([str(folder / "photos" / "[12].png")])) == ["1.png", "2.png"]
    assert len(find_items([str(folder / "**" / "*.png")])) == 4


def test_a_text_file_has_a_caption_a_line(folder):
    (folder / "a.txt").write_text("a dog\n\n  \na cat\r\n", encoding="utf-8")
    items = find_items([str(folder / "a.txt")], texts=["a bird"])
    assert [(item.name.rpartition("/")[2], item.content) for item in items] == [
        ("text:1", "a bird"),
        ("a.txt:1", "a dog"),
        ("a.txt:4", "a cat"),
    ]


def test_standard_input(folder):
    items = find_items(["-"], lines=["a dog\n", "a cat"])
    assert [(item.name, item.content) for item in items] == [("-:1", "a dog"), ("-:2", "a cat")]


def test_a_manifest_of_usual_and_of_named_columns(folder):
    path = folder / "photos" / "rows.csv"
    path.write_text("image,caption,note\n0.png,a dog,first\n1.png,,second\n")
    items = find_items([str(path)])
    assert [(item.name.rpartition("/")[2], item.modality) for item in items] == [
        ("rows.csv:line 2:image", "image"),
        ("rows.csv:line 2:caption", "text"),
        ("rows.csv:line 3:image", "image"),
    ]
    assert items[0].content == folder / "photos" / "0.png"
    assert [item.content for item in find_items([str(path)], text_columns=["note"])] == ["first", "second"]
    (item,) = find_items([str(path)], image_columns=["note"], image_root=str(folder))[:1]
    assert item.content == folder / "first"
    with pytest.raises(NotADirectoryError, match="image_root gone is not a folder"):
        find_items([str(path)], image_root="gone")
    with pytest.raises(ValueError, match="has no column gone; it has image, caption, note"):
        find_items([str(path)], image_columns=["gone"])
    path.write_text("Image, caption\n0.png, a dog\n")
    assert [(item.name.rpartition(":")[2], item.modality) for item in find_items([str(path)])] == [
        ("Image", "image"),
        (" caption", "text"),
    ]
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"none of the columns image, .*; it has a, b"):
        find_items([str(path)])


def shard_of(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_a_shard_has_images_and_captions(folder):
    picture = (folder / "photos" / "0.png").read_bytes()
    members = {"a.png": picture, "a.txt": b"a dog\n", "a.json": b"{}", "b.PNG": picture, "b.txt": b"\xff"}
    shard_of(folder / "x-00.tar", members)
    shard_of(folder / "x-01.tar", {"c.png": picture})
    items = find_items([str(folder / "x-{00..01}.tar")])
    of_first = [f"x-00.tar:{name}" for name in ("a.png", "a.txt", "b.PNG", "b.txt")]
    assert names(items) == [*of_first, "x-01.tar:c.png"]
    assert isinstance(items[0].content, ShardMember)
    assert items[1].content == "a dog"
    assert items[3].content is None
    assert "utf-8" in items[3].fault


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (["gone.png"], FileNotFoundError, r"gone\.png does not exist"),
        (["*.gone"], FileNotFoundError, r"no file is named as \*\.gone"),
        (["photos/notes.md"], ValueError, r"notes\.md: the name of what is scored ends in \.jpg"),
        (["empty"], ValueError, "empty has no images"),
        (["photos/0.png", "photos"], ValueError, r"photos/0\.png is named twice"),
    ],
)
def test_bad_inputs(folder, monkeypatch, inputs, error, message):
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    with pytest.raises(error, match=message):
        find_items(inputs)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_item_comes_once_scored_or_with_its_fault(folder, workers):
    scorer = SafetyScorer.from_pretrained(make_model(folder / "model"), batch_size=2)
    (folder / "photos" / "broken.png").write_bytes(b"junk")
    items = find_items([str(folder / "photos")], texts=[*CAPTIONS, " "])
    scored = [one for batch in score_items(scorer, items, workers=workers) for one in batch]
    assert sorted(item.name for item, _, _ in scored) == sorted(item.name for item in items)
    faults = {item.name.rpartition("/")[2]: fault for item, score, fault in scored if score is None}
    assert set(faults) == {"broken.png", "text:5"}
    assert "broken.png cannot be read" in faults["broken.png"]
    assert faults["text:5"] == "a text is empty"
    for item, score, fault in scored:
        assert (score is None) != (fault is None)
        if score is not None:
            (wanted,) = scorer(**{f"{item.modality}s": [item.content]})
            assert score.distance == pytest.approx(wanted.distance, rel=1e-5)


def test_a_decision_needs_the_modality_to_be_calibrated(folder):
    directory = make_model(folder / "model")
    calibrate(directory)
    scorer = SafetyScorer.from_pretrained(directory)
    image = Image.open(folder / "photos" / "0.png")
    assert scorer(images=[image])[0].decision in ("safe", "unsafe")
