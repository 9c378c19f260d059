"""A store for workers that share a sweep: none waits for what another is computing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moist import objects
from moist.env import Env
from moist.errors import StoreError
from moist.store import Call, Job, Store


class Eager(Store):
    """A Store that never waits: what another process computes, and all that needs it, is `left`.

    So a worker does what it can and makes room; whose `held` keys it lacks, it says. The value of
    what was left raises StoreError.
    """

    def __init__(self, home: Path, env: Env, reuse: bool = True) -> None:
        super().__init__(home, env, reuse)
        self.held: list[str] = []
        self.left: set[str] = set()

    def _settle(self, job: Job) -> Call:
        if self.left.isdisjoint(job.needs):
            seconds = self._stored(job)
            if seconds is not None:
                self.env.progress.reused(job.name, job.key, seconds)
                return job.call(True, seconds)
            with objects.unless_held(self.home, job.key) as free:
                if free:
                    return self._settle_alone(job)
            self.held.append(job.key)
        self.left.add(job.key)
        return job.call(False, None)

    def _value(self, job: Job) -> Any:
        if job.key in self.left:
            raise StoreError(f"`{job.name}` {job.key[:8]} is another process's: it was left out")
        return super()._value(job)
