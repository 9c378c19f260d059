"""Where a command or a program computes: home folder, device, threads, progress. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moist.disk import warn
from moist.reporting import terminal

if TYPE_CHECKING:
    from moist.env import Env, Progress
    from moist.store.plan import Plan
    from moist.store.remote import Remote
    from moist.store.store import Store


@dataclass(frozen=True)
class Compute:
    """Where stages run, and whether their progress is shown."""

    home: Path
    device: str | None = None
    threads: int | None = None
    quiet: bool = False
    shared: str | None = None
    """URL of the store that the home shares its stage outputs with."""

    @contextmanager
    def progress(self) -> Iterator[terminal.TerminalProgress]:
        """Show progress on stderr while the context is open."""
        with closing(terminal.TerminalProgress(self.quiet)) as progress:
            yield progress

    def env(self, progress: Progress) -> Env:
        """Return the environment of stages. Raises ConfigError for a missing device."""
        from moist.env import make_env

        return make_env(progress, self.device, self.threads)

    def remote(self, write: bool = True) -> Remote | None:
        """Open the shared store, if there is one. Raises StoreError if it can't be reached.

        Under an agent that only is a warning: the run would be lost to its sweep.
        """
        from moist.store.remote import connected
        from moist.tracking.client import agent_sweep

        return connected(self.shared, write, warn if agent_sweep() else None)

    @contextmanager
    def plan(self) -> Iterator[Plan]:
        """Open a store that computes and stores nothing."""
        from moist.store.plan import Plan

        with self.progress() as progress:
            yield Plan(self.home, self.env(progress), remote=self.remote(write=False))

    @contextmanager
    def store(self) -> Iterator[Store]:
        """Open a store whose stages report to the terminal."""
        from moist.store.store import Store

        with self.progress() as progress:
            yield Store(self.home, self.env(progress), remote=self.remote())
