"""What W&B's Optuna scheduler searches with: moist's space, and no point twice.

`wandb sweep-scheduler` imports this file by its path and calls the two functions that the sweep
names, apart from each other; the file that is searched is in the environment.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from moist.study.samplers import Untried, point, seed_of, suggest
from moist.sweepfile import Sweep, read_sweep

if TYPE_CHECKING:
    from wandb.sdk.sweeps.sweep_info import SweepInfo

    from moist.agents.register import Registered

FILE, OVERRIDES, BUDGET = "MOIST_SWEEP_FILE", "MOIST_SWEEP_OVERRIDES", "MOIST_SWEEP_BUDGET"
OVER = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED


def environment(asked: Registered) -> dict[str, str]:
    """What a scheduler's process finds its search by."""
    return {
        FILE: str(asked.path.resolve()),
        OVERRIDES: "\n".join(asked.overrides),
        BUDGET: str(asked.budget),
    }


def searched() -> Sweep:
    """The search that this process schedules."""
    return read_sweep(Path(os.environ[FILE]), os.environ[OVERRIDES].splitlines())


class Fresh(Untried):
    """Draws what its study has not."""

    def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        self.tried = {point(one.params) for one in study.get_trials(deepcopy=False)}
        super().before_trial(study, trial)


def make_study(sweep: SweepInfo) -> tuple[optuna.Study, Callable[[optuna.Study], bool]]:
    """An empty study in memory for the sweep's metrics, and when it has enough trials."""
    metrics = sweep.config.get("metrics") or [sweep.config["metric"]]
    study = optuna.create_study(
        directions=[metric.get("goal", "minimize") for metric in metrics],
        sampler=Fresh(searched(), "tpe", seed_of(sweep.id), set()),
    )
    study.set_metric_names([metric["name"] for metric in metrics])
    budget = int(os.environ[BUDGET])
    return study, lambda study: len(study.get_trials(deepcopy=False, states=OVER)) >= budget


def space(trial: optuna.Trial) -> dict[str, Any]:
    """A point: every value that an agent's run is given, those that are fixed among them."""
    search = searched()
    return {**search.fixed, **suggest(search, trial)}
