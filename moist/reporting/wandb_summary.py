"""A study's summary run in W&B: verdict, trials as a table, figures, the frontier's models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moist.reporting import plotly_figures
from moist.reporting.frontier_plot import COST, FrontierPlot, frontier_plot
from moist.reporting.plots import importances
from moist.reporting.report.markup import paragraph
from moist.reporting.report.verdict import study_remark, study_verdict
from moist.results.objectives import PREFIX, TEST
from moist.results.queries import members
from moist.results.trials import Trial
from moist.store.objects import ObjectStore
from moist.store.runs import RunRecords
from moist.study.ref import StudyRef
from moist.study.storage import load, of_optuna
from moist.study.tracking import about_of
from moist.tracking.journal import STUDY
from moist.tracking.tracker import Tracker

if TYPE_CHECKING:
    import wandb
    from plotly.graph_objects import Figure


def log_summary(tracker: Tracker, ref: StudyRef, page: Path) -> None:
    """Log a study's current state to W&B; `page` is its HTML report."""
    spec, trials = load(ref)
    objectives = spec.objectives
    front = members(trials, objectives)
    y, x = (*objectives, COST)[:2]
    plot = frontier_plot(trials, front, x, y)
    drawn = figures(plot, importances(of_optuna(ref), objectives))
    runs = RunRecords(ref.home).of(trial.key for trial in trials)
    best, *sentences = study_verdict([mark.trial for mark in plot.marks], (y, x), runs)
    verdict = [*filter(None, (" ".join(sentences).strip(), study_remark(best, runs)))]
    values = spec.facts.fixed | {"objectives": [*map(str, objectives)]}
    info = replace(
        about_of(ref.name, spec, part=STUDY, job_type=STUDY, values=values),
        notes="\n\n".join([*verdict, spec.command]),
    )
    journal = tracker.open(info)
    journal.submit(lambda run: _log_trials(run, trials, front, drawn, verdict))
    journal.submit(lambda run: _log_artifacts(run, ref, front, page))
    counts = Counter(trial.state for trial in trials)
    journal.update_summary({f"trials/{state}": count for state, count in counts.items()})
    journal.update_summary({"trials/frontier": len(front)})
    journal.end("complete")


def figures(
    plot: FrontierPlot, importances: Mapping[str, Mapping[str, float]]
) -> dict[str, Figure]:
    """Draw the frontier among all trials, the parameters' effect, and their importances."""
    figures = {
        "pareto": plotly_figures.scatter(plot),
        "parameters": plotly_figures.parallel_coordinates(plot),
        "importance": plotly_figures.importance_bars(importances) if importances else None,
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def rows(
    trials: Sequence[Trial], front: Sequence[Trial]
) -> tuple[list[str | int], list[Iterable[Any]]]:
    """Return column names, and one row of cells a trial; a missing value is None."""
    members = {trial.number for trial in front}
    tables = [
        {
            "trial": trial.number,
            "state": trial.state,
            "frontier": trial.number in members,
            **trial.params,
            **{f"{PREFIX}{name}": value for name, value in trial.quantities.items()},
            **{f"{TEST}{name}": value for name, value in trial.reported.items()},
            "seconds": trial.seconds,
            "saved": trial.saved,
            "reason": trial.reason,
            "key": trial.key,
        }
        for trial in trials
    ]
    columns = dict.fromkeys(name for row in tables for name in row)
    return [*columns], [[row.get(name) for name in columns] for row in tables]


def _log_trials(
    run: wandb.Run,
    trials: Sequence[Trial],
    front: Sequence[Trial],
    drawn: Mapping[str, Figure],
    verdict: Sequence[str],
) -> None:
    import wandb

    columns, cells = rows(trials, front)
    run.log(
        {
            "verdict": wandb.Html("".join(map(paragraph, verdict)), data_is_not_path=True),
            "trials": wandb.Table(columns=columns, data=cells, allow_mixed_types=True),
            **{name: wandb.Plotly(figure) for name, figure in drawn.items()},
        }
    )


def _log_artifacts(run: wandb.Run, ref: StudyRef, front: Sequence[Trial], page: Path) -> None:
    """Log the frontier's models and the report; a deleted model leaves only its record."""
    import wandb

    name = ref.name
    models = wandb.Artifact(f"{name}-frontier", "model", f"The frontier of study {name}.")
    for trial in front:
        _add(models, ref.home, trial)
    run.log_artifact(models)
    report = wandb.Artifact(f"{name}-report", "report", f"The figures of study {name}.")
    report.add_file(str(page))
    run.log_artifact(report)


def _add(models: wandb.Artifact, home: Path, trial: Trial) -> None:
    records, objects = RunRecords(home), ObjectStore(home)
    found = records.get(trial.key) if trial.key else None
    if found is None:
        return
    folder = f"trial-{trial.number:05d}"
    models.add_file(str(records.path(found.key)), f"{folder}/run.json")
    key = found.report.model_key
    if key and key in objects:
        models.add_dir(str(objects.folder(key)), f"{folder}/model")
