"""A worker's life: one trial, in a process of its own that ends with its driver."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from moist.errors import MoistError, brief, first_line

Kind = Literal["begun", "stage", "epoch", "done", "held", "failed", "lost", "warned"]
"""What a worker says; `lost` is also said of it."""
STOPPING = (signal.SIGINT, signal.SIGTERM)
"""What a terminal or a batch system sends to all processes of a job."""


@dataclass(frozen=True)
class Task:
    """One attempt at a trial. `patient`: wait for what other processes hold."""

    number: int
    config: Mapping[str, Any]
    command: str
    patient: bool = False


Work = Callable[[Callable[[Kind, dict[str, Any]], None], Task, str | None, int], None]
"""What a worker does: it is given a way to send, the task, a device and a number of threads."""


def begin(
    connection: Connection,
    work: Work,
    task: Task,
    device: str | None,
    threads: int,
    log: Path,
) -> None:
    """A worker's life."""
    _die_with_driver()
    connection.send(("begun", {}))
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    target = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(target, stream.fileno())

    def send(kind: Kind, about: dict[str, Any]) -> None:
        connection.send((kind, about))

    try:
        work(send, task, device, threads)
    except BrokenPipeError:
        raise
    except Exception as error:
        traceback.print_exc()
        about = failure(error)
        if of_device(error):
            send("lost", {"reason": f"its device failed: {about['error']}"})
        else:
            send("failed", about)


def failure(error: Exception) -> dict[str, Any]:
    """An exception's class and first line, and its last lines; `memory` says that it ran out of
    that."""
    name, first = type(error).__name__, first_line(error)
    trace = "".join(traceback.format_exception(error)).splitlines()
    return {
        "error": brief(error),
        "lines": str(error).splitlines()[1:] if isinstance(error, MoistError) else trace[-8:],
        "memory": isinstance(error, MemoryError)
        or name == "OutOfMemoryError"  # CUDA's
        or (name == "RuntimeError" and "can't allocate memory" in first),  # torch's, of the CPU
    }


def of_device(error: Exception) -> bool:
    """Whether a GPU refused to go on: one that is busy, or that an earlier kernel has broken.

    Whoever is at fault, nothing can be computed on it by this process any more. PyTorch says
    "CUDA error: ..."; memory that its own allocator doesn't get is an `OutOfMemoryError`.
    """
    return type(error).__name__ == "AcceleratorError" or "CUDA error: " in str(error)


def _die_with_driver() -> None:
    """Ask Linux for SIGKILL when the driver is gone: a pipe that it holds open tells.

    It reaches a process that is held still, too. (That of PR_SET_PDEATHSIG would not come: our
    parent is the server, which lives as long as any of us.)
    """
    driver = multiprocessing.parent_process()
    if driver is None:
        return
    if sys.platform == "linux":
        import fcntl

        pipe = driver.sentinel
        fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    if not driver.is_alive():  # it was faster
        sys.exit(1)
