"""A store for workers that share a sweep: none waits for what another is computing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moist.env import Env
from moist.errors import StoreError
from moist.store import objects
from moist.store.store import Call, Job, Store


class Left(StoreError):
    """Something is missing because other processes compute it: `held`, the keys they hold."""

    def __init__(self, message: str, held: Sequence[str]) -> None:
        super().__init__(message)
        self.held = held


class Eager(Store):
    """A Store that never waits: what another process computes, and all that needs it, is left out.

    So a worker does what it can and makes room. The value of what was left out raises Left.
    """

    def __init__(self, home: Path, env: Env, reuse: bool = True) -> None:
        super().__init__(home, env, reuse)
        self.held: list[str] = []
        self.left: set[str] = set()

    def check(self) -> None:
        """Raises Left if anything was left out."""
        if self.left:
            raise Left(f"{len(self.left)} outputs were left out for other processes", self.held)

    def _settle(self, job: Job) -> Call:
        if self.left.isdisjoint(job.needs):
            seconds = self._stored(job)
            if seconds is not None:
                return self._reused(job, seconds)
            with objects.unless_held(self.home, job.key) as free:
                if free:
                    return self._settle_alone(job)
            self.held.append(job.key)
        self.left.add(job.key)
        return job.call(False, None)

    def _value(self, job: Job) -> Any:
        if job.key in self.left:
            what = f"`{job.name}` {job.key[:8]}"
            raise Left(f"{what} is another process's: it was left out", self.held)
        return super()._value(job)
