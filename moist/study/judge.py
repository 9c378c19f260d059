"""Who can still reach the frontier: the rules of `policy.py`, held against finished trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moist.config.systems import CURVES
from moist.results.objectives import Objective
from moist.results.trials import Trial
from moist.study.policy import Gains, dominator, excesses
from moist.study.settings import Settings


class Judge:
    """Says why a trial is not worth its training, or the rest of it. Writes and stops nothing."""

    def __init__(self, objectives: Sequence[Objective], settings: Settings) -> None:
        self.objectives, self.settings = objectives, settings
        self.finished: list[Trial] = []
        self.gains = Gains()

    def learn(self, trial: Trial) -> None:
        """Take in a complete trial."""
        self.finished.append(trial)
        if "accuracy" in trial.quantities:
            self.gains.learn(trial.curves, trial.quantities["accuracy"])

    def beyond(self, known: Mapping[str, float]) -> dict[str, float]:
        """How far a trial is beyond each limit on what is known of it; at most 0: kept."""
        return excesses(known, self.settings.limits)

    def hopeless(self, known: Mapping[str, float]) -> str | None:
        """Why a trial can't be of use, whatever training gives it; None if it may be."""
        if broken := [name for name, excess in self.beyond(known).items() if excess > 0]:
            return f"it can't keep {' and '.join(broken)}"
        if rival := self._rival({**known, **self.settings.best}):
            best = " and ".join(f"{name} {value:g}" for name, value in self.settings.best.items())
            return f"even with {best} it would be dominated by trial {rival.number}"
        return None

    def overtaken(
        self, known: Mapping[str, float], stage: str, done: int, total: int, accuracy: float | None
    ) -> str | None:
        """Why even an optimistic end, from the validation accuracy after an epoch of a stage,
        would be dominated; None if it would not be, or too little is known."""
        if stage not in CURVES or accuracy is None:
            return None
        hope = self.gains.hope(stage, done, total, accuracy)
        if hope is None or not (rival := self._rival({**known, "accuracy": hope})):
            return None
        return f"{hope:.2%} is the most to hope for: trial {rival.number} is better"

    def _rival(self, hoped: Mapping[str, float]) -> Trial | None:
        """A finished trial that dominates what is hoped for, if that says enough."""
        if not all(objective.name in hoped for objective in self.objectives):
            return None
        return dominator(hoped, self.objectives, self.finished)
