"""The executor `inline`: one trial at a time, in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Self

from moist.interrupts import Interrupted
from moist.study import events
from moist.study.executor import Capacity, Task, Work, attempt
from moist.study.workers import Slot


class Cancelled(BaseException):
    """The end of a task that the driver cancelled."""


class Inline:
    """Runs tasks in a thread, so that the driver sees their epochs; see `Executor`.

    No process is started, for a debugger: a task that kills its process kills the driver, and one
    that is cancelled ends with its next event, an epoch's at the latest.
    """

    def __init__(self, work: Work, slots: Sequence[Slot], logs: Path) -> None:
        self.work, self.logs = work, logs
        [self.slot] = slots
        self.events = SimpleQueue[events.WorkerEvent]()
        self.thread: Thread | None = None
        self.cancelled = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end(cancelled=True)

    def capacity(self) -> Capacity:
        """Return that of one worker."""
        return Capacity(1)

    def submit(self, task: Task) -> None:
        """Start a task in a thread of its own."""
        self._end(cancelled=False)
        self.cancelled = False
        self.thread = Thread(target=self._run, args=(task,))
        self.thread.start()

    def wait(self, timeout: float) -> list[events.WorkerEvent]:
        """Return the next event, if it comes in time."""
        with suppress(Empty):
            return [self.events.get(timeout=timeout)]
        return []

    def cancel(self, number: int) -> None:
        """End the task with its next event."""
        self._end(cancelled=True)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do nothing: while its only task runs, no other is drawn and timed."""
        yield

    def _run(self, task: Task) -> None:
        ended = False

        def send(event: events.Event) -> None:
            nonlocal ended
            if self.cancelled:
                raise Cancelled
            ended = isinstance(event, events.FINAL)
            self.events.put(event)  # type: ignore[arg-type]

        with suppress(Cancelled, Interrupted):  # the driver knows
            attempt(send, self.work, task, self.slot.device, self.slot.threads)
            if not ended:
                send(events.Lost(task.number, "its worker sent no result"))

    def _end(self, cancelled: bool) -> None:
        """Wait for the thread, which ends soon: after its final event, or with its next one."""
        if self.thread is not None:
            self.cancelled = cancelled
            self.thread.join()
        self.thread, self.events = None, SimpleQueue()
