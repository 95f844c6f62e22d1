"""What the site has beyond ``docs/``: pages that lie elsewhere, and programs and notebooks as pages.

Links are written for those who read the files in the repository, such as ``docs/engines.md`` in the
README. Each is resolved from where its page lies there, and rewritten to where the site has its target.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "findings/README.md": "findings/index.md",
}
_LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")
_LANGUAGES = {".py": "python", ".sh": "sh"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere, the notebooks, and every file that a page names."""
    for source, uri in ELSEWHERE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
    for notebook in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
        uri = f"notebooks/{notebook.stem}.md"
        origin = f"\n\nThis is `docs/notebooks/{notebook.name}`. Its outputs are not kept; the tests run it."
        files.append(File.generated(config, uri, content=notebook_as_markdown(notebook.read_text()) + origin))
    for page in [file for file in files if file.is_documentation_page()]:
        for target, _ in _LINK.findall(page.content_string):
            path = _in_repository(page.src_uri, target)
            uri = _in_site(path)
            if files.get_file_from_path(uri) is None and (ROOT / path).is_file():
                files.append(_of_file(config, path, uri))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links, and drop the word that tells tests what a block of code needs."""
    here = page.file.src_uri

    def rewritten(link: re.Match[str]) -> str:
        uri = _in_site(_in_repository(here, link[1]))
        return f"]({os.path.relpath(uri, PurePosixPath(here).parent)}{link[2] or ''})"

    return re.sub(r"(?m)^```(\w+) \w+$", r"```\1", _LINK.sub(rewritten, markdown))


def notebook_as_markdown(text: str) -> str:
    """The cells of a notebook, whose outputs are not kept."""
    cells: list[dict[str, Any]] = json.loads(text)["cells"]
    parts = ["".join(cell["source"]) for cell in cells]
    return "\n\n".join(
        f"```python\n{part}\n```" if cell["cell_type"] == "code" else part
        for cell, part in zip(cells, parts, strict=True)
    )


def _in_repository(uri: str, target: str) -> str:
    """The path of what the page ``uri`` names as ``target``."""
    source = next((path for path, at in ELSEWHERE.items() if at == uri), f"docs/{uri}")
    return os.path.normpath(PurePosixPath(source).parent / target)


def _in_site(path: str) -> str:
    """Where the site has a file of the repository."""
    uri = PurePosixPath(ELSEWHERE.get(path, path.removeprefix("docs/")))
    if uri.suffix == ".ipynb":
        uri = uri.with_suffix(".md")
    return f"{uri}.md" if uri.suffix in _LANGUAGES else str(uri)


def _of_file(config: MkDocsConfig, path: str, uri: str) -> File:
    """A program as a page, anything else as it is."""
    language = _LANGUAGES.get(PurePosixPath(path).suffix)
    if language is None:
        return File.generated(config, uri, abs_src_path=str(ROOT / path))
    text = (ROOT / path).read_text()
    return File.generated(
        config, uri, content=f"# {PurePosixPath(path).name}\n\n~~~~{language}\n{text}~~~~\n"
    )
