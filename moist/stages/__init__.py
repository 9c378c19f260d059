"""The stages of the method: plain functions `(env, *, inputs) -> artifact`, one a file.

`env`, left of the star, is where a stage computes; everything right of it enters the stage's key,
so that a stage can't depend on anything that is not in its key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

LATENCIES = ("measure_latency", "measure_exported_latency")
"""The stages that time models: the only ones whose keys depend on the machine."""
VERSIONS: dict[str, int] = {}
"""The version of each stage that has been imported."""


def stage(version: int, added: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Mark a function as a stage; bump `version` whenever its maths changes.

    `added` names arguments that it got after keys of it were stored: as a config field marked
    `added`, a key leaves one out while it has its default.
    """

    def mark(function: F) -> F:
        VERSIONS[function.__name__] = version
        function.version = version  # type: ignore[attr-defined]
        function.added = added  # type: ignore[attr-defined]
        return function

    return mark
