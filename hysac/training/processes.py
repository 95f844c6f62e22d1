"""The processes of a run: one alone, or those that torchrun started."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """This process's place among those of the run.

    Attributes:
        rank, world_size: place and number of processes.
        device: where this process computes.
        control: a group for messages between hosts, which never waits for a GPU; None for one process.
        decisions: another such group, for slow work of the main process, for which the others wait.
    """

    rank: int
    world_size: int
    device: torch.device
    control: dist.ProcessGroup | None = None
    decisions: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def broadcast(self, value: Any) -> Any:
        """The main process's ``value``, on every process."""
        return _broadcast(value, self.decisions)

    def main_decides(self, decide: Callable[[], Any]) -> Any:
        """The result of ``decide()`` on the main process, or its exception, on every process."""
        return self._by_main(decide, self.decisions)

    def main_writes(self, write: Callable[[], None]) -> None:
        """Call ``write()`` on the main process; the others wait, as long as they would in a step.

        An exception, such as that of a full disk, is raised on every process.
        """
        self._by_main(write, self.control)

    def _by_main(self, call: Callable[[], Any], group: dist.ProcessGroup | None) -> Any:
        answer: tuple[Any, Exception | None] = (None, None)
        if self.is_main:
            try:
                answer = (call(), None)
            except Exception as error:
                answer = (None, error)
        value, raised = _broadcast(answer, group)
        if raised is not None:
            raise raised
        return value

    def gather(self, value: Any) -> list[Any]:
        """Every process's ``value``, in rank order, on every process."""
        if self.control is None:
            return [value]
        values = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes of a tensor on :attr:`device`."""
        if self.control is not None:
            dist.all_reduce(values)
            values /= self.world_size
        return values


_LONGEST_DECISION = timedelta(days=1)


def _broadcast(value: Any, group: dist.ProcessGroup | None) -> Any:
    if group is None:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]


@contextmanager
def join_processes(device: str | None = None, timeout: float | None = None) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started, or be alone without it.

    Args:
        device: as PyTorch names it; by default this process's GPU (``LOCAL_RANK``), or the CPU where there
            is none.
        timeout: seconds that a process waits for the others in a step; None leaves it to PyTorch.

    Raises:
        ValueError: ``device`` is a GPU and there is none.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    place = choose_device(device)
    if world_size == 1:
        yield Processes(0, 1, place)
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    started_here = not dist.is_initialized()
    wait = None if timeout is None else timedelta(seconds=timeout)
    if started_here:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=wait)
    try:
        control: Any = dist.new_group(backend="gloo", timeout=wait)
        decisions: Any = dist.new_group(backend="gloo", timeout=_LONGEST_DECISION)
        yield Processes(dist.get_rank(), dist.get_world_size(), place, control, decisions)
    finally:
        if started_here:
            dist.destroy_process_group()


def choose_device(device: str | None) -> torch.device:
    """A device by name; by default this process's GPU, or the CPU where there is none.

    Raises:
        ValueError: a GPU where PyTorch sees none, or an unknown name.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is unknown: {error}") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} needs a GPU, and PyTorch sees none")
    if place.type == "cuda" and place.index is None:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return place


class StopRequest:
    """Turns SIGINT and SIGTERM into a decision that all processes take at the same step.

    A second signal of the same kind acts as if this class was not there.

    Attributes:
        signal: the signal that came, or None.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._previous: dict[int, Any] = {}
        self._pending: tuple[dist.Work, Tensor] | None = None
        self.signal: int | None = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # the only one that may handle signals
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, error_type: type | None, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._pending is not None and error_type is None:
            self._pending[0].wait()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self._previous[number])

    def poll(self) -> bool:
        """Whether to stop; every process calls it once a step and gets the same answer.

        With several processes the answer is that of one step ago, so that the message travels during a step.
        """
        if self._processes.control is None:
            return self.signal is not None
        answer = False
        if self._pending is not None:
            work, noted = self._pending
            work.wait()
            answer = bool(noted.item())
            self.signal = int(noted.item()) or self.signal
        noted = torch.tensor([self.signal or 0])
        work = dist.all_reduce(noted, dist.ReduceOp.MAX, group=self._processes.control, async_op=True)
        self._pending = (work, noted)
        return answer


def leave_signals_to_main(worker: int) -> None:
    """Let a loader's worker ignore what :class:`StopRequest` handles.

    Ctrl-C and schedulers signal every process; a worker that died would take the step in progress with it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
