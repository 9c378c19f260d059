"""A dry run: which stages would be computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moist.env import Env
from moist.errors import StoreError
from moist.store.calls import Backend, Call, StageCall
from moist.store.checkpoint import verified
from moist.store.keys import SHORT
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
        self.requests: dict[str, StageCall] = {}
        """The first call of each key."""
        self._planned: dict[str, float | None] = {}

    def resolve(self, request: StageCall) -> Call:
        """Look up whether the output is stored, or expected from an earlier call."""
        reused = request.key in self._planned
        if not reused:
            recorded = self._recorded(request.key)
            reused = recorded is not None
            self._planned[request.key] = recorded
            self.requests[request.key] = request
        return request.outcome(reused, self._planned[request.key])

    def value(self, request: StageCall) -> Any:
        """Raise StoreError: a plan has no values."""
        raise StoreError(
            f"`{request.name}` {request.key[:SHORT]} is only planned: it has no value"
        )

    def _recorded(self, key: str) -> float | None:
        """Return the seconds that an intact stored output took; None if a Store would compute."""
        if not self.reuse:
            return None
        try:
            manifest = verified(self.objects, key) if self.verify else self.objects.manifest(key)
        except Damaged:
            return None
        return manifest.seconds if manifest else None
