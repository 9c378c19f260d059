"""The study and search space that W&B's Optuna scheduler uses: moist's space, no point twice.

`wandb sweep-scheduler` imports this file by its path and calls the two functions that the sweep
names, independently of each other; the path of the sweep file is in the environment.
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

    from moist.agents.register import Registration

FILE, OVERRIDES, BUDGET = "MOIST_SWEEP_FILE", "MOIST_SWEEP_OVERRIDES", "MOIST_SWEEP_BUDGET"
FINISHED = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED


def environment(sweep: Registration) -> dict[str, str]:
    """Return the environment variables that give a scheduler's process its search."""
    return {
        FILE: str(sweep.path.resolve()),
        OVERRIDES: "\n".join(sweep.overrides),
        BUDGET: str(sweep.budget),
    }


def scheduled_sweep() -> Sweep:
    """Read the sweep that this process schedules."""
    return read_sweep(Path(os.environ[FILE]), os.environ[OVERRIDES].splitlines())


class Fresh(Untried):
    """A sampler that draws no point that its study already has."""

    def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        self.tried = {point(one.params) for one in study.get_trials(deepcopy=False)}
        super().before_trial(study, trial)


def make_study(sweep: SweepInfo) -> tuple[optuna.Study, Callable[[optuna.Study], bool]]:
    """Return an empty study in memory, and a function that says whether it is complete."""
    metrics = sweep.config.get("metrics") or [sweep.config["metric"]]
    study = optuna.create_study(
        directions=[metric.get("goal", "minimize") for metric in metrics],
        sampler=Fresh(scheduled_sweep(), "tpe", seed_of(sweep.id), set()),
    )
    study.set_metric_names([metric["name"] for metric in metrics])
    budget = int(os.environ[BUDGET])
    return study, lambda study: len(study.get_trials(deepcopy=False, states=FINISHED)) >= budget


def space(trial: optuna.Trial) -> dict[str, Any]:
    """Draw a point: every value that an agent passes to a run, fixed values included."""
    sweep = scheduled_sweep()
    return {**sweep.fixed, **suggest(sweep, trial)}
