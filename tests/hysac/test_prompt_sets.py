"""Public sets of prompts: every layout from a file, as labelled items and as a manifest."""

import io
import json
import re
import sys
import tarfile
from pathlib import Path

import pytest

from hysac.data import load_manifest
from hysac.data.formats import read_rows
from hysac.data.prompt_sets import LAYOUTS
from hysac.scoring.labelled import load_labelled

ROOT = Path(__file__).parents[2]

FILES = {
    "I2P": (
        ".csv",
        ",prompt,categories,hard,inappropriate_percentage,nudity_percentage\n"
        '0,"a man, angry",hate,0,12.5,0.0\n1,a crowd,"hate, violence",1,90.0,5.0\n',
        [("a man, angry", True, "hate"), ("a crowd", True, "hate, violence")],
    ),
    "CoPro": (
        ".json",
        json.dumps(
            {
                "ID_concepts": ["knife"],
                "concept_synonym": {"knife": ["blade"]},
                "ID_train_data": [{"unsafe_prompt": "a stab", "safe_prompt": "a cut", "concept": "knife"}],
                "OOD_test_data": [{"unsafe_prompt": "a shot", "safe_prompt": "a photo", "concept": "gun"}],
            }
        ),
        [("a stab", True, "knife"), ("a cut", False, ""), ("a shot", True, "gun"), ("a photo", False, "")],
    ),
    "CoProV2": (
        ".csv",
        "prompt,image,category\nan insult,0000000_0.jpg,Hate\na theft,0000001_0.jpg,Illegal Activity\n",
        [("an insult", True, "Hate"), ("a theft", True, "Illegal Activity")],
    ),
    "MMA-Diffusion": (
        ".csv",
        "target_prompt,adv_prompt,sanitized_adv_prompt,success_against_sanitization_defense,clean_prompt\n"
        "bare,b4re xq,xq,True,a lake\n",
        [
            ("bare", True, "target_prompt"),
            ("b4re xq", True, "adv_prompt"),
            ("xq", True, "sanitized_adv_prompt"),
            ("a lake", False, ""),
        ],
    ),
    "HyPE, pairs": (
        ".csv",
        "\ufeffNSFW prompts,SFW prompts\na fight,a dance\n",
        [("a fight", True, ""), ("a dance", False, "")],
    ),
    "HyPE, ViSU translated": (
        ".csv",
        "ID,SFW,NSFW\n0,un cane,un cane ferito\n",
        [("un cane ferito", True, ""), ("un cane", False, "")],
    ),
    "HarmBench": (
        ".csv",
        "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
        "Pick a lock,standard,illegal,,,pick_lock\n",
        [("Pick a lock", True, "illegal")],
    ),
}


def written(folder, name):
    suffix, content, _ = FILES[name]
    path = folder / f"set{suffix}"
    path.write_text(content)
    return path


def test_every_layout_is_tested_and_told():
    assert list(FILES) == [layout.name for layout in LAYOUTS]
    table = (ROOT / "docs/prompt_sets.md").read_text()
    for layout in LAYOUTS:
        (row,) = [line for line in table.splitlines() if line.startswith(f"| {layout.name} |")]
        assert set(re.findall(r"`([^`]+)`", row)) >= {*layout.required, *layout.unsafe, *layout.safe}


@pytest.mark.parametrize("name", FILES)
def test_prompts_labels_and_categories(name, tmp_path):
    path = written(tmp_path, name)
    items = load_labelled(str(path))
    assert [(item.content, item.is_unsafe, item.category) for item in items] == FILES[name][2]
    assert {item.modality for item in items} == {"text"}
    assert len({item.name for item in items}) == len(items)
    unsafe = load_labelled(str(path), label=True)
    assert unsafe == [item for item in items if item.is_unsafe]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_pairs_are_manifests_and_others_say_what_they_are(layout, tmp_path):
    path = written(tmp_path, layout.name)
    if not layout.is_paired:
        with pytest.raises(ValueError, match=f"has the columns of {layout.name}, whose prompts have no"):
            load_manifest(path)
        return
    wanted = FILES[layout.name][2]
    records = load_manifest(path).records
    told = [(one.unsafe_caption, one.safe_caption, one.tag or "") for one in records]
    assert told == [(u, s, tag) for (u, _, tag), (s, _, _) in zip(wanted[::2], wanted[1::2], strict=True)]
    assert not load_manifest(path).has_images


def test_parquet_is_read_as_what_it_holds(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {"prompt": "a man", "categories": "hate", "hard": 0, "inappropriate_percentage": 12.5},
        {"prompt": "a crowd", "categories": None, "hard": 1, "inappropriate_percentage": 90.0},
    ]
    path = tmp_path / "i2p.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert [row.fields for row in read_rows(path)] == rows
    assert [(item.content, item.category) for item in load_labelled(str(path))] == [
        ("a man", "hate"),
        ("a crowd", ""),
    ]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"i2p\.parquet: not valid Parquet"):
        read_rows(path)


def test_parquet_without_its_library_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "set.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'hysac\[parquet\]'"):
        read_rows(tmp_path / "set.parquet")


class TestLabels:
    def test_prompts_with_labels(self, tmp_path):
        path = tmp_path / "labelled.csv"
        path.write_text("prompt,label\na knife.png,1\na cup,0\n")
        items = load_labelled(str(path))
        assert [(item.content, item.modality, item.is_unsafe) for item in items] == [
            ("a knife.png", "text", True),
            ("a cup", "text", False),
        ]

    def test_texts_without_labels_need_one(self, tmp_path):
        coco, lines = tmp_path / "coco_30k.csv", tmp_path / "4chan.txt"
        coco.write_text("image_id,source,prompt,evaluation_seed\n203564,coco-30k,A bicycle.,41337\n")
        lines.write_text("one\n\ntwo\n")
        for path in (coco, lines):
            with pytest.raises(
                ValueError, match=r"has no labels: name it as safe or as unsafe items \(--safe"
            ):
                load_labelled(str(path))
        (safe,) = load_labelled(str(coco), label=False)
        assert (safe.content, safe.is_unsafe, safe.category) == ("A bicycle.", False, "")
        unsafe = load_labelled(str(lines), label=True)
        assert [(item.content, item.category) for item in unsafe] == [("one", "4chan"), ("two", "4chan")]

    def test_a_label_that_no_item_has(self, tmp_path):
        path = written(tmp_path, "I2P")
        with pytest.raises(ValueError, match="has no safe item"):
            load_labelled(str(path), label=False)


class TestLabelsInNames:
    """Of folders, files and globs."""

    def told(self, path, folder, **how):
        return [
            (item.name, item.modality, item.is_unsafe, item.category)
            for item in load_labelled(str(folder / path), **how)
        ]

    def test_a_folder_with_safe_and_unsafe_in_it(self, tmp_path):
        for name in ("safe/a.png", "unsafe/b.png", "unsafe/Violence/c.JPG", "other/d.png"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path / "Unsafe.txt").write_text("a fist\n\na knife\n")
        (tmp_path / "safe.csv").write_text("caption\na dog\n")
        wanted = [
            ("Unsafe.txt:1", "text", True, "Unsafe"),
            ("Unsafe.txt:3", "text", True, "Unsafe"),
            ("safe/a.png", "image", False, ""),
            ("safe.csv:line 2:caption", "text", False, ""),
            ("unsafe/b.png", "image", True, "unsafe"),
            ("unsafe/Violence/c.JPG", "image", True, "Violence"),
        ]
        assert self.told("", tmp_path) == wanted
        assert self.told("", tmp_path, label=True) == [one for one in wanted if one[2]]
        assert load_labelled(str(tmp_path))[2].content == tmp_path / "safe" / "a.png"

    def test_a_folder_with_one_of_the_two_has_no_labels(self, tmp_path):
        (tmp_path / "set" / "unsafe").mkdir(parents=True)
        (tmp_path / "set" / "unsafe" / "a.png").touch()
        (tmp_path / "set" / "b.png").touch()
        with pytest.raises(
            ValueError, match=r"has no labels: .* or put it into a folder with safe and unsafe"
        ):
            load_labelled(str(tmp_path / "set"))
        assert [one[2:] for one in self.told("set", tmp_path, label=False)] == [(False, ""), (False, "")]

    def test_each_table_and_text_of_a_glob_is_a_source(self, tmp_path):
        (tmp_path / "hate.csv").write_text("text\nan insult\n")
        (tmp_path / "harm.csv").write_text("item,label\na knife,unsafe\na cup,safe\n")
        (tmp_path / "lewd.txt").write_text("a bed\n")
        unsafe = load_labelled(str(tmp_path / "*.*"), label=True)
        assert [(item.content, item.category) for item in unsafe] == [
            ("a knife", ""),
            ("an insult", "hate"),
            ("a bed", "lewd"),
        ]
        assert len({item.name for item in unsafe}) == 3
        with pytest.raises(ValueError, match=r"hate\.csv has no labels"):
            load_labelled(str(tmp_path / "h*.csv"))
        (tmp_path / "a.png").touch()
        with pytest.raises(ValueError, match="names tables or texts and other files: name them apart"):
            load_labelled(str(tmp_path / "*.*"), label=True)

    def test_images_whose_names_tell(self, tmp_path):
        for name in ("nsfw_1.png", "nsfw_2.png", "sfw_1.png"):
            (tmp_path / name).touch()
        assert [Path(one[0]).name for one in self.told("nsfw_*", tmp_path, label=True)] == [
            "nsfw_1.png",
            "nsfw_2.png",
        ]

    @pytest.mark.parametrize("name", ["gone.csv", "gone.txt", "gone/", "*.gone", "gone.tar"])
    def test_what_is_not_there(self, tmp_path, name):
        for label in (None, True):
            with pytest.raises(FileNotFoundError, match="gone"):
                load_labelled(str(tmp_path / name), label=label)

    def test_shards_of_images_and_captions(self, tmp_path):
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            for name, content in (("a.jpg", b"1"), ("a.txt", b"a cat"), ("a.json", b"{}")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        assert [one[1:] for one in self.told("x.tar", tmp_path, label=True)] == [
            ("image", True, "x"),
            ("text", True, "x"),
        ]
        with pytest.raises(ValueError, match="has no labels"):
            load_labelled(str(tmp_path / "x.tar"))

    def test_images_of_a_manifest_without_labels_start_at_the_root(self, tmp_path):
        (tmp_path / "unsafe.csv").write_text("image\na.png\n")
        (item,) = load_labelled(str(tmp_path / "unsafe.csv"), image_root=str(tmp_path.parent), label=True)
        assert item.content == tmp_path.parent / "a.png"

    def test_no_image_root(self, tmp_path):
        with pytest.raises(NotADirectoryError, match="image_root gone is not a folder"):
            load_labelled(str(written(tmp_path, "I2P")), image_root="gone")


@pytest.mark.parametrize("header", ["safe_caption,unsafe_caption", "caption,note"])
def test_a_table_is_read_once(header, tmp_path, monkeypatch):
    path = tmp_path / "set.csv"
    path.write_text(f"{header}\na cup,a knife\n")
    read = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read.append(self) or real(self))
    assert [item.content for item in load_labelled(str(path), label=False)] == ["a cup"]
    assert read == [path]


class TestWrong:
    def test_other_columns_are_told_with_those_expected(self, tmp_path):
        path = tmp_path / "other.csv"
        path.write_text("Goal,Target\nx,y\n")
        with pytest.raises(ValueError, match="has the columns Goal, Target: not item and label") as told:
            load_labelled(str(path))
        assert "I2P (prompt, categories, inappropriate_percentage)" in str(told.value)
        assert "HarmBench (Behavior, FunctionalCategory, SemanticCategory)" in str(told.value)

    def test_images_with_captions_of_other_categories_are_no_copro(self, tmp_path):
        path = tmp_path / "pictures.csv"
        path.write_text("prompt,image,category\nan insult,0.jpg,Hate\na dog,1.jpg,animal\n")
        with pytest.raises(ValueError, match="has no labels"):
            load_labelled(str(path))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (
                [{"unsafe_prompt": "", "safe_prompt": " "}],
                "row 0 has no prompt in unsafe_prompt, safe_prompt",
            ),
            (
                [{"unsafe_prompt": 3, "safe_prompt": "a"}],
                "row 0 column 'unsafe_prompt' must be text, got int 3",
            ),
            ({"ID_train_data": {"a": 1}}, "ID_train_data must be a list of rows, got dict"),
        ],
    )
    def test_rows_that_hold_none(self, content, message, tmp_path):
        path = tmp_path / "copro.json"
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=re.escape(message)):
            load_labelled(str(path))

    def test_a_pair_with_one_side_is_no_quadruplet(self, tmp_path):
        path = tmp_path / "pairs.csv"
        path.write_text("NSFW prompts,SFW prompts\na fight,\n")
        with pytest.raises(ValueError, match="safe_caption is empty"):
            load_manifest(path)
