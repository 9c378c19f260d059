"""Which trials are not worth their training: rules on numbers, no files, no processes.

Optuna's pruners refuse several objectives; these rules need only dominance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from moist.results.objectives import Limit, Objective, losses
from moist.results.pareto import dominates
from moist.results.trials import Trial

SAMPLERS = ("auto", "tpe", "gp", "nsga2", "random", "grid")
"""Ways to look for the next trial; what `auto` means, `samplers.chosen` decides.

Named here and not beside what they make, which is slow to import.
"""

BEST = {"accuracy": 1.0}
"""What no trial can exceed, unless less is declared."""

ENOUGH = 8
"""Finished trials that must have passed an epoch before gains from it are believed."""

QUANTILE = 0.95


def excesses(known: Mapping[str, float], limits: Iterable[Limit]) -> dict[str, float]:
    """How far each limit on a known quantity is exceeded (at most 0: kept), by its text.

    In one order, whoever asks: a Gaussian process goes by their place, not by their name.
    """
    ordered = sorted((one for one in limits if one.name in known), key=str)
    return {str(one): one.excess(known[one.name]) for one in ordered}


def dominator(
    hoped: Mapping[str, float], objectives: Sequence[Objective], finished: Iterable[Trial]
) -> Trial | None:
    """A finished, feasible trial that is no worse in any objective than what is hoped for, and
    better in one; None if the hope may reach the frontier."""
    point = losses(hoped, objectives)
    for trial in finished:
        if trial.feasible and dominates(losses(trial.values, objectives), point):
            return trial
    return None


@dataclass
class Gains:
    """How much accuracy trials gained after each epoch of a stage, until the end of the run."""

    seen: dict[tuple[str, int, int], list[float]] = field(default_factory=dict)

    def learn(self, curves: Mapping[str, Sequence[float]], final: float) -> None:
        """Take in a finished trial: validation accuracy by stage and epoch, and the mixture's."""
        for stage, curve in curves.items():
            for done, accuracy in enumerate(curve, 1):
                self.seen.setdefault((stage, done, len(curve)), []).append(final - accuracy)

    def hope(self, stage: str, done: int, total: int, accuracy: float) -> float | None:
        """An optimistic final accuracy: this one plus the 95th percentile of the gains seen from
        the same epoch; None where too few trials passed it."""
        gains = sorted(self.seen.get((stage, done, total), []))
        if len(gains) < ENOUGH:
            return None
        return accuracy + gains[math.ceil(QUANTILE * len(gains)) - 1]
