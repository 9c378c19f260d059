"""The entries under `parameters:` in a sweep file, each read as a Parameter.

| what is drawn | W&B's entry | Optuna's distribution |
|---|---|---|
| one of some values | `values` | CategoricalDistribution |
| a whole number | whole `min` and `max`, or `int_uniform` | IntDistribution |
| a real number | `min` or `max` with a point, or `uniform` | FloatDistribution |
| a multiple of `q` | `q_uniform` | IntDistribution or FloatDistribution, with a step |
| a whole number, by its logarithm | `q_log_uniform_values` | IntDistribution, log |
| a real number, by its logarithm | `log_uniform_values` | FloatDistribution, log |

W&B's other distributions have no counterpart in Optuna.

`when: {router: linear}` in an entry makes its parameter apply only where each key that the `when`
names has one of its values. A parameter that does not apply has no value, so one that depends on
it does not apply either.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from graphlib import CycleError, TopologicalSorter
from typing import Any

import yaml

from moist.config.files import Word
from moist.config.overrides import place, read
from moist.config.schema import bounds, keys
from moist.errors import ConfigError, did_you_mean
from moist.sweepfile.errors import noted, raised_together
from moist.sweepfile.space import Parameter, possible

WORDS = ("value", "values", "min", "max", "distribution", "q", "when")
DRAWN = {
    "value": ("constant",),
    "values": ("categorical",),
    "min": ("int_uniform", "uniform", "q_uniform", "q_log_uniform_values", "log_uniform_values"),
}
WHOLE = {"uniform": "int_uniform", "log_uniform_values": "q_log_uniform_values"}
INSTEAD = {
    "probabilities": "`values` alone",
    "categorical_w_probabilities": "`values` alone",
    "normal": "`distribution: uniform` with `min` and `max`",
    "beta": "`distribution: uniform` with `min` and `max`",
    "q_normal": "`distribution: q_uniform` with `min`, `max` and `q`",
    "q_beta": "`distribution: q_uniform` with `min`, `max` and `q`",
    "log_normal": "`distribution: log_uniform_values` with `min` and `max`",
    "inv_log_uniform": "`distribution: log_uniform_values` with `min` and `max`",
    "inv_log_uniform_values": "`distribution: log_uniform_values` with `min` and `max`",
    "q_log_normal": "`distribution: q_log_uniform_values` with `min` and `max`",
    "log_uniform": "`distribution: log_uniform_values` with the bounds, not their logarithms",
    "q_log_uniform": "`distribution: q_log_uniform_values` with the bounds, not their logarithms",
}
"""W&B's words that have no counterpart in Optuna, and what to write instead."""


def read_entries(entries: Mapping[str, Any], grid: bool) -> dict[str, Parameter]:
    """Return the parameter of every entry, constants included; `grid` is W&B's `method: grid`.

    Raises ConfigError, one line per mistake: what was requested, what was found, what to write.
    """
    every: dict[str, Parameter] = {}
    with raised_together() as mistakes:
        for name, entry in entries.items():
            with noted(mistakes):
                every[name] = _read_entry(name, entry)
        for name, plain in every.items():
            if "when" in entries[name]:
                with noted(mistakes):
                    when = _read_when(name, entries[name]["when"], every, entries)
                    every[name] = replace(plain, when=when)
        with noted(mistakes):
            _check_conditions(every)
        mistakes += [
            f"`{one.name}`: W&B's `method: grid` takes `values`, or whole numbers one by one;"
            " write `values`, or another method"
            for one in every.values()
            if grid and (not one.finite or one.step or one.log)
        ]
    return every


def _read_entry(name: str, entry: Any) -> Parameter:
    """Return an entry's parameter without its condition; a `value` is a choice of one."""
    form = _form(name, entry)
    if form == "min":
        return _range(name, entry)
    texts = entry["values"] if form == "values" else [entry["value"]]
    if not isinstance(texts, list) or not texts:
        raise ConfigError(f"`{name}`: `values` expects a list of values, found `{texts}`")
    found: list[Any] = []
    with raised_together() as mistakes:
        for text in texts:
            with noted(mistakes):
                value = _choice(name, text, listed=form == "values")
                if value in found:
                    mistakes.append(f"`{name}`: `values` holds `{value}` twice")
                found.append(value)
    return Parameter(name, "categorical", tuple(found))


def _read_when(
    name: str, when: Any, every: Mapping[str, Parameter], keys: Collection[str]
) -> dict[str, tuple[Any, ...]]:
    """Return the keys that a `when` names, each with its typed values.

    `keys` are those of the file, `every` the ones that could be read. Raises ConfigError.
    """
    if not isinstance(when, dict) or not when:
        raise ConfigError(f"`{name}`: `when` expects `{{KEY: VALUE}}`, found `{when}`")
    found: dict[str, tuple[Any, ...]] = {}
    with raised_together() as mistakes:
        for key, values in when.items():
            with noted(mistakes):
                if key not in keys:
                    raise ConfigError(
                        f"`{name}`: `when` names the unknown parameter `{key}`",
                        did_you_mean(key, keys, f"add `{key}`, or leave it out"),
                    )
                if key in every:
                    listed = values if isinstance(values, list) else [values]
                    found[key] = _condition(name, every[key], listed)
    return found


def _condition(name: str, other: Parameter, listed: Sequence[Any]) -> tuple[Any, ...]:
    """Return a condition's values, typed. Raises ConfigError unless `other` can have them all."""
    key = other.name
    if other.kind == "float":
        raise ConfigError(
            f"`{name}`: `when` names `{key}`, a range of reals, which hardly ever takes a given"
            " value; a condition needs `values`, or a range of whole numbers"
        )
    if not listed:
        raise ConfigError(f"`{name}`: `when` lists no value of `{key}`")
    typed = tuple(read(key, value) for value in listed)
    if unknown := [value for value in typed if value not in other.values()]:
        steps = f" by {other.step}" if other.step else ""
        has = ", ".join(map(str, other.choices)) or f"{other.low} to {other.high}{steps}"
        raise ConfigError(f"`{name}`: `when` names `{key}={unknown[0]}`, and `{key}` has {has}")
    return typed


def _check_conditions(every: Mapping[str, Parameter]) -> None:
    """Raise ConfigError for conditions that form a circle, or that can never hold."""
    try:
        TopologicalSorter({name: one.when for name, one in every.items()}).prepare()
    except CycleError as error:
        circle = " -> ".join(f"`{name}`" for name in reversed(error.args[1]))
        raise ConfigError(f"the conditions of `when` form a circle: {circle}") from None
    with raised_together() as mistakes:
        mistakes += [
            f"`{name}`: its `when`, and those of what it depends on, can never hold together"
            for name in every
            if not possible(name, every, {})
        ]


def _form(name: str, entry: Any) -> str:
    """Return which of `value`, `values` and `min` (for both bounds) a correct entry gives."""
    given = entry if isinstance(entry, dict) else {}
    for word in (*given, str(given.get("distribution"))):
        if word in INSTEAD:
            raise ConfigError(
                f"`{name}`: `{word}` has no counterpart in Optuna; write {INSTEAD[word]}"
            )
    place(name)
    forms = [form for form in DRAWN if form in given]
    if len(forms) != 1 or ("min" in given) != ("max" in given) or not given.keys() <= {*WORDS}:
        found = ", ".join(f"`{word}`" for word in given) or f"`{entry}`"
        raise ConfigError(
            f"`{name}`: expected `value`, `values`, or `min` and `max`, and with them"
            f" `distribution`, `q` or `when` at most; found {found}"
        )
    _check_distribution(name, given, forms[0])
    return forms[0]


def _check_distribution(name: str, given: Mapping[str, Any], form: str) -> None:
    distribution = given.get("distribution", DRAWN[form][0])
    if distribution not in DRAWN[form]:
        raise ConfigError(
            f"`{name}`: `distribution: {distribution}` does not go with `{form}`;"
            f" write {' or '.join(f'`{one}`' for one in DRAWN[form])}"
        )
    if "q" in given and not distribution.startswith("q_"):
        raise ConfigError(f"`{name}`: `q` needs `distribution: q_uniform`")


def _choice(name: str, text: Any, listed: bool) -> Any:
    """Return a value typed as the config shows it. Raises ConfigError if W&B reads another."""
    if listed and not isinstance(text, Word):
        shown = str(text).replace("'", "")
        raise ConfigError(
            f"`{name}`: `values` holds `{shown}`, and Optuna can't choose a list;"
            f' write it as text, `"{shown[1:-1]}"`'
        )
    value = read(name, text)
    try:
        same = not isinstance(text, Word) or read(name, str(text.seen)) == value
    except ConfigError:
        same = False
    if not same:
        raise ConfigError(
            f"`{name}`: YAML 1.1, and so W&B, reads `{text}` as `{text.seen}`; write `'{text}'`"
        )
    return value


def _range(name: str, entry: Mapping[str, Any]) -> Parameter:
    low, high = _number(name, entry, "min"), _number(name, entry, "max")
    q = _number(name, entry, "q") if "q" in entry else 1
    drawn = str(entry.get("distribution", "int_uniform" if _whole(low, high) else "uniform"))
    with raised_together() as mistakes:
        mistakes += [f"`{name}`: {mistake}" for mistake in _range_mistakes(drawn, low, high, q)]
    whole = drawn in WHOLE.values() or (drawn == "q_uniform" and _whole(low, high, q))
    number = int if whole else float
    found = Parameter(
        name,
        "int" if whole else "float",
        low=number(low),
        high=number(high),
        step=number(q) if drawn == "q_uniform" else None,
        log="log" in drawn,
    )
    _check_allowed(found, drawn)
    return found


def _check_allowed(found: Parameter, drawn: str) -> None:
    """Raise ConfigError unless the key allows all that is drawn between the bounds."""
    with raised_together() as mistakes:
        for bound in (found.low, found.high):
            with noted(mistakes):
                read(found.name, str(bound))
    spec = keys()[found.name]
    real = any(one.get("type") == "number" for one in (spec, *spec.get("anyOf", ())))
    if found.kind == "float" and not real:
        raise ConfigError(
            f"`{found.name}`: expected {bounds(spec)}, but `{drawn}` draws fractions;"
            f" write `distribution: {WHOLE.get(drawn, drawn)}` with whole numbers"
        )


def _range_mistakes(drawn: str, low: float, high: float, q: float) -> Iterator[str]:
    """Yield what is wrong with a range, whatever its key."""
    found = f"found `min: {low}` and `max: {high}`"
    if low >= high:
        yield f"`min` must be below `max`, {found}"
    if drawn in WHOLE.values() and not _whole(low, high):
        yield f"`distribution: {drawn}` needs whole bounds, {found}"
    if "log" in drawn and low <= 0:
        yield f"a logarithm needs `min` above 0, {found}"
    if drawn == "q_log_uniform_values" and q != 1:
        yield f"Optuna has no steps of `q: {q}` in logarithms; write no `q`, or `q_uniform`"
    if q <= 0:
        yield f"`q` must be above 0, found `{q}`"
    elif drawn == "q_uniform" and any(Decimal(str(end)) % Decimal(str(q)) for end in (low, high)):
        yield (
            f"W&B draws multiples of `q: {q}`, Optuna counts from `min`; write bounds that are"
            f" multiples, {found}"
        )


def _number(name: str, entry: Mapping[str, Any], word: str) -> float:
    """Return a number of a range as W&B reads it: `1e-4` is text in YAML 1.1."""
    text = entry[word]
    number = getattr(text, "seen", None)
    if isinstance(number, int | float) and type(number) is not bool and math.isfinite(number):
        return number
    try:
        meant = f"`{yaml.safe_dump(_parsed(text)).split()[0]}`"
    except (TypeError, ValueError):
        meant = "a number"
    what = "text, not a number," if isinstance(number, str) else "not a finite number"
    raise ConfigError(
        f"`{name}`: `{word}: {text}` is {what} in YAML 1.1, which W&B reads; write {meant}"
    )


def _parsed(text: Any) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _whole(*numbers: float) -> bool:
    return all(isinstance(number, int) for number in numbers)
