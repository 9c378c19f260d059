"""Which of the waiting trials can use a worker now, so that no stage is computed twice."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moist.store.calls import Call
from moist.store.objects import ObjectStore


@dataclass(frozen=True)
class Foreseen:
    """What is known of a config without training: its run's key, stages and quantities.

    `measure` finds quantities that take a while, and are worth it once the others are no reason
    against the trial.
    """

    key: str
    calls: tuple[Call, ...]
    known: dict[str, float]
    measure: Callable[[], dict[str, float]] = dict

    def measured(self) -> Foreseen:
        """The same with all quantities known."""
        return replace(self, known=self.known | self.measure(), measure=dict)


@dataclass
class Entry:
    """A trial that was asked for and not told.

    `attempts` says how each earlier one was lost, `held` are keys it found in others' hands;
    `computed` and `reused` are seconds by key.
    """

    number: int
    params: Mapping[str, Any]
    config: Mapping[str, Any]
    command: str
    foreseen: Foreseen
    attempts: list[str] = field(default_factory=list)
    held: set[str] = field(default_factory=set)
    computed: dict[str, float] = field(default_factory=dict)
    reused: dict[str, float] = field(default_factory=dict)
    stage: str = ""

    @property
    def calls(self) -> tuple[Call, ...]:
        return self.foreseen.calls

    @property
    def known(self) -> dict[str, float]:
        return self.foreseen.known


class Schedule:
    """Trials that wait and trials that run; a waiting one needs no worker.

    A running trial has a claim on all its stages that are not stored. Another may start as soon
    as it has a stage to compute that nobody claims and whose inputs are stored.
    """

    def __init__(self, home: Path) -> None:
        self.objects = ObjectStore(home)
        self.waiting: list[Entry] = []
        self.running: dict[int, Entry] = {}
        self.stored: set[str] = set()

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)

    def add(self, entry: Entry) -> None:
        """Let a trial wait for its turn: those asked for first come first."""
        self.running.pop(entry.number, None)
        self.stored |= {call.key for call in entry.calls if call.reused}
        self.waiting = sorted([*self.waiting, entry], key=lambda one: one.number)

    def drop(self, number: int) -> Entry:
        """A running trial that is done with: what it has not stored, nobody need wait for."""
        entry = self.running.pop(number)
        for other in self.waiting:
            other.held -= self._missing(entry)
        return entry

    def pick(self, patient: bool = False, but: Collection[int] = ()) -> Entry | None:
        """The next trial to start, `but` none of these numbers; with `patient` the first that
        waits, whatever it waits for."""
        claimed = {key for entry in self.running.values() for key in self._missing(entry)}
        for entry in self.waiting:
            if patient or (entry.number not in but and self._ready(entry, claimed)):
                self.waiting.remove(entry)
                self.running[entry.number] = entry
                return entry
        return None

    def _ready(self, entry: Entry, claimed: set[str]) -> bool:
        if not all(self._is_stored(key) for key in entry.held):
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
