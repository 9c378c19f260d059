"""Runs on record selected by conditions, sorted, and compared with one another. No torch here."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from moist.config import Config, flat
from moist.config.overrides import read
from moist.errors import ConfigError, unknown
from moist.results.report import Record
from moist.store.runs import Run, row

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
CONDITION = re.compile(r"\s*([\w.]+)\s*(==|!=|<=|>=|=|<|>)\s*(.*?)\s*", re.DOTALL)


class Difference(Record):
    """What differs between two runs, by name: a pair of values, the first run's first.

    `parameters` are keys of the config, `figures` numbers of the report. Stages are `shared` if
    both runs used the same stored outputs; `stages` has the keys of those that are not.
    """

    runs: tuple[str, str]
    parameters: dict[str, tuple[Any, Any]]
    figures: dict[str, tuple[Any, Any]]
    shared: tuple[str, ...]
    stages: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]


def difference(a: Run, b: Run) -> Difference:
    """Compare two runs."""
    rows = row(a), row(b)
    origin = {
        "key",
        "model_key",
        "created",
        "command",
        "moist",
        *flat(Config()),
        *a.config,
        *b.config,
    }
    figures = {
        name: (rows[0].get(name), rows[1].get(name))
        for name in {**rows[0], **rows[1]}
        if name not in origin and rows[0].get(name) != rows[1].get(name)
    }
    stages = {
        name: (a.artifacts.get(name, ()), b.artifacts.get(name, ()))
        for name in {**a.artifacts, **b.artifacts}
    }
    return Difference(
        runs=(a.key, b.key),
        parameters={name: (value(a, name), value(b, name)) for name in differing([a, b])},
        figures=figures,
        shared=tuple(name for name, (one, other) in stages.items() if one == other),
        stages={name: pair for name, pair in stages.items() if pair[0] != pair[1]},
    )


def differing(runs: Sequence[Run]) -> list[str]:
    """Return the keys of the config in which runs differ; of one run, those not at default."""
    defaults = flat(Config())
    names = dict.fromkeys(
        name for config in (defaults, *(r.config for r in runs)) for name in config
    )
    configs = [defaults] if len(runs) == 1 else []
    configs += [defaults | run.config for run in runs]
    return [name for name in names if len({repr(one.get(name)) for one in configs}) > 1]


def value(run: Run, name: str) -> Any:
    """Return a run's value of a key; a record older than the key had what is now its default."""
    return run.config.get(name, flat(Config()).get(name))


def selected(runs: Sequence[Run], where: Iterable[str] = (), sort: str = "") -> list[Run]:
    """Return the runs that meet all conditions, in the order of `sort`.

    A condition is `KEY=VALUE`, or with one of the other COMPARISONS. KEY is a column of
    `runs.frame`; a run without a value of it meets no condition but `!=`. `sort` is KEY, with
    accuracies and times of creation in falling order and all else in rising order, or `KEY:max`
    or `KEY:min`; runs without a value come last. Raises ConfigError.
    """
    rows = [(run, row(run)) for run in runs]
    known = dict.fromkeys(name for _, one in rows for name in one)
    if not known:
        return []
    for text in where:
        name, compare, wanted = _condition(text, known)
        rows = [(run, one) for run, one in rows if _meets(one.get(name), compare, wanted)]
    if sort:
        name, colon, direction = sort.partition(":")
        _check_known(name, known)
        if direction not in ({"max", "min"} if colon else {""}):
            raise ConfigError(
                f"`--sort {sort}`: expected KEY, KEY:max or KEY:min", f"for example: {name}:max"
            )
        falling = direction == "max" if colon else name.endswith(("accuracy", "created"))
        valued = [pair for pair in rows if pair[1].get(name) is not None]
        missing = [pair for pair in rows if pair[1].get(name) is None]
        valued.sort(
            key=lambda pair: (isinstance(pair[1][name], str), pair[1][name]), reverse=falling
        )
        rows = valued + missing
    return [run for run, _ in rows]


def _condition(text: str, known: Iterable[str]) -> tuple[str, Callable[[Any, Any], bool], Any]:
    """Parse a condition: key, comparison, and the value, of the key's type."""
    found = CONDITION.fullmatch(text)
    if not found:
        raise ConfigError(
            f"`--where {text}`: expected KEY, one of {' '.join(COMPARISONS)}, and VALUE",
            "quote it, as the shell reads `>` and `<` otherwise: --where 'val_accuracy>0.9'",
        )
    name, sign, shown = found.groups()
    _check_known(name, known)
    wanted: Any = shown
    if name in flat(Config()):
        wanted = read(name, shown)
    elif name not in {"key", "created", "command", "moist"} and not name.startswith("machine."):
        try:
            wanted = None if shown == "none" else float(shown)
        except ValueError:
            raise ConfigError(
                f"`--where {text}`: `{name}` is a number, and `{shown}` is none",
                f"for example: --where '{name}{sign}1'",
            ) from None
    return name, COMPARISONS[sign], wanted


def _check_known(name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise unknown("key", name, known, "the columns of `moist runs --csv` are the keys")


def _meets(found: Any, compare: Callable[[Any, Any], bool], wanted: Any) -> bool:
    """Compare values; those of different types, and missing ones, are only unequal."""
    if compare in (operator.eq, operator.ne):
        return compare(found, wanted)
    numbers = [isinstance(one, int | float) for one in (found, wanted)]
    same = all(numbers) or (isinstance(found, str) and isinstance(wanted, str))
    return same and compare(found, wanted)
