"""The documentation: every page is in the site, every link leads somewhere, and it builds offline."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import hypkernels as hk
import hysac
from hypkernels import retrieval
from hypkernels.retrieval import engines
from hysac.cli.main import make_parser

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "findings/README.md")),
    *sorted(DOCS.rglob("*.md")),
    *sorted(DOCS.rglob("*.ipynb")),
]
SETTINGS = (DOCS / "site/mkdocs.yml").read_text()


def text_of(page):
    """A page's Markdown without its blocks of code, which have `#` and brackets of their own."""
    if page.suffix == ".ipynb":
        cells = json.loads(page.read_text())["cells"]
        return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"(?ms)^ *```.*?^ *```$", "", page.read_text())


def anchors(page):
    """Of its headings, as GitHub and the site make them."""
    titles = re.findall(r"(?m)^#+ (.+)$", text_of(page))
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


def test_every_page_is_in_the_navigation():
    named = re.findall(r"(?m)^ +- (?:\w+: )?([\w/]+)\.md$", SETTINGS)
    elsewhere = {"index", "contributing", "findings/index"}
    found = {str(page.relative_to(DOCS).with_suffix("")) for page in PAGES if page.is_relative_to(DOCS)}
    assert len(named) == len(set(named))
    assert set(named) == elsewhere | found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    prose = re.sub(r"`[^`]*`", "", text_of(page).replace("[`", "[").replace("`]", "]"))
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)\s#]*)(?:#([^)\s]*))?\)", prose):
        path = page.parent / target if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def test_the_reference_has_every_public_name():
    pages = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    named = set(re.findall(r"(?m)^::: ([\w.]+)$", pages))
    for module, but in ((hk, ()), (hysac, ()), (retrieval, ()), (engines, ("ENGINES",))):
        assert {f"{module.__name__}.{name}" for name in set(module.__all__) - set(but)} <= named


def test_findings_are_listed():
    listed = re.findall(r"(?m)^- \[(\w+)\]\(\1\.sh\): (.+)$", (ROOT / "findings/README.md").read_text())
    scripts = sorted((ROOT / "findings").glob("*.sh"))
    assert listed == [(path.stem, path.read_text().splitlines()[1].removeprefix("# ")) for path in scripts]


def test_the_changelog_has_this_version():
    version = re.search(r'(?m)^version = "(.+)"$', (ROOT / "pyproject.toml").read_text())[1]
    assert f"\n## {version}, " in (DOCS / "changelog.md").read_text()


def test_commands_of_the_tutorial():
    text = (DOCS / "tutorial.md").read_text()
    commands = re.findall(r"(?m)^hysac (.+)$", text)
    assert len(commands) >= 8
    for command in commands:
        make_parser().parse_args(shlex.split(command))
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}:" in makefile for target in re.findall(r"(?m)^make (\S+)$", text))


def test_angles_of_the_geometry():
    page = (DOCS / "geometry.md").read_text()
    (told,) = re.findall(r"Three cones in the Poincaré disk: (.*)\]", page)
    found = re.findall(r"(\d+) (?:degrees )?at ([\d.]+)", told)
    assert len(found) == 3
    for angle, distance in found:
        apex = hk.exp_map0(torch.tensor([float(distance), 0.0]))
        assert round(math.degrees(hk.half_aperture(apex))) == int(angle)


def test_the_limits_say_that_no_gpu_was_used():
    """When one has been, they have to say so."""
    records = [json.loads(path.read_text()) for path in (ROOT / "benchmarks/results").glob("*/2*.json")]
    assert "**No GPU has run any of it.**" in (DOCS / "limits.md").read_text()
    assert {record["device"]["kind"] for record in records} == {"cpu"}
    assert not (ROOT / "tests/gpu/results").exists()


def run_notebook(name, monkeypatch, folder, **parameters):
    """Its cells in a namespace of their own; ``parameters`` replace what the cell of that tag has set."""
    monkeypatch.chdir(folder)
    namespace = {"__name__": "__main__"}
    for number, cell in enumerate(json.loads((DOCS / f"notebooks/{name}.ipynb").read_text())["cells"]):
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None), "outputs are not kept"
            exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), namespace)
            if "parameters" in cell["metadata"].get("tags", ()):
                assert set(parameters) <= set(namespace)
                namespace.update(parameters)


@pytest.mark.slow
def test_notebook_swap_one_line(monkeypatch, tmp_path):
    run_notebook("swap_one_line", monkeypatch, tmp_path)


@pytest.mark.slow
def test_notebook_safety_filter(monkeypatch, tmp_path):
    """With random weights, bounds of any kind and few pictures: what it shows is `make demo`'s to show."""
    model = hysac.create_model("hysac-toy")
    classes = {letter: hysac.safety.ClassBounds(0.1, 0.5, 9.0) for letter in "SVUG"}
    bounds = hysac.Bounds(classes, float(model.curvature.detach()))
    hysac.save_pretrained(model, tmp_path / "model", bounds=bounds)
    small = {"SEEN": 0, "LABELLED": 25, "IN_FOLDER": 4}
    run_notebook("safety_filter", monkeypatch, tmp_path, MODEL="model", WORK="work", **small)


@pytest.mark.slow
def test_the_site_is_built(tmp_path):
    """Without a warning. It asks nothing of the network, lists are lists, roles of docstrings are links."""
    if not (find_spec("mkdocs") and find_spec("mkdocstrings")):
        pytest.skip("MkDocs is not installed: pip install 'hysac[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "-f", DOCS / "site/mkdocs.yml", "-d", tmp_path]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=quiet)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    pages = {page.relative_to(tmp_path).as_posix(): page.read_text() for page in tmp_path.rglob("*.html")}
    assert '<a class="autorefs autorefs-internal"' in pages["reference/hypkernels.html"]
    for name, text in pages.items():
        assert not fetched(text), name
        assert not not_rendered(text, roles=name.startswith("reference/")), name
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//|@import", sheet.read_text()), sheet.name


def fetched(page):
    """What a browser would get from elsewhere."""
    tags = re.findall(r"<(?:link|script|img|iframe|source)\b[^>]*>", page)
    return [tag for tag in tags if re.search(r"\"(?:https?:)?//", tag)]


def not_rendered(page, roles):
    """Markdown, and reStructuredText of docstrings, that reached the page as it was written."""
    article = re.search(r"(?s)<article.*</article>", page)[0]
    prose = re.sub(r"(?s)<(pre|code)\b.*?</\1>", "", article)
    marks = r"``|(?m:^ *(?:[*-]|\d+\.) )" + (r"|:(?:func|class|meth|mod|attr):|::" if roles else "")
    return re.findall(marks, prose)
