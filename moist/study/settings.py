"""A search's settings, statistics and result. The command line imports it: nothing heavy here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from moist.results.objectives import Limit, Objective
from moist.results.trials import Trial

SAMPLERS = ("auto", "tpe", "gp", "nsga2", "random", "grid")
"""Ways to choose the next trial, made by `samplers.py`, which is slow to import."""

ENGINES = ("local", "inline", "ray")
"""Ways to run trials: in processes of this machine, in this process, on a Ray cluster."""

BEST = {"accuracy": 1.0}
"""Quantities that no trial can exceed, unless lower bounds are declared."""

RESULTS = Counter(trained=1, reused=1)
"""Outcomes of trials that are complete."""


@dataclass(frozen=True)
class Settings:
    """How far and how carefully to search; nothing here changes what a trial finds.

    `trials` counts complete ones; `best` declares what no trial can exceed; `points` are run
    instead of what a sampler draws. Without `reuse` no trial is answered from a record.
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

    def needed(self, objectives: Sequence[Objective]) -> set[str]:
        """Return the quantities without which a trial can't be selected, limited or pruned."""
        pruned = {"accuracy"} if self.prune or self.audit else set()
        return {o.name for o in objectives} | {one.name for one in self.limits} | pruned


@dataclass
class Stats:
    """A driver's work since it was started: stages and their seconds, and trials by outcome.

    `pulled` counts the reused stages that came from a shared store; `would_prune` says after which
    epoch `--prune` would have stopped a trial, by its number; `ended` why the search ended early.
    """

    computed: int = 0
    reused: int = 0
    pulled: int = 0
    seconds: float = 0.0
    saved: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    would_prune: dict[int, str] = field(default_factory=dict)
    ended: str = ""

    @property
    def all_failed(self) -> bool:
        """Return whether trials failed and none gave a result."""
        return bool(self.outcomes["failed"]) and not self.outcomes & RESULTS

    def add(
        self, computed: Mapping[str, float], reused: Mapping[str, float] | None = None
    ) -> None:
        """Count stages, given their seconds by key."""
        self.computed += len(computed)
        self.seconds += sum(computed.values())
        self.reused += len(reused or {})
        self.saved += sum((reused or {}).values())


@dataclass(frozen=True)
class SearchResult:
    """All trials of a study, and what this driver did."""

    trials: list[Trial]
    stats: Stats

    def record(self, frontier: Sequence[Trial]) -> dict[str, Any]:
        """Return it as JSON values, for `--json`."""
        return {
            "trials": [trial.model_dump(mode="json") for trial in self.trials],
            "frontier": [trial.number for trial in frontier],
            **asdict(self.stats),
            "outcomes": dict(self.stats.outcomes),  # asdict would count pairs
        }
