"""Certainty of a frontier: its members trained again under new seeds, latencies measured anew.

A frontier's members were selected for their luck, too: so the runs that selected them are left
out, and only the new seeds count.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from moist.config import Config
from moist.errors import ConfigError, StageError
from moist.results import pareto, queries
from moist.results.aggregate import Spread, spread
from moist.results.objectives import Objective, losses
from moist.results.report import Record, Timing
from moist.results.trials import Trial
from moist.study.events import Observer
from moist.study.reader import NoStudy
from moist.study.ref import StudyRef
from moist.study.search import SearchPlan, plan_search, search
from moist.study.settings import Settings
from moist.study.spec import StudySpec, search_spec, sweep_of
from moist.study.storage import load
from moist.study.workers import Slot, machine_of, make_slots
from moist.sweepfile import Parameter, Sweep, config_of

MOST = 1000
"""Seeds that a frontier can be trained under: a study of fixed size, to be extended later."""


class Member(Record):
    """A member of a frontier under new seeds; `on_front` is the probability that it is one.

    Accuracies are validation's, `reported` the test split's; `latency_ms` is measured anew, all
    members in turn on an otherwise idle machine: median and 95th percentile at batch size 1.
    Its deviation in `values` is half its spread.
    """

    number: int
    params: dict[str, Any]
    values: dict[str, Spread]
    reported: Spread
    latency_ms: tuple[float, float]
    latency_spread: float | None = None
    on_front: float
    command: str | None


def reseed(
    ref: StudyRef,
    *,
    times: int,
    workers: int,
    threads: int | None,
    observers: Sequence[Observer] = (),
) -> list[Member]:
    """Train each member of a study's frontier under `times` new seeds; estimate its certainty.

    The new trials are a study of their own, `STUDY.reseed`, kept and resumed like any other.
    Raises ConfigError without members, StageError when a training failed.
    """
    again, front, seeds = _again(ref, times, workers, threads)
    from moist.env import Env, make_env
    from moist.store.store import Store
    from moist.study.costs import time_together

    result = search(
        again.ref, again.sweep, again.spec, again.settings, slots=again.slots, observers=observers
    )
    groups = [_group(again.ref, trial, result.trials, seeds) for trial in front]
    store = Store(ref.home, make_env(Env().progress, threads=threads))
    latencies = time_together([config_of(again.sweep, trial.params) for trial in front], store)
    return _members(front, groups, again.spec.objectives, latencies)


def plan_reseed(
    ref: StudyRef, *, times: int, workers: int, threads: int | None
) -> tuple[SearchPlan, int]:
    """Plan what `reseed` would train; return it with the number of members. Raises ConfigError."""
    again, front, _ = _again(ref, times, workers, threads)
    planned = plan_search(again.ref, again.sweep, again.spec, again.settings, slots=again.slots)
    return planned, len(front)


class _Again(NamedTuple):
    """The search that trains a frontier under new seeds."""

    ref: StudyRef
    sweep: Sweep
    spec: StudySpec
    settings: Settings
    slots: Sequence[Slot]


def _again(
    ref: StudyRef, times: int, workers: int, threads: int | None
) -> tuple[_Again, list[Trial], Sequence[int]]:
    """Describe the search, with the members of the frontier and the new seeds.

    Raises ConfigError without members.
    """
    spec, trials = load(ref)
    front = queries.members(trials, spec.objectives)
    if not front:
        raise ConfigError(
            f"study `{ref.name}` has no complete trial", f"run `{ref.locate(spec.command)}`"
        )
    sweep = seeded(sweep_of(spec, ref.name))
    seeds = next(one for one in sweep.parameters if one.name == "seed").values()[:times]
    points = [trial.params | {"seed": seed} for trial in front for seed in seeds]
    slots = make_slots(None, workers, threads)
    machine = machine_of(slots, {one.name for one in spec.objectives})
    changed = {
        "facts": search_spec(sweep, spec.objectives, 0, machine),
        "command": ref.command("pareto", "--reseed", str(times)),
    }
    settings = Settings(trials=len(points), best={}, points=points)
    again = replace(ref, name=f"{ref.name}.reseed")
    return _Again(again, sweep, spec.model_copy(update=changed), settings, slots), front, seeds


def reseeded(ref: StudyRef, front: Sequence[Trial], name: str) -> dict[int, tuple[float, float]]:
    """Return mean and deviation of a quantity of those members that were trained again, by number.

    Nothing is trained: empty unless `reseed` has made the study `STUDY.reseed`.
    """
    try:
        _, trials = load(replace(ref, name=f"{ref.name}.reseed"))
    except NoStudy:
        return {}
    found = {}
    for member in front:
        values = [
            trial.quantities[name]
            for trial in trials
            if trial.feasible and _unseeded(trial) == _unseeded(member)
        ]
        if len(values) > 1:
            one = spread(values)
            found[member.number] = one.mean, one.sd
    return found


def _unseeded(trial: Trial) -> dict[str, Any]:
    return {name: value for name, value in trial.params.items() if name != "seed"}


def seeded(sweep: Sweep) -> Sweep:
    """Replace a search's seeds by those that follow them."""
    searched = [one.values() for one in sweep.parameters if one.name == "seed"]
    old = max(map(int, searched[0] if searched else [sweep.fixed.get("seed", Config().seed)]))
    seed = Parameter("seed", "int", low=old + 1, high=old + MOST)
    others = tuple(one for one in sweep.parameters if one.name != "seed")
    fixed = {name: value for name, value in sweep.fixed.items() if name != "seed"}
    return replace(sweep, parameters=(*others, seed), fixed=fixed)


def _group(
    ref: StudyRef, member: Trial, trials: Sequence[Trial], seeds: Sequence[int]
) -> list[Trial]:
    """Return a member's runs under the new seeds. Raises StageError unless all are complete."""
    group = [
        trial
        for trial in trials
        if trial.feasible
        and trial.params.get("seed") in seeds
        and trial.params == member.params | {"seed": trial.params["seed"]}
    ]
    if len(group) < len(seeds):
        raise StageError(
            f"trial {member.number} was trained {len(group)} of {len(seeds)} times",
            f"`{ref.command('sweep status')}` says why;"
            f" `{ref.command('sweep retry')}` and the same command retry",
        )
    return group


def _members(
    front: Sequence[Trial],
    groups: Sequence[Sequence[Trial]],
    objectives: Sequence[Objective],
    latencies: Sequence[Timing],
) -> list[Member]:
    """Compute means and deviations, and from them the probability to be on the frontier."""
    times = len(groups[0])
    values = [
        {one.name: spread([trial.values[one.name] for trial in group]) for one in objectives}
        for group in groups
    ]
    for found, latency in zip(values, latencies, strict=True):
        if "latency_ms" in found:
            error = (latency.spread or 0.0) * latency.median / 2
            found["latency_ms"] = Spread(mean=latency.median, sd=error, n=latency.n)
    sure = on_front(values, objectives, times)
    return [
        Member(
            number=trial.number,
            params=trial.params,
            values=found,
            reported=spread([run.reported["accuracy"] for run in group]),
            latency_ms=(latency.median, latency.p95),
            latency_spread=latency.spread,
            on_front=probability,
            command=trial.command,
        )
        for trial, group, found, latency, probability in zip(
            front, groups, values, latencies, sure, strict=True
        )
    ]


def on_front(
    values: Sequence[Mapping[str, Spread]], objectives: Sequence[Objective], times: int
) -> list[float]:
    """Estimate the probability that each member's true means are on the front (Monte Carlo).

    A mean's error is the deviation pooled over all members, by the root of the number of seeds;
    a latency is measured once, whatever the seeds.
    """
    means = [
        losses({name: one.mean for name, one in member.items()}, objectives) for member in values
    ]
    errors = [
        math.sqrt(
            statistics.fmean(member[one.name].sd ** 2 for member in values)
            / (1 if one.name == "latency_ms" else times)
        )
        for one in objectives
    ]
    freedom = len(values) * (times - 1)
    return [float(p) for p in pareto.membership(means, [errors] * len(values), freedom)]
