"""Queries of a study's trials: the frontier, the best trial, the knee, comparisons.

Only feasible trials count: those that are complete and keep the study's own limits. A query can
use any quantity of the run, not only those that the study optimizes. The order of the trials does
not matter.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from itertools import product, repeat

import numpy as np

from moist.errors import ConfigError, did_you_mean
from moist.results import pareto
from moist.results.objectives import QUANTITIES, Limit, Objective, known, losses, margin
from moist.results.report import Record
from moist.results.trials import Trial

Point = tuple[float, ...]


class Side(Record):
    """One study in a comparison with another.

    `members` are the trials of its frontier, `joint` those that no trial of the other dominates.
    `coverage` is the share of the other's members that some member here equals or dominates.
    """

    hypervolume: float
    coverage: float
    members: tuple[int, ...]
    joint: tuple[int, ...]


class Comparison(Record):
    """Two studies' frontiers compared under one reference; an equal point counts for both."""

    reference: dict[str, float]
    a: Side
    b: Side


def members(trials: Iterable[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """Return the frontier by rising cost: the first objective to minimize, else the first of all.

    Of trials with equal values only the one with the lowest number is a member. Latencies that
    differ by no more than their spreads are equal. Without feasible trials the frontier is empty.
    Raises ConfigError for a trial that lacks an objective's quantity.
    """
    pool = _feasible(trials)
    points = _points(pool, objectives)
    cost = next((i for i, one in enumerate(objectives) if one.direction == "min"), 0)
    front = pareto.front(points, _margins(pool, objectives))
    found = sorted(front, key=lambda i: (points[i][cost], points[i]))
    return [pool[i] for i in found]


def best(trials: Sequence[Trial], limits: Sequence[Limit], by: Objective) -> Trial:
    """Return the best trial by one objective of those that keep all limits.

    Ties go to the better in each other quantity, in the order of QUANTITIES, so that of equal
    accuracies the one with fewer mflops wins, then to the lower number. Latencies that differ by
    no more than their spreads are ties, also with a limit. Raises ConfigError with the nearest
    miss, or for a trial that lacks a quantity of the query.
    """
    pool = _some(trials)
    _check_quantities(pool, (by.name, *(limit.name for limit in limits)))
    kept = keeping(pool, limits)
    if not kept:
        raise _missed(trials, pool, limits)
    return ranked(kept, by)[0]


def ranked(trials: Iterable[Trial], by: Objective) -> list[Trial]:
    """Return trials from the best to the worst by one objective, ties as `best` breaks them."""
    left = [(trial, *_interval(trial, by)) for trial in _by_number(trials)]
    found: list[Trial] = []
    while left:
        end = min(high for _, _, high in left)
        found += sorted((one for one, low, _ in left if low <= end), key=_rank)
        left = [entry for entry in left if entry[1] > end]
    return found


def keeping(trials: Iterable[Trial], limits: Sequence[Limit]) -> list[Trial]:
    """Return the feasible trials that keep all limits."""
    pool = _feasible(trials)
    _check_quantities(pool, (one.name for one in limits))
    return [trial for trial in pool if all(one.excess(trial.quantities) <= 0 for one in limits)]


def knee(trials: Sequence[Trial], objectives: Sequence[Objective]) -> Trial:
    """Return the knee of the frontier (`pareto.knee`) in the given objectives.

    Of two members it is the better in the first objective. Raises ConfigError without feasible
    trials.
    """
    _some(trials)
    front = members(trials, objectives)
    return front[pareto.knee(_points(front, objectives))]


def hypervolume(
    trials: Iterable[Trial], objectives: Sequence[Objective], reference: Mapping[str, float]
) -> float:
    """Return the volume between frontier and reference, in the product of the objectives' units.

    `reference` has one value per objective, in its own unit and direction. Raises ConfigError
    for a name that is missing or unknown.
    """
    corner = _corner(reference, objectives)
    return pareto.hypervolume(_points(_feasible(trials), objectives), corner)


def default_reference(
    trials: Iterable[Trial], objectives: Sequence[Objective]
) -> dict[str, float]:
    """Return the worst value of each objective over all complete trials, feasible or not.

    It depends on the trials, so two hypervolumes are comparable only under a common reference.
    Raises ConfigError without complete trials.
    """
    trials = list(trials)
    complete = [trial for trial in trials if trial.state == "complete"]
    if not complete:
        raise ConfigError(
            f"there is no default reference without a complete trial; found {_counted(trials)}",
            "give a reference, or run more trials",
        )
    return {
        one.name: max((_quantity(trial, one.name) for trial in complete), key=one.loss)
        for one in objectives
    }


def compare(
    a: Sequence[Trial],
    b: Sequence[Trial],
    objectives: Sequence[Objective],
    reference: Mapping[str, float] | None = None,
) -> Comparison:
    """Compare two studies by hypervolume, coverage and their parts of the joint frontier.

    The default reference is the worst of both. Raises ConfigError if one of them has no feasible
    trial.
    """
    for trials, study in ((a, "the first study"), (b, "the second study")):
        _some(trials, study)
    common = default_reference([*a, *b], objectives) if reference is None else dict(reference)
    return Comparison(
        reference=common, a=_side(a, b, objectives, common), b=_side(b, a, objectives, common)
    )


def _side(
    own: Sequence[Trial],
    other: Sequence[Trial],
    objectives: Sequence[Objective],
    reference: Mapping[str, float],
) -> Side:
    mine, theirs = members(own, objectives), members(other, objectives)
    points, rivals = _points(mine, objectives), _points(theirs, objectives)
    margins, others = _margins(mine, objectives), _margins(theirs, objectives)
    joint = tuple(
        trial.number
        for trial, point, near in zip(mine, points, margins, strict=True)
        if not any(map(pareto.dominates, rivals, repeat(point), others, repeat(near)))
    )
    return Side(
        hypervolume=hypervolume(own, objectives, reference),
        coverage=pareto.coverage(np.subtract(points, margins), np.add(rivals, others)),
        members=tuple(trial.number for trial in mine),
        joint=joint,
    )


def _feasible(trials: Iterable[Trial]) -> list[Trial]:
    """Return the feasible trials by number, so that the first of equals has the lowest."""
    return _by_number(trial for trial in trials if trial.feasible)


def _by_number(trials: Iterable[Trial]) -> list[Trial]:
    return sorted(trials, key=lambda trial: trial.number)


def _some(trials: Sequence[Trial], study: str = "the study") -> list[Trial]:
    """Return the feasible trials. Raises ConfigError if there are none."""
    pool = _feasible(trials)
    if not pool:
        raise ConfigError(
            f"{study} has no complete trial that keeps its limits; found {_counted(trials)}",
            "run more trials",
        )
    return pool


def _counted(trials: Sequence[Trial]) -> str:
    """Return how many trials are in each state, as `0 complete, 2 failed trials`."""
    states = {"complete": 0} | Counter(trial.state for trial in trials)
    return ", ".join(f"{count} {state}" for state, count in states.items()) + " trials"


def _quantity(trial: Trial, name: str) -> float:
    known(name)
    if name not in trial.quantities:
        has = ", ".join(f"`{one}`" for one in trial.quantities)
        raise ConfigError(f"trial {trial.number} has no `{name}`", f"use one of: {has or 'none'}")
    return trial.quantities[name]


def _check_quantities(trials: Iterable[Trial], names: Iterable[str]) -> None:
    for trial, name in product(trials, names):
        _quantity(trial, name)


def _points(trials: Iterable[Trial], objectives: Sequence[Objective]) -> list[Point]:
    return [tuple(one.loss(_quantity(t, one.name)) for one in objectives) for t in trials]


def _margins(trials: Iterable[Trial], objectives: Sequence[Objective]) -> list[Point]:
    return [tuple(margin(trial.quantities, one.name) for one in objectives) for trial in trials]


def _corner(reference: Mapping[str, float], objectives: Sequence[Objective]) -> list[float]:
    """Return the reference as a point to be minimized. Raises ConfigError."""
    names = [one.name for one in objectives]
    hint = f"give one number for each of: {', '.join(names)}"
    for name in names:
        if name not in reference:
            raise ConfigError(f"the reference has no `{name}`", hint)
    for name, value in reference.items():
        if name not in names:
            raise ConfigError(
                f"the reference names the unknown objective `{name}`",
                did_you_mean(name, names, hint),
            )
        if not math.isfinite(value):
            raise ConfigError(f"the reference has `{name}={value}`", hint)
    return losses(reference, objectives)


def _interval(trial: Trial, by: Objective) -> tuple[float, float]:
    """Return where a trial's quantity may be, less being better."""
    loss, near = by.loss(trial.quantities[by.name]), margin(trial.quantities, by.name)
    return loss - near, loss + near


def _rank(trial: Trial) -> Point:
    """Return a key by which the best of tied trials is least; a missing quantity counts as worst.

    An objective in which they tie is no reason to prefer one, unless nothing else is.
    """
    ties = (Objective(name, quantity.better) for name, quantity in QUANTITIES.items())
    return tuple(one.loss(trial.quantities.get(one.name, one.loss(math.inf))) for one in ties)


def _missed(
    trials: Sequence[Trial], pool: Sequence[Trial], limits: Sequence[Limit]
) -> ConfigError:
    """Return an error with the limits, how near the nearest trial comes, and limits it would keep.

    The nearest is the one whose worst miss is the least share of its limit.
    """
    nearest = min(pool, key=lambda trial: max(_miss(trial, one) for one in limits))
    excess = [(one, one.excess(nearest.quantities)) for one in limits]
    missed = [(one, nearest.quantities[one.name], over) for one, over in excess if over > 0]
    requested = " and ".join(f"`{one}`" for one in limits)
    found = " and ".join(f"`{m.name}` {v:g} (off by {over:.3g})" for m, v, over in missed)
    complete = sum(trial.state == "complete" for trial in trials)
    excluded = complete - len(pool)
    note = f" ({excluded} beyond the study's own limits)" if excluded else ""
    return ConfigError(
        f"no trial keeps {requested}; of {complete} complete trials{note} the nearest is"
        f" trial {nearest.number}, with {found}",
        f"it passes with `{' '.join(allowing(m, v) for m, v, _ in missed)}`; or run more trials",
    )


def _miss(trial: Trial, limit: Limit) -> float:
    """Return the excess as a share of the limit, or of 1 if the limit is 0."""
    return limit.excess(trial.quantities) / (abs(limit.value) or 1.0)


def allowing(limit: Limit, value: float) -> str:
    """Return the option that just allows the value, in four digits rounded away from it."""
    rounding = ROUND_CEILING if limit.side == "max" else ROUND_FLOOR
    allowed = Context(prec=4, rounding=rounding).create_decimal(repr(value)).normalize()
    return f"--{limit.side} {limit.name}={allowed:f}"
