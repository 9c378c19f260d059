"""From `KEY=VALUE` and `@FILE` to a config: each value is read by its field's own type."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError, create_model

from moist.config import Config, Section, flat, sections
from moist.config.schema import bounds, keys
from moist.errors import ConfigError, unknown


def parse(overrides: Iterable[str]) -> Config:
    """Build the config that `KEY=VALUE` and `@FILE` arguments describe; later ones win.

    Raises ConfigError for an unknown key (with the nearest one), a value out of bounds, a
    combination that can't work, or a file that holds no values.
    """
    return build(given(overrides))


def given(overrides: Iterable[str]) -> dict[str, Any]:
    """The values of `KEY=VALUE` and `@FILE` arguments as they are written, later ones winning."""
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
    return values


def build(values: Mapping[str, Any]) -> Config:
    """Build a config from dotted names and values, each read by its field's own type."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        section, leaf = place(key)
        (nested.setdefault(section, {}) if section else nested)[leaf] = value
    try:
        return Config.model_validate(nested)
    except ValidationError as error:
        said = [_said(one, values) for one in error.errors()]
    raise ConfigError("\n".join(dict.fromkeys(said)))


def read(key: str, value: object) -> Any:
    """One value as `flat` shows it, read by its key's own type, whatever other keys say.

    Raises ConfigError for an unknown key (with the nearest one) and a value out of bounds.
    """
    _, leaf = place(key)
    try:
        return _alone(key).model_validate({leaf: value}).model_dump(mode="json")[leaf]
    except ValidationError:
        raise ConfigError(f"`{key}={value}`: expected {bounds(keys()[key])}") from None


@cache
def _alone(key: str) -> type[BaseModel]:
    """A model of one key, without its section's checks of how keys go together."""
    section, leaf = place(key)
    field = (sections()[section] if section else Config).model_fields[leaf]
    fields: dict[str, Any] = {leaf: (field.annotation, field)}
    return create_model("Alone", __base__=Section, **fields)


def place(key: str) -> tuple[str, str]:
    """Section (may be none) and name of a key. Raises ConfigError, with the nearest one."""
    known = flat(Config())
    if key not in known:
        raise unknown("key", key, () if key in sections() else known, _listing(key))
    section, _, leaf = key.rpartition(".")
    return section, leaf


def _listing(key: str) -> str:
    """Return where the keys are that an unknown one may stand for."""
    if key in sections():
        first = next(name for name in flat(Config()) if name.startswith(f"{key}."))
        return f"give one of its keys, as in `{first}=...`"
    return "`moist config --keys` lists all keys"


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


class Word(str):
    """A scalar as it is written; `seen` is what YAML 1.1, and so W&B, takes it for."""

    seen: Any


class _Words(yaml.BaseLoader):
    """Scalars stay text, and no key is given twice."""

    def construct_scalar(self, node: yaml.ScalarNode) -> Word:
        word = Word(super().construct_scalar(node))
        word.seen = str(word) if node.style else yaml.safe_load(node.value)
        return word

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for number, (key, _) in enumerate(node.value):
            if key.value in names[:number]:
                raise yaml.MarkedYAMLError(
                    None, None, f"`{key.value}` is given twice", key.start_mark
                )
        return super().construct_mapping(node, deep)


def document(path: Path) -> Any:
    """What a YAML file holds. Its scalars are `Word`s: text, as on the command line.

    YAML would read `1e-4` as text and `no` as False. Raises ConfigError when it can't be read.
    """
    try:
        return yaml.load(path.read_text(), Loader=_Words)
    except OSError as error:
        raise ConfigError(f"can't read `{path}`: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        said = " ".join(str(error).replace('in "<unicode string>",', "in").split())
        raise ConfigError(f"`{path}` is not YAML: {said}") from None


def read_values(path: Path) -> dict[str, Any]:
    """The values a YAML file fixes: flat `key: value` lines, or a sweep of single values.

    Raises ConfigError when the file can't be read, or when it asks for more than one run.
    """
    content = document(path)
    if not isinstance(content, dict):
        raise ConfigError(f"`{path}` holds no `key: value` lines")
    if "parameters" not in content:
        return content
    parameters = content["parameters"]
    if not isinstance(parameters, dict):
        raise ConfigError(f"`{path}`: `parameters` holds no `key: {{value: ...}}` lines")
    for name, spec in parameters.items():
        if not (isinstance(spec, dict) and set(spec) == {"value"}):
            raise ConfigError(
                f"`{path}` describes many runs: `{name}` has no single `value`",
                "a run needs one value a key: `KEY: {value: VALUE}`",
            )
    return {name: spec["value"] for name, spec in parameters.items()}
