"""The verdict on a study or a run, in two sentences computed from its records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from moist.config.systems import system_of
from moist.reporting.frontier_plot import PRINTED
from moist.reporting.study_tables import HEADS, format_of, format_params
from moist.results import queries
from moist.results.objectives import Objective
from moist.results.report import Measures
from moist.results.trials import Trial
from moist.store.runs import Run


def title_of(run: Run) -> str:
    """Name a run's model, as `MoIST k=3, linear router`."""
    return system_of(run.config).title(run.config, run.report.k)


def study_verdict(
    trials: Sequence[Trial], axes: Sequence[Objective], runs: Mapping[str, Run]
) -> tuple[Trial | None, str, str]:
    """Return the knee of the frontier, and two sentences about it. `runs` are records by key.

    The knee is compared with the single student of its own run, and with every single student of
    the study, on the validation images that trials are selected by.
    """
    if not any(trial.feasible for trial in trials):
        failed = sum(trial.state == "failed" for trial in trials)
        counts = f"{len(trials)} trial{'' if len(trials) == 1 else 's'}, {failed} failed"
        return None, f"No trial is complete and within every limit ({counts}).", ""
    best = queries.knee(trials, axes)
    run = runs.get(best.key or "")
    if run is None or axes[0].name != "accuracy" or not run.report.val_accuracy:
        values = ", ".join(
            f"{HEADS[one.name]} {format_of(one.name, best.quantities)}" for one in axes
        )
        members = len(queries.members(trials, axes))
        return (
            best,
            f"The knee of the frontier is trial {best.number} ({format_params(best.params)}):"
            f" {values}.",
            f"It is one of {members} members, of {len(trials)} trials.",
        )
    return best, _against_own(best, run), _against_all(best, run, trials, runs)


def _against_own(best: Trial, run: Run) -> str:
    report, student = run.report, run.report.baselines.student
    found = (
        f"{title_of(run)} (trial {best.number}, the knee of the frontier) classifies"
        f" {100 * (report.val_accuracy or 0):.1f} % of {report.n_val} validation images correctly"
    )
    if system_of(run.config).is_student:
        return f"{found}, and is a single student itself."
    return f"{found}: {gap(report, student)}."


def gap(model: Measures, student: Measures, split: str = "val_accuracy") -> str:
    """Say how far a model is from its single student, and at which cost."""
    points = 100 * (getattr(model, split) - getattr(student, split))
    less = f"{abs(points):.1f} points {'more' if points > 0 else 'fewer'} than"
    how = less if round(abs(points), 1) else "as many as"
    ratio = model.mflops / student.mflops
    return f"{how} its own single student, at {ratio:.2g} times the multiply-adds"


def _against_all(best: Trial, run: Run, trials: Sequence[Trial], runs: Mapping[str, Run]) -> str:
    """Say whether a single student of the study is as accurate, and at which cost."""
    if system_of(run.config).is_student:
        most = max(
            (t for t in trials if t.feasible), key=lambda t: (t.quantities["accuracy"], -t.number)
        )
        points = 100 * (most.quantities["accuracy"] - best.quantities["accuracy"])
        ratio = most.quantities["mflops"] / best.quantities["mflops"]
        return (
            f"The most accurate model of the study, trial {most.number}, classifies {points:.1f}"
            f" points more at {ratio:.2g} times the multiply-adds."
        )
    students = {
        one.artifacts.get("distill_student", (one.key,)): one.report.baselines.student
        for one in runs.values()
    }
    top = max(students.values(), key=lambda one: (one.val_accuracy or 0, -one.mflops))
    goal = run.report.val_accuracy or 0
    reached = [one for one in students.values() if (one.val_accuracy or 0) >= goal]
    if reached:
        cheapest = min(reached, key=lambda one: one.mflops)
        ratio = cheapest.mflops / run.report.mflops
        return (
            f"{len(reached)} of the {len(students)} single students of the study"
            f" {'reaches' if len(reached) == 1 else 'reach'} it, the cheapest at"
            f" {ratio:.2g} times its multiply-adds."
        )
    if len(students) == 1:
        return "No other single student was trained in this study."
    return (
        f"No single student of the study reaches it: the best of {len(students)} classifies"
        f" {100 * (top.val_accuracy or 0):.1f} %."
    )


def study_remark(best: Trial | None, runs: Mapping[str, Run]) -> str:
    """Say how sure the verdict is, and what the test images give, which chose nothing."""
    run = runs.get((best.key or "") if best else "")
    if best is None or run is None or not run.report.val_accuracy:
        return ""
    accuracy, n = run.report.val_accuracy, run.report.n_val
    error = 100 * math.sqrt(accuracy * (1 - accuracy) / n)
    report, beside = run.report, run.report.baselines
    return (
        f"One training of each, chosen by validation accuracy, whose standard error is"
        f" {error:.1f} points at n = {n}. On {report.n_test} test images, which chose nothing:"
        f" model {100 * report.accuracy:.1f} %, single student"
        f" {100 * beside.student.accuracy:.1f} %, teacher {100 * beside.teacher.accuracy:.1f} %."
    )


def run_verdict(run: Run) -> tuple[str, str]:
    """Compare a run's model with its single student and its teacher on the test images."""
    report, teacher = run.report, run.report.baselines.teacher
    first = (
        f"{title_of(run)} classifies {100 * report.accuracy:.1f} % of {report.n_test} test images"
        " correctly"
    )
    if not system_of(run.config).is_student:
        first += f": {gap(report, report.baselines.student, 'accuracy')}"
    return (
        f"{first}.",
        f"Its teacher classifies {100 * teacher.accuracy:.1f} %, at"
        f" {teacher.mflops / report.mflops:.2g} times the model's multiply-adds.",
    )


def facts(trial: Trial) -> list[tuple[str, str]]:
    """List what is known of a trial: its results with their units, then its parameters."""
    found = [
        (
            quantity.name,
            format_of(name, trial.quantities)
            if name == "latency_ms"
            else f"{quantity.factor * trial.quantities[name]:.4g}",
        )
        for name, quantity in PRINTED.items()
        if name in trial.quantities
    ]
    if "accuracy" in trial.reported:
        found.insert(1, ("accuracy on test, %", f"{100 * trial.reported['accuracy']:.4g}"))
    values = trial.params.items()
    return found + [(k, f"{v:.4g}" if isinstance(v, float) else str(v)) for k, v in values]
