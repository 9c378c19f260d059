"""Signals that end a command in order: Ctrl-C, a closed terminal, a batch system's warnings.

The handler records a signal and raises `Interrupted`. Python ignores an exception in a finalizer
or in the callback of a weak reference; the record remains, and `check` raises it again. Only the
standard library is imported here, so that signals are handled before anything heavy is imported.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import current_thread, main_thread

JOB = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that a terminal or a batch system sends to all processes of a job."""
ENDING = (*JOB, signal.SIGXCPU)
"""Signals that end a command; those that were ignored at its start stay so, as under nohup."""

_received: list[int] = []
_deferring = [False]


class Interrupted(KeyboardInterrupt):
    """A signal that ends this process; `again` is the command to continue with, if not its own."""

    def __init__(self, number: int, again: str = "") -> None:
        super().__init__(number)
        self.number, self.again = number, again

    def __str__(self) -> str:
        words = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
        number = signal.Signals(self.number)
        return words.get(number, f"terminated by {number.name}")

    @property
    def exit_code(self) -> int:
        """Return the code by which shells report a process that a signal ended."""
        return 128 + self.number


def leave_at_once() -> None:
    """End this process at a signal, with one line: it has begun nothing, or printed everything."""
    _install(_leave)


@contextmanager
def handled() -> Iterator[None]:
    """Raise Interrupted at a signal while the context is open.

    Python hands signals to the main thread only: in another one this changes nothing.
    """
    if current_thread() is not main_thread():
        yield
        return
    outermost = signal.getsignal(signal.SIGINT) is not _receive
    if outermost:
        _received.clear()
    before, hook = _install(_receive), sys.unraisablehook

    def report(ignored: sys.UnraisableHookArgs) -> None:
        if not isinstance(ignored.exc_value, Interrupted):
            hook(ignored)

    sys.unraisablehook = report
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
        if outermost:
            _received.clear()


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Leave the first signal to the caller, who checks for it, so that no write is torn.

    A second one raises Interrupted at once. Yields whether there has been a signal.
    """
    with handled(), _set_deferring(True):
        yield lambda: bool(_received)


@contextmanager
def undeferred() -> Iterator[None]:
    """Raise Interrupted at a signal even inside `deferred`: for what takes long and can stop."""
    with _set_deferring(False):
        check()
        yield


def check() -> None:
    """Raise Interrupted if a signal has been received, even if Python ignored it then."""
    if _received:
        raise Interrupted(_received[0])


def _install(handler: Callable[[int, object], None]) -> dict[int, Callable[[int, object], None]]:
    """Handle all ENDING signals but ignored ones; return their handlers of before."""
    found = {number: signal.getsignal(number) for number in ENDING}
    return {
        number: signal.signal(number, handler)  # type: ignore[misc]
        for number, before in found.items()
        if before not in {signal.SIG_IGN, None}
    }


@contextmanager
def _set_deferring(value: bool) -> Iterator[None]:
    if current_thread() is not main_thread():
        yield
        return
    before, _deferring[0] = _deferring[0], value
    try:
        yield
    finally:
        _deferring[0] = before


def _receive(number: int, _frame: object) -> None:
    _received.append(number)
    if not _deferring[0] or len(_received) > 1:
        raise Interrupted(number)


def _leave(number: int, _frame: object) -> None:
    with suppress(OSError, RuntimeError):  # a closed terminal; a write that this interrupts
        sys.stdout.flush()
        os.write(2, f"error: {Interrupted(number)}\n".encode())
    os._exit(128 + number)
