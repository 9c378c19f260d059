"""All that the stand-in knows, in one place."""

from __future__ import annotations

from itertools import count
from threading import RLock
from typing import Any

from wandb_standin.records import ENTITY, Agent, Artifact, Key, Refused, Run, Sweep, View


class State:
    """All of it, and what went against the API.

    `violations` has a line for each query that the schema doesn't allow, each unknown path, and
    each failure in here; `operations` the names of the GraphQL operations, in order.
    """

    def __init__(self) -> None:
        self.lock = RLock()
        self.address = ""
        self.features = {"SWEEPS_LOCAL_SCHEDULER": True}
        self.projects: dict[tuple[str, str], int] = {}
        self.runs: dict[Key, Run] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.agents: dict[str, Agent] = {}
        self.artifacts: list[Artifact] = []
        self.views: list[View] = []
        self.operations: list[str] = []
        self.violations: list[str] = []
        self.boxes: dict[str, tuple[dict[str, bytes], str]] = {}
        self._numbers = count(1)

    def number(self) -> int:
        """A number that no one else has."""
        return next(self._numbers)

    def url(self, box: dict[str, bytes], name: str) -> str:
        """Where to PUT or GET the bytes of `name` in `box`."""
        path = f"/storage/{self.number()}"
        self.boxes[path] = (box, name)
        return self.address + path

    def made(self, entity: str | None, project: str | None) -> tuple[str, str]:
        """A project by its names, made if it isn't there: writing to it makes it."""
        key = (entity or ENTITY, project or "uncategorized")
        self.projects.setdefault(key, len(self.projects) + 1)
        return key

    def run_of(self, id: str) -> Run:
        """The run of an id."""
        return _one([run for run in self.runs.values() if run.id == id], "run", id)

    def sweep_of(self, id: str) -> Sweep:
        """The sweep of an id."""
        return _one([sweep for sweep in self.sweeps.values() if sweep.id == id], "sweep", id)

    def runs_of(self, sweep: Sweep) -> list[Run]:
        """The runs that say they are this sweep's."""
        where = (sweep.entity, sweep.project, sweep.name)
        return [run for run in self.runs.values() if (*run.key[:2], run.sweep) == where]


def _one(found: list[Any], kind: str, id: str) -> Any:
    if not found:
        raise Refused(404, f"{kind} {id} not found")
    return found[0]
