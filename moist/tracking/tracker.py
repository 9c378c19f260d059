"""The runs of one process, logged to W&B on a background thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from moist.config import Config
from moist.errors import brief, first_line
from moist.tracking.client import (
    Client,
    RunInfo,
    abandon_service,
    is_alive,
    release_ids,
    running_service,
)
from moist.tracking.files import Warn
from moist.tracking.journal import OFFLINE, Journal
from moist.tracking.mode import Mode, base_url, choose_mode, host, reachable

if TYPE_CHECKING:
    import wandb

Work = Callable[[], Any]
POLL = 3.0
"""Seconds between two checks, at the end, that the server still answers."""
START = 30.0
"""Seconds that wandb has to open its first run."""


class BackgroundThread:
    """A thread that runs callables in order.

    It passes the first error to `on_error` and runs nothing after it: a failure to log must not
    end the training.
    """

    def __init__(self, on_error: Callable[[Exception], None]) -> None:
        self._on_error = on_error
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> None:
        """Queue a callable, and return at once."""
        self._queue.put(work)

    def close(self, timeout: float | None = None) -> bool:
        """Wait until the queue is empty; return False if that takes more than `timeout` seconds.

        May be called again.
        """
        self._queue.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                work()
            except Exception as error:
                self._on_error(error)
                return


class Tracker:
    """A context that opens a journal for each run, and ends those left open as killed.

    After the server rejects a run, this and all later ones are logged to files here instead, or
    with `strict` tracking stops.
    """

    def __init__(
        self,
        mode: Mode,
        home: Path,
        warn: Warn,
        *,
        project: str | None = None,
        entity: str | None = None,
        strict: bool = False,
    ) -> None:
        self.client = Client(mode, home, project, entity)
        self.warn, self.strict = warn, strict
        self.journals: list[Journal] = []
        """Those that may not have ended yet."""
        self._service: Any = None
        self._background = BackgroundThread(
            lambda error: warn(f"tracking stopped: {brief(error)}")
        )

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the upload as long as it can succeed; Ctrl-C leaves it to `moist sync`."""
        for journal in self.journals:
            journal.end("killed")
        begin, warned = time.monotonic(), False
        try:
            while not self._background.close(POLL):
                if problem := self._problem(time.monotonic() - begin):
                    return self._abandon(problem)
                if not warned and self.client.mode.name == "online":
                    self.warn(f"still uploading to {host()}; Ctrl-C leaves it to `moist sync`")
                    warned = True
        except KeyboardInterrupt:
            self._abandon("interrupted")

    def _abandon(self, reason: str) -> None:
        if self._service is not None:
            abandon_service(self._service)
        self.warn(f"{reason}; `moist sync` uploads the rest later")

    def _problem(self, waited: float) -> str:
        """Return why the rest can't be uploaded now; empty while it may succeed."""
        if self._service is None:  # asking for it would start it
            return f"wandb did not start in {START:g} s" if waited > START else ""
        if not is_alive(self._service):
            return "wandb's own process has ended"
        if self.client.mode.name == "online" and not reachable(base_url()):
            return f"{host()} does not answer any more"
        return ""

    @property
    def off(self) -> bool:
        return self.client.mode.name == "off"

    def open(self, info: RunInfo, config: Config | None = None) -> Journal:
        """Open a journal for a run, which logs nothing where tracking is off.

        A run without a config trains nothing.
        """
        submit = (lambda _work: None) if self.off else self._background.submit
        journal = Journal(submit, lambda: self._open_run(info), config)
        self.journals = [one for one in self.journals if one.open or not one.ended] + [journal]
        return journal

    def _open_run(self, info: RunInfo) -> wandb.Run:
        """Open a run of wandb's: in files here, if the server is no longer reachable."""
        from wandb.errors import CommError

        try:
            run = self.client.open(info)
        except CommError as error:
            if self.strict or self.client.mode.name != "online":
                raise
            self.warn(f"{host()} rejected a run ({first_line(error)}); tracking continues offline")
            run = self._open_offline(info)
        self._service = running_service()
        return run

    def _open_offline(self, info: RunInfo) -> wandb.Run:
        """Open a rejected run again; wandb reserves its id until all open runs have ended."""
        self.client = self.client.offline()
        if any(journal.open for journal in self.journals):
            return self.client.open(replace(info, id=f"{info.id}{OFFLINE}"))
        release_ids()
        return self.client.open(info)


def open_tracker(flag: str, home: Path, log: Callable[[str], None], warn: Warn) -> Tracker:
    """Choose the mode, log it in a line, and return a tracker. Raises ConfigError."""
    mode = choose_mode(flag)
    if mode.name == "online":
        log(f"tracking: online, {mode.reason}")
    elif mode.name == "offline":
        place = f"in {home / 'wandb'} (`moist browse`, `moist sync`)"
        log(f"tracking: offline, {place}: {mode.reason}")
    return Tracker(mode, home, warn)
