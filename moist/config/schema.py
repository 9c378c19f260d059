"""Descriptions of the config's keys: meaning, default and allowed values."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, get_args

from moist.config import Config, Section, flat, sections
from moist.config.plugins import Names


@cache
def keys() -> Mapping[str, dict[str, Any]]:
    """Return default, choices or bounds, and description of every key, by dotted name."""
    schema = Config.model_json_schema()
    found: dict[str, dict[str, Any]] = {}
    defaults = flat(Config())
    for name, spec in schema["properties"].items():
        if name in sections():
            inner = schema["$defs"][sections()[name].__name__]["properties"]
            found |= {f"{name}.{leaf}": sub for leaf, sub in inner.items()}
        else:
            found[name] = spec
    return {name: {**spec, "default": defaults[name]} for name, spec in found.items()}


def bounds(spec: dict[str, Any]) -> str:
    """Return the allowed values of a key for people: `a | b`, `1 to 1000`, `text`."""
    if "items" in spec:
        return f"{bounds(spec['items'])}, comma-separated"
    if "anyOf" in spec:
        return " | ".join(bounds(one) for one in spec["anyOf"])
    if "enum" in spec:
        return " | ".join(map(str, [*spec["enum"], *spec.get("forms", ())]))
    if "const" in spec:
        return str(spec["const"])
    low = spec.get("minimum", spec.get("exclusiveMinimum"))
    high = spec.get("maximum", spec.get("exclusiveMaximum"))
    if low is None:
        kind = str(spec.get("format", spec["type"]))
        named = {
            "boolean": "true | false",
            "null": "none",
            "string": "text",
            "path": "a path, no URL",
        }
        return named.get(kind, kind)
    above = "above " if "exclusiveMinimum" in spec else ""
    return f"{above}{low} to {'below ' if 'exclusiveMaximum' in spec else ''}{high}"


def is_location(name: str) -> bool:
    """Return whether a key is only a location, which does not change the result."""
    return keys()[name].get("keyed") is False


def choices(section: type[Section], field: str) -> tuple[str, ...]:
    """Return the names that a field allows and moist implements in a registry."""
    found = section.model_fields[field]
    named = [name for one in found.metadata if isinstance(one, Names) for name in one.builtin]
    return tuple(named or get_args(found.annotation))
