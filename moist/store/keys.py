"""The inputs of a stage as JSON, and the key that is their digest."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from moist.config import Section, keyed

SHORT = 8
"""Characters of a key that are printed; commands accept any unique prefix."""


def canonical(tree: Any) -> bytes:
    """Return the canonical JSON text of a value. Raises ValueError for NaN and infinity."""
    return json.dumps(tree, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()


def key_of(stage: str, version: int, recipe: dict[str, Any]) -> str:
    """Return the key of a stage's output: 128 bits of the SHA-256 of all that determines it."""
    text = canonical({"stage": stage, "version": version, "inputs": recipe})
    return hashlib.sha256(text).hexdigest()[:32]


def encoded(value: Any, name: str) -> Any:
    """Convert an input to the JSON that enters the key; an output of a stage enters by its key.

    Raises TypeError, naming the input, for values that JSON does not have.
    """
    if isinstance(value, Section):
        return encoded(keyed(value), name)
    if isinstance(key := getattr(value, "key", None), str):
        return {"ref": key}
    if isinstance(value, BaseModel):
        return encoded(value.model_dump(mode="json"), name)
    if isinstance(value, Mapping) and _plain(value):
        return {k: encoded(inner, f"{name}.{k}") for k, inner in value.items()}
    if isinstance(value, tuple | list):
        return [encoded(inner, f"{name}.{i}") for i, inner in enumerate(value)]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise TypeError(f"input `{name}`: {value!r} ({type(value).__name__}) can't be part of a key")


def _plain(names: Iterable[Any]) -> bool:
    """Return whether names are distinct in JSON and none reads as a reference to an output."""
    return all(isinstance(name, str) and name != "ref" for name in names)
