"""When a parameter applies: `when: {router: linear}` inside its entry in a sweep file.

Every key that a `when` names must have one of its values. A parameter that does not apply has
none, so what depends on it does not apply either.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

from moist.config.overrides import read
from moist.errors import ConfigError, did_you_mean
from moist.sweepfile.errors import noted, together
from moist.sweepfile.parameters import Parameter


def read_when(
    name: str, asked: Any, every: Mapping[str, Parameter], keys: Collection[str]
) -> dict[str, tuple[Any, ...]]:
    """The keys that a `when` names, each with its values, typed.

    `keys` are those of the file, `every` the ones that could be read. Raises ConfigError.
    """
    if not isinstance(asked, dict) or not asked:
        raise ConfigError(f"`{name}`: `when` expects `{{KEY: VALUE}}`, found `{asked}`")
    found: dict[str, tuple[Any, ...]] = {}
    with together() as wrong:
        for key, values in asked.items():
            with noted(wrong):
                if key not in keys:
                    raise ConfigError(
                        f"`{name}`: `when` names the unknown parameter `{key}`",
                        did_you_mean(key, keys, f"add `{key}`, or leave it out"),
                    )
                if key in every:
                    listed = values if isinstance(values, list) else [values]
                    found[key] = _admitted(name, every[key], listed)
    return found


def _admitted(name: str, decider: Parameter, listed: Sequence[Any]) -> tuple[Any, ...]:
    """The values of a condition, typed. Raises ConfigError unless the other can have them all."""
    key = decider.name
    if decider.kind == "float":
        raise ConfigError(
            f"`{name}`: `when` asks for `{key}`, a range of reals, which hardly ever has a certain"
            " value; a condition needs `values`, or a range of whole numbers"
        )
    if not listed:
        raise ConfigError(f"`{name}`: `when` lists no value of `{key}`")
    typed = tuple(read(key, value) for value in listed)
    if strange := [value for value in typed if value not in decider.values()]:
        steps = f" by {decider.step}" if decider.step else ""
        has = ", ".join(map(str, decider.choices)) or f"{decider.low} to {decider.high}{steps}"
        raise ConfigError(f"`{name}`: `when` asks for `{key}={strange[0]}`, which has {has}")
    return typed


def check_possible(every: Mapping[str, Parameter]) -> None:
    """Raise ConfigError for conditions that go round in a circle, or can never hold."""
    try:
        TopologicalSorter({name: one.when for name, one in every.items()}).prepare()
    except CycleError as error:
        circle = " -> ".join(f"`{name}`" for name in reversed(error.args[1]))
        raise ConfigError(f"`when` goes round in a circle: {circle}") from None
    with together() as wrong:
        wrong += [
            f"`{name}`: its `when`, and those of what it depends on, can never hold together"
            for name in every
            if not possible(name, every, {})
        ]


def possible(name: str, every: Mapping[str, Parameter], fixed: Mapping[str, Any]) -> bool:
    """Whether a parameter can apply: some value of each key it depends on lets it."""
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
    """Each after those that its `when` names; otherwise as they come."""
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
