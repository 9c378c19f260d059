"""The whole report: of a study, of a run, or of trials that were read from W&B."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from moist.reporting.frontier_plot import FrontierPlot
from moist.reporting.report.frontier import frontier_section
from moist.reporting.report.markup import Markup, command, document, el, paragraph, section
from moist.reporting.report.model import machine_section, model_sections
from moist.reporting.report.search import (
    hypervolume_section,
    importance_section,
    parameters_section,
    unfinished_section,
)
from moist.reporting.report.verdict import run_verdict, study_remark, study_verdict, title_of
from moist.results.trials import Trial
from moist.store.calls import Backend
from moist.store.keys import SHORT
from moist.store.runs import Run


@dataclass(frozen=True)
class StudyReport:
    """What a study's report is made from; `plot` has all trials that have both its quantities.

    `command` reproduces it, `limited` returns the command that queries it with a limit. `runs` are
    the records of its trials by key, and `store` has the models: trials that were read from W&B
    have neither. `importances` need `enough` trials.
    """

    title: str
    command: str
    trials: Sequence[Trial]
    plot: FrontierPlot
    importances: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    runs: Mapping[str, Run] = field(default_factory=dict)
    store: Backend | None = None
    limited: Callable[[str], str] | None = None
    enough: int = 0


def study_page(study: StudyReport) -> str:
    """Return the report of a study: its verdict, its search, and the model at the knee."""
    plot, axes = study.plot, (study.plot.y, study.plot.x)
    drawn = [mark.trial for mark in plot.marks]
    best, first, second = study_verdict(drawn, axes, study.runs)
    run = study.runs.get((best.key or "") if best else "")
    complete = sum(trial.state == "complete" for trial in study.trials)
    parts = [
        _verdict(first, second, study_remark(best, study.runs)),
        frontier_section(plot, best, run, study.limited),
        hypervolume_section(drawn, axes),
        parameters_section(plot),
        *([importance_section(study.importances, complete, study.enough)] if study.store else []),
        unfinished_section(study.trials),
    ]
    if run is not None and best is not None and study.store is not None:
        parts.append(el("h2", f"Trial {best.number}: {title_of(run)}", class_="part"))
        parts += model_sections(run, study.store)
    parts += [
        machine_section([*study.runs.values()]),
        section("Reproduce it with", command(study.command)),
    ]
    return document(study.title, *parts)


def run_page(run: Run, store: Backend) -> str:
    """Return the report of one run."""
    parts = [_verdict(*run_verdict(run)), *model_sections(run, store), machine_section([run])]
    return document(f"Run {run.key[:SHORT]}: {title_of(run)}", *parts)


def _verdict(first: str, second: str, remark: str = "") -> Markup:
    remarks = [paragraph(remark, "note")] if remark else []
    return el("section", paragraph(f"{first} {second}".strip(), "verdict"), *remarks, id="verdict")
