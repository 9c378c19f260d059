"""The space that a sweep searches: its parameters as Optuna draws them, counted and enumerated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from moist.config import Config, flat
from moist.config.overrides import build
from moist.errors import ConfigError
from moist.results.objectives import Objective

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


@dataclass(frozen=True)
class Parameter:
    """A key that is searched.

    A categorical has `choices`, typed as the config shows them. A range has the bounds `low` and
    `high`, both included, maybe a `step`, and `log` if its logarithm is drawn uniformly. `when`
    has the condition under which the parameter applies: each key has one of the values listed.
    """

    name: str
    kind: Literal["categorical", "int", "float"]
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def finite(self) -> bool:
        return self.kind != "float" or self.step is not None

    def values(self) -> Sequence[Any]:
        """Return all values, in order. Raises ConfigError for a range of reals without a step."""
        if self.kind == "categorical":
            return self.choices
        if self.kind == "int":
            return range(int(self.low), int(self.high) + 1, int(self.step or 1))
        if self.step is None:
            raise ConfigError(
                f"`{self.name}` is a range of reals, which has infinitely many values",
                "write `values`, or `distribution: q_uniform` with `q`",
            )
        count = round((self.high - self.low) / self.step)
        return [min(i * self.step + self.low, self.high) for i in range(count + 1)]

    def ends(self) -> Sequence[Any]:
        """Return the choices, or the two bounds of the range."""
        return self.choices if self.kind == "categorical" else (self.low, self.high)


@dataclass(frozen=True)
class Sweep:
    """A sweep file with its recipes and overrides: what is searched, and what is fixed.

    `objectives` are the file's `metrics`, None if it has none: a single `metric` is for W&B's
    `bayes` and only checked. `fixed` has values as the config shows them. A parameter comes after
    those that its `when` names, otherwise in the file's order. `wandb_only` maps the settings of
    the file that only W&B uses to the options that replace them in a study.
    """

    name: str
    path: Path
    method: str
    objectives: tuple[Objective, ...] | None
    fixed: dict[str, Any]
    parameters: tuple[Parameter, ...]
    run_cap: int | None = None
    wandb_only: Mapping[str, str] = field(default_factory=dict)


def distribution(parameter: Parameter) -> BaseDistribution:
    """Return Optuna's distribution of a parameter, the one that W&B's own converter gives."""
    from optuna import distributions

    p = parameter
    if p.kind == "categorical":
        return distributions.CategoricalDistribution(p.choices)
    if p.kind == "int":
        return distributions.IntDistribution(int(p.low), int(p.high), p.log, int(p.step or 1))
    return distributions.FloatDistribution(p.low, p.high, p.log, p.step)


def active(sweep: Sweep, chosen: Mapping[str, Any], parameter: Parameter) -> bool:
    """Return whether a parameter applies, given the values chosen for those before it.

    A parameter that does not apply has no value, so one that depends on it does not apply either.
    """
    known = {**sweep.fixed, **chosen}
    return all(key in known and known[key] in values for key, values in parameter.when.items())


def grid(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Yield every point once, the last parameter varying fastest.

    Raises ConfigError, at once, if a parameter has infinitely many values.
    """

    def points(chosen: dict[str, Any], rest: tuple[Parameter, ...]) -> Iterator[dict[str, Any]]:
        if not rest:
            yield chosen
        elif active(sweep, chosen, rest[0]):
            for value in rest[0].values():
                yield from points({**chosen, rest[0].name: value}, rest[1:])
        else:
            yield from points(chosen, rest[1:])

    for parameter in sweep.parameters:
        parameter.values()  # raises now, not at the first point
    return points({}, sweep.parameters)


def size(sweep: Sweep) -> int | None:
    """Return the number of points of `grid`, None if a range of reals makes it infinite."""
    if not all(parameter.finite for parameter in sweep.parameters):
        return None
    conditions = {key for parameter in sweep.parameters for key in parameter.when}

    def count(chosen: dict[str, Any], parameters: tuple[Parameter, ...]) -> int:
        if not parameters:
            return 1
        first, rest = parameters[0], parameters[1:]
        if not active(sweep, chosen, first):
            return count(chosen, rest)
        if first.name not in conditions:
            return len(first.values()) * count(chosen, rest)
        return sum(count({**chosen, first.name: value}, rest) for value in first.values())

    return count({}, sweep.parameters)


def ends(sweep: Sweep, key: str) -> Sequence[Any]:
    """Return the values that a key may have in a search; of a range, the two bounds."""
    searched = [one.ends() for one in sweep.parameters if one.name == key]
    return searched[0] if searched else [sweep.fixed.get(key, flat(Config())[key])]


def config_of(sweep: Sweep, params: Mapping[str, Any]) -> Config:
    """Build the config of a point. Raises ConfigError for values that conflict."""
    return build({**sweep.fixed, **params})


def possible(name: str, every: Mapping[str, Parameter], fixed: Mapping[str, Any]) -> bool:
    """Return whether a parameter can apply: each key it depends on, directly or not, has a value
    that all conditions on it allow."""
    allowed: dict[str, set[Any]] = {}
    waiting = [name]
    while waiting:
        for key, values in every[waiting.pop()].when.items():
            allowed[key] = allowed.get(key, set(values)) & set(values)
            waiting += [] if key in fixed else [key]
    return all(
        any(value in values for value in ([fixed[key]] if key in fixed else every[key].values()))
        for key, values in allowed.items()
    )


def in_order(parameters: Iterable[Parameter]) -> tuple[Parameter, ...]:
    """Sort parameters after those that their `when` names; keep the order otherwise."""
    every = {one.name: one for one in parameters}
    ordered: dict[str, Parameter] = {}

    def put(one: Parameter) -> None:
        for key in one.when:
            if key in every:
                put(every[key])
        ordered[one.name] = one

    for one in every.values():
        put(one)
    return tuple(ordered.values())
