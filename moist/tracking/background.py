"""Work done behind the one who asks for it: in order, in a thread, and never in the way."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any

Work = Callable[[], Any]


class Behind:
    """Does what it is given, one piece after another.

    What goes wrong is told once through `failed`, and nothing more is done: a tracker in trouble
    must not end the training that it tells of.
    """

    def __init__(self, failed: Callable[[Exception], None]) -> None:
        self._failed = failed
        self._waiting: SimpleQueue[Work | None] = SimpleQueue()
        self._thread = Thread(target=self._life, name="tracking", daemon=True)
        self._thread.start()

    def do(self, work: Work) -> None:
        """Have it done soon; returns at once."""
        self._waiting.put(work)

    def close(self, patience: float | None = None) -> bool:
        """Wait until all is done, `patience` seconds at most; whether it is."""
        self._waiting.put(None)
        self._thread.join(patience)
        return not self._thread.is_alive()

    def _life(self) -> None:
        while (work := self._waiting.get()) is not None:
            try:
                work()
            except Exception as error:
                self._failed(error)
                return
