"""Manifest files: what they are read as, and what is said about bad ones."""

import csv
import json
import logging
import os
import time
from functools import partial
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import skimage.data
from hypothesis import HealthCheck, given, settings
from PIL import Image

from hysac.data import Manifest, Quadruplet, load_manifest, save_manifest, verify_images

OPEN_CLIP_COLUMNS = {
    "safe_image": "filepath",
    "safe_caption": "title",
    "unsafe_image": "unsafe_filepath",
    "unsafe_caption": "unsafe_title",
}


def row(index, **changes):
    return {
        "safe_image": f"safe/{index}.jpg",
        "unsafe_image": f"unsafe/{index}.jpg",
        "safe_caption": f"a cat, number {index}",
        "unsafe_caption": f"a burning cat, number {index}",
    } | changes


def text_row(index, **changes):
    return {key: value for key, value in row(index).items() if key.endswith("caption")} | changes


def write_jsonl(path, rows):
    path.write_text("\n".join(value if isinstance(value, str) else json.dumps(value) for value in rows))
    return path


def write_table(path, rows, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def without_images(rows):
    return [{key: value for key, value in fields.items() if not key.endswith("image")} for fields in rows]


# --- what is read -------------------------------------------------------------------------------------


def write_json_rows(path, rows):
    path.write_text(json.dumps(rows))
    return path


def write_json_lines_named_json(path, rows):
    return write_jsonl(path, rows)


WRITERS = {
    "data.jsonl": write_jsonl,
    "DATA.JSONL": write_jsonl,
    "list.json": write_json_rows,
    "lines.json": write_json_lines_named_json,
    "data.csv": write_table,
    "data.tsv": lambda path, rows: write_table(path, rows, "\t"),
    "tabs.csv": lambda path, rows: write_table(path, rows, "\t"),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("with_images", [True, False])
def test_every_format_is_read_alike(tmp_path, name, with_images):
    rows = [row(0, id="first", tag="fire", note="ignored"), row(1, id="second", tag="", note="")]
    path = WRITERS[name](tmp_path / name, rows if with_images else without_images(rows))
    manifest = load_manifest(path)
    images = [(tmp_path / f"safe/{i}.jpg", tmp_path / f"unsafe/{i}.jpg") for i in (0, 1)]
    if not with_images:
        images = [(None, None)] * 2
    assert manifest.records == (
        Quadruplet("first", *images[0], "a cat, number 0", "a burning cat, number 0", "fire"),
        Quadruplet("second", *images[1], "a cat, number 1", "a burning cat, number 1", None),
    )
    assert manifest.has_images is with_images
    assert manifest.skipped == 0
    assert len(manifest) == 2


@pytest.mark.parametrize("name", WRITERS)
def test_ids_are_row_indices_by_default(tmp_path, name):
    manifest = load_manifest(WRITERS[name](tmp_path / name, [row(i) for i in range(12)]))
    assert [record.id for record in manifest.records] == [str(i) for i in range(12)]


def test_a_string_is_as_good_as_a_path(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [row(0)])
    assert load_manifest(str(path)) == load_manifest(path)


def test_image_paths_start_at_the_manifest_or_at_image_root_or_at_the_root(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = write_jsonl(tmp_path / "data.jsonl", [row(0, unsafe_image="/mnt/unsafe.jpg")])
    anywhere = partial(load_manifest, allow_outside_root=True)
    assert anywhere(path).records[0].images == (tmp_path / "safe/0.jpg", Path("/mnt/unsafe.jpg"))
    assert anywhere(path, image_root=elsewhere).records[0].images == (
        elsewhere / "safe/0.jpg",
        Path("/mnt/unsafe.jpg"),
    )
    with pytest.raises(NotADirectoryError, match="image_root"):
        load_manifest(path, image_root=tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["/etc/hostname", "../up.png", "a/../../up.png", "out/x.png", "link.png"])
def test_images_outside_of_the_root_are_refused_unless_allowed(tmp_path, name):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").mkdir()
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "link.png").symlink_to(tmp_path / "secret/x.png")
    (root / "inside.png").symlink_to("other.png")
    (root / "images").symlink_to("stored")
    path = write_jsonl(
        root / "data.jsonl", [row(0), row(1, safe_image="inside.png"), row(2, unsafe_image=name)]
    )
    with pytest.raises(ValueError, match=rf"line 3: image {name!r} lies outside of .*allow-outside-root"):
        load_manifest(path)
    assert len(load_manifest(path, on_error="skip")) == 2
    assert load_manifest(path, allow_outside_root=True).records[2].unsafe_image == root / name
    write_jsonl(path, [row(0, safe_image="images/a.png")])
    assert load_manifest(path).records[0].safe_image == root / "images/a.png"
    (root / "circle.png").symlink_to("circle.png")
    write_jsonl(path, [row(0), row(1, safe_image="circle.png")])
    with pytest.raises(ValueError, match=r"line 2: 'circle\.png' is no path"):
        load_manifest(path)
    (root / "round").symlink_to("round")
    write_jsonl(path, [row(0), row(1, safe_image="round/x.png")])
    with pytest.raises(ValueError, match=r"line 2: 'round/x\.png' is no path"):
        load_manifest(path)


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_columns_of_open_clip(tmp_path, delimiter):
    rows = [
        {"filepath": "a.jpg", "title": "a cat", "unsafe_filepath": "b.jpg", "unsafe_title": "a hurt cat"},
    ]
    path = write_table(tmp_path / "data.csv", rows, delimiter)
    (record,) = load_manifest(path, columns=OPEN_CLIP_COLUMNS).records
    assert record == Quadruplet("0", tmp_path / "a.jpg", tmp_path / "b.jpg", "a cat", "a hurt cat")


def test_columns_may_name_tag_and_id_and_leave_the_rest(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [row(0, category="fire", key=17)])
    (record,) = load_manifest(path, columns={"tag": "category", "id": "key"}).records
    assert (record.tag, record.id, record.safe_caption) == ("fire", "17", "a cat, number 0")


def test_blank_lines_and_a_byte_order_mark_are_nothing(tmp_path):
    for name, write in WRITERS.items():
        path = write(tmp_path / name, [row(0), row(1)])
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\r\n\n")
        assert [record.safe_caption for record in load_manifest(path).records] == [
            "a cat, number 0",
            "a cat, number 1",
        ]


def test_a_cell_of_a_table_may_hold_commas_quotes_and_line_ends(tmp_path):
    caption = 'a "cat",\non a mat\tat 5\' height'
    for delimiter in ",\t":
        path = write_table(tmp_path / "data.csv", [row(0, safe_caption=caption), row(1)], delimiter)
        assert [r.safe_caption for r in load_manifest(path).records] == [caption, "a cat, number 1"]


def test_a_json_line_ends_at_a_line_feed_alone(tmp_path):
    caption = "one\u2028two\x85three"
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(row(0, safe_caption=caption), ensure_ascii=False), encoding="utf-8")
    assert load_manifest(path).records[0].safe_caption == caption


printable = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
captions = printable.filter(str.strip)
records = st.builds(
    Quadruplet,
    id=printable,
    safe_image=st.sampled_from([Path("a/ä b.jpg"), Path("../up.png"), Path("c.jpg")]),
    unsafe_image=st.sampled_from([Path("x.jpg"), Path("y/z.png")]),
    safe_caption=captions,
    unsafe_caption=captions,
    tag=st.none() | printable,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(records, min_size=1, max_size=5, unique_by=lambda record: record.id),
    with_images=st.booleans(),
)
def test_saving_and_loading_is_the_identity(tmp_path, rows, with_images):
    def located(record):
        paths = [tmp_path / path if with_images else None for path in record.images]
        return Quadruplet(record.id, *paths, record.safe_caption, record.unsafe_caption, record.tag)

    manifest = Manifest(tuple(map(located, rows)))
    save_manifest(manifest, tmp_path / "saved.jsonl")
    loaded = load_manifest(tmp_path / "saved.jsonl", allow_outside_root=True)
    assert [r.images for r in loaded.records] == [tuple(map(Path, r.images)) for r in manifest.records]
    assert loaded == manifest


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(captions, captions), min_size=1, max_size=5))
def test_a_table_gives_back_any_text(tmp_path, rows):
    fields = [{"safe_caption": safe, "unsafe_caption": unsafe} for safe, unsafe in rows]
    manifest = load_manifest(write_table(tmp_path / "data.csv", fields))
    assert [(r.safe_caption, r.unsafe_caption) for r in manifest.records] == rows


def test_a_saved_manifest_moves_with_its_images(tmp_path):
    (tmp_path / "lists").mkdir()
    record = Quadruplet("0", tmp_path / "images/a.png", tmp_path / "images/b.png", "safe", "unsafe")
    save_manifest(Manifest((record,)), tmp_path / "lists/data.jsonl")
    assert json.loads((tmp_path / "lists/data.jsonl").read_text())["safe_image"] == "../images/a.png"
    with pytest.raises(ValueError, match=r"\.jsonl"):
        save_manifest(Manifest((record,)), tmp_path / "data.csv")


@pytest.mark.parametrize("field", ["safe_caption", "unsafe_caption", "tag", "id"])
def test_half_of_a_surrogate_pair_is_refused_by_its_row(tmp_path, field):
    path = write_jsonl(tmp_path / "data.jsonl", [row(0), row(1, **{field: "cat \ud83d"})])
    message = rf"line 2: {field} has '\\ud83d' at character 4, half of a surrogate pair"
    with pytest.raises(ValueError, match=message):
        load_manifest(path)
    assert len(load_manifest(path, on_error="skip")) == 1
    write_jsonl(path, [row(0, **{field: "cat \ud83d\ude00"})])
    assert getattr(load_manifest(path).records[0], field) == "cat \U0001f600"


def test_a_file_that_cannot_be_written_whole_stays_what_it_was(tmp_path):
    good = Quadruplet("0", tmp_path / "a.png", tmp_path / "b.png", "safe", "unsafe")
    no_text = Quadruplet("1", tmp_path / "\udcff.png", tmp_path / "b.png", "safe", "unsafe")
    save_manifest(Manifest((good,)), tmp_path / "data.jsonl")
    before = (tmp_path / "data.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"safe_image has '\\udcff' at character 0"):
        save_manifest(Manifest((good, no_text)), tmp_path / "data.jsonl")
    assert (tmp_path / "data.jsonl").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


def test_a_caption_that_is_a_file_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [row(0), row(1, safe_caption="c" * 10_001)])
    with pytest.raises(ValueError, match="line 2: safe_caption has 10001 characters, more than 10000"):
        load_manifest(path)


# --- ViSU ---------------------------------------------------------------------------------------------


def visu_row(coco_id, **changes):
    return {
        "safe": f"a man riding wave {coco_id}",
        "nsfw": f"a man drowning in wave {coco_id}",
        "coco_id": coco_id,
        "nsfw_im_path": f"visu/{coco_id}.jpg",
        "tag": "suffering",
    } | changes


@pytest.fixture
def coco(tmp_path):
    root = tmp_path / "coco"
    for folder, coco_id in (("train2017", 9), ("val2017", 139), ("test2017", 581929)):
        (root / folder).mkdir(parents=True)
        (root / folder / f"{coco_id:012d}.jpg").touch()
    return root


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("as_text", [True, False])
def test_visu_finds_the_coco_images(tmp_path, coco, wrapped, as_text):
    ids = (9, 139, 581929)
    rows = {str(10 + i): visu_row(str(c) if as_text else c) for i, c in enumerate(ids)}
    path = tmp_path / "visu.json"
    path.write_text(json.dumps({"info": {"version": 1}, "data": rows} if wrapped else rows))
    manifest = load_manifest(path, image_root=coco)
    assert [record.id for record in manifest.records] == ["10", "11", "12"]
    assert [record.safe_image for record in manifest.records] == [
        coco / "train2017/000000000009.jpg",
        coco / "val2017/000000000139.jpg",
        coco / "test2017/000000581929.jpg",
    ]
    assert [record.unsafe_image for record in manifest.records] == [coco / f"visu/{c}.jpg" for c in ids]
    assert manifest.records[1].safe_caption == "a man riding wave 139"
    assert manifest.records[1].unsafe_caption == "a man drowning in wave 139"
    assert manifest.records[1].tag == "suffering"


def test_visu_takes_absolute_paths_of_unsafe_images(tmp_path, coco):
    path = write_json_rows(tmp_path / "visu.json", {"0": visu_row(9, nsfw_im_path="/data/unsafe/0.png")})
    loaded = load_manifest(path, image_root=coco, allow_outside_root=True)
    assert loaded.records[0].unsafe_image == Path("/data/unsafe/0.png")
    with pytest.raises(ValueError, match=r"image '/data/unsafe/0\.png' lies outside of"):
        load_manifest(path, image_root=coco)


def test_visu_without_image_root_is_text_only(tmp_path):
    path = write_json_rows(tmp_path / "visu.json", {"0": visu_row(9)})
    assert load_manifest(path).records == (
        Quadruplet("0", None, None, "a man riding wave 9", "a man drowning in wave 9", "suffering"),
    )


@pytest.mark.parametrize("name", WRITERS)
def test_the_public_captions_of_visu_are_text_only_in_any_format(tmp_path, name):
    rows = [
        {"incremental_id": i, "safe": f"safe {i}", "nsfw": f"unsafe {i}", "coco_id": str(i), "tag": "hate"}
        for i in range(3)
    ]
    manifest = load_manifest(WRITERS[name](tmp_path / name, rows))
    assert not manifest.has_images
    assert manifest.records[2] == Quadruplet("2", None, None, "safe 2", "unsafe 2", "hate")


def test_visu_names_what_is_missing(tmp_path, coco):
    path = write_json_rows(tmp_path / "visu.json", {"0": visu_row(9), "7": visu_row(10)})
    with pytest.raises(ValueError, match=r"entry '7': safe image 000000000010\.jpg is in none of train2017"):
        load_manifest(path, image_root=coco)
    manifest = load_manifest(path, image_root=coco, on_error="skip")
    assert ([record.id for record in manifest.records], manifest.skipped) == (["0"], 1)

    write_json_rows(path, {"0": visu_row(9), "7": visu_row(9, nsfw_im_path=None)})
    with pytest.raises(ValueError, match="entry '7': images need coco_id and nsfw_im_path"):
        load_manifest(path, image_root=coco)

    with pytest.raises(ValueError, match="none of the folders train2017, val2017, test2017"):
        load_manifest(path, image_root=tmp_path)


# --- bad files ----------------------------------------------------------------------------------------


def test_a_missing_column_is_named_with_those_that_exist(tmp_path):
    rows = [{k: v for k, v in row(i).items() if k != "unsafe_caption"} for i in range(8)]
    message = (
        r"data\.{}: 8 of 8 rows cannot be used\n  {} and 3 more: "
        r"no column 'unsafe_caption' for unsafe_caption; the columns are "
        r"'safe_image', 'unsafe_image', 'safe_caption'$"
    )
    for name, first in (("csv", "line 2, line 3, line 4, line 5, line 6"), ("jsonl", "line 1, line 2")):
        path = WRITERS[f"data.{name}"](tmp_path / f"data.{name}", rows)
        with pytest.raises(ValueError, match=message.format(name, first + ".*")):
            load_manifest(path)
        with pytest.raises(ValueError, match="8 of 8 rows"):
            load_manifest(path, on_error="skip")


def test_one_image_column_asks_for_the_other(tmp_path):
    rows = [{k: v for k, v in row(0).items() if k != "unsafe_image"}]
    with pytest.raises(ValueError, match="no column 'unsafe_image' for unsafe_image"):
        load_manifest(write_table(tmp_path / "data.csv", rows))


def test_a_column_the_caller_names_must_exist(tmp_path):
    path = write_table(tmp_path / "data.csv", [text_row(0)])
    for field in ("safe_image", "safe_caption", "unsafe_caption"):
        with pytest.raises(ValueError, match=f"no column 'theirs' for {field}"):
            load_manifest(path, columns={field: "theirs"})
    with pytest.raises(ValueError, match="no column 'kind' for tag"):
        load_manifest(path, columns={"tag": "kind"})


def test_columns_of_unknown_fields_or_used_twice_are_refused(tmp_path):
    path = write_table(tmp_path / "data.csv", [row(0)])
    with pytest.raises(ValueError, match="unknown fields caption; the fields are safe_image"):
        load_manifest(path, columns={"caption": "title"})
    with pytest.raises(ValueError, match="several fields from the same column: title"):
        load_manifest(path, columns={"safe_caption": "title", "unsafe_caption": "title"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"safe_caption": ""}, "safe_caption is empty"),
        ({"unsafe_caption": " \t"}, "unsafe_caption is empty"),
        ({"unsafe_caption": None}, "unsafe_caption is empty"),
        ({"unsafe_caption": ["a"]}, r"column 'unsafe_caption' must be text, got list \['a'\]"),
        ({"safe_image": ""}, "safe_image is empty: give both images"),
        ({"unsafe_image": None}, "unsafe_image is empty: give both images"),
        ({"id": 1.5}, r"column 'id' must be text, got float 1\.5"),
        ({"id": True}, "column 'id' must be text, got bool True"),
    ],
)
def test_a_bad_cell_is_named_by_line_and_column(tmp_path, changes, message):
    path = write_jsonl(tmp_path / "data.jsonl", [row(0), row(1, **changes), row(2)])
    with pytest.raises(ValueError, match=rf"data\.jsonl: 1 of 3 rows cannot be used\n  line 2: {message}"):
        load_manifest(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"safe_caption": ', "line 3: not valid JSON: Expecting value"),
        ("[1, 2]", "line 3: expected an object, got list"),
        ("17", "line 3: expected an object, got int"),
        ('{"tag": 1, "tag": 2}', "line 3: not valid JSON: repeated keys: tag"),
        ('{"tag": ' * 100_000, "line 3: not valid JSON: it is nested too deeply"),
        ("9" * 5000, "line 3: not valid JSON: Exceeds the limit"),
    ],
)
def test_a_bad_json_line_is_named_by_number(tmp_path, line, message):
    path = write_jsonl(tmp_path / "data.jsonl", [row(0), "", line, row(2)])
    with pytest.raises(ValueError, match=message):
        load_manifest(path)
    manifest = load_manifest(path, on_error="skip")
    assert [record.id for record in manifest.records] == ["0", "2"]
    assert manifest.skipped == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"data": ', r"data\.json: not valid JSON: .*line 1 column 10"),
        ("[]", r"data\.json: the manifest is empty"),
        ('"text"', r"data\.json: expected \{"),
        ('{"safe": "a", "nsfw": "b"}', r"data\.json: expected \{"),
        ('{"0": {"safe": "a"}, "0": {"safe": "b"}}', r"data\.json: repeated keys: 0"),
        ('[{"safe": "a", "nsfw": "b"}, 3]', "row 1: expected an object, got int"),
        ("[" * 100_000, r"data\.json: it is nested too deeply"),
    ],
)
def test_a_bad_json_document_says_why(tmp_path, text, message):
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_manifest(path)


def test_a_bad_table_says_where(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("safe_caption,unsafe_caption\na,b\nc\nd,e,f\n")
    with pytest.raises(ValueError, match="line 3: has 1 cells where the header has 2"):
        load_manifest(path)
    assert load_manifest(path, on_error="skip").skipped == 2
    path.write_text("safe_caption,safe_caption\na,b\n")
    with pytest.raises(ValueError, match=r"data\.csv: repeated columns in the header: safe_caption"):
        load_manifest(path)
    path.write_text("safe_caption;unsafe_caption\na;b\n")
    with pytest.raises(
        ValueError, match=r"'safe_caption;unsafe_caption' has semicolons; a table is separated by"
    ):
        load_manifest(path)


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n"])
def test_a_quote_that_nothing_closes_is_named_by_its_line(tmp_path, end):
    path = tmp_path / "data.tsv"
    for rows in (3, 3000):  # a cell of the latter is more than the csv module takes
        lines = [f"caption {'long ' * 20}{i}\tunsafe {i}" for i in range(rows)]
        lines[1] = f'"{lines[1]}'
        path.write_text("\n".join(["safe_caption\tunsafe_caption", *lines]) + end)
        with pytest.raises(ValueError, match=r"data\.tsv: line 3: a quote opens a cell and none closes it"):
            load_manifest(path)


def test_quotes_are_those_of_pandas(tmp_path):
    """What pandas 3.1.1 makes of the same lines, by ``read_csv(path, sep="\\t")`` as open_clip calls it."""
    read = {
        'a "cat" there': 'a "cat" there',
        '"a ""cat"" there"': 'a "cat" there',
        '"cat" there': "cat there",
        '"a, b"': "a, b",
        "it's 5\" tall": "it's 5\" tall",
    }
    path = tmp_path / "data.tsv"
    path.write_text("\n".join(["safe_caption\tunsafe_caption", *(f"{cell}\tunsafe" for cell in read)]))
    assert [record.safe_caption for record in load_manifest(path).records] == list(read.values())


def test_repeated_keys_are_found_in_linear_time(tmp_path):
    keys = ", ".join(f'"k{i}": 1' for i in range(40_000))
    path = write_jsonl(tmp_path / "data.jsonl", [f"{{{keys}, {keys}}}"])
    began = time.perf_counter()
    with pytest.raises(ValueError, match="repeated keys: k0, k1, k10, k100, k1000 and 39995 more"):
        load_manifest(path)
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize(("name", "text"), [("a.jsonl", "\n \n"), ("a.csv", ""), ("a.csv", "safe_caption\n")])
def test_an_empty_manifest_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="is empty"):
        load_manifest(tmp_path / name, on_error="skip")


def test_names_that_are_no_manifest_are_refused(tmp_path):
    for name, got in (("data.xlsx", r"'\.xlsx'"), ("data", "'no suffix'")):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=rf"ends in \.jsonl, \.json, \.csv, \.tsv, \.parquet; got {got}"):
            load_manifest(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl does not exist"):
        load_manifest(tmp_path / "none.jsonl")
    (tmp_path / "latin.csv").write_bytes("safe_caption,unsafe_caption\ncafé,b\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.csv is not UTF-8 text"):
        load_manifest(tmp_path / "latin.csv")


def test_repeated_ids_are_named(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [row(i, id=id_) for i, id_ in enumerate("abcab")])
    for on_error in ("raise", "skip"):
        with pytest.raises(ValueError, match=r"data\.jsonl: ids must be unique, .* repeated: 'a', 'b'$"):
            load_manifest(path, on_error=on_error)


@pytest.mark.parametrize("order", [(text_row, row), (row, text_row)])
def test_images_in_some_rows_only_are_refused(tmp_path, order):
    rows = [order[0](0, id="zero"), order[0](1, id="one"), order[1](2, id="two")]
    with_, without = ("two", "zero") if order[1] is row else ("zero", "two")
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    with pytest.raises(ValueError, match=f"id '{without}' has no images but the one with id '{with_}' has"):
        load_manifest(path)


def test_on_error_has_two_values(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [row(0)])
    with pytest.raises(ValueError, match='on_error must be "raise" or "skip", got \'ignore\''):
        load_manifest(path, on_error="ignore")
    with pytest.raises(ValueError, match="on_error must be"):
        verify_images(load_manifest(path), on_error="ignore")


def test_skipped_rows_are_reported_once_with_reasons(tmp_path, caplog):
    bad = [row(i, safe_caption="") for i in range(1, 9)] + ["{", row(10, unsafe_caption="")]
    path = write_jsonl(tmp_path / "data.jsonl", [row(0), *bad, row(11)])
    with caplog.at_level(logging.WARNING):
        manifest = load_manifest(path, on_error="skip")
    assert ([record.id for record in manifest.records], manifest.skipped) == (["0", "11"], 10)
    (message,) = caplog.messages
    assert "10 of 12 rows cannot be used" in message
    assert "line 2, line 3, line 4, line 5, line 6 and 3 more: safe_caption is empty" in message
    assert "line 10: not valid JSON" in message
    assert "line 11: unsafe_caption is empty" in message
    assert "These rows are skipped" in message


def test_a_quadruplet_and_a_manifest_check_themselves():
    with pytest.raises(ValueError, match="id is empty"):
        Quadruplet("", None, None, "a", "b")
    with pytest.raises(ValueError, match="safe_image is empty"):
        Quadruplet("0", None, Path("b.png"), "a", "b")
    with pytest.raises(ValueError, match="the manifest is empty"):
        Manifest(())


# --- images -------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    """Five quadruplets of photographs; rows 1 and 3 have a broken and a missing image."""
    names = ["astronaut", "chelsea", "coffee", "rocket", "chelsea"]
    rows = [row(f"{i}", id=f"row-{i}") for i in range(5)]
    for folder in ("safe", "unsafe"):
        (tmp_path / folder).mkdir()
    for i, name in enumerate(names):
        photo = getattr(skimage.data, name)()[::4, ::4]
        Image.fromarray(photo).save(tmp_path / f"safe/{i}.jpg")
        Image.fromarray(np.flipud(photo)).save(tmp_path / f"unsafe/{i}.jpg")
    whole = tmp_path / "unsafe/1.jpg"
    whole.write_bytes(whole.read_bytes()[:800])
    os.remove(tmp_path / "safe/3.jpg")
    return load_manifest(write_jsonl(tmp_path / "data.jsonl", rows))


def test_unreadable_images_are_named_by_row_and_path(photos):
    with pytest.raises(ValueError, match="images: 2 of 5 rows cannot be used") as caught:
        verify_images(photos, progress=False)
    message = str(caught.value)
    assert f"row with id 'row-1': image {photos.records[1].unsafe_image} cannot be read: OSError" in message
    assert f"row with id 'row-3': image {photos.records[3].safe_image} does not exist" in message


def test_unreadable_images_can_be_skipped_with_one_warning(photos, caplog):
    with caplog.at_level(logging.WARNING):
        verified = verify_images(Manifest(photos.records, skipped=4), on_error="skip", progress=False)
    assert verified.records == tuple(photos.records[i] for i in (0, 2, 4))
    assert verified.skipped == 6
    assert len(caplog.messages) == 1
    assert verify_images(verified, progress=False) == verified


def test_an_image_of_several_rows_takes_all_of_them_along(photos):
    good, bad = photos.records[0], photos.records[1].unsafe_image
    shared = [Quadruplet(str(i), good.safe_image, bad, "a", "b") for i in range(3)]
    verified = verify_images(Manifest((*shared, good)), on_error="skip", progress=False)
    assert (verified.records, verified.skipped) == ((good,), 3)
    with pytest.raises(
        ValueError, match=r"images: 3 of 3 rows cannot be used\n  row with id '0', row with id '1'"
    ):
        verify_images(Manifest(tuple(shared)), on_error="skip", progress=False)


def test_progress_is_shown_on_request(photos, capsys):
    good = Manifest((photos.records[0],))
    verify_images(good, progress=False)
    assert capsys.readouterr().err == ""
    verify_images(good)
    assert "check images: 100%" in capsys.readouterr().err


def test_text_only_manifests_have_nothing_to_verify(capsys):
    manifest = Manifest((Quadruplet("0", None, None, "a", "b"),))
    assert verify_images(manifest) is manifest
    assert capsys.readouterr().err == ""
