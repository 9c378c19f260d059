"""Choose which waiting trial gets a worker, so that no stage is computed twice."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moist.config import Config
from moist.store.objects import ObjectStore

if TYPE_CHECKING:
    from moist.store.calls import Call
    from moist.study.costs import CostEstimate


@dataclass
class Entry:
    """A trial that was drawn and has not ended.

    `attempts` says how each earlier one was lost, `locked` are keys that it found locked by other
    processes; `computed` and `reused` are seconds by key; `stage` is being computed; `reported`
    are the epochs whose accuracy is stored.
    """

    number: int
    params: Mapping[str, Any]
    config: Config
    command: str
    estimate: CostEstimate
    attempts: list[str] = field(default_factory=list)
    locked: set[str] = field(default_factory=set)
    computed: dict[str, float] = field(default_factory=dict)
    reused: dict[str, float] = field(default_factory=dict)
    stage: str = ""
    reported: set[int] = field(default_factory=set)

    @property
    def calls(self) -> tuple[Call, ...]:
        return self.estimate.calls


class Schedule:
    """Trials that wait for a worker and trials that run.

    A running trial claims all its stages that are not stored. Another may start as soon as it has
    a stage to compute that no other claims and whose inputs are stored.
    """

    def __init__(self, home: Path) -> None:
        self.objects = ObjectStore(home)
        self.waiting: list[Entry] = []
        self.running: dict[int, Entry] = {}
        self.stored: set[str] = set()

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)

    def add(self, entry: Entry) -> None:
        """Let a trial wait for its turn, in order of number."""
        self.running.pop(entry.number, None)
        self.stored |= {call.key for call in entry.calls if call.reused}
        self.waiting = sorted([*self.waiting, entry], key=lambda one: one.number)

    def drop(self, number: int) -> Entry:
        """Remove a running trial; no other waits any more for what it has not stored."""
        entry = self.running.pop(number)
        for other in self.waiting:
            other.locked -= self._missing(entry)
        return entry

    def pick(self, blocking: bool = False, exclude: Collection[int] = ()) -> Entry | None:
        """Move the next trial that can start to the running ones, none of `exclude`.

        With `blocking` it is the first, whatever it waits for.
        """
        calls = [call for entry in self.running.values() for call in entry.calls]
        claimed = {call.key for call in calls} - self.stored
        for entry in self.waiting:
            if blocking or (entry.number not in exclude and self._ready(entry, claimed)):
                self.waiting.remove(entry)
                self.running[entry.number] = entry
                return entry
        return None

    def _ready(self, entry: Entry, claimed: set[str]) -> bool:
        if not all(self._is_stored(key) for key in entry.locked):
            return False
        missing = self._missing(entry)
        ours = [c for c in entry.calls if c.key in missing and c.key not in claimed]
        return not missing or any(
            all(self._is_stored(need) for need in call.needs) for call in ours
        )

    def _missing(self, entry: Entry) -> set[str]:
        return {call.key for call in entry.calls if not self._is_stored(call.key)}

    def _is_stored(self, key: str) -> bool:
        if key not in self.stored and key in self.objects:
            self.stored.add(key)
        return key in self.stored
