"""A store that says what would be computed, and about how long it would take."""

from __future__ import annotations

import statistics
from functools import cached_property
from pathlib import Path
from typing import Any

from moist.env import Env
from moist.errors import StoreError
from moist.store import maintenance, objects
from moist.store.store import Call, Job, Store


class Plan(Store):
    """Finds the same keys but computes and writes nothing. A value raises StoreError."""

    writes = False

    def __init__(self, home: Path, env: Env, reuse: bool = True) -> None:
        super().__init__(home, env, reuse)
        self._planned: dict[str, float | None] = {}

    def _settle(self, job: Job) -> Call:
        reused = job.key in self._planned
        if not reused:
            recorded = self._recorded(job)
            reused = recorded is not None
            known = self._seconds.get(job.name)
            expected = statistics.median(known) if known else None
            self._planned[job.key] = recorded if reused else expected
        return job.call(reused, self._planned[job.key])

    def _recorded(self, job: Job) -> float | None:
        """What a sound stored output took; None if a Store would compute it."""
        try:
            manifest = objects.check(self.home, job.key) if self.reuse else None
        except objects.Damaged:
            return None
        return manifest.seconds if manifest else None

    @cached_property
    def _seconds(self) -> dict[str, list[float]]:
        """Recorded seconds of everything stored, by stage."""
        found: dict[str, list[float]] = {}
        for entry in maintenance.entries(self.home):
            found.setdefault(entry.stage, []).append(entry.seconds)
        return found

    def _value(self, job: Job) -> Any:
        raise StoreError(f"`{job.name}` {job.key[:8]} is only planned: it has no value")
