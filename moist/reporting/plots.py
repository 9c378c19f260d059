"""A study's frontier as a PNG or an SVG, and the HTML report of a study or of a run, as files.

matplotlib and torch are imported when something is drawn, so that nothing else waits for them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from moist.disk import write_atomically
from moist.errors import ConfigError, StoreError
from moist.reporting import matplotlib_figure
from moist.reporting.frontier_plot import COST, FrontierPlot, frontier_plot
from moist.results.objectives import TRAINED, Objective
from moist.results.queries import members
from moist.results.trials import Trial
from moist.store.runs import Run, RunRecords
from moist.study.ref import StudyRef
from moist.study.storage import load, of_optuna

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

SUFFIXES = (".html", ".png", ".svg")
MIN_TRIALS = 20
"""Complete trials below which the importance of a parameter means nothing."""


def plot_study(path: Path, ref: StudyRef, axes: Sequence[Objective] = ()) -> None:
    """Write a study's frontier over the first two of `axes`, y first; default: its objectives.

    The suffix of `path` selects the format; a page is the whole report. Members that were trained
    again (`reseed`) have error bars. Raises ConfigError for an unknown suffix, a missing folder,
    and a study without a complete trial.
    """
    from moist.study.reseed import reseeded

    kind = _kind(path)
    spec, trials = load(ref)
    axes = axes or spec.objectives
    y, x = (*axes, COST)[:2]
    found = members(trials, axes)
    plot = frontier_plot(trials, found, x, y, errors=reseeded(ref, found, y.name))
    if kind != "html":
        save_plot(path, plot, f"Pareto frontier of {ref.name}", spec.command)
        return
    from moist.env import Env
    from moist.reporting.report.page import StudyReport, study_page
    from moist.store.plan import Plan

    report = StudyReport(
        f"Study {ref.name}", ref.locate(spec.command), trials, plot,
        importances=importances(of_optuna(ref), spec.objectives),
        runs=RunRecords(ref.home).of(trial.key for trial in trials),
        store=Plan(ref.home, Env()), limited=partial(ref.command, "best", "--max"),
        enough=MIN_TRIALS,
    )  # fmt: skip
    _write(path, study_page(report).encode())


def save_plot(
    path: Path, plot: FrontierPlot, title: str, command: str, trials: Sequence[Trial] = ()
) -> None:
    """Write a plot of trials that no study here has; the suffix of `path` selects the format.

    `command` reproduces it; a page lists the `trials` that have no result, too. The file is
    written atomically. Raises ConfigError for its name, and StoreError when it can't be written.
    """
    kind = _kind(path)
    if kind == "html":
        from moist.reporting.report.page import StudyReport, study_page

        content = study_page(StudyReport(title, command, trials, plot)).encode()
    else:
        content = matplotlib_figure.render(plot, title, command, kind)
    _write(path, content)


def save_run(path: Path, run: Run, home: Path) -> None:
    """Write the report of one run as a page. Raises ConfigError for a name of another kind."""
    from moist.env import Env
    from moist.reporting.report.page import run_page
    from moist.store.plan import Plan

    check_page_path(path)
    _write(path, run_page(run, Plan(home, Env())).encode())


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, content)
    except OSError as error:
        raise StoreError(f"can't write `{path}`: {error.strerror}", "name another file") from error


def check_page_path(path: Path) -> None:
    """Raise ConfigError for a report that can't be written, or whose name is not a page's."""
    if _kind(path) != "html":
        raise ConfigError(f"a report is a page, and `{path}` is not", "for example: report.html")


def check_plot_path(path: Path | None) -> None:
    """Raise ConfigError, before anything is computed for it, for a plot that can't be written."""
    if path is not None:
        _kind(path)


def _kind(path: Path) -> str:
    """Return the format that the suffix selects. Raises ConfigError without a folder, too."""
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise ConfigError(
            f"can't draw `{path}`: its name ends in none of {', '.join(SUFFIXES)}",
            "for example: frontier.html",
        )
    if not path.parent.is_dir():
        raise ConfigError(
            f"can't write `{path}`: there is no folder `{path.parent}`", "create it first"
        )
    return kind[1:]


def importances(study: Study, objectives: Sequence[Objective]) -> dict[str, dict[str, float]]:
    """Return how much each parameter decides whether a trial is among the best, by objective.

    It is Optuna's PED-ANOVA: shares that add up to 1. Costs have none, since the architecture
    determines them without any trial. Empty with fewer than MIN_TRIALS complete trials.
    """
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len(complete) < MIN_TRIALS:
        return {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* computes the importances of params to achieve low")
        return {
            objective.name: get_param_importances(
                study,
                evaluator=PedAnovaImportanceEvaluator(),
                target=partial(_loss, objective, index),
            )
            for index, objective in enumerate(objectives)
            if objective.name in TRAINED
        }


def _loss(objective: Objective, index: int, trial: FrozenTrial) -> float:
    """Return a trial's value such that less is better, as the evaluator takes it."""
    return objective.loss(float(trial.values[index]))
