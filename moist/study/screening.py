"""Screening and pruning: trials that are not worth training, by limits and dominance alone.

Optuna's pruners refuse several objectives; dominance does not. Nothing here writes or stops.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from moist.config.systems import CURVES
from moist.results.objectives import Limit, Objective, losses, margin
from moist.results.pareto import dominates
from moist.results.trials import Trial
from moist.study.settings import Settings

ENOUGH = 8
"""Complete trials that must have passed an epoch before gains from it are used."""

QUANTILE = 0.95


def excesses(quantities: Mapping[str, float], limits: Iterable[Limit]) -> dict[str, float]:
    """Return how far each limit on these quantities is exceeded (at most 0: kept), by its text.

    Always in the same order: Optuna's Gaussian process goes by their place, not by their name.
    """
    ordered = sorted((one for one in limits if one.name in quantities), key=str)
    return {str(one): one.excess(quantities) for one in ordered}


def dominator(
    bound: Mapping[str, float], objectives: Sequence[Objective], complete: Iterable[Trial]
) -> Trial | None:
    """Return the first feasible trial that dominates an optimistic bound; None if there is none.

    It is no worse in any objective and better in one; latencies within their spreads are equal.
    """

    def place(values: Mapping[str, float]) -> tuple[list[float], list[float]]:
        return losses(values, objectives), [margin(values, one.name) for one in objectives]

    point, near = place(bound)
    for trial in complete:
        if trial.feasible:
            other, far = place(trial.quantities | trial.values)
            if dominates(other, point, far, near):
                return trial
    return None


@dataclass
class Gains:
    """How much accuracy trials gained from each epoch of a stage to the end of the run."""

    seen: dict[tuple[str, int, int], list[float]] = field(default_factory=dict)

    def learn(self, curves: Mapping[str, Sequence[float]], final: float) -> None:
        """Add a complete trial: validation accuracies by stage and epoch, and the model's."""
        for stage, curve in curves.items():
            for done, accuracy in enumerate(curve, 1):
                self.seen.setdefault((stage, done, len(curve)), []).append(final - accuracy)

    def upper_bound(self, stage: str, done: int, total: int, accuracy: float) -> float | None:
        """Bound the final accuracy: this one plus the 95th percentile of past gains.

        Gains are those from the same epoch of as many; None if fewer than ENOUGH are known.
        """
        gains = sorted(self.seen.get((stage, done, total), []))
        if len(gains) < ENOUGH:
            return None
        return accuracy + gains[math.ceil(QUANTILE * len(gains)) - 1]


class Screening:
    """Rejects and prunes trials, with a reason, by what the complete trials reached."""

    def __init__(self, objectives: Sequence[Objective], settings: Settings) -> None:
        self.objectives, self.settings = objectives, settings
        self.complete: list[Trial] = []
        self.gains = Gains()

    def learn(self, trial: Trial) -> None:
        """Add a complete trial."""
        self.complete.append(trial)
        if "accuracy" in trial.quantities:
            self.gains.learn(trial.curves, trial.quantities["accuracy"])

    def reject(self, quantities: Mapping[str, float]) -> str | None:
        """Return why a trial is not worth training, given what is known before; else None."""
        excess = excesses(quantities, self.settings.limits)
        if broken := [limit for limit, value in excess.items() if value > 0]:
            return f"it can't keep {' and '.join(broken)}"
        if rival := self._rival({**quantities, **self.settings.best}):
            best = " and ".join(f"{name} {value:g}" for name, value in self.settings.best.items())
            return f"even with {best} it would be dominated by trial {rival.number}"
        return None

    def prune(
        self,
        quantities: Mapping[str, float],
        *,
        stage: str,
        done: int,
        total: int,
        accuracy: float | None,
    ) -> str | None:
        """Return why a trial is not worth more training after an epoch of a stage; else None.

        `accuracy` is the validation accuracy after it. None also where too little is known.
        """
        if stage not in CURVES or accuracy is None:
            return None
        bound = self.gains.upper_bound(stage, done, total, accuracy)
        if bound is None or not (rival := self._rival({**quantities, "accuracy": bound})):
            return None
        return f"accuracy would be {bound:.2%} at most: trial {rival.number} is better"

    def _rival(self, bound: Mapping[str, float]) -> Trial | None:
        """Return a trial that dominates an optimistic bound, if that has every objective."""
        if not all(objective.name in bound for objective in self.objectives):
            return None
        return dominator(bound, self.objectives, self.complete)
