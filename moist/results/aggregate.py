"""Averages of a study's trials over parameters such as the seed: one row per setting."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from moist.errors import ConfigError, unknown
from moist.results.objectives import QUANTITIES, SPREAD, TEST
from moist.results.report import Record
from moist.results.trials import Trial


class Spread(Record):
    """Mean and standard deviation (n - 1; 0 where n is 1) of a number over n trials."""

    mean: float
    sd: float
    n: int


class Averaged(Record):
    """The averages of one setting; `params` are those in which the study's settings differ."""

    params: dict[str, Any]
    values: dict[str, Spread]


def spread(values: Sequence[float]) -> Spread:
    """Return mean and deviation. Raises statistics.StatisticsError without values."""
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return Spread(mean=statistics.fmean(values), sd=sd, n=len(values))


def averaged(
    trials: Sequence[Trial], measures: Sequence[str], over: Sequence[str] = ("seed",)
) -> list[Averaged]:
    """Average each measure over the complete trials that differ only in the parameters `over`.

    A measure is a quantity, or `test/NAME` for one of `reported`; a setting lacks it if one of its
    trials does. Latencies come with their spreads. Trials that share a run count once. Settings
    are in the order of their first trials. Raises ConfigError for unknown names, and if no trial
    is complete.
    """
    complete = sorted((one for one in trials if one.state == "complete"), key=lambda t: t.number)
    if not complete:
        raise ConfigError("the study has no complete trial yet", "`moist sweep status STUDY`")
    known = [*QUANTITIES, *(f"{TEST}{name}" for name in _names([t.reported for t in complete]))]
    _check_known("quantity", measures, known)
    names = _names([trial.params for trial in complete])
    _check_known("parameter", over, [*names, "seed"])
    first = complete[0].params
    differs = [
        name
        for name in names
        if name not in over and any(one.params.get(name) != first.get(name) for one in complete)
    ]
    groups: dict[tuple[Any, ...], dict[str | None, Trial]] = {}
    for trial in complete:
        setting = tuple(trial.params.get(name) for name in differs)
        groups.setdefault(setting, {}).setdefault(trial.key, trial)
    return [_average(list(group.values()), differs, measures) for group in groups.values()]


def _average(trials: Sequence[Trial], differs: list[str], measures: Sequence[str]) -> Averaged:
    """Return the averages over the runs of one setting."""
    found = [_numbers(trial) for trial in trials]
    return Averaged(
        params={name: value for name, value in trials[0].params.items() if name in differs},
        values={
            name: spread([one[name] for one in found])
            for name in (*measures, *([SPREAD] if "latency_ms" in measures else []))
            if all(name in one for one in found)
        },
    )


def _numbers(trial: Trial) -> dict[str, float]:
    """Return all numbers of a complete trial, by name."""
    return trial.quantities | {f"{TEST}{name}": value for name, value in trial.reported.items()}


def _names(found: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for one in found for name in one))


def _check_known(kind: str, requested: Sequence[str], known: Sequence[str]) -> None:
    for name in requested:
        if name not in known:
            raise unknown(kind, name, dict.fromkeys(known))
