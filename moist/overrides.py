"""From `KEY=VALUE` and `@FILE` to a config: each value is read by its field's own type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from moist.config import Config, flat
from moist.errors import ConfigError


def parse(overrides: Iterable[str]) -> Config:
    """Build the config that `KEY=VALUE` and `@FILE` arguments describe; later ones win.

    Raises ConfigError for an unknown key (with the nearest one), a value out of bounds, a
    combination that can't work, or a file that holds no values.
    """
    values: dict[str, Any] = {}
    for item in overrides:
        if item.startswith("@"):
            values |= read_values(Path(item[1:]))
        elif "=" in item:
            key, _, value = item.partition("=")
            values[key.strip()] = value.strip()
        else:
            raise ConfigError(
                f"expected KEY=VALUE or @FILE, found `{item}`", "for example: k=3 router=linear"
            )
    return build(values)


def build(values: Mapping[str, Any]) -> Config:
    """Build a config from dotted names and values, each read by its field's own type."""
    known = flat(Config())
    nested: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, [*known, *(n.split(".")[-1] for n in known)], 1)
            near = [n for n in known if near and (n == near[0] or n.endswith("." + near[0]))]
            raise ConfigError(
                f"unknown key `{key}`",
                f"did you mean `{near[0]}`?" if near else "`moist config --keys` lists all keys",
            )
        section, _, leaf = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[leaf] = value
    try:
        return Config.model_validate(nested)
    except ValidationError as error:
        raise ConfigError("\n".join(_said(one, values) for one in error.errors())) from None


def _said(error: Any, values: Mapping[str, Any]) -> str:
    place = [str(part) for part in error["loc"]]
    message = error["msg"].removeprefix("Value error, ")
    for depth in (2, 1):
        key = ".".join(place[:depth])
        if key in values:
            return f"`{key}={values[key]}`: {message[0].lower()}{message[1:]}"
    return f"`{'.'.join(place) or 'config'}`: {message}"


def read_values(path: Path) -> dict[str, Any]:
    """The values a YAML file fixes: flat `key: value` lines, or a sweep of single values.

    Raises ConfigError when the file can't be read, or when it asks for more than one run.
    """
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"can't read `{path}`: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"`{path}` is not YAML: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"`{path}` holds no `key: value` lines")
    if "parameters" not in document:
        return dict(document)
    ranged = [
        name
        for name, spec in document["parameters"].items()
        if not (isinstance(spec, dict) and set(spec) == {"value"})
    ]
    if ranged:
        raise ConfigError(
            f"`{path}` describes many runs: `{ranged[0]}` has no single `value`",
            "give a value for it on the command line of a sweep, or use a file of values",
        )
    return {name: spec["value"] for name, spec in document["parameters"].items()}
