"""Trials as tables on stdout. Never imports torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moist.reporting.terminal import SHORT, duration, print_table
from moist.results.objectives import Limit, Objective
from moist.results.queries import admitting
from moist.results.trials import Trial
from moist.study.commands import placed

if TYPE_CHECKING:
    from moist.results.aggregate import Spread
    from moist.results.queries import Comparison
    from moist.study.reseed import Member
    from moist.study.settings import Outcome
    from moist.study.storage import Described

SURE = 0.9
"""Probability below which a member of a frontier is marked."""

HEADS = {
    "accuracy": "val %", "mflops": "MFLOPs", "mmacs": "MMACs", "params": "params",
    "bytes": "bytes", "latency_ms": "ms, batch 1",
}  # fmt: skip


HOW = {
    "trained": "trained", "known": "told from records", "screened": "screened before training",
    "pruned": "stopped early", "failed": "failed",
}  # fmt: skip


def figure(name: str, value: float) -> str:
    """A quantity as people read it: accuracies in per cent, counts whole."""
    if name == "accuracy":
        return f"{100 * value:.2f}"
    if name in {"params", "bytes"}:
        return f"{value:.0f}"
    return f"{value:.3g}" if name == "latency_ms" else f"{value:.4g}"


def settings(params: Mapping[str, Any]) -> str:
    """`k=3 router=cnn`; what a sampler drew with all digits is shown with four."""
    shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in params.items()}
    return " ".join(f"{name}={value}" for name, value in shown.items())


def print_trials(title: str, trials: Sequence[Trial], objectives: Sequence[Objective]) -> None:
    """One row a trial: what it was chosen by, and its accuracy on the test split."""
    names = [o.name for o in objectives]
    names += [name for name in ("mflops", "latency_ms") if name not in names]
    rows = [
        [
            str(trial.number),
            *(
                figure(name, trial.quantities[name]) if name in trial.quantities else "-"
                for name in names
            ),
            figure("accuracy", trial.reported["accuracy"]) if trial.reported else "-",
            settings(trial.params),
            (trial.key or "-")[:SHORT],
        ]
        for trial in trials
    ]
    heads = ["trial", *(HEADS[name] for name in names), "test %", "parameters", "run"]
    print_table(title, heads, rows)


def outcome(trial: Trial, objectives: Sequence[Objective]) -> str:
    """One line on what became of a trial."""
    head = f"trial {trial.number:>3}"
    if trial.state == "complete":
        found = "  ".join(
            f"{one.name} {figure(one.name, trial.values[one.name])}"
            + (" %" if one.name == "accuracy" else "")
            for one in objectives
        )
        how = trial.reason or f"{duration(trial.seconds)}, {duration(trial.saved)} saved"
        return f"{head}  {found}  {settings(trial.params)}  ({how})"
    said = (trial.reason or "").splitlines() or [""]
    return f"{head}  {trial.state}: {said[0]}  {settings(trial.params)}"


def print_outcome(
    study: str,
    outcome: Outcome,
    front: Sequence[Trial],
    objectives: Sequence[Objective],
    plot: Path,
) -> None:
    """The frontier, what it cost and what it was spared, and what to ask next."""
    print_trials(f"Pareto frontier of {study}", front, objectives)
    told = outcome.tally.told
    counts = [f"{told[how]} {text}" for how, text in HOW.items() if told[how]]
    print(f"{len(outcome.trials)} trials in the study; now {', '.join(counts) or 'none'}")
    tally = outcome.tally
    print(
        f"{tally.computed} stages computed in {duration(tally.seconds)}, {tally.reused} reused,"
        f" {duration(tally.saved)} saved"
    )
    if tally.doubted:
        wrong = [str(trial.number) for trial in front if trial.number in tally.doubted]
        print(
            f"--prune would have stopped {len(tally.doubted)} trials; members of the frontier"
            f" among them: {', '.join(wrong) or 'none'}"
        )
    if tally.ended:
        print(f"ended early: {tally.ended}")
    if front:
        print(f"plot: {plot}")
        cost = next((o.name for o in objectives if o.direction == "min"), "mflops")
        middle = front[len(front) // 2].quantities[cost]
        limit = admitting(Limit(cost, "max", middle), middle)
        print(f"the best under a limit:\n  {placed(f'moist best {study} {limit}')}")


def print_comparison(studies: Sequence[str], found: Comparison) -> None:
    """Two frontiers side by side."""
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
    heads = ["study", "hypervolume", "covers of the other", "members", "undominated by the other"]
    print_table("", heads, rows)
    said = ", ".join(f"{name} {value:g}" for name, value in found.reference.items())
    print(f"reference: {said}")


def print_members(study: str, members: Sequence[Member]) -> None:
    """A frontier's members under new seeds: mean and standard deviation."""
    names = [name for name in members[0].values if name != "latency_ms"]
    rows = [
        [
            str(one.number),
            *(plus_minus(name, one.values[name]) for name in names),
            plus_minus("accuracy", one.reported),
            f"{one.latency_ms[0]:.3g}",
            f"{one.latency_ms[1]:.3g}",
            f"{one.on_front:.0%}",
            settings(one.params),
        ]
        for one in members
    ]
    heads = ["trial", *(HEADS[name] for name in names), "test %", "ms, batch 1", "p95"]
    print_table(
        f"Pareto frontier of {study}: mean ± sd of {members[0].reported.n} new seeds",
        [*heads, "on the front", "parameters"],
        rows,
    )
    if unsure := [str(one.number) for one in members if one.on_front < SURE]:
        print(f"less than {SURE:.0%} sure to be on the front: {', '.join(unsure)}")


def plus_minus(name: str, spread: Spread) -> str:
    if not spread.sd:
        return figure(name, spread.mean)
    return f"{figure(name, spread.mean)} ± {figure(name, spread.sd)}"


def as_csv(trials: Sequence[Trial]) -> str:
    """One line a trial, unrounded: number, quantities, test accuracy, parameters, key."""
    import pandas as pd

    rows = [
        {
            "trial": trial.number,
            **trial.quantities,
            **{f"test_{name}": value for name, value in trial.reported.items()},
            **trial.params,
            "key": trial.key,
        }
        for trial in trials
    ]
    text: str = pd.DataFrame(rows).to_csv(index=False)
    return text


def print_status(
    study: str, described: Described, trials: Sequence[Trial], who: str | None
) -> None:
    """How far a study is, who drives it, what failed and why."""
    counts = Counter(trial.state for trial in trials)
    print(f"{study}: {', '.join(f'{n} {state}' for state, n in counts.items()) or 'no trial'}")
    spent, saved = (sum(getattr(t, name) for t in trials) for name in ("seconds", "saved"))
    print(f"{duration(spent)} computed, {duration(saved)} saved by stored stages")
    again = {trial.retry_of: trial.number for trial in trials}
    for trial in trials:
        if trial.state == "failed":
            after = again.get(trial.number)
            tried = "" if after is None else f"  (tried again as trial {after})"
            print(f"{outcome(trial, described.objectives)}{tried}")
        elif trial.attempts and trial.state != "complete":
            print(f"trial {trial.number}: {'; '.join(trial.attempts)}")
    if who:
        print(f"driven by {who}")
    else:
        idle = counts["running"] + counts["waiting"]
        print(f"driven by nobody{f', {idle} trials unfinished' if idle else ''}; continue it with")
        print(f"  {placed(described.command)}")
