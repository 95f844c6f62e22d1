"""The ``hysac`` command in a process of its own, without its seconds of imports.

Forked from a server that has them: a process like any other, to be waited for, signalled and killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from multiprocessing import get_context, set_start_method
from pathlib import Path

_CONTEXT = get_context("forkserver")


class Command:
    """What ``subprocess.Popen(["hysac", *arguments])`` would be, on one thread.

    Both outputs are added to the file ``log``.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        start_new_session: bool = False,
    ) -> None:
        _CONTEXT.set_forkserver_preload(["torch", "hysac"])
        self.args = ["hysac", *arguments]
        self._process = _CONTEXT.Process(
            target=_run,
            args=(list(arguments), str(log), {**os.environ, **(environment or {})}, start_new_session),
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(arguments: list[str], log: str, environment: dict[str, str], start_new_session: bool) -> None:
    if start_new_session:
        os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for output in (1, 2):
        os.dup2(descriptor, output)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    set_start_method(None, force=True)  # for loaders: as in a process that was not forked from a server

    import torch

    from hysac.cli import main

    torch.set_num_threads(1)
    raise SystemExit(main(arguments))
