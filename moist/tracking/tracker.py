"""The runs of one process, told to W&B behind its work."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moist.config import Config
from moist.errors import brief, first_line
from moist.tracking.background import Behind
from moist.tracking.client import About, Client, abandon, forget, service, serving
from moist.tracking.journal import OFFLINE, Journal
from moist.tracking.mode import Mode, base_url, decide, host, reachable

if TYPE_CHECKING:
    import wandb

Say = Callable[[str], None]
GRACE = 3.0
"""Seconds to wait, at the end, for a server that may have stopped answering."""
START = 30.0
"""Seconds that wandb has to open its first run."""


class Tracker:
    """Opens a journal for each run, and closes those left open as killed. Use as a context.

    A run that the server refuses is told in files here instead, and so are all after it, unless
    `strict`: then tracking stops.
    """

    def __init__(
        self, mode: Mode, home: Path, warned: Say, project: str | None = None,
        entity: str | None = None, strict: bool = False,
    ) -> None:  # fmt: skip
        self.client = Client(mode, home, project, entity)
        self.warned, self.strict = warned, strict
        self.journals: list[Journal] = []
        """Those that may not have come to their end."""
        self._service: Any = None
        self._behind = Behind(self._broken)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until all is told, as long as it can be; Ctrl-C leaves the rest to `moist sync`."""
        for journal in self.journals:
            journal.end("killed")
        begin, said = time.monotonic(), False
        try:
            while not self._behind.close(GRACE):
                if lost := self._lost(time.monotonic() - begin):
                    return self._leave(lost)
                if not said and self.client.mode.name == "online":
                    self.warned(f"still sending to {host()}; Ctrl-C leaves it to `moist sync`")
                    said = True
        except KeyboardInterrupt:
            self._leave("interrupted")

    def _leave(self, why: str) -> None:
        if self._service is not None:
            abandon(self._service)
        self.warned(f"{why}; `moist sync` sends the rest later")

    def _lost(self, waited: float) -> str:
        """Why what is left to tell can't arrive; empty while it may."""
        if self._service is None:  # asking for it would start it
            return f"wandb did not start in {START:g} s" if waited > START else ""
        if not serving(self._service):
            return "wandb's own process is gone"
        if self.client.mode.name == "online" and not reachable(base_url()):
            return f"{host()} answers no more"
        return ""

    @property
    def off(self) -> bool:
        return self.client.mode.name == "off"

    def open(self, about: About, config: Config | None = None) -> Journal:
        """A journal for one run, told nobody where tracking is off; of a run that trains nothing
        without a config."""
        do = (lambda _work: None) if self.off else self._behind.do
        journal = Journal(do, lambda: self._opened(about), config)
        self.journals = [one for one in self.journals if one.open or not one.ended] + [journal]
        return journal

    def _opened(self, about: About) -> wandb.Run:
        """A run; one in files here when the server has gone since the mode was decided."""
        from wandb.errors import CommError

        try:
            run = self.client.open(about)
        except CommError as error:
            if self.strict or self.client.mode.name != "online":
                raise
            self.warned(f"{host()} refused a run ({first_line(error)}); tracking goes on offline")
            run = self._open_offline(about)
        self._service = service()
        return run

    def _open_offline(self, about: About) -> wandb.Run:
        """wandb keeps the id of a run that was refused, until all that is open has ended."""
        self.client = self.client.offline()
        if any(journal.open for journal in self.journals):
            return self.client.open(replace(about, id=f"{about.id}{OFFLINE}"))
        forget()
        return self.client.open(about)

    def _broken(self, error: Exception) -> None:
        self.warned(f"tracking stopped: {brief(error)}")


def tracker(flag: str, home: Path, said: Say, warned: Say) -> Tracker:
    """A tracker whose mode is decided and said in a line. Raises ConfigError (see `decide`)."""
    mode = decide(flag)
    if mode.name == "online":
        said(f"tracking: online, {mode.why}")
    elif mode.name == "offline":
        where = f"in {home / 'wandb'} (`moist browse`, `moist sync`)"
        said(f"tracking: offline, {where}: {mode.why}")
    return Tracker(mode, home, warned)
