"""A dry run: which stages would be computed, and about how long that would take."""

from __future__ import annotations

import statistics
from functools import cached_property
from pathlib import Path
from typing import Any

from moist.env import Env
from moist.errors import StoreError
from moist.store.calls import Backend, Call, StageCall
from moist.store.checkpoint import verified
from moist.store.maintenance import entries
from moist.store.objects import Damaged


class Plan(Backend):
    """Finds the keys that a Store would, but computes and writes nothing.

    With `verify=False` an object counts as stored if its manifest is intact: workers verify the
    rest when they use it.
    """

    writes = False

    def __init__(self, home: Path, env: Env, reuse: bool = True, *, verify: bool = True) -> None:
        super().__init__(home, env, reuse)
        self.verify = verify
        self._planned: dict[str, float | None] = {}

    def fresh(self) -> Plan:
        """Return an empty plan that need not read again how long stages took."""
        plan = Plan(self.home, self.env, self.reuse, verify=self.verify)
        plan._seconds = self._seconds
        return plan

    def resolve(self, request: StageCall) -> Call:
        """Look up whether the output is stored, or expected from an earlier call."""
        reused = request.key in self._planned
        if not reused:
            recorded = self._recorded(request.key)
            reused = recorded is not None
            times = self._seconds.get(request.name)
            expected = statistics.median(times) if times else None
            self._planned[request.key] = recorded if reused else expected
        return request.outcome(reused, self._planned[request.key])

    def value(self, request: StageCall) -> Any:
        """Raise StoreError: a plan has no values."""
        raise StoreError(f"`{request.name}` {request.key[:8]} is only planned: it has no value")

    def _recorded(self, key: str) -> float | None:
        """Return the seconds that an intact stored output took; None if a Store would compute."""
        if not self.reuse:
            return None
        try:
            manifest = verified(self.objects, key) if self.verify else self.objects.manifest(key)
        except Damaged:
            return None
        return manifest.seconds if manifest else None

    @cached_property
    def _seconds(self) -> dict[str, list[float]]:
        """Recorded seconds of everything stored, by stage."""
        found: dict[str, list[float]] = {}
        for entry in entries(self.objects):
            found.setdefault(entry.stage, []).append(entry.seconds)
        return found
