"""Keys that the other keys of a config leave unread: setting one has no effect."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from typing import Any

from moist.config import Config, flat
from moist.config.overrides import build, given, place
from moist.config.schema import is_location, keys
from moist.config.systems import SYSTEMS
from moist.errors import ConfigError


@cache
def needed(key: str) -> dict[str, list[Any]]:
    """Return what must hold for a key to be read: other keys, each with its possible values."""
    section, leaf = place(key)
    spec = keys()[key]
    found = {f"{section}.{by}": values for by, values in spec.get("only", {}).items()}
    found |= spec.get("needs", {})
    for by, at in spec.get("unless", {}).items():
        every = keys()[f"{section}.{by}"]["enum"]
        found[f"{section}.{by}"] = [value for value in every if value != at]
    own = section or leaf
    systems = [name for name, system in SYSTEMS.items() if own in system.reads]
    if systems:
        found["system"] = systems
    return found


def no_effect(key: str, possible: Callable[[str], Collection[Any]]) -> str:
    """Return why a key is never read, given the possible values of others; empty if it may be."""
    for other, values in needed(key).items():
        if not any(value in values for value in possible(other)):
            has = " or ".join(f"`{other}={_text(value)}`" for value in possible(other))
            want = " or ".join(map(_text, values))
            return f"`{key}` has no effect with {has}; it needs `{other}={want}`"
    return ""


def unread(config: Config) -> dict[str, str]:
    """Return each key that a config leaves unread, and why."""
    values = flat(config)
    reasons = {key: no_effect(key, lambda other: [values[other]]) for key in values}
    return {key: reason for key, reason in reasons.items() if reason}


def check_read(overrides: Iterable[str], keywords: Mapping[str, Any] | None = None) -> None:
    """Raise ConfigError for a `KEY=VALUE`, or a Python keyword, that has no effect.

    Those of an `@FILE` may: it is for several systems. But a path that is not read is an error
    there too, since the run would be of other data.
    """
    overrides, keywords = list(overrides), keywords or {}
    config = build({**given(overrides), **keywords})
    values, reasons = flat(config), unread(config)
    words = {**given(word for word in overrides if not word.startswith("@")), **keywords}
    rejected = [key for key in reasons if key in words or (is_location(key) and values[key])]
    if rejected:
        raise ConfigError(
            "\n".join(map(reasons.__getitem__, rejected)), "set what it needs, or leave it out"
        )


def _text(value: object) -> str:
    return (
        "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
