"""A study's trials, frontier, averages and status as tables on stdout. Never imports torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moist.errors import as_typed
from moist.reporting.run_tables import about_spreads, expected_time, format_latency
from moist.reporting.terminal import counted, duration, print_table, size
from moist.results.objectives import SPREAD, TEST, Limit, Objective
from moist.results.queries import allowing
from moist.results.trials import Trial
from moist.store.keys import SHORT

if TYPE_CHECKING:
    from moist.results.aggregate import Averaged, Spread
    from moist.results.queries import Comparison
    from moist.study.ref import StudyRef
    from moist.study.removal import Removal
    from moist.study.reseed import Member
    from moist.study.search import SearchPlan
    from moist.study.settings import SearchResult
    from moist.study.spec import StudySpec
    from moist.study.storage import Overview

CONFIDENT = 0.9
"""Probability below which a member of a frontier is named as uncertain."""

HEADS = {
    "accuracy": "val %", "mflops": "MFLOPs", "mmacs": "MMACs", "params": "params",
    "bytes": "bytes", "latency_ms": "ms, batch 1",
}  # fmt: skip

OUTCOMES = {
    "trained": "trained", "reused": "reused from records", "screened": "rejected before training",
    "pruned": "stopped early", "failed": "failed",
}  # fmt: skip


def format_quantity(name: str, value: float) -> str:
    """Format a quantity as printed: accuracies in per cent, counts whole."""
    if name == "accuracy":
        return f"{100 * value:.2f}"
    if name in {"params", "bytes"}:
        return f"{value:.0f}"
    return f"{value:.3g}" if name == "latency_ms" else f"{value:.4g}"


def format_of(name: str, quantities: Mapping[str, float]) -> str:
    """Format a quantity of a trial, a latency with its spread; `-` if the trial lacks it."""
    if name not in quantities:
        return "-"
    if name == "latency_ms":
        return format_latency(quantities[name], quantities.get(SPREAD))
    return format_quantity(name, quantities[name])


def format_params(params: Mapping[str, Any]) -> str:
    """Format parameters as `k=3 router=cnn`, real numbers with four digits."""
    shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in params.items()}
    return " ".join(f"{name}={value}" for name, value in shown.items())


def print_trials(title: str, trials: Sequence[Trial], objectives: Sequence[Objective]) -> None:
    """Print one row per trial: what it was selected by, and its accuracy on the test split."""
    names = [o.name for o in objectives]
    names += [name for name in ("mflops", "latency_ms") if name not in names]
    rows = [
        [
            str(trial.number),
            *(format_of(name, trial.quantities) for name in names),
            format_quantity("accuracy", trial.reported["accuracy"]) if trial.reported else "-",
            format_params(trial.params),
            (trial.key or "-")[:SHORT],
        ]
        for trial in trials
    ]
    heads = ["trial", *(HEADS[name] for name in names), "test %", "parameters", "run"]
    print_table(title, heads, rows)
    timed = [trial.quantities for trial in trials if "latency_ms" in trial.quantities]
    if note := about_spreads([one.get(SPREAD) for one in timed]):
        print(note)


def print_studies(studies: Sequence[Overview]) -> None:
    """Print one row per study."""
    rows = [
        [
            one.name,
            ", ".join(f"{count} {state}" for state, count in one.trials.items()) or "none",
            " ".join(one.objectives),
            _best(one),
            one.changed[:16].replace("T", " "),
            one.driver or "-",
        ]
        for one in studies
    ]
    heads = ["study", "trials", "objectives", "best", "last change (UTC)", "driver"]
    if rows:
        print_table("", heads, rows)


def print_removal(planned: Removal) -> None:
    """Print what would be removed, and how many bytes it has."""
    for ref, trials in planned.studies:
        print(f"study `{ref.name}` with {counted(trials, 'trial')}")
    if planned.runs:
        print(f"{counted(len(planned.runs), 'run')}: {_keys(planned.runs)}")
    if planned.kept:
        why = "older than the study, or of another one"
        print(f"{counted(len(planned.kept), 'run')} kept, {why}: {_keys(planned.kept)}")
    outputs = counted(len(planned.outputs), "stored output")
    print(f"{outputs} that no other run uses; {size(planned.bytes)} in all")


def _keys(keys: Sequence[str], most: int = 6) -> str:
    listed = ", ".join(key[:SHORT] for key in keys[:most])
    return f"{listed} and {len(keys) - most} more" if len(keys) > most else listed


def _best(study: Overview) -> str:
    if study.best is None:
        return "-"
    name = study.objectives[0].partition(":")[0]
    return f"{format_quantity(name, study.best.values[name])} {HEADS[name]}"


def format_objective(objective: Objective, trial: Trial) -> str:
    """Format a trial's value of an objective as `accuracy 93.66 %`."""
    name = objective.name
    unit = " %" if name == "accuracy" else ""
    return f"{name} {format_of(name, trial.quantities | trial.values)}{unit}"


def trial_line(trial: Trial, objectives: Sequence[Objective]) -> str:
    """Return one line about a trial that ended: its results, or why it has none."""
    head = f"trial {trial.number:>3}"
    if trial.state == "complete":
        values = "  ".join(format_objective(one, trial) for one in objectives)
        how = trial.reason or f"{duration(trial.seconds)}, {duration(trial.saved)} saved"
        return f"{head}  {values}  {format_params(trial.params)}  ({how})"
    reason = (trial.reason or "").splitlines() or [""]
    return f"{head}  {trial.state}: {reason[0]}  {format_params(trial.params)}"


def print_result(
    ref: StudyRef,
    result: SearchResult,
    front: Sequence[Trial],
    *,
    objectives: Sequence[Objective],
    plot: Path,
) -> None:
    """Print the frontier, what it cost, what was saved, and a command to continue with."""
    print_trials(f"Pareto frontier of {ref.name}", front, objectives)
    stats = result.stats
    ends = stats.outcomes
    counts = [f"{ends[name]} {text}" for name, text in OUTCOMES.items() if ends[name]]
    print(
        f"{counted(len(result.trials), 'trial')} in the study; now {', '.join(counts) or 'none'}"
    )
    print(
        f"{counted(stats.computed, 'stage')} computed in {duration(stats.seconds)},"
        f" {stats.reused} reused, {duration(stats.saved)} saved"
        + (f"; {stats.pulled} pulled from {ref.store_shown}" if stats.pulled else "")
    )
    if stats.would_prune:
        wrong = [str(trial.number) for trial in front if trial.number in stats.would_prune]
        print(
            f"--prune would have stopped {counted(len(stats.would_prune), 'trial')};"
            f" members of the frontier among them: {', '.join(wrong) or 'none'}"
        )
    if stats.ended:
        print(f"ended early: {stats.ended}")
    if front:
        print(f"plot: {plot}")
        cost = next((o.name for o in objectives if o.direction == "min"), "mflops")
        middle = front[len(front) // 2].quantities[cost]
        limit = allowing(Limit(cost, "max", middle), middle)
        command = ref.command("best", *limit.split())
        print(as_typed(f"best trial under a limit:\n  {command}"))


def print_search_plan(plan: SearchPlan, head: str = "") -> None:
    """Print how many trials and stages a search would run, and how long they will take."""
    counts = plan.record()
    if head:
        print(head)
    print(
        f"{counted(plan.trials, 'trial')} to run, {plan.complete} already complete\n"
        f"{counted(counts['stages_called'], 'stage')} called,"
        f" {counts['stages_distinct']} distinct, {counts['stages_to_compute']} to compute"
        + (
            f", {pulled} to pull from the shared store"
            if (pulled := counts["stages_to_pull"])
            else ""
        )
    )
    if missing := plan.missing:
        print(f"{expected_time(missing, plan.expected)}, with --workers {plan.workers}")


def print_comparison(studies: Sequence[str], found: Comparison) -> None:
    """Print two frontiers side by side."""
    rows = [
        [
            name,
            f"{side.hypervolume:.6g}",
            f"{side.coverage:.0%}",
            str(len(side.members)),
            ", ".join(map(str, side.joint)) or "none",
        ]
        for name, side in zip(studies, (found.a, found.b), strict=True)
    ]
    heads = [
        "study",
        "hypervolume",
        "coverage of the other",
        "members",
        "not dominated by the other",
    ]
    print_table("", heads, rows)
    reference = ", ".join(f"{name} {value:g}" for name, value in found.reference.items())
    print(f"reference: {reference}")


def print_members(study: str, members: Sequence[Member]) -> None:
    """Print a frontier's members under new seeds: mean and standard deviation."""
    names = [name for name in members[0].values if name != "latency_ms"]
    rows = [
        [
            str(one.number),
            *(format_spread(name, one.values[name]) for name in names),
            format_spread("accuracy", one.reported),
            format_latency(one.latency_ms[0], one.latency_spread),
            f"{one.latency_ms[1]:.3g}",
            f"{one.on_front:.0%}",
            format_params(one.params),
        ]
        for one in members
    ]
    heads = ["trial", *(HEADS[name] for name in names), "test %", "ms, batch 1", "p95"]
    print_table(
        f"Pareto frontier of {study}: mean ± sd of {members[0].reported.n} new seeds",
        [*heads, "on the frontier", "parameters"],
        rows,
    )
    if note := about_spreads([one.latency_spread for one in members]):
        print(note)
    if uncertain := [str(one.number) for one in members if one.on_front < CONFIDENT]:
        print(f"less than {CONFIDENT:.0%} likely to be on the frontier: {', '.join(uncertain)}")


def format_spread(name: str, spread: Spread) -> str:
    """Format mean and standard deviation; a deviation of zero is left out."""
    if not spread.sd:
        return format_quantity(name, spread.mean)
    return f"{format_quantity(name, spread.mean)} ± {format_quantity(name, spread.sd)}"


def print_status(
    ref: StudyRef, spec: StudySpec, trials: Sequence[Trial], driver: str | None
) -> None:
    """Print how far a study is, its driver, and what failed and why."""
    counts = Counter(trial.state for trial in trials)
    listed = ", ".join(f"{n} {state}" for state, n in counts.items())
    print(f"{ref.name}: {listed or 'no trials'}")
    spent, saved = (sum(getattr(t, name) for t in trials) for name in ("seconds", "saved"))
    print(f"{duration(spent)} computed, {duration(saved)} saved by stored stages")
    again = {trial.retry_of: trial.number for trial in trials}
    for trial in trials:
        if trial.state == "failed":
            after = again.get(trial.number)
            retried = "" if after is None else f"  (retried as trial {after})"
            print(as_typed(f"{trial_line(trial, spec.objectives)}{retried}"))
        elif trial.attempts and trial.state != "complete":
            print(as_typed(f"trial {trial.number}: {'; '.join(trial.attempts)}"))
    if driver:
        print(f"driver: {driver}")
    else:
        idle = counts["running"] + counts["waiting"]
        unfinished = f", {counted(idle, 'trial')} unfinished" if idle else ""
        command = ref.locate(spec.command)
        print(as_typed(f"no driver is running{unfinished}; continue with\n  {command}"))


def print_averages(study: str, rows: Sequence[Averaged], across: str | None = None) -> None:
    """Print one row per setting, mean ± sd; the values of the parameter `across` get columns."""
    names = [*dict.fromkeys(name for row in rows for name in row.values if name != SPREAD)]
    groups = list(dict.fromkeys(_group(row, across) for row in rows))
    lines: dict[str, dict[Any, Averaged]] = {}
    for row in rows:
        others = {name: value for name, value in row.params.items() if name != across}
        lines.setdefault(format_params(others) or "all", {})[_group(row, across)] = row
    shown = [
        [label, _counts(line), *(_cell(line.get(at), name) for at in groups for name in names)]
        for label, line in lines.items()
    ]
    prefixes = ["" if at is None else f"{at}: " for at in groups]
    heads = [f"{prefix}{column_head(name)}" for prefix in prefixes for name in names]
    suffix = "" if across is None else f", by {across}"
    print_table(f"{study}: mean ± sd of n runs{suffix}", ["parameters", "n", *heads], shown)


def _group(row: Averaged, across: str | None) -> Any:
    """Return the value whose column a setting is in; settings without the parameter share one."""
    return None if across is None else row.params.get(across, "-")


def _counts(line: dict[Any, Averaged]) -> str:
    """Return the number of runs: `3`, or `2-3` where a cell has fewer."""
    found = {one.n for row in line.values() for one in row.values.values()} or {0}
    return "-".join(map(str, sorted({min(found), max(found)})))


def _cell(row: Averaged | None, name: str) -> str:
    if row is None or name not in row.values:
        return "-"
    found = format_spread("accuracy" if name.startswith(TEST) else name, row.values[name])
    if name == "latency_ms" and SPREAD in row.values:
        return f"{found} ±{row.values[SPREAD].mean:.0%}"
    return found


def column_head(name: str) -> str:
    """Return a number's column head: `test %` of the model, `test %, student` of a baseline."""
    if not name.startswith(TEST):
        return HEADS[name]
    model = name.removeprefix(TEST)
    return "test %" if model == "accuracy" else f"test %, {model}"
