"""From `KEY=VALUE` and `@FILE` to a config: each value is read by its field's own type."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from moist.config import Config, flat, sections
from moist.errors import ConfigError
from moist.schema import bounds, keys


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
            raise ConfigError(f"unknown key `{key}`", _meant(key, known))
        section, _, leaf = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[leaf] = value
    try:
        return Config.model_validate(nested)
    except ValidationError as error:
        said = [_said(one, values) for one in error.errors()]
    raise ConfigError("\n".join(dict.fromkeys(said)))


def _meant(key: str, known: Collection[str]) -> str:
    """The nearest keys: by the last part of the name, or else by the whole; then by section."""

    def near(name: str) -> tuple[float, float]:
        (section, _, leaf), (own_section, _, own_leaf) = name.rpartition("."), key.rpartition(".")
        return max(_alike(leaf, own_leaf), _alike(name, key)), _alike(section, own_section)

    if key in sections():
        return f"give one of its keys, as in `{next(n for n in known if n.startswith(key))}=...`"
    best = max(map(near, known))
    if best[0] < 0.75:
        return "`moist config --keys` lists all keys"
    return f"did you mean {' or '.join(f'`{name}`' for name in known if near(name) == best)}?"


def _alike(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def _said(error: Any, values: Mapping[str, Any]) -> str:
    """One line a key, whatever its type's parts complain of: what was given, what it admits."""
    place = [str(part) for part in error["loc"]]
    for depth in (2, 1):
        key = ".".join(place[:depth])
        if key in values:
            return f"`{key}={values[key]}`: expected {bounds(keys()[key])}"
    # a section's own check calls its keys `.epochs`; Config's gives them in full
    message: str = error["msg"].removeprefix("Value error, ")
    return re.sub(r"`\.(?=\w)", f"`{'.'.join(place)}.", message)


def read_values(path: Path) -> dict[str, Any]:
    """The values a YAML file fixes: flat `key: value` lines, or a sweep of single values.

    Scalars stay text, as on the command line: YAML would read `1e-4` as text and `no` as False.
    Raises ConfigError when the file can't be read, or when it asks for more than one run.
    """
    try:
        document = yaml.load(path.read_text(), Loader=yaml.BaseLoader)
    except OSError as error:
        raise ConfigError(f"can't read `{path}`: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"`{path}` is not YAML: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"`{path}` holds no `key: value` lines")
    if "parameters" not in document:
        return document
    parameters = document["parameters"]
    if not isinstance(parameters, dict):
        raise ConfigError(f"`{path}`: `parameters` holds no `key: {{value: ...}}` lines")
    for name, spec in parameters.items():
        if not (isinstance(spec, dict) and set(spec) == {"value"}):
            raise ConfigError(
                f"`{path}` describes many runs: `{name}` has no single `value`",
                "a run needs one value a key: `KEY: {value: VALUE}`",
            )
    return {name: spec["value"] for name, spec in parameters.items()}
