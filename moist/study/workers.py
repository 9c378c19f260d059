"""Worker processes: one trial each, on a device of their own, that die with their driver.

They are forked from a server that has imported everything once: a fresh process for each trial,
so that nothing piles up on a GPU, in tens of milliseconds. Signals that a terminal or a batch
system sends to all processes of a job reach the driver only: it decides what becomes of trials.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from moist.disk import ELSEWHERE, writing
from moist.errors import StageError
from moist.study.worker import STOPPING, Kind, Task, Work, begin

__all__ = ["LEAVE", "PRELOADED", "SLOT_LOSSES", "Kind", "Message", "Pool", "Slot", "Task"]

LAST: set[Kind] = {"done", "held", "failed", "lost"}
PRELOADED = ("moist.cli.main", "moist.study.trainer", "sklearn.cluster", "torch._dynamo")
"""`moist.cli.main` because a fresh process imports what the command line started with."""
SLOT_LOSSES = 3
"""Different trials lost one after another on a slot, after which it gets none any more."""
LEAVE = 2.0
"""Seconds that a worker has to end once all it found is on disk and told."""


@dataclass(frozen=True)
class Message:
    """What became known of a trial: `about` depends on the kind.

    stage: {stage, key, state, seconds}; epoch: {stage, done, total, **metrics}; done: a run's
    facts; held: {keys}; failed: {error, lines, memory}; lost: {reason}; warned: {text}.
    """

    number: int
    kind: Kind
    about: dict[str, Any]


@dataclass
class Slot:
    """A place for one worker: its device, and the trials lost on it since one came through.

    A worker that has `begun` can't outlive its driver.
    """

    device: str | None
    threads: int
    process: Any = None
    connection: Connection | None = None
    task: Task | None = None
    begun: bool = False
    lost: set[int] = field(default_factory=set)

    @property
    def sound(self) -> bool:
        return len(self.lost) < SLOT_LOSSES


class Pool:
    """Slots that run tasks; `wait` gives what they say. Use as a context: it leaves no process."""

    def __init__(
        self, work: Work, slots: Sequence[Slot], logs: Path, preload: Sequence[str] = PRELOADED
    ) -> None:
        self.work = work
        self.slots = list(slots)
        self.logs = logs
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([*preload])

    def __enter__(self) -> Pool:
        """Let the server import while the driver gets ready."""
        with writing(self.logs, ELSEWHERE):
            self.logs.mkdir(parents=True, exist_ok=True)
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # the server inherits it
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self

    def __exit__(self, *_: object) -> None:
        for slot in self.busy:
            slot.process.kill()
        for slot in self.slots:
            self._end(slot)

    @property
    def busy(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.task is not None]

    @property
    def free(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.task is None and slot.sound]

    @property
    def unlucky(self) -> set[int]:
        """Trials that every free slot has lost: let another try them, once it is free."""
        lost = [slot.lost for slot in self.free]
        return set.intersection(*lost) if lost and self.busy else set()

    def log(self, number: int) -> Path:
        """Where a trial's workers write what they would write to a terminal."""
        return self.logs / f"{number:05d}.txt"

    def start(self, task: Task) -> None:
        """Run a task on a free slot, one that hasn't lost it if there is one.

        Raises StageError when no process can be started.
        """
        slot = min(self.free, key=lambda slot: task.number in slot.lost)
        self._end(slot, LEAVE)
        ours, theirs = self.context.Pipe(duplex=False)
        process = self.context.Process(
            target=begin,
            args=(theirs, self.work, task, slot.device, slot.threads, self.log(task.number)),
            daemon=True,
        )
        try:
            process.start()
        except (EOFError, OSError) as error:
            raise StageError(
                f"can't start a worker: {error or 'the server that forks them was killed'}",
                "is there memory left? the same command continues",
            ) from error
        theirs.close()
        slot.process, slot.connection, slot.task = process, ours, task

    def wait(self, timeout: float | None) -> list[Message]:
        """What workers said; waits for the first word, at most so many seconds."""
        by_connection = {slot.connection: slot for slot in self.busy}
        ready = wait([c for c in by_connection if c is not None], timeout)
        return [
            message
            for connection in ready
            for message in self._heard(by_connection[connection])  # type: ignore[index]
        ]

    def stop(self, number: int) -> None:
        """Kill the worker of a trial; what it had finished is stored, its epochs are kept."""
        for slot in self.busy:
            if slot.task is not None and slot.task.number == number:
                self._end(slot)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Hold every worker still, so that a time can be taken."""
        for slot in self.busy:
            slot.begun = slot.begun or bool(slot.connection and slot.connection.poll(None))
        still = [slot.process.pid for slot in self.busy]
        for pid in still:
            _signal(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in still:
                _signal(pid, signal.SIGCONT)

    def _heard(self, slot: Slot) -> list[Message]:
        assert slot.task is not None and slot.connection is not None
        number, messages = slot.task.number, []
        while slot.connection is not None and slot.connection.poll():
            slot.begun = True
            kind, about = received(slot.connection)
            if kind == "lost":
                about = about or {"reason": _ended(slot.process)}
                slot.lost.add(number)
            if kind in {"done", "held", "failed"}:
                slot.lost.clear()
            if kind != "begun":
                messages.append(Message(number, kind, about))
            if kind in LAST:
                self._release(slot)
        return messages

    def _release(self, slot: Slot) -> None:
        """A worker that has said its last word may take its time to end: all of it is told."""
        if slot.connection is not None:
            slot.connection.close()
        slot.connection = slot.task = None
        slot.begun = False

    def _end(self, slot: Slot, patience: float = 0.0) -> None:
        if slot.process is not None:
            slot.process.join(patience)
            slot.process.kill()
            slot.process.join()
            slot.process.close()
        slot.process = None
        self._release(slot)


def received(connection: Connection) -> tuple[Kind, dict[str, Any]]:
    """What a worker said next; that it is lost if it ended, even in the middle of a word."""
    try:
        kind, about = connection.recv()
    except (EOFError, OSError):
        return "lost", {}
    return kind, about


def _ended(process: Any) -> str:
    """Why a process that said nothing is no more, by its exit code."""
    process.join()
    code = process.exitcode
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory, if nobody sent it)" if name == "SIGKILL" else ""
        return f"its worker was killed by {name}{hint}"
    return f"its worker ended with exit code {code}"


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it ended: nothing to hold
        os.kill(pid, number)
