"""A study's picture: the frontier among all trials, and which parameters mattered."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from moist.reporting.files import save_frontier
from moist.reporting.page import ENOUGH
from moist.results.objectives import Objective
from moist.results.queries import members
from moist.study.storage import find, load

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial
    from sqlalchemy import URL


COST = Objective("mflops", "min")
"""What a study of one objective is drawn over."""


def draw(
    path: Path,
    study: str,
    url: URL,
    home: Path,
    axes: Sequence[Objective] = (),
    errors: Mapping[int, tuple[float, float]] | None = None,
) -> None:
    """Write a study's frontier in the first two of `axes`, or of its objectives, the first up.

    The suffix says how. Raises ConfigError for another, for a folder that isn't there, and for a
    study without a complete trial.
    """
    described, trials = load(study, url, home)
    axes = axes or described.objectives
    y, x = (*axes, COST)[:2]
    save_frontier(
        path,
        trials,
        members(trials, axes),
        x,
        y,
        f"Pareto frontier of {study}",
        described.command,
        errors=errors,
        importances=importances(find(study, url, home), described.objectives),
    )


def importances(study: Study, objectives: Sequence[Objective]) -> dict[str, dict[str, float]]:
    """The share of each parameter in the spread of each objective (Optuna's PED-ANOVA).

    Empty with fewer than 10 complete trials, or when nothing varied.
    """
    import optuna
    from optuna.importance import get_param_importances

    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len(complete) < ENOUGH:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            objective.name: get_param_importances(study, target=partial(_value, i))
            for i, objective in enumerate(objectives)
        }


def _value(index: int, trial: FrozenTrial) -> float:
    return float(trial.values[index])
