"""Galleries of arrays and files: read in place, in pieces, and refused where they are cut."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from native_rows import needs_library
from safetensors.torch import save_file
from test_retrieval import assert_same, points

from hypkernels import retrieval

CURV = 0.7


@pytest.fixture
def gallery():
    return points(500, 8, seed=1)


def saved(folder, gallery, dtype):
    """The gallery's file, of either format."""
    if dtype == torch.bfloat16:
        path = folder / "items.safetensors"
        save_file({"items": gallery.to(dtype)}, path)
    else:
        path = folder / "items.npy"
        np.save(path, gallery.to(dtype).numpy())
    return path


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_file_is_as_good_as_a_tensor(tmp_path, gallery, dtype):
    queries, targets = points(70, 8), torch.arange(70)
    path = saved(tmp_path, gallery, dtype)
    narrow = gallery.to(dtype)
    seen = []
    found = retrieval.topk(queries, path, 5, CURV, progress=lambda *at: seen.append(at))
    assert_same(found, retrieval.topk(queries, narrow, 5, CURV))
    assert seen == [(500, 500)]
    opened = retrieval.open_gallery(str(path))
    assert (len(opened), opened.width, opened.dtype) == (500, 8, dtype)
    ranks = retrieval.positive_rank(queries, opened, targets, CURV)
    assert ranks.equal(retrieval.positive_rank(queries, narrow, targets, CURV))
    candidates = torch.arange(70 * 9).view(70, 9) % 500
    assert_same(
        retrieval.rerank(queries, opened, candidates, 3, CURV),
        retrieval.rerank(queries, narrow, candidates, 3, CURV),
    )


def test_pieces_of_a_file(tmp_path, gallery, monkeypatch):
    path = saved(tmp_path, gallery, torch.float32)
    monkeypatch.setattr(retrieval.Gallery.pieces, "__defaults__", (8 * 4 * 150,))
    queries, seen = points(3, 8), []
    found = retrieval.topk(queries, path, 5, CURV, progress=lambda *at: seen.append(at))
    assert_same(found, retrieval.topk(queries, gallery, 5, CURV))
    assert seen == [(150, 500), (300, 500), (450, 500), (500, 500)]


def test_what_progress_raises_ends_the_search(gallery):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retrieval.topk(points(3, 8), gallery, 1, progress=stop)


def test_memory_maps_and_tensors_by_name(tmp_path, gallery):
    queries = points(3, 8)
    wanted = retrieval.topk(queries, gallery, 5, CURV)
    mapped = np.load(saved(tmp_path, gallery, torch.float32), mmap_mode="r")
    assert_same(retrieval.topk(queries, mapped, 5, CURV), wanted)
    path = tmp_path / "two.safetensors"
    save_file({"others": torch.zeros(3), "items": gallery}, path, {"note": "of two"})
    assert_same(retrieval.topk(queries, retrieval.open_gallery(path, "items"), 5, CURV), wanted)
    with pytest.raises(ValueError, match="name must be one of items, others"):
        retrieval.open_gallery(path)
    with pytest.raises(ValueError, match="got 'else'"):
        retrieval.open_gallery(path, "else")


@pytest.mark.parametrize("kept", [0.9, 0.001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_cut_file_is_refused(tmp_path, gallery, dtype, kept):
    path = saved(tmp_path, gallery, dtype)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match="is cut" if kept > 0.5 else "no readable header"):
        retrieval.topk(points(3, 8), path, 1)


def test_other_files_are_refused(tmp_path, gallery):
    for name, write, error, message in (
        ("none.npy", None, FileNotFoundError, "none.npy"),
        ("items.bin", lambda path: path.write_bytes(b"123"), ValueError, r"must be \.npy or \.safetensors"),
        ("text.npy", lambda path: path.write_text("no array"), ValueError, "no readable header"),
        ("text.safetensors", lambda path: path.write_text("no tensors"), ValueError, "no readable header"),
        ("whole.npy", lambda path: np.save(path, np.ones((3, 4), int)), ValueError, "must hold float64"),
        ("columns.npy", lambda path: np.save(path, np.ones((3, 4)).T), ValueError, "stored by columns"),
        ("row.npy", lambda path: np.save(path, np.ones(4)), ValueError, "gallery must have shape"),
        ("empty.npy", lambda path: np.save(path, np.ones((0, 4))), ValueError, "gallery must have shape"),
        (
            "whole.safetensors",
            lambda path: save_file({"items": torch.ones(3, 4, dtype=torch.int32)}, path),
            ValueError,
            "must hold F64",
        ),
    ):
        path = tmp_path / name
        if write:
            write(path)
        with pytest.raises(error, match=message):
            retrieval.open_gallery(path)
    with pytest.raises(ValueError, match=r"name is of \.safetensors files"):
        retrieval.open_gallery(gallery, "items")
    with pytest.raises(TypeError, match="gallery must be float64, float32 or float16 as an array"):
        retrieval.open_gallery(np.ones((3, 4), int))
    for array in (np.ones((3, 4), np.dtype("f4").newbyteorder("S")), np.ones((3, 4))[::-1]):
        with pytest.raises(ValueError, match="gallery must be an array of this machine's byte order and"):
            retrieval.open_gallery(array)


@pytest.mark.slow
@needs_library
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_gallery(tmp_path):
    """The peak of a process that searches a file of 400 MB."""
    path = tmp_path / "items.npy"
    array = np.lib.format.open_memmap(path, "w+", np.float32, (200_000, 512))
    for start in range(0, 200_000, 10_000):
        array[start : start + 10_000] = points(10_000, 512, seed=start).numpy()
    array.flush()
    del array
    code = f"""
        import resource, torch
        from hypkernels import retrieval

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

        queries = torch.randn(200, 512) / 512**0.5
        retrieval.topk(queries, queries, 1)  # what libraries take once
        before = peak()
        retrieval.topk(queries, {str(path)!r}, 10)
        retrieval.positive_rank(queries, {str(path)!r}, torch.arange(200))
        print(peak() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True
    )
    assert float(done.stdout) < 256


def test_the_first_points_of_a_file(tmp_path):
    points = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    np.save(tmp_path / "points.npy", points)
    whole = retrieval.open_gallery(tmp_path / "points.npy")
    part = whole.first(10)
    assert len(part) == 10
    assert retrieval.topk(torch.zeros(1, 4), part, 10).indices.max() == 9
    for count in (0, 31):
        with pytest.raises(ValueError, match=f"count must be from 1 to the gallery's 30 items, got {count}"):
            whole.first(count)
