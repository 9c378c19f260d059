"""What a driver is told, what it tells, and what it counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from moist.results.objectives import Limit
from moist.results.trials import Trial
from moist.study.policy import BEST
from moist.study.schedule import Entry
from moist.study.workers import Message


@dataclass(frozen=True)
class Settings:
    """How far and how carefully; nothing here changes what a trial finds.

    `trials` counts complete ones; `best` declares what no trial can exceed; `points` are run
    instead of what a sampler draws. Without `reuse` no trial is told from a record.
    """

    trials: int
    sampler: str = "auto"
    retries: int = 2
    timeout: float | None = None
    limits: tuple[Limit, ...] = ()
    best: Mapping[str, float] = field(default_factory=lambda: dict(BEST))
    prune: bool = False
    audit: bool = False
    points: Sequence[Mapping[str, Any]] | None = None
    reuse: bool = True


class Watch(Protocol):
    """What a sweep tells whoever watches it."""

    def started(self, entry: Entry) -> None: ...
    def heard(self, entry: Entry, message: Message) -> None: ...
    def told(self, trial: Trial, how: str) -> None: ...
    def warned(self, text: str) -> None: ...
    def unwanted(self) -> Collection[int]:
        """Trials that somebody who watches wants stopped."""
        ...


@dataclass
class Tally:
    """What a sweep did, and what it was spared, since it was started or resumed."""

    computed: int = 0
    reused: int = 0
    seconds: float = 0.0
    saved: float = 0.0
    told: Counter[str] = field(default_factory=Counter)
    doubted: dict[int, str] = field(default_factory=dict)
    ended: str = ""

    def add(
        self, computed: Mapping[str, float], reused: Mapping[str, float] | None = None
    ) -> None:
        """Count stages, given their seconds by key."""
        self.computed += len(computed)
        self.seconds += sum(computed.values())
        self.reused += len(reused or {})
        self.saved += sum((reused or {}).values())


@dataclass(frozen=True)
class Outcome:
    """All that a study has, and what this start of its sweep did."""

    trials: list[Trial]
    tally: Tally

    def record(self, front: Sequence[Trial]) -> dict[str, Any]:
        """For `--json`."""
        return {
            "trials": [trial.model_dump(mode="json") for trial in self.trials],
            "frontier": [trial.number for trial in front],
            **asdict(self.tally),
            "told": dict(self.tally.told),  # asdict would count pairs
        }
