"""Overrides: `KEY=VALUE` and `@FILE` arguments, each value read by the type of its key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError, create_model

from moist.config import Config, Section, sections
from moist.config.files import document, flattened, included, locate, words
from moist.config.plugins import UNFIT
from moist.config.schema import bounds, keys
from moist.errors import ConfigError, did_you_mean, unknown


def parse(overrides: Iterable[str]) -> Config:
    """Build the config that `KEY=VALUE` and `@FILE` arguments describe; later ones win.

    Raises ConfigError for an unknown key (with the nearest one), an invalid value, conflicting
    values, or a file without values.
    """
    return build(given(overrides))


def given(overrides: Iterable[str], inside: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the values of `KEY=VALUE` and `@FILE` arguments as written; later ones win.

    `inside` are the files that include these arguments in their `command`, the innermost last.
    """
    values: dict[str, Any] = {}
    for item in overrides:
        if item.startswith("@"):
            values |= read_values(locate(item[1:], inside[-1] if inside else None), inside)
        elif "=" in item:
            key, _, value = item.partition("=")
            values |= _leaves(key.strip(), value.strip())
        else:
            raise ConfigError(
                f"expected KEY=VALUE or @FILE, found `{item}`", "for example: k=3 router=linear"
            )
    return values


def _leaves(key: str, value: str) -> dict[str, Any]:
    """Return a value by its key; W&B's agent writes nested ones as `distill={'lr': 0.1}`."""
    if key in sections() and value.startswith("{"):
        with suppress(yaml.YAMLError):
            return {f"{key}.{leaf}": inner for leaf, inner in words(value).items()}
    return {key: value}


def read_values(path: Path, inside: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the values a YAML file fixes: flat `key: value` lines, or a sweep of single values.

    A sweep's `command` may include other files. Raises ConfigError if the file can't be read, if
    it describes more than one run, or if it includes itself.
    """
    inside = (*inside, path.resolve())
    if inside[-1] in inside[:-1]:
        listed = " -> ".join(f"`{one.name}`" for one in inside)
        raise ConfigError(f"`{path}` includes itself: {listed}")
    content = document(path)
    if not isinstance(content, dict):
        raise ConfigError(f"`{path}` has no `key: value` lines")
    if "parameters" not in content:
        return content
    parameters = content["parameters"]
    if not isinstance(parameters, dict):
        raise ConfigError(f"`{path}`: `parameters` has no `key: {{value: ...}}` lines")
    parameters = flattened(parameters)
    for name, spec in parameters.items():
        if not (isinstance(spec, dict) and set(spec) == {"value"}):
            raise ConfigError(
                f"`{path}` describes many runs: `{name}` has no single `value`",
                "a run needs one value per key: `KEY: {value: VALUE}`",
            )
    own = {name: spec["value"] for name, spec in parameters.items()}
    return given(included(content), inside) | own


def build(values: Mapping[str, Any]) -> Config:
    """Build a config from values by dotted name. Raises ConfigError with all mistakes."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        section, leaf = place(key)
        (nested.setdefault(section, {}) if section else nested)[leaf] = value
    try:
        return Config.model_validate(nested)
    except ValidationError as error:
        mistakes = [_mistake(one, values) for one in error.errors()]
    raise ConfigError("\n".join(dict.fromkeys(mistakes)))


def read(key: str, value: object) -> Any:
    """Return a value as `flat` shows it, read by the type of its key, regardless of other keys.

    Raises ConfigError for an unknown key (with the nearest one) and for an invalid value.
    """
    _, leaf = place(key)
    return _one(key, value).model_dump(mode="json")[leaf]


def pinned(key: str, value: object) -> Any:
    """Return a value as a `Config` has it: a name of another package's with its version."""
    _, leaf = place(key)
    return getattr(_one(key, value), leaf)


def _one(key: str, value: object) -> BaseModel:
    """Return a value in a model of its key alone. Raises ConfigError."""
    _, leaf = place(key)
    try:
        return _model_of(key).model_validate({leaf: value})
    except ValidationError as error:
        raise ConfigError(_unfit(key, value, error.errors()[0])) from None


@cache
def _model_of(key: str) -> type[BaseModel]:
    """Return a model of one key, without its section's checks of other keys."""
    section, leaf = place(key)
    field = (sections()[section] if section else Config).model_fields[leaf]
    fields: dict[str, Any] = {leaf: (field.annotation, field)}
    return create_model("OneKey", __base__=Section, **fields)


def place(key: str) -> tuple[str, str]:
    """Return section (may be empty) and name of a key. Raises ConfigError for an unknown one."""
    if key not in keys():
        raise unknown("key", key, () if key in sections() else keys(), _listing(key))
    section, _, leaf = key.rpartition(".")
    return section, leaf


def _listing(key: str) -> str:
    """Return a hint that shows where keys are listed, or one of a section's keys."""
    if key in sections():
        first = next(name for name in keys() if name.startswith(f"{key}."))
        return f"give one of its keys, as in `{first}=...`"
    return "`moist config --keys` lists all keys"


def _unfit(key: str, value: object, error: Any) -> str:
    """Return one line for a value that its key does not allow."""
    if error["type"] == UNFIT:
        return f"`{key}={value}`: {error['msg']}"
    spec = keys()[key]
    near = did_you_mean(str(value), spec.get("enum", ()), " ")
    return f"`{key}={value}`: expected {bounds(spec)}" + (f"; {near}" if near.strip() else "")


def _mistake(error: Any, values: Mapping[str, Any]) -> str:
    """Return one line for pydantic's error: the key, its value and the allowed values."""
    place = [str(part) for part in error["loc"]]
    for depth in (2, 1):
        key = ".".join(place[:depth])
        if key in values:
            return _unfit(key, values[key], error)
    # the checks of a section name its keys `.epochs`, those of Config use full names
    message: str = error["msg"].removeprefix("Value error, ")
    return re.sub(r"`\.(?=\w)", f"`{'.'.join(place)}.", message)
