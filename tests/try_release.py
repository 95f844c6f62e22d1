"""Installs the files of a release, each in turn, far from the checkout, and runs `tests/smoke.py` there.

    python tests/try_release.py dist --resolved runs/release/resolved.txt

A new environment takes all dependencies from the index. Each file runs with the compiler of this machine and
with none on the path. The sources become the compiled lane in the first case, PyTorch's calls in the second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SMOKE = Path(__file__).with_name("smoke.py").resolve()
# Of the extras that users install, what `make audit` looks up.
EXTRAS = "train,calibrate,parquet,hf,serve,export"


class Environment:
    """A new one in a temporary folder, where its commands run too."""

    def __init__(self, folder: Path):
        subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
        self.folder, self.scripts = folder, folder / "env/bin"

    def run(self, *arguments: str | Path, compiler: bool = True) -> None:
        path = [str(self.scripts), *([os.environ["PATH"]] if compiler else [])]
        left_out = ("CC", "CXX", "PYTHONPATH", "HYPKERNELS_PURE", "HYPKERNELS_BACKEND")
        kept = {name: value for name, value in os.environ.items() if name not in left_out}
        with tempfile.TemporaryDirectory(dir=self.folder) as work:
            command = [self.scripts / "python", "-I", *arguments]
            subprocess.run(command, check=True, cwd=work, env={**kept, "PATH": os.pathsep.join(path)})

    def install(self, *arguments: str | Path, compiler: bool = True) -> None:
        self.run("-m", "pip", "install", "-q", *arguments, compiler=compiler)


def the(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"{folder} must hold one {pattern}, got {[file.name for file in found]}")
    return found[0].resolve()


def try_file(environment: Environment, file: Path, *, with_compiler: str, without: str) -> None:
    for compiler, lane in ((True, with_compiler), (False, without)):
        print(f"{file.name} {'with' if compiler else 'without'} a compiler:", flush=True)
        environment.install("--force-reinstall", "--no-deps", "--no-cache-dir", file, compiler=compiler)
        environment.run(SMOKE, lane, compiler=compiler)


def write_resolved(environment: Environment, wheel: Path, out: Path) -> None:
    """Names and versions of all that the wheel with its extras brings to an empty environment."""
    report = environment.folder / "report.json"
    environment.install("--dry-run", "--ignore-installed", "--report", report, f"{wheel}[{EXTRAS}]")
    found = [one["metadata"] for one in json.loads(report.read_text())["install"]]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        "".join(sorted(f"{one['name']}=={one['version']}\n" for one in found if one["name"] != "hysac"))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dist", type=Path)
    parser.add_argument("--resolved", type=Path, required=True, help="written: what `make audit` looks up")
    options = parser.parse_args()
    compiled = the(options.dist, "*-py3-none-manylinux*.whl")
    pure, sources = the(options.dist, "*-py3-none-any.whl"), the(options.dist, "*.tar.gz")
    with tempfile.TemporaryDirectory(prefix="release-") as folder:
        environment = Environment(Path(folder))
        environment.install(compiled)
        try_file(environment, compiled, with_compiler="native", without="native")
        try_file(environment, pure, with_compiler="torch", without="torch")
        try_file(environment, sources, with_compiler="native", without="torch")
        write_resolved(environment, compiled, options.resolved)


if __name__ == "__main__":
    main()
