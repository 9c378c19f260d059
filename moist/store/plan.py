"""A dry run: which stages would be computed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from moist.env import Env
from moist.errors import StoreError
from moist.store.calls import Backend, Call, StageCall
from moist.store.checkpoint import verified
from moist.store.keys import SHORT
from moist.store.objects import Damaged
from moist.store.remote import Remote


class Plan(Backend):
    """Finds the keys that a Store would, but computes and writes nothing.

    With `verify=False` an object counts as stored if its manifest is intact: workers verify the
    rest when they use it.
    """

    writes = False

    def __init__(
        self,
        home: Path,
        env: Env,
        reuse: bool = True,
        remote: Remote | None = None,
        *,
        verify: bool = True,
    ) -> None:
        super().__init__(home, env, reuse, remote)
        self.verify = verify
        self.requests: dict[str, StageCall] = {}
        """The first call of each key."""
        self._planned: dict[str, tuple[float | None, str]] = {}

    def resolve(self, request: StageCall) -> Call:
        """Look up whether the output is stored, or expected from an earlier call."""
        reused = request.key in self._planned
        if not reused:
            self._planned[request.key] = seconds, _ = self._recorded(request.key)
            reused = seconds is not None
            self.requests[request.key] = request
        return request.outcome(reused, *self._planned[request.key])

    def value(self, request: StageCall) -> Any:
        """Raise StoreError: a plan has no values."""
        raise StoreError(
            f"`{request.name}` {request.key[:SHORT]} is only planned: it has no value"
        )

    def _recorded(self, key: str) -> tuple[float | None, str]:
        """Return the seconds that an intact stored output took, and the shared store that has it.

        None if a Store would compute it. Of a shared store only the manifest is read.
        """
        if not self.reuse:
            return None, ""
        with suppress(Damaged):
            manifest = verified(self.objects, key) if self.verify else self.objects.manifest(key)
            if manifest is not None:
                return manifest.seconds, ""
        if (remote := self.remote) is not None:
            with suppress(Damaged):
                warn = self.env.progress.warned
                if found := remote.attempt(lambda: remote.manifest(key), warn):
                    return found.seconds, remote.shown
        return None, ""
