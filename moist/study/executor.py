"""What executors, which run attempts at trials, and the driver agree on; what an attempt does."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from moist.config import Config
from moist.errors import MoistError, brief, first_line
from moist.results.report import Machine
from moist.study import events

LOSSES = 3
"""Different trials lost in a row by a worker, after which it gets no more."""


@dataclass(frozen=True)
class Task:
    """One attempt at a trial; if `blocking`, it waits for keys that other processes lock.

    `timed_on` is the machine that the study's latencies are measured on, if trials are selected
    by them.
    """

    number: int
    config: Config
    command: str
    blocking: bool = False
    timed_on: Machine | None = None


Work = Callable[[events.Send, Task, str | None, int], None]
"""A worker's function: it takes a way to send events, the task, a device, a number of threads."""


class Capacity(NamedTuple):
    """How many tasks can run at once, and which trials none of the free workers takes now."""

    workers: int
    refused: Set[int] = frozenset()


class Executor(Protocol):
    """Runs a work's tasks at once, as many as it has capacity for.

    Use as a context: nothing that it started outlives it. Each task ends in one event of
    `events.FINAL`, of kind `Lost` if its worker is gone, unless the task is cancelled.
    """

    logs: Path
    """The folder with the output of trials, see `log_of`."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...

    def capacity(self) -> Capacity:
        """Return how many tasks can run at once: it changes with the health of workers."""

    def submit(self, task: Task) -> None:
        """Run a task; there must be capacity. Raises StageError if it can't be started."""

    def wait(self, timeout: float) -> list[events.WorkerEvent]:
        """Return new events of workers; wait for the first, `timeout` seconds at most."""

    def cancel(self, number: int) -> None:
        """Stop a trial's task; its finished stages and epochs stay on disk."""

    def paused(self) -> AbstractContextManager[None]:
        """Pause every task on the driver's machine, while a latency is measured there."""


@contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    """Stop processes meanwhile."""
    for pid in pids:
        send_signal(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            send_signal(pid, signal.SIGCONT)


def send_signal(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process, unless it has ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def log_of(logs: Path, number: int) -> Path:
    """Return the file that has the standard output and error of a trial's workers."""
    return logs / f"{number:05d}.txt"


def log_to(log: Path) -> None:
    """Append all that this process and its libraries write from now on to a file."""
    target = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(target, stream.fileno())
    os.close(target)


def attempt(send: events.Send, work: Work, task: Task, device: str | None, threads: int) -> None:
    """Make one attempt at a task; report how it failed."""
    try:
        work(send, task, device, threads)
    except BrokenPipeError:
        raise
    except Exception as error:
        traceback.print_exc()
        failed = failure(task.number, error)
        if is_device_error(error):
            send(events.Lost(task.number, f"its device failed: {failed.error}"))
        else:
            send(failed)


def failure(number: int, error: Exception) -> events.Failed:
    """Describe how a trial failed by an exception."""
    name, first = type(error).__name__, first_line(error)
    trace = "".join(traceback.format_exception(error)).splitlines()
    return events.Failed(
        number,
        error=brief(error),
        lines=str(error).splitlines()[1:] if isinstance(error, MoistError) else trace[-8:],
        out_of_memory=isinstance(error, MemoryError)
        or name == "OutOfMemoryError"  # CUDA's
        or (name == "RuntimeError" and "can't allocate memory" in first),  # torch's, of the CPU
    )


def is_device_error(error: Exception) -> bool:
    """Return whether a GPU can't continue: it is busy, or an earlier kernel has broken it.

    Whatever the cause, this process can't compute on it any more. PyTorch's message starts with
    "CUDA error: "; memory that its own allocator doesn't get is an `OutOfMemoryError`.
    """
    return type(error).__name__ == "AcceleratorError" or "CUDA error: " in str(error)
