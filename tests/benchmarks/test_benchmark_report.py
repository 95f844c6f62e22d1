"""Files of results, the report made of them, and the comparison of two."""

from __future__ import annotations

import copy
import json

import pytest

from benchmarks import compare, report
from benchmarks.results import Results, open_run

BATCHES = (64, 128, 256, 512, 1024)


def ok(case, shape, provider, seconds, peak_bytes=2**22):
    phases = {"forward": 0.4, "backward": 0.6, "both": 1.0}
    return {
        "case": case,
        "shape": shape,
        "provider": provider,
        "status": "ok",
        "error": 1.2e-7,
        "seconds": {
            phase: {
                "median": part * seconds,
                "q1": 0.9 * part * seconds,
                "q3": 1.1 * part * seconds,
                "samples": 20,
            }
            for phase, part in phases.items()
        },
        "peak_bytes": peak_bytes,
        "operations": {phase: part * 1e9 for phase, part in phases.items()},
        "bytes": {phase: part * 1e8 for phase, part in phases.items()},
        "roofline": dict.fromkeys(phases, 0.123),
    }


def document():
    providers = {
        "hypkernels-torch-fp32": {"label": "hypkernels torch, fp32", "note": "ours", "ours": True},
        "eager-fp32": {"label": "eager PyTorch, fp32", "note": "formulas", "ours": False},
        "compile-fp32": {"label": "torch.compile, fp32", "note": "compiled formulas", "ours": False},
        "geoopt-fp32": {"label": "geoopt, fp32", "note": "points with time", "ours": False},
    }
    records = []
    for batch in BATCHES:
        shape = {"B": batch, "D": 512}
        records.append(ok("contrastive_dist", shape, "hypkernels-torch-fp32", 1e-8 * batch**2, 4096 * batch))
        records.append(ok("contrastive_dist", shape, "eager-fp32", 3e-8 * batch**2, 24 * batch**2))
    records.append(ok("contrastive_dist", shape, "compile-fp32", 1.5e-8 * batch**2))
    shape = {"B": 4096, "D": 512}
    records.append(ok("exp_map0", shape, "hypkernels-torch-fp32", 0.0123456))
    records.append(ok("exp_map0", shape, "eager-fp32", 0.0246912))
    wrong = {
        "status": "wrong",
        "error": 0.1,
        "detail": "gradient of x is off by 0.1 of its norm (0.002 allowed)",
    }
    records.append({"case": "exp_map0", "shape": shape, "provider": "geoopt-fp32", **wrong})
    return {
        "schema": 1,
        "date": "2025-01-31",
        "complete": True,
        "whole": True,
        "size": "small",
        "device": {"slug": "test-cpu-2-cores", "name": "Test CPU, 2 cores", "kind": "cpu", "driver": None},
        "software": {"python": "3.11", "torch": "2.8.0", "triton": None, "cuda": None, "system": "Linux"},
        "commit": "0123456789",
        "source": "abc",
        "providers": providers,
        "unavailable": {"geoopt-fp32": "not installed", "step_toy": "not installed", "inf-cl": "needs CUDA"},
        "ceilings": {"bytes_per_s": 2e10, "flop_per_s": {"float32": 1e11, "bfloat16": 2e11}},
        "records": records,
    }


def write(folder, content, name="2025-01-31"):
    path = folder / content["device"]["slug"] / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the report of the document above was written."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("report")
    write(folder / "results", document())
    readme = folder / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold figures\n{report.END}\nafter\n")
    report.main(
        ["--results", str(folder / "results"), "--docs", str(folder / "docs"), "--readme", str(readme)]
    )
    return folder


@pytest.fixture
def rendered(folder):
    """The page and the README."""
    return (folder / "docs" / "benchmarks.md").read_text(), (folder / "README.md").read_text()


def row(page, *starts):
    """The cells of the first table row after the given texts."""
    for start in starts:
        page = page[page.index(start) :]
    return [cell.strip() for cell in page.splitlines()[0].split("|")[1:-1]]


@pytest.mark.slow
def test_the_page_shows_times_speed_ups_and_what_differs(rendered):
    page, _ = rendered
    cells = row(page, "(`exp_map0`)", "B=4096 D=512:", "| hypkernels torch, fp32")
    assert cells == [
        "hypkernels torch, fp32",
        *("4.94", "7.41", "12.3", "11.1 to 13.6", "2.00", "4.00", "12", "1e-07"),
        "ours",
    ]


def test_the_details_are_of_the_largest_batch_and_of_the_one_that_most_could_do(tmp_path):
    content = document()
    content["records"].append(ok("contrastive_dist", {"B": 2048, "D": 512}, "eager-fp32", 0.1))
    write(tmp_path / "results", content)
    (run,) = report.newest_runs(tmp_path / "results")
    report.render([run], tmp_path / "benchmarks.md", tmp_path / "images")
    page = (tmp_path / "benchmarks.md").read_text()
    section = page[page.index("(`contrastive_dist`)") :]
    assert section.index("B=1024 D=512:") < section.index("B=2048 D=512:")
    assert "| torch.compile" not in section[section.index("B=2048 D=512:") : section.index(", by batch:")]


def test_a_wrong_provider_shows_no_number(rendered):
    cells = row(rendered[0], "(`exp_map0`)", "| geoopt, fp32")
    assert cells[1].startswith("**wrong**: gradient of x is off")
    assert not any(cells[2:-1])


def test_the_growth_is_an_exponent(rendered):
    page, _ = rendered
    time = row(page, "Forward and backward, ms, by batch", "| eager PyTorch, fp32")
    assert time[1:] == ["0.123", "0.492", "1.97", "7.86", "31.5", "2.00 ± 0.00"]
    memory = row(page, "Peak memory, MiB, by batch", "| hypkernels torch, fp32")
    assert memory[1:] == ["0.250", "0.500", "1.00", "2.00", "4.00", "1.00 ± 0.00"]


def test_every_picture_exists_and_is_shown(rendered, folder):
    page, readme = rendered
    stem = "images/benchmarks-test-cpu-2-cores-small"
    for name in ("growth", "speed-up", "roofline"):
        assert f"({stem}-{name}.png)" in page
        assert (folder / "docs" / f"{stem}-{name}.png").stat().st_size > 10_000
    assert f"(docs/{stem}-growth.png)" in readme


def test_the_readme_has_the_summary_between_its_markers(rendered):
    _, readme = rendered
    assert readme.startswith("before\n")
    assert readme.endswith(f"{report.END}\nafter\n")
    assert "old figures" not in readme
    assert "Test CPU, 2 cores, PyTorch 2.8.0, commit 0123456789, 2025-01-31" in readme
    cells = row(readme, "| Contrastive loss on distances")
    assert cells[1:] == ["B=1024 D=512", "31.5", "15.7", "10.5", "3.00", "24.0", "4.00", "1e-07", "1e-07"]
    assert row(readme, "| Exponential map")[3] == ""  # torch.compile did not run there


def test_only_the_newest_run_of_a_size_is_shown(tmp_path):
    content = document()
    for name, commit in (("2025-01-31", "old"), ("2025-02-01", "older"), ("2025-02-01-2", "newest")):
        write(tmp_path, content | {"commit": commit}, name)
    write(tmp_path, {"device": {"slug": "test-cpu-2-cores"}}, "demo")  # not a file of results
    assert [run.header["commit"] for run in report.newest_runs(tmp_path)] == ["newest"]


def test_a_run_of_some_cases_does_not_hide_one_of_all(tmp_path):
    content = document()
    write(tmp_path, content | {"commit": "all"}, "2025-01-31")
    write(tmp_path, content | {"commit": "some", "whole": False}, "2025-02-01")
    write(tmp_path, content | {"commit": "larger", "whole": False, "size": "medium"}, "2025-02-01-2")
    runs = report.newest_runs(tmp_path)
    assert [run.header["commit"] for run in runs] == ["all", "larger"]
    text = report.summary(runs, tmp_path / "README.md", tmp_path / "images")
    assert "commit all" in text
    assert "some of the cases" not in text


def test_what_was_not_measured_is_listed_by_reason(rendered):
    listed = rendered[0][rendered[0].index("Not measured here:") :].splitlines()[2:]
    assert listed[0] == "- not installed: geoopt, fp32; HySAC training step, toy towers"
    assert listed[1] == "- needs CUDA: inf-cl"


def test_a_run_without_a_comparison_is_reported_without_its_pictures(tmp_path):
    content = document()
    content["records"] = content["records"][-2:-1]  # eager PyTorch alone
    write(tmp_path / "results", content)
    report.render(report.newest_runs(tmp_path / "results"), tmp_path / "benchmarks.md", tmp_path / "images")
    page = (tmp_path / "benchmarks.md").read_text()
    assert "| eager PyTorch, fp32 | 9.88 |" in page
    assert "![" not in page


def test_a_document_without_markers_stays(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("text")
    assert not report.embed(readme, "figures")
    assert readme.read_text() == "text"


def test_results_survive_a_round_trip(tmp_path):
    content = document()
    path = write(tmp_path, content)
    results = Results.load(path)
    results.save()
    again = Results.load(path)
    assert again.header == {name: content[name] for name in content if name != "records"}
    assert len(again.records) == len(content["records"])
    assert again.records[-1] == content["records"][-1]
    found = again.find("exp_map0", {"B": 4096, "D": 512}, "eager-fp32")
    assert found["seconds"]["both"]["median"] == pytest.approx(0.0246912, rel=1e-4)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content | {"schema": 2}, "version 1"),
        (lambda content: {name: content[name] for name in content if name != "commit"}, "version 1"),
        (lambda content: content | {"records": [{"status": "fast"}]}, "status must be one of"),
    ],
)
def test_other_files_are_refused(tmp_path, damage, message):
    with pytest.raises(ValueError, match=message):
        Results.load(write(tmp_path, damage(document())))
    text = tmp_path / "text.json"
    text.write_text("not json")
    with pytest.raises(ValueError, match="is not JSON"):
        Results.load(text)


def test_only_an_unfinished_run_of_the_same_code_is_continued(tmp_path):
    content = document()
    header = {
        name: content[name]
        for name in content
        if name not in ("schema", "date", "complete", "whole", "records")
    }
    path = write(tmp_path, content | {"complete": False})
    assert open_run(header, tmp_path).path == path
    assert open_run(header | {"source": "other code"}, tmp_path).path != path
    write(tmp_path, content)
    assert open_run(header, tmp_path).path != path


def compared(tmp_path, change):
    """The exit status of ``compare`` for a run and a changed copy of it, and the copy's verdicts."""
    before, after = document(), copy.deepcopy(document())
    change(after["records"][-3])  # hypkernels, exp_map0
    paths = [write(tmp_path, content, name) for content, name in ((before, "a"), (after, "b"))]
    found = compare.changes(*(Results.load(path) for path in paths))
    return compare.main([str(path) for path in paths]), [c.verdict for c in found if c.verdict]


def scale_time(factor):
    def change(record):
        for phase in record["seconds"].values():
            phase.update({name: factor * phase[name] for name in ("median", "q1", "q3")})

    return change


@pytest.mark.parametrize(
    ("change", "status", "verdicts"),
    [
        (lambda record: None, 0, []),
        (scale_time(1.5), 1, ["slower"] * 3),
        (scale_time(1.1), 0, []),  # the quartiles overlap
        (scale_time(0.5), 0, ["faster"] * 3),
        (lambda record: record.update(peak_bytes=2**23), 1, ["larger"]),
        (lambda record: record.update(peak_bytes=2**22 + 1000), 0, []),
        (lambda record: record.update(status="wrong", detail="off"), 1, ["broken"]),
    ],
)
def test_compare_tells_regressions(tmp_path, change, status, verdicts):
    assert compared(tmp_path, change) == (status, verdicts)


def test_compare_prints_what_changed(tmp_path, capsys):
    compared(tmp_path, scale_time(2.0))
    printed = capsys.readouterr().out
    assert row(printed, "| exp_map0 B=4096 D=512, hypkernels-torch-fp32, both, ms")[1:] == [
        "12.3",
        "24.7",
        "2.00",
        "slower",
    ]
    assert "3 changed, 3 regressions" in printed
