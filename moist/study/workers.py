"""The executor `local`: worker processes on this machine, one for each trial on a device.

They die with their driver, and are forked from a server that has imported everything once: a
fresh process for each trial, so that no memory accumulates on a GPU, in tens of milliseconds. They
ignore the signals that a terminal or a batch system sends to all processes of a job: the driver
decides what becomes of trials.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from moist.disk import ELSEWHERE, writing
from moist.errors import ConfigError, StageError
from moist.interrupts import JOB, Interrupted, undeferred
from moist.results.report import Machine
from moist.study import events
from moist.study.executor import (
    LOSSES,
    Capacity,
    Executor,
    Task,
    Work,
    attempt,
    log_of,
    log_to,
    send_signal,
    stopped,
)

PRELOADED = ("moist.study.preload",)
EXIT_TIMEOUT = 2.0
"""Seconds that a worker has to exit after its final event, when its results are on disk."""


@dataclass
class Slot:
    """A place for one worker: its device, and the trials lost on it since one succeeded.

    A worker that has `started` can't outlive its driver.
    """

    device: str | None
    threads: int
    process: Any = None
    connection: Connection | None = None
    task: Task | None = None
    started: bool = False
    lost: set[int] = field(default_factory=set)

    @property
    def healthy(self) -> bool:
        return len(self.lost) < LOSSES


class Pool:
    """Slots that run tasks in processes; see `Executor`."""

    def __init__(
        self, work: Work, slots: Sequence[Slot], logs: Path, preload: Sequence[str] = PRELOADED
    ) -> None:
        self.work = work
        self.slots = list(slots)
        self.logs = logs
        self.preload = preload
        self.context = multiprocessing.get_context("forkserver")

    def __enter__(self) -> Self:
        """Start the server, unless it has been started."""
        with writing(self.logs, ELSEWHERE):
            self.logs.mkdir(parents=True, exist_ok=True)
        start_server(self.preload)
        return self

    def __exit__(self, *_: object) -> None:
        for slot in self.busy:
            slot.process.kill()
        for slot in self.slots:
            self._end(slot)
        _kill_importing_server()

    @property
    def busy(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.task is not None]

    @property
    def free(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.task is None and slot.healthy]

    def capacity(self) -> Capacity:
        """Count the healthy slots, and name the trials that every free one has lost.

        A busy slot may try these later.
        """
        lost = [slot.lost for slot in self.free]
        refused = set.intersection(*lost) if lost and self.busy else frozenset[int]()
        return Capacity(sum(slot.healthy for slot in self.slots), refused)

    def submit(self, task: Task) -> None:
        """Run a task on a free slot, if possible one that has not lost it.

        Raises StageError when no process can be started.
        """
        slot = min(self.free, key=lambda slot: task.number in slot.lost)
        self._end(slot, EXIT_TIMEOUT)
        ours, theirs = self.context.Pipe(duplex=False)
        log = log_of(self.logs, task.number)
        process = self.context.Process(
            target=run_worker,
            args=(theirs, self.work, task, slot.device, slot.threads, log),
            daemon=True,
        )
        try:
            with _without_main(), nullcontext() if server() in _ready else undeferred():
                process.start()  # undeferred until the server has imported
            _ready.add(server())
        except (EOFError, OSError) as error:
            raise StageError(
                f"can't start a worker: {error or 'the server that forks them was killed'}",
                "is there memory left? the same command continues",
            ) from error
        theirs.close()
        slot.process, slot.connection, slot.task = process, ours, task

    def wait(self, timeout: float) -> list[events.WorkerEvent]:
        """Return new events of workers; wait for the first, `timeout` seconds at most."""
        by_connection = {slot.connection: slot for slot in self.busy}
        ready = wait([c for c in by_connection if c is not None], timeout)
        return [
            event
            for connection in ready
            for event in self._receive(by_connection[connection])  # type: ignore[index]
        ]

    def cancel(self, number: int) -> None:
        """Kill the worker of a trial; its finished stages and epochs stay on disk."""
        for slot in self.busy:
            if slot.task is not None and slot.task.number == number:
                self._end(slot)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Pause every worker, while a latency is measured."""
        for slot in self.busy:
            slot.started = slot.started or bool(slot.connection and slot.connection.poll(None))
        with stopped([slot.process.pid for slot in self.busy]):
            yield

    def _receive(self, slot: Slot) -> list[events.WorkerEvent]:
        assert slot.task is not None and slot.connection is not None
        number, received = slot.task.number, list[events.WorkerEvent]()
        while slot.connection is not None and slot.connection.poll():
            slot.started = True
            event = _received(slot.connection) or events.Lost(number, _exit_reason(slot.process))
            match event:
                case events.Lost():
                    slot.lost.add(number)
                case events.Completed() | events.Deferred() | events.Failed():
                    slot.lost.clear()
            if not isinstance(event, events.WorkerStarted):
                received.append(event)
            if isinstance(event, events.FINAL):
                self._release(slot)
        return received

    def _release(self, slot: Slot) -> None:
        """Free a slot; after its final event a worker may exit at leisure."""
        if slot.connection is not None:
            slot.connection.close()
        slot.connection = slot.task = None
        slot.started = False

    def _end(self, slot: Slot, timeout: float = 0.0) -> None:
        if slot.process is not None:
            slot.process.join(timeout)
            slot.process.kill()
            slot.process.join()
            slot.process.close()
        slot.process = None
        self._release(slot)


Engine = Callable[[Work, Sequence[Slot], Path], Executor]
"""A way to make an executor: of a work, with these slots, the output of trials in this folder."""


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the program that was started: a worker would run it, up to this very search."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


_ready: set[int | None] = set()
"""Servers of this process that have imported everything: each has forked a worker."""


def start_server(preload: Sequence[str] = PRELOADED) -> None:
    """Start the server that forks workers, if none runs: it imports while the driver does.

    It ends with this process, or earlier if no worker came from it.
    """
    forkserver.set_forkserver_preload([*preload])
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, JOB)  # the server inherits it
    try:
        forkserver.ensure_running()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    except Interrupted:
        _kill_importing_server()
        raise


def server() -> int | None:
    """Return the process that forks workers, if it was started."""
    return forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined,no-any-return]


@atexit.register
def _kill_importing_server() -> None:
    """Kill a server that is still importing: it would not see before that its driver is gone."""
    pid = server()
    if pid is not None and pid not in _ready:
        send_signal(pid, signal.SIGKILL)
        forkserver._forkserver._stop()  # type: ignore[attr-defined]


def _received(connection: Connection) -> events.WorkerEvent | None:
    """Read a worker's next event; None if it ended, even in the middle of one."""
    try:
        event: events.WorkerEvent = connection.recv()
    except (EOFError, OSError):
        return None
    return event


def _exit_reason(process: Any) -> str:
    """Describe how a process ended that sent no final event, by its exit code."""
    process.join()
    code = process.exitcode
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory, unless it was sent by hand)" if name == "SIGKILL" else ""
        return f"its worker was killed by {name}{hint}"
    return f"its worker ended with exit code {code}"


def make_slots(devices: str | None, workers: int, threads: int | None) -> list[Slot]:
    """Spread workers over devices: those named, else all GPUs, else the CPU.

    Torch's threads (OMP_NUM_THREADS, or the cores) are divided among them. Raises ConfigError for
    a device that does not exist.
    """
    import torch

    from moist.env import Silent, make_env

    found: list[str | None] = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    found = [*devices.split(",")] if devices else found or [None]
    for device in dict.fromkeys(found if devices else ()):
        make_env(Silent(), device)
    each = threads or max(1, torch.get_num_threads() // workers)
    return [Slot(found[i % len(found)], each) for i in range(workers)]


def machine_of(slots: Sequence[Slot], names: Collection[str]) -> Machine | None:
    """Describe the machine that latencies are measured on; None if none of `names` is a latency.

    Raises ConfigError when that depends on the slot.
    """
    from moist.env import Silent, make_env

    if "latency_ms" not in names:
        return None
    places = dict.fromkeys((slot.device, slot.threads) for slot in slots)
    found = list(dict.fromkeys(make_env(Silent(), *place).machine() for place in places))
    if len(found) > 1:
        raise ConfigError(
            "`latency_ms` would be measured on different devices:"
            f" {' and '.join(map(str, found))}",
            "give `--devices` of one kind",
        )
    return found[0]


def run_worker(
    connection: Connection, work: Work, task: Task, device: str | None, threads: int, log: Path
) -> None:
    """Run one task in this process, its output going to `log`; report how it failed."""
    _die_with_driver()
    connection.send(events.WorkerStarted(task.number))
    for number in JOB:
        signal.signal(number, signal.SIG_IGN)
    log_to(log)
    attempt(connection.send, work, task, device, threads)


def _die_with_driver() -> None:
    """Ask Linux for SIGKILL when the driver ends, by a pipe that it holds open.

    It reaches a paused process, too. (PR_SET_PDEATHSIG would not help: our parent is the server,
    which lives as long as any worker.)
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
    if not driver.is_alive():  # it ended before the signal was set up
        sys.exit(1)
