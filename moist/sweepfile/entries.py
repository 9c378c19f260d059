"""From an entry under `parameters:` in a sweep file to a Parameter, or to what to write instead.

| what is drawn | in W&B's words | in Optuna's |
|---|---|---|
| one of some values | `values` | CategoricalDistribution |
| a whole number | whole `min` and `max`, or `int_uniform` | IntDistribution |
| a real number | `min` and `max` with a point, or `uniform` | FloatDistribution |
| a multiple of `q` | `q_uniform` | IntDistribution or FloatDistribution, with a step |
| a whole number, by its logarithm | `q_log_uniform_values` | IntDistribution, log |
| a real number, by its logarithm | `log_uniform_values` | FloatDistribution, log |

Whatever else W&B can draw from has no counterpart in Optuna.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

import yaml

from moist.config.files import Word
from moist.config.overrides import place, read
from moist.config.schema import bounds, keys
from moist.errors import ConfigError
from moist.sweepfile.errors import noted, together
from moist.sweepfile.parameters import Parameter

WORDS = ("value", "values", "min", "max", "distribution", "q", "when")
DRAWN = {
    "value": ("constant",),
    "values": ("categorical",),
    "min": ("int_uniform", "uniform", "q_uniform", "q_log_uniform_values", "log_uniform_values"),
}
WHOLE = {"uniform": "int_uniform", "log_uniform_values": "q_log_uniform_values"}
INSTEAD = {
    "parameters": "each key by its dotted name, as in `teacher.epochs: {value: 3}`",
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
"""Words of W&B's that have no counterpart in Optuna, and what to write instead."""


def read_entry(name: str, entry: Any) -> Parameter:
    """What an entry says, but for its `when`; a `value` is a choice of one.

    Raises ConfigError, a line a mistake: what was asked, what was found, and what to write.
    """
    form = _form(name, entry)
    if form == "min":
        return _range(name, entry)
    texts = entry["values"] if form == "values" else [entry["value"]]
    if not isinstance(texts, list) or not texts:
        raise ConfigError(f"`{name}`: `values` expects a list of values, found `{texts}`")
    found: list[Any] = []
    with together() as wrong:
        for text in texts:
            with noted(wrong):
                value = _choice(name, text, listed=form == "values")
                if value in found:
                    wrong.append(f"`{name}`: `values` holds `{value}` twice")
                found.append(value)
    return Parameter(name, "categorical", tuple(found))


def _form(name: str, entry: Any) -> str:
    """`value`, `values`, or `min` for both bounds: which it gives, with nothing else amiss."""
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
    asked = given.get("distribution", DRAWN[form][0])
    if asked not in DRAWN[form]:
        raise ConfigError(
            f"`{name}`: `distribution: {asked}` does not go with `{form}`;"
            f" write {' or '.join(f'`{one}`' for one in DRAWN[form])}"
        )
    if "q" in given and not asked.startswith("q_"):
        raise ConfigError(f"`{name}`: `q` needs `distribution: q_uniform`")


def _choice(name: str, text: Any, listed: bool) -> Any:
    """A value, typed as the config shows it, if W&B takes it for the same."""
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
            f"`{name}`: YAML 1.1, and so W&B, takes `{text}` for `{text.seen}`; write `'{text}'`"
        )
    return value


def _range(name: str, entry: Mapping[str, Any]) -> Parameter:
    low, high = _number(name, entry, "min"), _number(name, entry, "max")
    q = _number(name, entry, "q") if "q" in entry else 1
    asked = str(entry.get("distribution", "int_uniform" if _whole(low, high) else "uniform"))
    with together() as wrong:
        wrong += [f"`{name}`: {mistake}" for mistake in _mistakes(entry, asked, low, high, q)]
    whole = asked in WHOLE.values() or (asked == "q_uniform" and _whole(low, high, q))
    number = int if whole else float
    found = Parameter(
        name,
        "int" if whole else "float",
        low=number(low),
        high=number(high),
        step=number(q) if asked == "q_uniform" else None,
        log="log" in asked,
    )
    _check_admitted(found, asked)
    return found


def _check_admitted(found: Parameter, asked: str) -> None:
    """Raise ConfigError unless the key admits what is drawn between the bounds."""
    with together() as wrong:
        for bound in (found.low, found.high):
            with noted(wrong):
                read(found.name, str(bound))
    spec = keys()[found.name]
    real = any(one.get("type") == "number" for one in (spec, *spec.get("anyOf", ())))
    if found.kind == "float" and not real:
        raise ConfigError(
            f"`{found.name}`: expected {bounds(spec)}, but `{asked}` draws fractions;"
            f" write `distribution: {WHOLE.get(asked, asked)}` with whole numbers"
        )


def _mistakes(
    entry: Mapping[str, Any], asked: str, low: float, high: float, q: float
) -> Iterator[str]:
    """What is wrong with a range, whichever key it is for."""
    found = f"found `min: {low}` and `max: {high}`"
    if low >= high:
        yield f"`min` must be below `max`, {found}"
    if "distribution" not in entry and _whole(low) != _whole(high):
        yield f"W&B can't tell if this is whole numbers, {found}; write both or none with a point"
    if asked in WHOLE.values() and not _whole(low, high):
        yield f"`distribution: {asked}` needs whole bounds, {found}"
    if "log" in asked and low <= 0:
        yield f"a logarithm needs `min` above 0, {found}"
    if asked == "q_log_uniform_values" and q != 1:
        yield f"Optuna has no steps of `q: {q}` in logarithms; write no `q`, or `q_uniform`"
    if q <= 0:
        yield f"`q` must be above 0, found `{q}`"
    elif asked == "q_uniform" and any(Decimal(str(end)) % Decimal(str(q)) for end in (low, high)):
        yield (
            f"W&B draws multiples of `q: {q}`, Optuna counts from `min`; write bounds that are"
            f" multiples, {found}"
        )


def _number(name: str, entry: Mapping[str, Any], word: str) -> float:
    """A number of a range, as W&B reads it: `1e-4` is text in YAML 1.1."""
    text = entry[word]
    number = getattr(text, "seen", None)
    if isinstance(number, int | float) and type(number) is not bool and math.isfinite(number):
        return number
    try:
        meant = f"`{yaml.safe_dump(float(text)).split()[0]}`"
    except (TypeError, ValueError):
        meant = "a number"
    raise ConfigError(
        f"`{name}`: `{word}: {text}` is no finite number to YAML 1.1, nor to W&B; write {meant}"
    )


def _whole(*numbers: float) -> bool:
    return all(isinstance(number, int) for number in numbers)
