"""A store for workers that share a sweep: none waits for what another is computing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moist.env import Env
from moist.errors import StoreError
from moist.store.calls import Call, StageCall
from moist.store.keys import SHORT
from moist.store.remote import Remote
from moist.store.store import Store


class Deferred(StoreError):
    """A missing output, because other processes are computing the keys `locked`."""

    def __init__(self, message: str, locked: Sequence[str]) -> None:
        super().__init__(message)
        self.locked = locked


class NonBlockingStore(Store):
    """A Store that defers what another process is computing, and all that depends on it.

    So a worker computes what it can, then frees its slot. `locked` lists the keys that others
    were computing, `deferred` has these and the keys that depend on them.
    """

    def __init__(
        self, home: Path, env: Env, reuse: bool = True, remote: Remote | None = None
    ) -> None:
        super().__init__(home, env, reuse, remote)
        self.locked: list[str] = []
        self.deferred: set[str] = set()

    def check(self) -> None:
        """Raise Deferred if anything was deferred."""
        if self.deferred:
            raise Deferred(f"{len(self.deferred)} outputs were deferred", self.locked)

    def resolve(self, request: StageCall) -> Call:
        """Reuse or compute the output, or defer it."""
        if self.deferred.isdisjoint(request.needs):
            if call := self.find(request):
                return call
            with self.objects.locked_if_free(request.key) as free:
                if free:
                    return self.compute(request)
            self.locked.append(request.key)
        self.deferred.add(request.key)
        return request.outcome(False, None)

    def value(self, request: StageCall) -> Any:
        """Read the output. Raises Deferred if it was deferred."""
        if request.key in self.deferred:
            output = f"`{request.name}` {request.key[:SHORT]}"
            raise Deferred(f"{output} was deferred: another process computes it", self.locked)
        return super().value(request)
