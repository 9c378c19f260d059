"""A study's plot as a file: the frontier among all trials, as an HTML page, a PNG or an SVG.

plotly and matplotlib are imported when something is drawn, so that nothing else waits for them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from moist.disk import write_atomically
from moist.errors import ConfigError, StoreError
from moist.reporting import matplotlib_figure, page
from moist.reporting.frontier_plot import COST, Errors, FrontierPlot, frontier_plot
from moist.results.objectives import Objective
from moist.results.queries import members
from moist.study.ref import StudyRef
from moist.study.storage import find, load

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

SUFFIXES = (".html", ".png", ".svg")


def plot_study(
    path: Path, ref: StudyRef, axes: Sequence[Objective] = (), errors: Errors | None = None
) -> None:
    """Write a study's frontier over the first two of `axes`, y first; default: its objectives.

    The suffix of `path` selects the format. Raises ConfigError for an unknown suffix, a missing
    folder, and a study without a complete trial.
    """
    spec, trials = load(ref)
    axes = axes or spec.objectives
    y, x = (*axes, COST)[:2]
    plot = frontier_plot(trials, members(trials, axes), x, y, errors=errors)
    shares = importances(find(ref), spec.objectives)
    save_plot(path, plot, f"Pareto frontier of {ref.name}", spec.command, importances=shares)


def save_plot(
    path: Path,
    plot: FrontierPlot,
    title: str,
    command: str,
    importances: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Draw a plot; the suffix of `path` selects the format.

    `command` reproduces the study; `importances` are the share of each parameter, by objective
    (only pages show them). The file is written atomically. Raises ConfigError for
    its name, and StoreError when it can't be written.
    """
    kind = _kind(path)
    if kind == "html":
        content = page.page(plot, title, command, importances or {}).encode()
    else:
        content = matplotlib_figure.render(plot, title, command, kind)
    try:
        write_atomically(path, content)
    except OSError as error:
        raise StoreError(f"can't write `{path}`: {error.strerror}", "name another file") from error


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
    """Return the share of each parameter in each objective's variance (Optuna's PED-ANOVA).

    Empty with fewer than 10 complete trials, or when nothing varied.
    """
    import optuna
    from optuna.importance import get_param_importances

    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len(complete) < page.MIN_TRIALS:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            objective.name: get_param_importances(study, target=partial(_value, i))
            for i, objective in enumerate(objectives)
        }


def _value(index: int, trial: FrozenTrial) -> float:
    return float(trial.values[index])
